import Database from "better-sqlite3"
import { existsSync, rmSync, statSync, writeFileSync } from "node:fs"
import { extname, join } from "node:path"
import { Worker } from "node:worker_threads"
import { errorText } from "../../protocol/base/error-text.ts"
import { databaseFile } from "./database-file.ts"

/** What the database says it holds cannot be believed any more: the program ends, and starts again on sound data only. */
export class DatabaseDamaged extends Error {
  override name = "DatabaseDamaged"
  constructor(dataDir: string, what: string) {
    super(
      `the database in ${dataDir} is damaged (${what.replaceAll(/\s+/g, " ")}): ` +
        "restore a backup into another directory, or repair the file",
    )
  }
}

/**
 * Why a data directory is to be looked at, asked before its store is opened. `unclean`: the last program to use it did not
 * close it, as after a crash of the machine; what SQLite promises of that is checked beside the work, because it almost always
 * holds. `damaged`: a former program met damage, and the whole file is read before anything relies on it.
 */
export function doubtAbout(dataDir: string): "unclean" | "damaged" | null {
  if (existsSync(damagedMark(dataDir))) return "damaged"
  return (statSync(`${databaseFile(dataDir)}-wal`, { throwIfNoEntry: false })?.size ?? 0) > 0 ? "unclean" : null
}

/** Reads the whole database in a thread of its own; throws `DatabaseDamaged`, and the next start then reads it first. */
export async function checkDatabase(dataDir: string): Promise<void> {
  const damage = await damageFoundInWorker(databaseFile(dataDir))
  if (damage === null) return rmSync(damagedMark(dataDir), { force: true })
  markDamaged(dataDir)
  throw new DatabaseDamaged(dataDir, damage)
}

/** The next start reads the whole database before it relies on it. */
export function markDamaged(dataDir: string): void {
  writeFileSync(damagedMark(dataDir), "", { flush: true })
}

const damagedMark = (dataDir: string): string => join(dataDir, "damage-met")

/** The ending is that of this very file: .ts in a checkout, .js once built. */
const WORKER = new URL(`./integrity-worker${extname(import.meta.url)}`, import.meta.url)

async function damageFoundInWorker(file: string): Promise<string | null> {
  const worker = new Worker(WORKER, { workerData: file })
  try {
    return await new Promise((resolve, reject) => {
      worker.once("message", (found: string | null) => resolve(found))
      worker.once("error", reject)
      worker.once("exit", () => reject(new Error("the check of the database ended without an answer")))
    })
  } finally {
    await worker.terminate()
  }
}

/**
 * Reads every page of a database and says what is wrong with it, in one line; null when nothing is. About a second for each
 * gigabyte, on the thread that calls.
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

const MOST_FINDINGS = 3
