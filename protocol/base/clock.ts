/** Milliseconds since 1970 in UTC, by this machine's wall clock. May step; deadlines use `monotonicMs`. */
export type Instant = number

/** Time as an argument: programs pass `systemClock`, simulations pass a virtual one. */
export interface Clock {
  /** Wall time. Stored and shown, never used for deadlines. */
  now(): Instant
  /** Milliseconds that only grow, from an arbitrary start. Deadlines and durations use this. */
  monotonicMs(): number
  /** Calls `run` once after `delayMs`, unless the timer is cancelled first. Does not keep the process alive. */
  after(delayMs: number, run: () => void): Timer
}

export interface Timer {
  /** A second call, or a call after the timer fired, does nothing. */
  cancel(): void
}

export const systemClock: Clock = {
  now: () => Date.now(),
  monotonicMs: () => performance.now(),
  after(delayMs, run) {
    const timeout = setTimeout(run, Math.min(delayMs, LONGEST_TIMEOUT_MS))
    timeout.unref()
    return { cancel: () => clearTimeout(timeout) }
  },
}

/** Node fires a longer timeout at once (32 bit overflow). */
const LONGEST_TIMEOUT_MS = 2 ** 31 - 1

/** Resolves after `delayMs`; rejects with the signal's reason when it is aborted first. */
export function sleep(clock: Clock, delayMs: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason as Error)
    const aborted = (): void => {
      timer.cancel()
      reject(signal?.reason as Error)
    }
    const timer = clock.after(delayMs, () => {
      signal?.removeEventListener("abort", aborted)
      resolve()
    })
    signal?.addEventListener("abort", aborted, { once: true })
  })
}

/** Calls `act` every `intervalMs` until disposed. A throwing `act` is the caller's bug; it must handle its own errors. */
export function every(clock: Clock, intervalMs: number, act: () => void): Disposable {
  let timer = clock.after(intervalMs, tick)
  function tick(): void {
    timer = clock.after(intervalMs, tick)
    act()
  }
  return { [Symbol.dispose]: () => timer.cancel() }
}
