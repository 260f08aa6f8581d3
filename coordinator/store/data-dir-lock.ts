import Database from "better-sqlite3"
import { join } from "node:path"
import { errorText } from "../../protocol/base/error-text.ts"
import { isBusyError } from "./storage-errors.ts"

/**
 * Keeps a second coordinator out of the data directory. SQLite's own file lock: the kernel drops it when the process
 * ends, however it ends, so nothing stale is left. Throws one clear line when another process has it.
 */
export function lockDataDir(dataDir: string): Disposable {
  const database = openLockFile(dataDir)
  try {
    database.pragma("journal_mode = MEMORY") // nothing is written: no journal file beside the lock
    database.exec("BEGIN EXCLUSIVE")
  } catch (error) {
    database.close()
    throw isBusyError(error)
      ? new Error(`the data directory ${dataDir} is in use by another coordinator`, { cause: error })
      : cannotBeUsed(dataDir, error)
  }
  return { [Symbol.dispose]: () => database.close() }
}

function openLockFile(dataDir: string): Database.Database {
  try {
    return new Database(join(dataDir, "lock"), { timeout: 0 })
  } catch (error) {
    throw cannotBeUsed(dataDir, error)
  }
}

function cannotBeUsed(dataDir: string, error: unknown): Error {
  return new Error(`the data directory ${dataDir} cannot be used: ${errorText(error)}`, { cause: error })
}
