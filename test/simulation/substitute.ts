import { registerHooks } from "node:module"
import { readFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { mutated, type Mutant } from "./mutants.ts"

/**
 * Puts the simulation's disk below the programs: everything under coordinator/, node-agent/ and protocol/ that imports the file
 * system or SQLite gets the stand-ins of `disk/`, which answer at once and in order, and can be cut off like a machine. Whatever
 * the programs learn to write later comes here by itself. A mutant is a deliberate fault, put into the source as it is loaded.
 */
export function substitute(mutant: Mutant | null): void {
  registerHooks({
    resolve(specifier, context, next) {
      const standIn = STAND_INS[specifier]
      if (standIn === undefined || !isOurs(context.parentURL)) return next(specifier, context)
      return { url: new URL(standIn, import.meta.url).href, shortCircuit: true }
    },
    load(url, context, next) {
      const file = url.startsWith(REPOSITORY) ? url.slice(REPOSITORY.length) : null
      if (file === null || !mutant?.edits.some((edit) => edit.file === file)) return next(url, context)
      const source = mutated(mutant, file, readFileSync(fileURLToPath(url), "utf8"))
      return { format: "module-typescript", source, shortCircuit: true }
    },
  })
}

const STAND_INS: Record<string, string> = {
  "node:fs": "./disk/files.ts",
  "node:fs/promises": "./disk/files-at-once.ts",
  "better-sqlite3": "./disk/database.ts",
  "node:crypto": "./disk/known-signatures.ts",
  "@libp2p/crypto/keys": "./disk/no-libp2p-keys.ts",
}

const isOurs = (url: string | undefined): boolean =>
  url !== undefined && PROGRAMS.some((folder) => url.startsWith(folder))

const REPOSITORY = new URL("../../", import.meta.url).href
const PROGRAMS = ["coordinator/", "node-agent/", "protocol/"].map((folder) => `${REPOSITORY}${folder}`)
