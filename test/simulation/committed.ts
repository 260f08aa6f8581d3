import RealDatabase from "better-sqlite3"

/** What the coordinator's database holds for good at this moment, over a connection of its own: it sees nothing uncommitted. */
export class Committed implements Disposable {
  readonly #database: RealDatabase.Database
  readonly #end: RealDatabase.Statement<[number]>
  readonly #checkpoint: RealDatabase.Statement<[number, number, number]>
  readonly #job: RealDatabase.Statement<[string]>
  readonly #unbuilt: RealDatabase.Statement<[]>
  readonly #building: RealDatabase.Statement<[number]>
  readonly #later: RealDatabase.Statement<[]>
  readonly #left: RealDatabase.Statement<[]>

  constructor(file: string) {
    this.#database = new RealDatabase(file, { readonly: true })
    this.#end = this.#database.prepare("SELECT state FROM attempts WHERE claim = ?")
    this.#checkpoint = this.#database.prepare(
      `SELECT 1 FROM attempts a JOIN checkpoints c ON c.task = a.task
       WHERE a.claim = ? AND (c.claim > a.claim OR (c.claim = ? AND c.n >= ?))`,
    )
    this.#job = this.#database.prepare("SELECT status FROM jobs WHERE id = ?")
    this.#unbuilt = this.#database.prepare(UNBUILT)
    this.#building = this.#database.prepare(
      "SELECT count(*) AS left FROM revisions WHERE build_claim = ? AND build = 'building'",
    )
    this.#later = this.#database.prepare(LATER)
    this.#left = this.#database.prepare(LEFT)
  }

  /** Has the attempt of this claim ended by its own report? */
  hasResult(claim: number): boolean {
    const { state } = (this.#end.get(claim) ?? { state: null }) as { state: string | null }
    return state === "completed" || state === "failed"
  }

  /** Is there this checkpoint of the claim's task, or a later one? */
  hasCheckpoint(claim: number, n: number): boolean {
    return this.#checkpoint.get(claim, claim, n) !== undefined
  }

  /** Null: there is no such job. */
  jobStatus(id: string): string | null {
    return (this.#job.get(id) as { status: string } | undefined)?.status ?? null
  }

  /** Has a node proved that a later copy of these data has run? */
  isOlderCopy(): boolean {
    return (this.#later.get() as { is_older: number | null }).is_older === 1
  }

  /** No job goes on and no attempt lives; with `builds`, what is to be built is. */
  hasNothingLeft({ builds }: { builds: boolean }): boolean {
    if ((this.#left.get() as { left: number }).left > 0) return false
    return !builds || (this.#unbuilt.get() as { left: number }).left === 0
  }

  /** Has the build under this number ended? */
  hasBuilt(claim: number): boolean {
    return (this.#building.get(claim) as { left: number }).left === 0
  }

  [Symbol.dispose](): void {
    this.#database.close()
  }
}

const UNBUILT = `SELECT count(*) AS left FROM projects p JOIN revisions r ON r.id = p.active_revision
  WHERE r.build NOT IN ('built', 'failed')`
const LATER = `SELECT (SELECT value FROM numbers WHERE name = 'later_epoch') >
  (SELECT value FROM numbers WHERE name = 'epoch') AS is_older`
/** Bytes that nobody reported are swept within minutes. */
const LEFT = `SELECT (SELECT count(*) FROM staged_blobs) + (SELECT count(*) FROM jobs WHERE completed_at IS NULL OR outcome IS NULL)
  + (SELECT count(*) FROM attempts WHERE ended_at IS NULL)
  + (SELECT count(*) FROM tasks WHERE state IN ('queued', 'granted', 'running', 'lost')) AS left`
