import Database from "better-sqlite3"
import { existsSync, writeFileSync } from "node:fs"
import { databaseFile } from "./database-file.ts"

/**
 * Copies the database of a data directory to a new file, as it is at one moment, while a coordinator may be writing to it;
 * neither waits for the other. The copy is one file without a log beside it. Throws when there is no database.
 */
export async function copyDatabase(dataDir: string, to: string): Promise<void> {
  const from = databaseFile(dataDir)
  if (!existsSync(from)) throw new Error(`there is no coordinator's database in ${dataDir}`)
  writeFileSync(to, "", { mode: 0o600, flag: "wx" })
  using opened = new DisposableStack()
  const open = (file: string, options: Database.Options): Database.Database =>
    opened.adopt(new Database(file, { ...options, timeout: LOCK_WAIT_MS }), (database) => database.close())
  const source = open(from, { readonly: true })
  // One snapshot from the first page to the last: without it each write of the coordinator would start the copy over.
  source.exec("BEGIN")
  source.prepare("SELECT 1 FROM sqlite_schema").get()
  await source.backup(to, { progress: () => PAGES_A_STEP })
  source.exec("ROLLBACK")
  open(to, {}).pragma("journal_mode = DELETE")
}

/** What a copy says of itself. */
export interface CopyFacts {
  epoch: number
  /** Each blob that a record names, once, with one of the records. */
  blobs(): Iterable<NeededBlob>
}

export interface NeededBlob {
  digest: string
  /** What kind of record needs it, and which one. */
  kind: string
  owner: string
}

/** Reads a copy that no program has open. */
export function openCopy(file: string): CopyFacts & Disposable {
  const database = new Database(file, { readonly: true })
  try {
    const epoch = database.prepare<[], { value: number }>("SELECT value FROM numbers WHERE name = 'epoch'").get()
    return {
      epoch: epoch?.value ?? 0,
      blobs: () => database.prepare<[], NeededBlob>(NEEDED_BLOBS).iterate(),
      [Symbol.dispose]: () => database.close(),
    }
  } catch (error) {
    database.close()
    throw error
  }
}

const NEEDED_BLOBS = "SELECT digest, min(kind) AS kind, min(owner) AS owner FROM blob_references GROUP BY digest"

/** 16 MiB: some ten milliseconds, after which signals are heard. */
const PAGES_A_STEP = 4096
const LOCK_WAIT_MS = 5_000
