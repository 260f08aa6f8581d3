import Database from "better-sqlite3"
import { mkdirSync } from "node:fs"
import { join } from "node:path"
import { errorText } from "../../protocol/base/error-text.ts"

/**
 * Makes the data directory where it is missing and keeps a second agent out of it. SQLite's own file lock: the kernel drops
 * it when the process ends, however it ends. Throws one clear line when another process has it.
 */
export function lockDataDir(dataDir: string): Disposable {
  let database: Database.Database
  try {
    mkdirSync(dataDir, { recursive: true, mode: 0o711 })
    database = new Database(join(dataDir, "lock"), { timeout: 0 })
  } catch (error) {
    throw new Error(`the data directory ${dataDir} cannot be used: ${errorText(error)}`, { cause: error })
  }
  try {
    database.pragma("journal_mode = MEMORY") // nothing is written: no journal file beside the lock
    database.exec("BEGIN EXCLUSIVE")
  } catch (error) {
    database.close()
    const busy = error instanceof Error && "code" in error && String(error.code).startsWith("SQLITE_BUSY")
    const why = busy ? "is in use by another agent" : `cannot be used: ${errorText(error)}`
    throw new Error(`the data directory ${dataDir} ${why}`, { cause: error })
  }
  return { [Symbol.dispose]: () => database.close() }
}
