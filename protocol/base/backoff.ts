import { jittered, type Random } from "./random.ts"

/** Doubling delays with jitter: `next()` gives the delay before the following try, `reset()` starts over after a success. */
export interface Backoff {
  next(): number
  reset(): void
}

export function createBackoff(random: Random, firstMs: number, longestMs: number): Backoff {
  let delayMs = firstMs
  return {
    next() {
      const now = delayMs
      delayMs = Math.min(delayMs * 2, longestMs)
      return jittered(random, now)
    },
    reset() {
      delayMs = firstMs
    },
  }
}
