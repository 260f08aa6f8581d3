import { readFileSync, writeFileSync } from "node:fs"

/**
 * The child program that the runtime shim calls before each RUN: `edit-bundle.ts BUNDLE ADDITIONS_JSON` adds environment
 * and files to the bundle's config.json. What is added there is never part of the image.
 */
const [bundle = "", additions = ""] = process.argv.slice(2)
const file = `${bundle}/config.json`
const { env, files } = JSON.parse(additions) as RunAdditions
const config = JSON.parse(readFileSync(file, "utf8")) as {
  process: { env?: string[] | null }
  mounts: { destination: string; type: string; source: string; options: string[] }[]
}
config.process.env = [...(config.process.env ?? []), ...Object.entries(env).map(([name, value]) => `${name}=${value}`)]
for (const { hostPath, path } of files) {
  config.mounts.push({ destination: path, type: "bind", source: hostPath, options: ["bind", "ro"] })
}
writeFileSync(file, JSON.stringify(config))

export interface RunAdditions {
  env: Record<string, string>
  /** Files of the machine shown read-only. */
  files: { hostPath: string; path: string }[]
}
