import { createBackoff } from "../../protocol/base/backoff.ts"
import { sleep, type Clock } from "../../protocol/base/clock.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import type { Log } from "../../protocol/base/log.ts"
import type { Random } from "../../protocol/base/random.ts"

/**
 * Work that goes on after a request was answered: planning, merging, sweeping. Each is a resumable act over rows, so a
 * failure is tried again, a stop loses nothing, and a start finds the rest by looking at the rows.
 */
export interface Background extends AsyncDisposable {
  /** Runs `act` until it succeeds. The same name again while it runs: once more after it. */
  run(name: string, act: (signal: AbortSignal) => Promise<void>): void
  /** Resolves once nothing runs under these names; work that follows from it, and began under another of them, included. */
  settled(names: readonly string[]): Promise<void>
}

export function createBackground(parts: { clock: Clock; random: Random; log: Log }): Background {
  const stopped = new AbortController()
  const running = new Map<string, { again: boolean; ended: Promise<void> }>()

  async function untilDone(name: string, act: (signal: AbortSignal) => Promise<void>): Promise<void> {
    const backoff = createBackoff(parts.random, 100, 10_000)
    const state = running.get(name)
    while (!stopped.signal.aborted) {
      if (state) state.again = false
      try {
        await act(stopped.signal)
        if (!state?.again) return
      } catch (error) {
        if (stopped.signal.aborted) return
        parts.log.error("background work failed and is tried again", { work: name, error: errorText(error) })
        await sleep(parts.clock, backoff.next(), stopped.signal).catch(() => undefined)
      }
    }
  }

  return {
    run(name, act) {
      const known = running.get(name)
      if (known) {
        known.again = true
        return
      }
      const state = { again: false, ended: Promise.resolve() }
      running.set(name, state)
      state.ended = untilDone(name, act).finally(() => running.delete(name))
    },
    async settled(names) {
      for (;;) {
        const left = names.flatMap((name) => running.get(name)?.ended ?? [])
        if (left.length === 0) return
        await Promise.all(left)
      }
    },
    async [Symbol.asyncDispose]() {
      stopped.abort(new Error("the coordinator stops"))
      await Promise.all([...running.values()].map(({ ended }) => ended))
    },
  }
}
