import type { Clock, Timer } from "../../protocol/base/clock.ts"
import type { Log } from "../../protocol/base/log.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import type { Random } from "../../protocol/base/random.ts"
import { ComputalotError } from "../../protocol/domain/errors.ts"
import { ActRunner, LONGEST_BURST_MS, LONGEST_QUEUE, MOST_ACTS_PER_BURST, type Outcome } from "./acts.ts"
import { ActHandle, type Connection } from "./statements.ts"
import { isBusyError, isCertainlyNotCommitted, isStorageError } from "./storage-errors.ts"
import type { Tx } from "./store.ts"

export interface GroupCommitParts {
  clock: Clock
  log: Log
  strict: boolean
  /** Tests: one act in ten runs twice, its first run rolled back, as another engine might do it. */
  repeatWrites: Random | null
  /** Called after each COMMIT, before those who asked for it have their answers. */
  onCommitted: () => void
  /** COMMIT failed and may have committed: the process must end and find out at its next start. */
  onFatal: (error: Error) => void
}

interface Waiting {
  act: (tx: Tx) => Promise<unknown>
  resolve: (value: unknown) => void
  reject: (error: unknown) => void
}

/**
 * Writes in groups: all acts asked for in one turn of the event loop run in one transaction, a savepoint each, and
 * their promises settle after its COMMIT. One fsync then serves many requests (5–9 × the speed, packages.md §2).
 */
export class GroupCommit {
  readonly #connection: Connection
  readonly #parts: GroupCommitParts
  readonly #runner: ActRunner
  /** Apart from the acts' statements, which may not control transactions. */
  readonly #controls: Record<ControlSql, { run(): unknown }>
  #waiting: Waiting[] = []
  #scheduled = false
  #problem: string | null = null
  #unknownOutcome = false
  #probe: Timer | null = null
  #closed: (() => void) | null = null

  constructor(connection: Connection, parts: GroupCommitParts) {
    this.#connection = connection
    this.#parts = parts
    this.#runner = new ActRunner(parts.strict)
    const prepare = (sql: ControlSql): { run(): unknown } => connection.database.prepare(sql)
    this.#controls = {
      "BEGIN IMMEDIATE": prepare("BEGIN IMMEDIATE"),
      COMMIT: prepare("COMMIT"),
      ROLLBACK: prepare("ROLLBACK"),
      "SAVEPOINT act": prepare("SAVEPOINT act"),
      "ROLLBACK TO act": prepare("ROLLBACK TO act"),
      "RELEASE act": prepare("RELEASE act"),
    }
  }

  write<T>(act: (tx: Tx) => Promise<T>): Promise<T> {
    if (this.#closed) return Promise.reject(new ComputalotError("unavailable", "the coordinator is stopping"))
    if (this.#problem !== null) return Promise.reject(storageFull(this.#problem))
    if (this.#waiting.length >= LONGEST_QUEUE) return Promise.reject(tooManyWaiting())
    return new Promise<T>((resolve, reject) => {
      this.#waiting.push({ act, resolve: resolve as (value: unknown) => void, reject })
      this.#schedule()
    })
  }

  /** Null while writes work; else why they do not. */
  problem(): string | null {
    return this.#problem
  }

  /** Runs what is waiting, then refuses. After an unknown outcome it waits for nothing. */
  async close(): Promise<void> {
    this.#probe?.cancel()
    await new Promise<void>((resolve) => {
      this.#closed = resolve
      if (!this.#scheduled || this.#unknownOutcome) resolve()
    })
  }

  #schedule(): void {
    if (this.#scheduled) return
    this.#scheduled = true
    this.#runner.schedule(() => void this.#runGroup())
  }

  async #runGroup(): Promise<void> {
    const settled: { waiting: Waiting; outcome: Outcome }[] = []
    const refusal = (await this.#runActs(settled)) ?? this.#commit()
    if (this.#unknownOutcome) return this.#closed?.()
    // Failures too are told after COMMIT: they were decided on rows that earlier acts of the group wrote.
    for (const { waiting, outcome } of settled) {
      if (refusal) waiting.reject(refusal)
      else if (outcome.ok) waiting.resolve(outcome.value)
      else waiting.reject(outcome.error)
    }
    if (refusal) for (const waiting of this.#waiting.splice(0)) waiting.reject(refusal)
    this.#scheduled = false
    if (this.#waiting.length > 0) this.#schedule()
    else this.#closed?.()
  }

  /** Runs acts until the queue is empty or the burst is over; gives the refusal of them all when the disk fails. */
  async #runActs(settled: { waiting: Waiting; outcome: Outcome }[]): Promise<ComputalotError | null> {
    try {
      this.#control("BEGIN IMMEDIATE")
    } catch (error) {
      return this.#giveUp(error)
    }
    const startedAt = this.#parts.clock.monotonicMs()
    let waiting: Waiting | undefined
    while ((waiting = this.#waiting[settled.length])) {
      const outcome = await this.#runAct(waiting.act)
      settled.push({ waiting, outcome })
      // A full disk can end the whole transaction inside an act. Going on would commit later acts alone, outside it,
      // while everyone is refused: no further act runs.
      if (!this.#connection.database.inTransaction || this.#connection.storageError !== null) {
        this.#waiting.splice(0, settled.length)
        return this.#giveUp(this.#connection.storageError ?? (outcome.ok ? null : outcome.error))
      }
      if (settled.length >= MOST_ACTS_PER_BURST || this.#runner.turnOver) break
      if (this.#parts.clock.monotonicMs() - startedAt >= LONGEST_BURST_MS) break
    }
    this.#waiting.splice(0, settled.length)
    return null
  }

  async #runAct(act: (tx: Tx) => Promise<unknown>): Promise<Outcome> {
    const again = this.#parts.repeatWrites?.integer(REPEAT_ONE_IN) === 0
    let outcome = await this.#runInSavepoint(act, !again)
    if (again && outcome.ok) outcome = await this.#runInSavepoint(act, true)
    return outcome
  }

  async #runInSavepoint(act: (tx: Tx) => Promise<unknown>, keep: boolean): Promise<Outcome> {
    try {
      this.#control("SAVEPOINT act")
      const outcome = await this.#runner.run(act, new ActHandle(this.#connection))
      if (!this.#connection.database.inTransaction || this.#connection.storageError !== null) return outcome
      if (!keep || !outcome.ok) this.#control("ROLLBACK TO act")
      this.#control("RELEASE act")
      return outcome
    } catch (error) {
      this.#connection.storageError ??= error
      return { ok: false, error }
    }
  }

  #commit(): ComputalotError | null {
    try {
      this.#control("COMMIT")
    } catch (error) {
      if (isCertainlyNotCommitted(error)) return this.#giveUp(error)
      this.#unknownOutcome = true
      this.#problem = `the outcome of a write is unknown: ${errorText(error)}`
      this.#parts.log.error("write outcome unknown", { error: errorText(error) })
      this.#parts.onFatal(new Error("a write may or may not be stored: the process must end", { cause: error }))
      return null
    }
    this.#parts.onCommitted()
    return null
  }

  /** Undoes the group. What the disk refused is tried again by a probe; until it works writes are refused at once. */
  #giveUp(error: unknown): ComputalotError {
    this.#connection.storageError = null
    if (this.#connection.database.inTransaction) this.#control("ROLLBACK")
    if (isBusyError(error)) return new ComputalotError("busy", "another program holds the database", { cause: error })
    if (!isStorageError(error)) this.#parts.log.error("transaction lost", { error: errorText(error) })
    const problem = `the data directory cannot be written: ${errorText(error)}`
    if (this.#problem === null) this.#parts.log.error("writes refused", { problem })
    this.#problem = problem
    this.#probe ??= this.#parts.clock.after(PROBE_INTERVAL_MS, () => this.#probeWrites())
    return storageFull(problem, error)
  }

  #probeWrites(): void {
    this.#probe = null
    if (this.#closed || this.#unknownOutcome) return
    try {
      this.#control("BEGIN IMMEDIATE")
      this.#connection.prepared(PROBE_SQL).run()
    } catch (error) {
      this.#giveUp(error)
      if (isBusyError(error)) this.#probe ??= this.#parts.clock.after(PROBE_INTERVAL_MS, () => this.#probeWrites())
      return
    }
    if (this.#commit() !== null || this.#unknownOutcome) return
    this.#problem = null
    this.#parts.log.info("writes work again")
  }

  #control(sql: ControlSql): void {
    this.#controls[sql].run()
  }
}

const PROBE_SQL = `INSERT INTO numbers (name, value) VALUES ('write_probe', 1)
  ON CONFLICT (name) DO UPDATE SET value = value + 1`
type ControlSql = "BEGIN IMMEDIATE" | "COMMIT" | "ROLLBACK" | "SAVEPOINT act" | "ROLLBACK TO act" | "RELEASE act"

/** Someone makes room while we wait: a second is soon for them and rare for the disk. */
const PROBE_INTERVAL_MS = 1_000
const REPEAT_ONE_IN = 10

function storageFull(problem: string, cause?: unknown): ComputalotError {
  return new ComputalotError("storage_full", problem, {
    recommendedAction: "Nothing was changed. Send the request again later; the operator has to make room.",
    headers: { "Retry-After": "5" },
    cause,
  })
}

function tooManyWaiting(): ComputalotError {
  return new ComputalotError("busy", "too many changes are waiting to be stored", {
    recommendedAction: "Nothing was changed. Send the request again in a moment.",
    headers: { "Retry-After": "1" },
  })
}
