/** Values SQLite and PostgreSQL both understand. Booleans travel as 0 and 1, times as whole milliseconds, JSON as text. */
export type SqlValue = string | number | bigint | Uint8Array | null
export type SqlRow = Record<string, SqlValue>

/**
 * A snapshot of committed data. Inside a read or write nothing but the view may be awaited: no network, no timer, no file.
 * Throws once its act has settled.
 *
 * A statement that joins, orders or groups and compares a column with a bare `?` is parsed and planned by SQLite again at each
 * run, as the value might change the plan: four to ten times the cost of a small one. Where that counts the parameter is hidden
 * from the planner: `? + 0` for a number, `? || ''` for a text (test/unit/prepared-once.test.ts).
 */
export interface View {
  /** All rows. SQL stays in the subset that SQLite and PostgreSQL share; parameters are `?` in order. */
  all<Row extends object = SqlRow>(sql: string, ...parameters: SqlValue[]): Promise<Row[]>
  /** The first row, or undefined. */
  get<Row extends object = SqlRow>(sql: string, ...parameters: SqlValue[]): Promise<Row | undefined>
}

/** The one way to change anything. Sees its own changes and those of earlier acts. */
export interface Tx extends View {
  /** Runs a statement; `changes` counts the rows it changed: a conditional UPDATE looks at it. */
  run(sql: string, ...parameters: SqlValue[]): Promise<{ changes: number }>
}

/** A long read, and where another thread finds it. Arguments and answer are copied from thread to thread. */
export interface AsideRead<Answer, Args extends readonly unknown[] = []> {
  /** `import.meta.url` of the file that exports it. */
  readonly module: string
  /** Its name there. */
  readonly name: string
  readonly run: (view: View, ...args: Args) => Promise<Answer>
}

export interface Store extends AsyncDisposable {
  /**
   * Runs `act` alone in a transaction and resolves with its result after COMMIT (durable). A throw rolls back this act only.
   * An act may be run again: ids and times are arguments, effects happen after the promise resolves, driven by its result.
   * Refuses with `storage_full` or `busy` (503) when nothing can be written; then nothing of the act is stored.
   */
  write<T>(act: (tx: Tx) => Promise<T>): Promise<T>
  /** Runs `look` on a fresh snapshot of what is committed. Never waits for a write. */
  read<T>(look: (view: View) => Promise<T>): Promise<T>
  /**
   * As `read`, on a thread of its own: for what takes longer than the 20 ms that a statement may hold up requests and
   * heartbeats (architecture §4). Refuses with `busy` when too many wait. Closing the store ends it after the statement that
   * it is at: SQLite is not interrupted.
   */
  readAside<Answer, Args extends readonly unknown[]>(read: AsideRead<Answer, Args>, ...args: Args): Promise<Answer>
  /**
   * Calls `heard` after each COMMIT that changed what is stored of jobs (job-changes.ts), with their seqs, before its writers
   * have their answers: what was read of a job holds until then. `jobs` is good during the call only.
   */
  onJobsChanged(heard: (jobs: ReadonlySet<number>) => void): Disposable
  /** Null while writes work; else why they do not (disk full, read-only): `/ready` and refusals show it. */
  writeProblem(): string | null
}
