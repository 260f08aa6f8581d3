import type Database from "better-sqlite3"
import { readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import type { Instant } from "../../protocol/base/clock.ts"
import { sha256Hex } from "../../protocol/base/digest.ts"

export interface Migration {
  number: number
  /** The file's name without its ending: `0001-numbers`. */
  name: string
  sql: string
}

/**
 * Brings the schema up to date, each migration in a transaction of its own; gives the names of those it ran.
 * Refuses, with one clear line and nothing changed, data that a newer version wrote and migrations that were edited
 * after they ran.
 */
export function migrate(database: Database.Database, known: Migration[], at: Instant): string[] {
  database.exec(`CREATE TABLE IF NOT EXISTS migrations (
    number INTEGER NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    applied_at INTEGER NOT NULL
  ) STRICT`)
  const applied = database
    .prepare<[], AppliedMigration>("SELECT number, name, sha256 FROM migrations ORDER BY number")
    .all()
  refuseOtherHistory(applied, known)
  const missing = known.slice(applied.length)
  for (const migration of missing) apply(database, migration, at)
  return missing.map(({ name }) => name)
}

/** The migrations of this version, in order. */
export function knownMigrations(folder: string = MIGRATIONS_FOLDER): Migration[] {
  return readdirSync(folder)
    .filter((file) => MIGRATION_FILE.test(file))
    .sort()
    .map((file) => ({
      number: Number(file.slice(0, 4)),
      name: file.slice(0, -".sql".length),
      sql: readFileSync(join(folder, file), "utf8"),
    }))
}

const MIGRATIONS_FOLDER = fileURLToPath(new URL("migrations/", import.meta.url))
const MIGRATION_FILE = /^\d{4}-[a-z0-9-]+\.sql$/

interface AppliedMigration {
  number: number
  name: string
  sha256: string
}

/** What ran must be the beginning of what we know, word for word. */
function refuseOtherHistory(applied: AppliedMigration[], known: Migration[]): void {
  const newest = known.at(-1)
  for (const [index, before] of applied.entries()) {
    const same = known[index]
    if (newest === undefined || before.number > newest.number) {
      throw new Error(
        `the data was written by a newer version (it has migration ${before.name}; this version ends at ${newest?.name})`,
      )
    }
    if (same === undefined || same.number !== before.number) {
      throw new Error(`the data has migration ${before.name} where this version has ${same?.name}: another history`)
    }
    if (sha256Hex(same.sql) !== before.sha256) {
      throw new Error(`migration ${before.name} was edited after it ran on this data: a change needs a new migration`)
    }
  }
}

function apply(database: Database.Database, migration: Migration, at: Instant): void {
  database.exec("BEGIN IMMEDIATE")
  try {
    database.exec(migration.sql)
    database
      .prepare("INSERT INTO migrations (number, name, sha256, applied_at) VALUES (?, ?, ?, ?)")
      .run(BigInt(migration.number), migration.name, sha256Hex(migration.sql), BigInt(at))
    database.exec("COMMIT")
  } catch (error) {
    if (database.inTransaction) database.exec("ROLLBACK")
    throw new Error(`migration ${migration.name} failed, the data is unchanged`, { cause: error })
  }
}
