import type { Clock } from "../../protocol/base/clock.ts"

/** Time that stands still until a test moves it. Timers fire in order, each at its own time. */
export interface ManualClock extends Clock {
  /** Runs every timer due within `ms`, with a turn of the event loop after each for what it started. */
  pass(ms: number): Promise<void>
  /** The process was stopped: time has passed and no timer fired; those that are due fire late, together. */
  jump(ms: number): Promise<void>
  /** The wall clock alone is set. */
  step(ms: number): void
}

export function createManualClock(startedAt = Date.UTC(2026, 0, 1)): ManualClock {
  let monotonic = 1_000
  let wall = startedAt
  let timers: { dueMs: number; run: () => void }[] = []

  function next(untilMs: number): { dueMs: number; run: () => void } | undefined {
    const [first] = timers.filter(({ dueMs }) => dueMs <= untilMs).toSorted((a, b) => a.dueMs - b.dueMs)
    timers = timers.filter((timer) => timer !== first)
    return first
  }

  function moveTo(ms: number): void {
    const passed = Math.max(0, ms - monotonic)
    monotonic += passed
    wall += passed
  }

  return {
    now: () => wall,
    monotonicMs: () => monotonic,
    after(delayMs, run) {
      const timer = { dueMs: monotonic + Math.max(0, delayMs), run }
      timers.push(timer)
      return { cancel: () => void (timers = timers.filter((other) => other !== timer)) }
    },
    async pass(ms) {
      const untilMs = monotonic + ms
      for (let timer = next(untilMs); timer; timer = next(untilMs)) {
        moveTo(timer.dueMs)
        timer.run()
        await turns()
      }
      moveTo(untilMs)
      await turns()
    },
    async jump(ms) {
      moveTo(monotonic + ms)
      for (let timer = next(monotonic); timer; timer = next(monotonic)) timer.run()
      await turns()
    },
    step(ms) {
      wall += ms
    },
  }
}

/** Group commits take a turn or two each. */
async function turns(): Promise<void> {
  for (let n = 0; n < 6; n++) await new Promise((resolve) => setImmediate(resolve))
}
