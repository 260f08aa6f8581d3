import { afterEach, beforeEach, expect, test } from "vitest"
import { watchTime } from "../../node-agent/mesh/time-jumps.ts"
import { createManualClock, type ManualClock } from "../support/manual-clock.ts"

let clock: ManualClock
let watching: Disposable
let jumps: string[]

beforeEach(() => {
  clock = createManualClock()
  jumps = []
  watching = watchTime(clock, (reason) => jumps.push(reason))
})
afterEach(() => watching[Symbol.dispose]())

test("§5.5: time that passes as it should is no jump, nor is a tick that comes a little late", async () => {
  await clock.pass(60_000)
  await clock.jump(2_500)
  clock.step(1_900)
  await clock.pass(10_000)
  expect(jumps).toEqual([])
})

test("§5.5: a process that was stopped notices", async () => {
  await clock.pass(5_000)
  await clock.jump(30_000)
  expect(jumps).toHaveLength(1)
  await clock.pass(10_000)
  expect(jumps).toHaveLength(1)
})

test("§5.5: a machine that slept, whose monotonic clock stood still, and a clock that was set back, notice", async () => {
  clock.step(3_600_000)
  await clock.pass(5_000)
  expect(jumps).toHaveLength(1)
  clock.step(-7_200_000)
  await clock.pass(5_000)
  expect(jumps).toHaveLength(2)
})
