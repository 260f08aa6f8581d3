import { beforeEach, expect, test } from "vitest"
import { createFrameBudget, type FrameBudget } from "../../coordinator/mesh/frame-budget.ts"
import { createManualClock, type ManualClock } from "../support/manual-clock.ts"

/** Architecture §5.3, Bounded: one member's frames never take the coordinator's thread. */

let clock: ManualClock
let budget: FrameBudget
beforeEach(() => {
  clock = createManualClock()
  budget = createFrameBudget(clock)
})

const NO_SIGNAL = new AbortController().signal
const frame = (ms: number, more: { bytes?: number; items?: number } = {}): Promise<string> =>
  budget.spend({ ms, bytes: 0, items: 0, ...more }, NO_SIGNAL).then(() => "read on")
/** What it has come to after a few turns of the event loop. */
const now = async (spent: Promise<string>): Promise<string> => {
  for (let turn = 0; turn < 3; turn++) await new Promise<void>((resolve) => setImmediate(resolve))
  return await Promise.race([spent, Promise.resolve("waits")])
}

test("within its budget a member is read on, with a turn for others in between", async () => {
  let others = 0
  const turns = setInterval(() => others++, 0)
  for (let n = 0; n < 50; n++) expect(await now(frame(5))).toBe("read on")
  clearInterval(turns)
  expect(others).toBeGreaterThan(0)
})

test("past what it may take at once it waits until half of the time that passed pays for it", async () => {
  const heavy = frame(600)
  expect(await now(heavy)).toBe("waits")
  await clock.pass(150)
  expect(await now(heavy)).toBe("waits")
  await clock.pass(100)
  expect(await now(heavy)).toBe("read on")
  const next = frame(50)
  expect(await now(next)).toBe("waits")
  await clock.pass(110)
  expect(await now(next)).toBe("read on")
})

test("a member that was quiet may take much at once again, never more than that", async () => {
  void frame(499)
  await clock.pass(3600_000)
  expect(await now(frame(499))).toBe("read on")
  expect(await now(frame(2))).toBe("waits")
})

test("bytes and what a write will cost count too", async () => {
  expect(await now(frame(0, { bytes: 2 ** 27 }))).toBe("waits")
  budget = createFrameBudget(clock)
  expect(await now(frame(0, { items: 30_000 }))).toBe("waits")
})

test("a stream that ended is not waited for", async () => {
  const ended = new AbortController()
  const spent = budget.spend({ ms: 10_000, bytes: 0, items: 0 }, ended.signal)
  ended.abort(new Error("the stream is closed"))
  await expect(spent).rejects.toThrow("closed")
})
