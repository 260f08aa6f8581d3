import type { Clock } from "../../protocol/base/clock.ts"
import { ComputalotError } from "../../protocol/domain/errors.ts"
import { ActRunner, LONGEST_BURST_MS, LONGEST_QUEUE, MOST_ACTS_PER_BURST } from "./acts.ts"
import { ActHandle, type Connection } from "./statements.ts"
import type { View } from "./store.ts"

/**
 * Reads on a connection of their own, one after another, each on a fresh snapshot of what is committed. WAL lets them
 * run beside a write, so they never wait for one.
 */
export class SnapshotReads {
  readonly #connection: Connection
  readonly #clock: Clock
  readonly #runner: ActRunner
  readonly #begin: { run(): unknown }
  readonly #end: { run(): unknown }
  #waiting: (() => Promise<void>)[] = []
  #scheduled = false
  #closed: (() => void) | null = null

  constructor(connection: Connection, clock: Clock, strict: boolean) {
    this.#connection = connection
    this.#clock = clock
    this.#runner = new ActRunner(strict)
    this.#begin = connection.database.prepare("BEGIN")
    this.#end = connection.database.prepare("ROLLBACK")
  }

  read<T>(look: (view: View) => Promise<T>): Promise<T> {
    if (this.#closed) return Promise.reject(new ComputalotError("unavailable", "the coordinator is stopping"))
    if (this.#waiting.length >= LONGEST_QUEUE) return Promise.reject(tooManyWaiting())
    return new Promise<T>((resolve, reject) => {
      this.#waiting.push(async () => {
        try {
          this.#begin.run()
          const outcome = await this.#runner.run(look, new ActHandle(this.#connection))
          if (this.#connection.database.inTransaction) this.#end.run()
          if (outcome.ok) resolve(outcome.value)
          else reject(outcome.error)
        } catch (error) {
          reject(error)
        }
      })
      this.#schedule()
    })
  }

  async close(): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#closed = resolve
      if (!this.#scheduled) resolve()
    })
  }

  #schedule(): void {
    if (this.#scheduled) return
    this.#scheduled = true
    this.#runner.schedule(() => void this.#runBurst())
  }

  async #runBurst(): Promise<void> {
    const startedAt = this.#clock.monotonicMs()
    let done = 0
    let next: (() => Promise<void>) | undefined
    while ((next = this.#waiting[done])) {
      await next()
      done += 1
      if (done >= MOST_ACTS_PER_BURST || this.#runner.turnOver) break
      if (this.#clock.monotonicMs() - startedAt >= LONGEST_BURST_MS) break
    }
    this.#waiting.splice(0, done)
    this.#scheduled = false
    if (this.#waiting.length > 0) this.#schedule()
    else this.#closed?.()
  }
}

function tooManyWaiting(): ComputalotError {
  return new ComputalotError("busy", "too many requests are waiting for the database", {
    recommendedAction: "Send the request again in a moment.",
    headers: { "Retry-After": "1" },
  })
}
