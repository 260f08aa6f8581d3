import { afterEach, beforeEach, expect, test } from "vitest"
import type { AccountId } from "../../protocol/domain/ids.ts"
import { findHold } from "../../coordinator/store/holds.ts"
import type { JobRow } from "../../coordinator/store/jobs.ts"
import { createQueueTimeout, waitedMs } from "../../coordinator/scheduler/queue-timeout.ts"
import { fundedAccount } from "../support/accounts.ts"
import type { JobRig } from "../support/job-rig.ts"
import { startLifeRig, type LifeRig } from "../support/life-rig.ts"

const MINUTE = 60_000
const LOOK_MS = 30_000

let rig: JobRig & LifeRig
let account: AccountId
let hasCapacity: boolean

beforeEach(async () => {
  rig = await startLifeRig()
  account = await fundedAccount(rig.store, 50_000_000n)
  await rig.project(account)
  hasCapacity = true
})
afterEach(async () => rig[Symbol.asyncDispose]())

async function watch(queueTimeoutMs: number | null = null) {
  const timeout = createQueueTimeout({
    ...rig,
    queueTimeoutMs,
    intervalMs: LOOK_MS,
    hasCapacity: () => hasCapacity,
    cancel: (job, reason) => rig.life.cancelWaiting(job, reason),
  })
  await timeout.load()
  await timeout.look()
  return {
    async pass(ms: number): Promise<void> {
      for (let passed = 0; passed < ms; passed += LOOK_MS) {
        rig.pass(LOOK_MS)
        await timeout.look()
      }
    },
  }
}

const statusOf = async (job: JobRow): Promise<string> => (await rig.row(job)).status
const waiting = (body: object = {}): Promise<JobRow> => rig.taken(account, body)

test("L-006: a job that waits longer than 30 minutes, or twice its timeout, is cancelled and its hold released", async () => {
  const short = await waiting({ timeout_s: 60 })
  const long = await waiting({ timeout_s: 3_600 })
  const time = await watch()
  await time.pass(29 * MINUTE)
  expect(await statusOf(short)).toBe("queued")
  await time.pass(2 * MINUTE)
  expect(await rig.row(short)).toMatchObject({ status: "cancelled", error: expect.stringContaining("30 minutes") })
  expect(await rig.store.read((view) => findHold(view, short.hold))).toMatchObject({ status: "released" })
  expect(rig.queue.waiting(short.seq)).toBe(0)
  await time.pass(85 * MINUTE)
  expect(await statusOf(long)).toBe("queued")
  await time.pass(5 * MINUTE)
  expect(await statusOf(long)).toBe("cancelled")
})

test("L-006, GAP-63: an outage of the fleet cancels nothing, and what was waited before and after it adds up", async () => {
  const job = await waiting()
  const time = await watch()
  await time.pass(20 * MINUTE)
  hasCapacity = false
  await time.pass(600 * MINUTE)
  expect(await statusOf(job)).toBe("queued")
  hasCapacity = true
  await time.pass(9 * MINUTE)
  expect(await statusOf(job)).toBe("queued")
  await time.pass(2 * MINUTE)
  expect(await statusOf(job)).toBe("cancelled")
})

test("a restart forgets nothing that was waited, and counts no time in which the coordinator was away", async () => {
  const job = await waiting()
  await (await watch()).pass(20 * MINUTE)
  rig.pass(600 * MINUTE)
  const again = await watch()
  await again.pass(9 * MINUTE)
  expect(await statusOf(job)).toBe("queued")
  await again.pass(2 * MINUTE)
  expect(await statusOf(job)).toBe("cancelled")
})

test("a step of the wall clock, or a pause of this process, is no time in which anybody waited", async () => {
  const job = await waiting()
  const time = await watch()
  await time.pass(MINUTE)
  rig.pass(24 * 60 * MINUTE)
  await time.pass(20 * MINUTE)
  expect(await statusOf(job)).toBe("queued")
})

test("COMPUTALOT_QUEUE_TIMEOUT_S takes the place of both, for jobs with long timeouts too", async () => {
  const job = await waiting({ timeout_s: 3_600 })
  const time = await watch(2 * MINUTE)
  await time.pass(MINUTE)
  expect(await statusOf(job)).toBe("queued")
  await time.pass(2 * MINUTE)
  expect(await rig.row(job)).toMatchObject({ status: "cancelled", error: expect.stringContaining("2 minutes") })
})

test("a job of which a task is with a node, or has started, is not cancelled by waiting", async () => {
  const granted = await waiting()
  const started = await waiting({ fan_out: { chunks: 2, total: 2 } })
  await rig.grant(granted, 1)
  await rig.start(await rig.grant(started, 1))
  await (await watch()).pass(120 * MINUTE)
  expect([await statusOf(granted), await statusOf(started)]).toEqual(["queued", "running"])
})

test("the time with capacity since a moment, whatever the periods are", () => {
  const periods = [
    { since: 0, until: 10 },
    { since: 20, until: 30 },
    { since: 40, until: 40 },
  ]
  expect([-5, 0, 5, 10, 25, 30, 50].map((from) => waitedMs(periods, from, 100))).toEqual([20, 20, 15, 10, 5, 0, 0])
  expect(waitedMs(periods, 0, 25)).toBe(15)
  expect(waitedMs([], 0, 25)).toBe(0)
})
