import Database from "better-sqlite3"
import { join } from "node:path"
import { isBusyError } from "./storage-errors.ts"

/**
 * Keeps a second coordinator out of the data directory. SQLite's own file lock: the kernel drops it when the process
 * ends, however it ends, so nothing stale is left. Throws one clear line when another process has it.
 */
export function lockDataDir(dataDir: string): Disposable {
  const database = new Database(join(dataDir, "lock"), { timeout: 0 })
  try {
    database.exec("BEGIN EXCLUSIVE")
  } catch (error) {
    database.close()
    if (!isBusyError(error)) throw error
    throw new Error(`the data directory ${dataDir} is in use by another coordinator`, { cause: error })
  }
  return { [Symbol.dispose]: () => database.close() }
}
