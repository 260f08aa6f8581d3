import type Database from "better-sqlite3"
import { assert } from "../../protocol/base/assert.ts"
import type { SqlRow, SqlValue, Tx } from "./store.ts"
import { isDamage, isStorageError } from "./storage-errors.ts"

/** One SQLite connection and its prepared statements, kept by their text. */
export class Connection {
  readonly database: Database.Database
  /** Set once a statement failed because the disk did; the whole transaction is then given up. */
  storageError: unknown = null
  /** Called when a statement finds the file damaged. */
  readonly onDamage: (error: unknown) => void
  readonly #statements = new Map<string, Database.Statement<unknown[], unknown>>()

  constructor(database: Database.Database, onDamage: (error: unknown) => void) {
    this.database = database
    this.onDamage = onDamage
  }

  prepared(sql: string): Database.Statement<unknown[], unknown> {
    const known = this.#statements.get(sql)
    if (known) return known
    assert(!TRANSACTION_CONTROL.test(sql), "an act leaves transactions to the store")
    const statement = this.database.prepare<unknown[], unknown>(sql)
    for (const [oldest] of this.#statements) {
      if (this.#statements.size < MOST_STATEMENTS) break
      this.#statements.delete(oldest)
    }
    this.#statements.set(sql, statement)
    return statement
  }
}

/** Texts with lists of `?` differ by length; the cache must not grow with them. A statement takes about 5 KB. */
const MOST_STATEMENTS = 1000
const TRANSACTION_CONTROL = /^\s*(begin|commit|end|rollback|savepoint|release|pragma|attach|vacuum)\b/i

/** What one act sees of a connection: works until the act settles, then throws. */
export class ActHandle implements Tx {
  readonly #connection: Connection
  #settled = false

  constructor(connection: Connection) {
    this.#connection = connection
  }

  async all<Row extends object = SqlRow>(sql: string, ...parameters: SqlValue[]): Promise<Row[]> {
    return this.#attempt(() => this.#connection.prepared(sql).all(...parameters.map(bindable)) as Row[])
  }

  async get<Row extends object = SqlRow>(sql: string, ...parameters: SqlValue[]): Promise<Row | undefined> {
    return this.#attempt(() => this.#connection.prepared(sql).get(...parameters.map(bindable)) as Row | undefined)
  }

  async run(sql: string, ...parameters: SqlValue[]): Promise<{ changes: number }> {
    return this.#attempt(() => ({ changes: this.#connection.prepared(sql).run(...parameters.map(bindable)).changes }))
  }

  settle(): void {
    this.#settled = true
  }

  #attempt<T>(statement: () => T): T {
    assert(!this.#settled, "a tx or view is used by its own act only, and not after the act settled")
    try {
      return statement()
    } catch (error) {
      if (isStorageError(error)) this.#connection.storageError = error
      if (isDamage(error)) this.#connection.onDamage(error)
      throw error
    }
  }
}

/** The driver binds every number as REAL, and `5 / 2.0` is not `5 / 2`: whole numbers travel as INTEGER. */
function bindable(value: SqlValue): SqlValue {
  return typeof value === "number" && Number.isSafeInteger(value) ? BigInt(value) : value
}
