import { readFileSync, writeFileSync } from "node:fs"

/**
 * The child program that the runtime shim calls before each RUN: `edit-bundle.ts BUNDLE ADDITIONS_JSON` adds to the bundle's
 * config.json what a RUN shall see and no image shall keep.
 */
const [bundle = "", additions = ""] = process.argv.slice(2)
const file = `${bundle}/config.json`
const { env, runDirectory } = JSON.parse(additions) as RunAdditions
const config = JSON.parse(readFileSync(file, "utf8")) as {
  process: { env?: string[] | null }
  mounts: { destination: string; type: string; source: string; options: string[] }[]
}
// Of the RUN, not of this program.
const started = config.process
started.env = [...(started.env ?? []), ...Object.entries(env).map(([name, value]) => `${name}=${value}`)]
// First, because buildah mounts a file below it.
if (runDirectory !== null) {
  config.mounts.unshift({ destination: "/run", type: "bind", source: runDirectory, options: ["rbind"] })
}
writeFileSync(file, JSON.stringify(config))

export interface RunAdditions {
  env: Record<string, string>
  /** Directory of the machine shown as /run, which every image has: elsewhere runsc would leave the mount's place behind. */
  runDirectory: string | null
}
