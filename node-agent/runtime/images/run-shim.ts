import { fileURLToPath } from "node:url"
import type { RunAdditions } from "./edit-bundle.ts"

/** Package indexes as the node's operator has set them up: they hold in every RUN and are never left in an image. */
export interface PackageSettings {
  pipIndexUrl?: string | undefined
  npmRegistry?: string | undefined
  /** File of certificates for indexes that a public authority does not vouch for. */
  caBundlePath?: string | undefined
}

export interface ShimParts {
  runsc: string
  /** State directory of this build alone; goes with it. */
  stateDirectory: string
  /** Global flags that this runsc needs, found out by trying (build.ts). */
  flags: readonly string[]
  network: "none" | "host"
  packages: PackageSettings
  /** Stands for /run in every RUN when there is a CA bundle; holds it as `CA_BUNDLE`. */
  runDirectory: string
}

/** Where the CA bundle lies below /run. */
export const CA_BUNDLE = "computalot/ca.crt"

/**
 * The program that buildah takes for its runtime: runsc with our flags. `delete` is answered by us: Debian's runsc waits five
 * seconds for a zombie and fails the build, and a build has its own processes, mounts and state directory, which all go
 * with it. It only waits until the sandbox has ended, so that nothing writes while the layer is read.
 */
export function shimScript(parts: ShimParts): string {
  const runsc = [parts.runsc, `--root=${parts.stateDirectory}`, "--ignore-cgroups", `--network=${parts.network}`]
  const additions = runAdditions(parts)
  const wanted = Object.keys(additions.env).length > 0
  const edit = `${quoted([process.execPath, EDIT_PROGRAM])} "$bundle" ${quoted([JSON.stringify(additions)])} || exit 1`
  return `#!/bin/sh
unset TMPDIR # runsc makes its chroot there, and cannot enter one below a private directory
case $1 in
delete)
  waited=0
  while [ $waited -lt 250 ] && grep -qsaE '^runsc-(sandbox|gofer)' /proc/[0-9]*/cmdline; do
    sleep 0.02
    waited=$((waited + 1))
  done
  exit 0 ;;
create)
  bundle= previous=
  for argument; do
    [ "$previous" = --bundle ] && bundle=$argument
    previous=$argument
  done
  ${wanted ? edit : ":"} ;;
esac
exec ${quoted([...runsc, ...parts.flags])} "$@"
`
}

function runAdditions({ packages, runDirectory }: ShimParts): RunAdditions {
  const env: Record<string, string> = {}
  if (packages.pipIndexUrl !== undefined) env["PIP_INDEX_URL"] = packages.pipIndexUrl
  if (packages.npmRegistry !== undefined) env["NPM_CONFIG_REGISTRY"] = packages.npmRegistry
  if (packages.caBundlePath === undefined) return { env, runDirectory: null }
  for (const name of CA_VARIABLES) env[name] = `/run/${CA_BUNDLE}`
  return { env, runDirectory }
}

const CA_VARIABLES = ["PIP_CERT", "NPM_CONFIG_CAFILE", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE"]

function quoted(words: readonly string[]): string {
  return words.map((word) => `'${word.replaceAll("'", `'\\''`)}'`).join(" ")
}

const EDIT_PROGRAM = fileURLToPath(
  new URL(import.meta.url.endsWith(".ts") ? "./edit-bundle.ts" : "./edit-bundle.js", import.meta.url),
)
