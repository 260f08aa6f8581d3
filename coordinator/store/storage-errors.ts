import Database from "better-sqlite3"

/** True when the disk is the cause (full, read-only, failing, out of memory), not the statement. */
export function isStorageError(error: unknown): boolean {
  const code = sqliteCode(error)
  return code !== null && STORAGE_CODES.has(primary(code))
}

/**
 * True when a failed COMMIT certainly stored nothing: its last frame, which makes the others count, was not written.
 * After any other failure (fsync, growing the index) a restart may find the transaction committed.
 */
export function isCertainlyNotCommitted(error: unknown): boolean {
  const code = sqliteCode(error)
  return code !== null && (code === "SQLITE_IOERR_WRITE" || REFUSED_BEFORE_WRITING.has(primary(code)))
}

/** True when the file is not what SQLite wrote: no later try can help. */
export function isDamage(error: unknown): boolean {
  const code = sqliteCode(error)
  return code !== null && (primary(code) === "SQLITE_CORRUPT" || primary(code) === "SQLITE_NOTADB")
}

/** True when another process holds the database's write lock for longer than we wait (a backup tool, a shell). */
export function isBusyError(error: unknown): boolean {
  const code = sqliteCode(error)
  return code !== null && (primary(code) === "SQLITE_BUSY" || primary(code) === "SQLITE_LOCKED")
}

const STORAGE_CODES = new Set([
  "SQLITE_FULL",
  "SQLITE_IOERR",
  "SQLITE_NOMEM",
  "SQLITE_READONLY",
  "SQLITE_CANTOPEN",
  "SQLITE_CORRUPT",
])
const REFUSED_BEFORE_WRITING = new Set(["SQLITE_FULL", "SQLITE_READONLY", "SQLITE_BUSY"])

function sqliteCode(error: unknown): string | null {
  return error instanceof Database.SqliteError ? error.code : null
}

/** `SQLITE_IOERR_WRITE` → `SQLITE_IOERR`. */
function primary(code: string): string {
  return code.split("_").slice(0, 2).join("_")
}
