import { join } from "node:path"
import { DatabaseSync } from "node:sqlite"

/** Asks the database of a coordinator that may be running: what it has committed, at this moment. */
export function storedRows<Row>(dataDir: string, sql: string, ...parameters: string[]): Row[] {
  const database = new DatabaseSync(join(dataDir, "computalot.db"), { readOnly: true })
  try {
    database.exec("PRAGMA busy_timeout = 2000")
    return database.prepare(sql).all(...parameters) as Row[]
  } finally {
    database.close()
  }
}
