import { sleep, type Clock } from "../../protocol/base/clock.ts"

/** What one member's frames may cost this process: past it they are read more slowly, and the member waits for itself. */
export interface FrameBudget {
  /**
   * Counts a frame that was dealt with in so much of this thread's time, and waits while the member is over its budget. Frames
   * that lie ready follow one another without a turn of the event loop: within its budget too a member lets others in between.
   */
  spend(frame: { ms: number; bytes: number; items: number }, signal: AbortSignal): Promise<void>
}

/**
 * Share of this thread that one member may take for long, and what it may take at once. A node that runs thousands of small
 * tasks a second stays below it; what keeps others answered is that members take turns.
 */
const SHARE = 0.5
const BURST_MS = 500
/** Of one member at a stretch. */
const TURN_MS = 2
/** What a frame costs before and after it is dealt with: decryption (measured: 250 MB/s), the stream, the event loop. */
const MS_A_FRAME = 0.02
const MS_A_BYTE = 1 / 250_000
/** An item's part in a write, which takes this thread later. */
const MS_AN_ITEM = 0.02

export function createFrameBudget(clock: Clock): FrameBudget {
  let left = BURST_MS
  let countedAtMs = clock.monotonicMs()
  let turnMs = 0

  return {
    async spend({ ms, bytes, items }, signal) {
      const nowMs = clock.monotonicMs()
      const cost = ms + MS_A_FRAME + bytes * MS_A_BYTE + items * MS_AN_ITEM
      left = Math.min(BURST_MS, left + (nowMs - countedAtMs) * SHARE) - cost
      countedAtMs = nowMs
      turnMs += cost
      if (left >= 0 && turnMs < TURN_MS) return
      turnMs = 0
      if (left < 0) await sleep(clock, -left / SHARE, signal)
      else await new Promise<void>((resolve) => setImmediate(resolve))
    },
  }
}
