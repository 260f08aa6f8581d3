import { afterEach, beforeEach, expect, test } from "vitest"
import { silentLog } from "../../protocol/base/log.ts"
import type { AccountId, ClaimNumber } from "../../protocol/domain/ids.ts"
import { createStuckSweep } from "../../coordinator/scheduler/stuck-sweep.ts"
import { jobEvents } from "../../coordinator/store/events.ts"
import type { JobRow } from "../../coordinator/store/jobs.ts"
import { countTasks, endAttempt, moveTask, taskKey } from "../../coordinator/store/tasks.ts"
import { fundedAccount } from "../support/accounts.ts"
import { LEAST_JOB, storedTask, type JobRig } from "../support/job-rig.ts"
import { startLifeRig, type LifeRig } from "../support/life-rig.ts"

const MINUTE = 60_000

let rig: JobRig & LifeRig
let account: AccountId

beforeEach(async () => {
  rig = await startLifeRig()
  account = await fundedAccount(rig.store, 50_000_000n)
  await rig.project(account)
})
afterEach(async () => rig[Symbol.asyncDispose]())

const sweep = (): Promise<void> => createStuckSweep({ ...rig, log: silentLog, jobLife: rig.life }).sweep()
const statusOf = async (job: Pick<JobRow, "seq">): Promise<string> => (await rig.row(job)).status
const items = (count: number): object => ({ fan_out: { items: Array.from({ length: count }, (_, n) => ({ n })) } })
const one = (claims: readonly ClaimNumber[]): ClaimNumber => {
  const [claim] = claims
  if (claim === undefined) throw new Error("one is granted")
  return claim
}

test("L-005: a job whose planning stopped is planned on and queued", async () => {
  const body = { ...LEAST_JOB, ...items(1_500) }
  const { job } = await rig.submit({ account, user: null, body, bodyText: JSON.stringify(body) })
  expect(await statusOf(job)).toBe("planning")
  await sweep()
  await expect.poll(() => statusOf(job)).toBe("queued")
  await expect.poll(() => rig.queue.waiting(job.seq)).toBe(1_500)
})

test("L-005: a job that is finishing and was never finished ends", async () => {
  const job = await rig.taken(account)
  const claim = one(await rig.grant(job, 1))
  await rig.start([claim])
  await rig.report(claim)
  expect(await statusOf(job)).toBe("finishing")
  await sweep()
  await expect.poll(() => statusOf(job)).toBe("completed")
})

test("L-005: a job that memory does not know waits in the queue again", async () => {
  const job = await rig.queued(account, items(3))
  expect(rig.queue.waiting(job.seq)).toBe(0)
  await sweep()
  expect(rig.queue.waiting(job.seq)).toBe(3)
})

test("L-005: a running job whose attempt nobody holds goes on: its task may be granted again, and completes", async () => {
  const job = await rig.taken(account)
  const lost = one(await rig.grant(job, 1))
  await rig.start([lost])
  rig.queue.add(job.seq, -1)
  rig.members.release(lost)
  await sweep()
  expect(await storedTask(rig.store, job.seq, 0)).toMatchObject({ state: "running" })
  rig.pass(MINUTE)
  await sweep()
  expect(await storedTask(rig.store, job.seq, 0)).toMatchObject({ state: "lost", claim: lost })
  expect(rig.queue.waiting(job.seq)).toBe(1)
  const again = one(await rig.grant(job, 1))
  expect(await rig.report(lost)).toBe("spent")
  await rig.report(again)
  rig.life.finish([job.seq])
  await expect.poll(() => statusOf(job)).toBe("completed")
})

test("a task whose claim has no live attempt goes on too, one that was never started without having read as running", async () => {
  const job = await rig.taken(account, items(2))
  const [first, second] = await rig.grant(job, 2)
  if (!first || !second) throw new Error("both are granted")
  await rig.start([first])
  rig.queue.add(job.seq, -2)
  for (const claim of [first, second]) {
    rig.members.release(claim)
    const end = { state: "lost" as const, failureKind: null, runtimeMs: null, itemDigest: null, at: rig.clock.now() }
    await rig.store.write((tx) => endAttempt(tx, claim, end))
  }
  rig.pass(MINUTE)
  await sweep()
  expect(rig.queue.waiting(job.seq)).toBe(2)
  const row = await rig.row(job)
  expect([row.queued, row.granted, row.running]).toEqual([0, 0, 2])
  expect(await rig.grant(job, 2)).toHaveLength(2)
})

test("sums that do not fit the rows are made again, and a job whose tasks have all ended ends", async () => {
  const job = await rig.taken(account, items(2))
  const claims = await rig.grant(job, 2)
  await rig.start(claims)
  await rig.report(one(claims))
  const other = claims[1]
  if (other === undefined) throw new Error("two are granted")
  rig.members.release(other)
  const end = { state: "completed" as const, failureKind: null, runtimeMs: 1, itemDigest: null, at: rig.clock.now() }
  await rig.store.write(async (tx) => {
    await endAttempt(tx, other, end)
    await moveTask(tx, taskKey(job.seq, 1), ["running"], "completed")
  })
  expect(await rig.row(job)).toMatchObject({ status: "running", running: 1, completed: 1 })
  await sweep()
  await expect.poll(() => statusOf(job)).toBe("completed")
  expect(await rig.row(job)).toMatchObject({ running: 0, completed: 2 })
})

test("jobs in which nothing is wrong are left as they are", async () => {
  const job = await rig.taken(account, items(5))
  const claims = await rig.grant(job, 3)
  rig.queue.add(job.seq, -3)
  await rig.start(claims.slice(0, 2))
  rig.pass(10 * MINUTE)
  const before = [await rig.row(job), await rig.store.read((view) => jobEvents(view, job.seq, 0, 100))]
  await sweep()
  expect([await rig.row(job), await rig.store.read((view) => jobEvents(view, job.seq, 0, 100))]).toEqual(before)
  expect(rig.queue.waiting(job.seq)).toBe(2)
  expect(await rig.store.read((view) => countTasks(view, job.seq, ["lost"]))).toBe(0)
})
