import { afterEach, beforeEach, expect, test } from "vitest"
import type { AccountId } from "../../protocol/domain/ids.ts"
import { findHold } from "../../coordinator/store/holds.ts"
import { chargesOf } from "../../coordinator/billing/holds.ts"
import type { JobRow } from "../../coordinator/store/jobs.ts"
import { jobEvents } from "../../coordinator/store/events.ts"
import { fundedAccount } from "../support/accounts.ts"
import { failedItem, liveOf, startJobRig, storedAttempt, storedTask, type JobRig } from "../support/job-rig.ts"

let rig: JobRig
let account: AccountId

beforeEach(async () => {
  rig = await startJobRig()
  account = await fundedAccount(rig.store, 50_000_000n)
  await rig.project(account)
})
afterEach(async () => rig[Symbol.asyncDispose]())

const holdOf = (job: JobRow) => rig.store.read((view) => findHold(view, job.hold))
const eventsOf = async (job: JobRow): Promise<string[]> =>
  (await rig.store.read((view) => jobEvents(view, job.seq, 0, 1000))).map(({ type }) => type)
const items = (count: number): object => ({ fan_out: { items: Array.from({ length: count }, (_, n) => ({ n })) } })

async function started(job: JobRow): Promise<number> {
  const [claim] = await rig.grant(job, 1)
  if (claim === undefined) throw new Error("one task is granted")
  rig.pass(2_000)
  await rig.start([claim])
  rig.pass(2_000)
  return claim
}
const asClaim = (claim: number) => claim as Parameters<JobRig["report"]>[0]

test("a result that is reported twice is stored once and charged once", async () => {
  const job = await rig.queued(account, {})
  const claim = asClaim(await started(job))
  expect(await rig.report(claim)).toBe("stored")
  const before = await rig.row(job)
  expect(await rig.report(claim)).toBe("already")
  expect(await rig.row(job)).toEqual(before)
  expect([before.completed, before.queued, before.running, before.status]).toEqual([1, 0, 0, "finishing"])
  const charges = await rig.store.read((view) => chargesOf(view, [claim]))
  expect((await holdOf(job))?.charged).toBe(charges.get(claim))
})

test("a contradiction under a spent number changes nothing", async () => {
  const job = await rig.queued(account, {})
  const claim = asClaim(await started(job))
  await rig.report(claim)
  const before = [await rig.row(job), await storedTask(rig.store, job.seq, 0), await holdOf(job)]
  expect(await rig.report(claim, failedItem("exit_code"))).toBe("spent")
  expect([await rig.row(job), await storedTask(rig.store, job.seq, 0), await holdOf(job)]).toEqual(before)
})

test("a number that was never given is refused", async () => {
  expect(await rig.report(asClaim(12))).toBe("spent")
})

test("J-009, L-004: a failed task is tried again up to max_retries, then it fails", async () => {
  const job = await rig.queued(account, { max_retries: 1 })
  const first = asClaim(await started(job))
  const again = await rig.reportOutcome(first, failedItem("exit_code"))
  expect([...again.requeued]).toEqual([[job.seq, 1]])
  expect(await storedTask(rig.store, job.seq, 0)).toMatchObject({ state: "queued", attempt: 1, failures: 1 })
  const second = asClaim(await started(job))
  const last = await rig.reportOutcome(second, failedItem("exit_code"))
  expect(last.finishing).toEqual([job.seq])
  expect(await storedTask(rig.store, job.seq, 0)).toMatchObject({ state: "failed", attempt: 2, failures: 2 })
  await rig.finish(job)
  expect(await rig.row(job)).toMatchObject({ status: "failed", failed: 1, attempts: 2, error: "exit_code_3" })
  const hold = await holdOf(job)
  const charges = await rig.store.read((view) => chargesOf(view, [first, second]))
  expect(charges.size).toBe(2)
  expect(hold?.charged).toBe([...charges.values()].reduce((sum, one) => sum + one, 0n))
})

test("a failure that is not the program's is not billed and not tried again", async () => {
  const job = await rig.queued(account, { max_retries: 3 })
  const claim = asClaim(await started(job))
  await rig.report(claim, failedItem("preparation_failed", null))
  expect(await storedTask(rig.store, job.seq, 0)).toMatchObject({ state: "failed", failures: 0 })
  await rig.finish(job)
  expect(await holdOf(job)).toMatchObject({ status: "released", charged: 0n, settledAmount: 0n })
})

test("a whole job: counts, states, events in order, and the rest of its hold released", async () => {
  const job = await rig.queued(account, items(3))
  await rig.runWhole(job, (n) => ({ n }))
  const ended = await rig.row(job)
  expect(ended).toMatchObject({ status: "completed", completed: 3, queued: 0, granted: 0, running: 0, attempts: 3 })
  expect(JSON.parse(ended.outcome ?? "")).toMatchObject({ aggregate_result: [{ n: 0 }, { n: 1 }, { n: 2 }] })
  const types = await eventsOf(job)
  const jobTypes = types.filter((type) => type.startsWith("job."))
  expect(jobTypes).toEqual(["job.planning", "job.queued", "job.running", "job.completed"])
  expect(types.filter((type) => type === "task.completed")).toHaveLength(3)
  expect(["settled", "released"]).toContain((await holdOf(job))?.status)
  await rig.finish(job)
  expect(await rig.row(job)).toEqual(ended)
})

test("L-002: some failed tasks make a job partial, GAP-24: a strict one failed", async () => {
  for (const [mode, status] of [
    ["best_effort", "partial"],
    ["strict_complete", "failed"],
  ] as const) {
    const job = await rig.queued(account, { ...items(2), reliability_mode: mode })
    const [first, second] = await rig.grant(job, 2)
    if (first === undefined || second === undefined) throw new Error("both are granted")
    await rig.start([first, second])
    await rig.report(first)
    await rig.report(second, failedItem("exit_code"))
    await rig.finish(job)
    expect(await rig.row(job)).toMatchObject({
      status,
      completed: 1,
      failed: 1,
      error: "1 of 2 tasks failed; first: exit_code_3",
    })
  }
})

test("L-003, GAP-24: what is left of a strict job is cancelled with its status failed, finished results kept", async () => {
  const job = await rig.queued(account, { ...items(3), reliability_mode: "strict_complete" })
  const claim = asClaim(await started(job))
  await rig.report(claim, { result: { text: '{"kept":1}' } })
  await rig.endEarly(job, "failed", "a task failed")
  const ended = await rig.row(job)
  expect(ended).toMatchObject({ status: "failed", completed: 1, cancelled: 2, queued: 0 })
  await rig.finish(job)
  expect(JSON.parse((await rig.row(job)).outcome ?? "")).toMatchObject({
    aggregate_result: [{ kept: 1 }, null, null],
    completeness: { completed_tasks: 1, cancelled_tasks: 2, pending_tasks: 0 },
  })
})

test("J-040: cancel spends the running attempts, bills what they said they ran, and settles", async () => {
  const job = await rig.queued(account, { ...items(2), requirements: { cpu: 4 } })
  const claim = asClaim(await started(job))
  rig.say(claim, { runningMs: 1_500 })
  await rig.cancel(job)
  expect(await rig.row(job)).toMatchObject({ status: "cancelled", cancelled: 2, running: 0, error: "no longer needed" })
  expect(await storedAttempt(rig.store, claim)).toMatchObject({ state: "cancelled" })
  expect(await liveOf(rig.store, job.seq)).toEqual([])
  const hold = await holdOf(job)
  expect(hold?.status).toBe("settled")
  expect(hold?.charged).toBeGreaterThan(0n)
  expect(await eventsOf(job)).toEqual(expect.arrayContaining(["task.cancelled", "job.cancelled"]))
  expect(await rig.report(claim)).toBe("spent")
  expect((await holdOf(job))?.settledAmount).toBe(hold?.charged)
})

test("GAP-31: a second cancel changes nothing, one after another end is refused", async () => {
  const job = await rig.queued(account, {})
  await rig.cancel(job)
  const first = await rig.row(job)
  await rig.cancel(job, null, "another reason")
  expect(await rig.row(job)).toEqual(first)
  const done = await rig.queued(account, {})
  await rig.runWhole(done, () => ({}))
  await expect(rig.cancel(done)).rejects.toMatchObject({ code: "conflict" })
})

test("GAP-48: a lost task runs again elsewhere, its old result is refused, and max_retries is untouched", async () => {
  const job = await rig.queued(account, {})
  const lost = asClaim(await started(job))
  await rig.lose(lost)
  const again = await rig.grantOutcome(job, 1)
  expect(again.spent).toEqual([lost])
  const [grant] = again.granted
  expect(grant?.number).toBe(2)
  expect(await storedTask(rig.store, job.seq, 0)).toMatchObject({ state: "granted", losses: 1, failures: 0 })
  expect(await rig.row(job)).toMatchObject({ queued: 0, granted: 1, running: 0, losses: 1 })
  expect(await rig.report(lost)).toBe("spent")
  expect((await holdOf(job))?.charged).toBe(0n)
  const claim = asClaim(grant?.claim ?? 0)
  await rig.start([claim])
  expect(await rig.report(claim)).toBe("stored")
  expect(await rig.row(job)).toMatchObject({ completed: 1, running: 0, granted: 0, queued: 0 })
})

test("a lost task whose node returns in time is stored under its old number, and no loss is counted", async () => {
  const job = await rig.queued(account, {})
  const claim = asClaim(await started(job))
  await rig.lose(claim)
  expect(await rig.report(claim)).toBe("stored")
  expect(await storedTask(rig.store, job.seq, 0)).toMatchObject({ state: "completed", losses: 0 })
  expect(await rig.row(job)).toMatchObject({ completed: 1, running: 0, queued: 0, losses: 0 })
})

test("GAP-48: the fifth loss fails the task in the write that would have granted it again", async () => {
  const job = await rig.queued(account, {})
  for (let loss = 1; loss <= 4; loss++) {
    await rig.lose(asClaim(await started(job)))
  }
  const last = asClaim(await started(job))
  await rig.lose(last)
  const outcome = await rig.grantOutcome(job, 1)
  expect(outcome).toMatchObject({ granted: [], spent: [last], finishing: [job.seq] })
  expect(await storedTask(rig.store, job.seq, 0)).toMatchObject({ state: "failed", losses: 5 })
  await rig.finish(job)
  expect(await rig.row(job)).toMatchObject({ status: "failed", failed: 1, running: 0, queued: 0 })
  expect((await rig.row(job)).error).toContain("node_lost")
  expect(await eventsOf(job)).toContain("task.failed")
})

test("J-034: a task that runs again shows the start of that run, also when only its end was heard; the job its first one", async () => {
  const job = await rig.queued(account, { max_retries: 2 })
  await rig.report(asClaim(await started(job)), failedItem("exit_code"))
  const startOfJob = (await rig.row(job)).startedAt
  const startOfTask = async (): Promise<number> => (await storedTask(rig.store, job.seq, 0))?.startedAt ?? 0
  const first = await startOfTask()
  expect(first).toBe(startOfJob)
  rig.pass(60_000)
  const [unheard] = await rig.grant(job, 1)
  rig.pass(5_000)
  await rig.report(asClaim(unheard ?? 0), { ...failedItem("exit_code"), runtime_ms: 1_000 })
  const second = await startOfTask()
  expect(second).toBeGreaterThan(first + 60_000)
  rig.pass(60_000)
  await rig.lose(asClaim(await started(job)))
  rig.pass(60_000)
  const [last] = await rig.grant(job, 1)
  rig.pass(5_000)
  await rig.report(asClaim(last ?? 0), { runtime_ms: 1_000 })
  expect(await startOfTask()).toBeGreaterThan(second + 120_000)
  expect((await rig.row(job)).startedAt).toBe(startOfJob)
})

test("an end without a run (its runtime could not be prepared) leaves the start of the run before", async () => {
  const job = await rig.queued(account, { max_retries: 2 })
  await rig.report(asClaim(await started(job)), failedItem("exit_code"))
  const before = await storedTask(rig.store, job.seq, 0)
  const [claim] = await rig.grant(job, 1)
  await rig.report(asClaim(claim ?? 0), failedItem("setup_failed", null))
  expect(await storedTask(rig.store, job.seq, 0)).toMatchObject({ state: "failed", startedAt: before?.startedAt })
})

test("a task starts only while the hold covers its reserve", async () => {
  const job = await rig.queued(account, items(2))
  const claims = await rig.grant(job, 5)
  expect(claims).toHaveLength(2)
  expect((await rig.grantOutcome(job, 1)).short.get(job.seq)).toBeDefined()
})

test("text that is no JSON is not stored as a result", async () => {
  const job = await rig.queued(account, {})
  const claim = asClaim(await started(job))
  await rig.report(claim, { result: { text: "{broken" } })
  await rig.finish(job)
  const ended = await rig.row(job)
  expect(ended.status).toBe("partial")
  expect(JSON.parse(ended.outcome ?? "")).toMatchObject({ aggregate_result: [null] })
})
