import Database from "better-sqlite3"
import { errorText } from "../../protocol/base/error-text.ts"

/**
 * Reads every page of a database and says what is wrong with it, in one line; null when nothing is. About a second for each
 * gigabyte, on the thread that calls: a large one is for a worker.
 */
export function findDamage(file: string): string | null {
  try {
    using opened = new DisposableStack()
    const database = opened.adopt(new Database(file, { readonly: true, fileMustExist: true }), (open) => open.close())
    const found = database.pragma(`quick_check(${MOST_FINDINGS})`) as { quick_check: string }[]
    const lines = found.map(({ quick_check }) => quick_check.replaceAll(/\s+/g, " "))
    return lines.length === 1 && lines[0] === "ok" ? null : lines.join("; ")
  } catch (error) {
    return errorText(error)
  }
}

const MOST_FINDINGS = 5
