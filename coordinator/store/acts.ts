import { AsyncLocalStorage } from "node:async_hooks"
import { assert } from "../../protocol/base/assert.ts"
import type { ActHandle } from "./statements.ts"

export type Outcome<T = unknown> = { ok: true; value: T } | { ok: false; error: unknown }

/**
 * Runs acts of one connection, one after another, inside turns of the event loop: an act may await nothing but its
 * handle, so it settles before anything else happens. One that does not is refused and its handle closed.
 */
export class ActRunner {
  readonly #strict: boolean
  #overrun: (() => void) | null = null
  #turn = { over: false }

  constructor(strict: boolean) {
    this.#strict = strict
  }

  run<T>(act: (handle: ActHandle) => Promise<T>, handle: ActHandle): Promise<Outcome<T>> {
    return new Promise((resolve) => {
      const settle = (outcome: Outcome<T>): void => {
        this.#overrun = null
        handle.settle()
        resolve(outcome)
      }
      const failed = (error: unknown): void => settle({ ok: false, error })
      // Not written straight into the field: V8 makes such a function old from the start, and it would keep all that the act saw.
      const overrun = (): void => failed(new Error("an act awaited something other than its tx or view"))
      this.#overrun = overrun
      try {
        const running = this.#strict ? insideAct.run(true, () => act(handle)) : act(handle)
        running.then((value) => settle({ ok: true, value }), failed)
      } catch (error) {
        failed(error)
      }
    })
  }

  /**
   * Calls `burst`, which runs acts until the microtasks of this turn are spent, in the event loop's next turn, and ends
   * an act that is still pending then. Two immediates set one after the other run one after the other, with only
   * microtasks between them: that is how the end of a turn is seen.
   */
  schedule(burst: () => void): void {
    const turn = { over: false }
    setImmediate(() => {
      this.#turn = turn
      burst()
    })
    setImmediate(() => {
      turn.over = true
      this.#overrun?.()
    })
  }

  /** True once the burst's turn ended with an act pending: the next act needs a new burst. */
  get turnOver(): boolean {
    return this.#turn.over
  }
}

/** Throws inside an act of a strict store: an act decides on what it reads through its own tx or view. */
export function assertOutsideActs(): void {
  assert(insideAct.getStore() === undefined, "an act does not call the store")
}

const insideAct = new AsyncLocalStorage<true>()

/** One burst of acts ends after this long, so that requests, heartbeats and streams are served between bursts. */
export const LONGEST_BURST_MS = 8
/** Acts in one burst at the most. */
export const MOST_ACTS_PER_BURST = 500
/** Acts that may wait; more are refused with `busy`. At 2,000 acts a second this is five seconds of work. */
export const LONGEST_QUEUE = 10_000
