import { afterEach, beforeEach, expect, test } from "vitest"
import { auditMoney } from "../../coordinator/billing/audit.ts"
import { chargedByJob, chargesOf, holdsOfJob } from "../../coordinator/billing/holds.ts"
import { listLedger, readBalance } from "../../coordinator/billing/ledger.ts"
import { expandJob } from "../../coordinator/jobs/expand.ts"
import { sweepTasks } from "../../coordinator/jobs/end-early.ts"
import { finishJob } from "../../coordinator/jobs/finish.ts"
import { putBackSlice, putBackTasks, SLICE_TASKS } from "../../coordinator/jobs/retry-slices.ts"
import type { RetryRequest } from "../../coordinator/jobs/retry.ts"
import { isSuperseded } from "../../coordinator/store/projects.ts"
import { jobEvents } from "../../coordinator/store/events.ts"
import { unfinishedJobs, type JobRow } from "../../coordinator/store/jobs.ts"
import { countTasks, insertAttempt, taskKey } from "../../coordinator/store/tasks.ts"
import { claimNumber, revisionId, type AccountId, type ClaimNumber } from "../../protocol/domain/ids.ts"
import { fundedAccount } from "../support/accounts.ts"
import { failedItem, LEAST_JOB, startJobRig, storedTask, type JobRig } from "../support/job-rig.ts"

/** The acts of a retry on the real store, without doors. */

const NO_SIGNAL = new AbortController().signal

let rig: JobRig
let account: AccountId

beforeEach(async () => {
  rig = await startJobRig()
  account = await fundedAccount(rig.store, 50_000_000n)
  await rig.project(account)
})
afterEach(async () => {
  const audit = await auditMoney(rig.store)
  expect(audit.checks.filter(({ ok }) => !ok)).toEqual([])
  await rig[Symbol.asyncDispose]()
})

const items = (count: number): object => ({ fan_out: { items: Array.from({ length: count }, (_, n) => ({ n })) } })
const holds = (job: JobRow) => rig.store.read((view) => holdsOfJob(view, job.id))
const events = (job: JobRow) => rig.store.read((view) => jobEvents(view, job.seq, 0, 1_000))
const balance = () => rig.store.read((view) => readBalance(view, account, rig.clock.now()))

const retry = (job: JobRow, more: Partial<RetryRequest> = {}): Promise<JobRow> =>
  rig.retry({ id: job.id, account: null, filter: "failed", indexes: null, ...more }).then(({ job: row }) => row)

type End = "ok" | "fail" | "low"

/** Runs the next waiting tasks, one for each end, and gives their claims. */
async function run(job: JobRow, ends: readonly End[], ms = 20_000): Promise<ClaimNumber[]> {
  const claims = await rig.grant(job, ends.length)
  expect(claims).toHaveLength(ends.length)
  await rig.start(claims)
  rig.pass(ms)
  for (const [at, claim] of claims.entries()) {
    const ended = { runtime_ms: ms, output: `claim ${claim}\n` }
    if (ends[at] === "fail") await rig.report(claim, { ...failedItem("exit_code"), ...ended })
    else await rig.report(claim, { result: { text: ends[at] === "ok" ? `{"score":${claim}}` : "{}" }, ...ended })
  }
  return claims
}

async function ended(ends: readonly End[], body: object = {}): Promise<JobRow> {
  const schema = { result_schema: { required_fields: ["score"] } }
  const job = await rig.queued(account, { ...items(ends.length), ...schema, ...body })
  await run(job, ends)
  await rig.finish(job)
  return rig.row(job)
}

test("rulings, Retry: failed tasks run again in the same job, under a second hold; attempts count on, retries are fresh", async () => {
  const job = await rig.queued(account, { ...items(2), max_retries: 1 })
  await run(job, ["ok", "fail"])
  await run(job, ["fail"])
  await rig.finish(job)
  const first = await rig.row(job)
  expect(first).toMatchObject({ status: "partial", completed: 1, failed: 1, round: 1 })
  const before = await balance()

  const again = await retry(first)
  expect(again).toMatchObject({ status: "queued", round: 2, completed: 1, failed: 0, queued: 1, error: null })
  expect(again).toMatchObject({ outcome: null, completedAt: null, startedAt: null, retrying: null })
  expect(again.queuedAt).toBeGreaterThanOrEqual(first.completedAt ?? 0)
  const [one, two] = await holds(job)
  expect(one).toMatchObject({ round: 1, status: "settled" })
  expect(two).toMatchObject({ round: 2, status: "active", amount: job.reserveMicro, charged: 0n, id: again.hold })
  expect((await balance()).held - before.held).toBe(job.reserveMicro)
  expect(await storedTask(rig.store, job.seq, 1)).toMatchObject({
    state: "queued",
    attempt: 2,
    failures: 0,
    attemptsBefore: 2,
    retriedFrom: "failed",
  })

  await run(job, ["fail"])
  expect(await storedTask(rig.store, job.seq, 1)).toMatchObject({ state: "queued", attempt: 3, retriedFrom: null })
  const [last = claimNumber(0)] = await run(job, ["ok"])
  await rig.finish(job)
  const over = await rig.row(job)
  expect(over).toMatchObject({ status: "completed", completed: 2, failed: 0, attempts: 5, error: null })
  expect(JSON.parse(over.outcome ?? "")).toMatchObject({ aggregate_result: [{}, { score: last }] })
  expect((await holds(job)).map(({ status }) => status)).toEqual(["settled", "settled"])
  const debits = (await listLedger(rig.store, account, { limit: 50, offset: 0 })).filter(({ type }) => type === "debit")
  const charged = await rig.store.read((view) => chargedByJob(view, job.id))
  expect(debits).toHaveLength(2)
  expect(debits.reduce((sum, { amount }) => sum + amount, 0n)).toBe(charged)
  const types = (await events(job)).map(({ type }) => type).filter((type) => type.startsWith("job."))
  expect(types).toEqual([
    "job.planning",
    "job.queued",
    "job.running",
    "job.partial",
    "job.retried",
    "job.running",
    "job.completed",
  ])
  const told = (await events(job)).find(({ type }) => type === "job.retried")
  expect(told?.data).toEqual({ from: "partial", to: "queued", round: 2, filter: "failed", tasks: 1 })
})

test("rulings, Retry: low_quality takes what is suspect, indexes what is named; what they count for goes with them", async () => {
  const job = await ended(["ok", "low", "ok", "low"])
  expect(job).toMatchObject({ status: "partial", suspect: 2 })
  const again = await retry(job, { filter: "low_quality" })
  expect(again).toMatchObject({ completed: 2, queued: 2, suspect: 0, qualitySum: 2 })
  await run(job, ["ok", "ok"])
  await rig.finish(job)
  expect(await rig.row(job)).toMatchObject({ status: "completed", completed: 4, suspect: 0, qualitySum: 4 })

  // Each once, whatever the order.
  const third = await retry(await rig.row(job), { filter: "indexes", indexes: [3, 0, 3] })
  expect(third).toMatchObject({ round: 3, completed: 2, queued: 2 })
  expect(await storedTask(rig.store, job.seq, 3)).toMatchObject({ state: "queued", retriedFrom: "completed" })
  await run(job, ["low", "ok"])
  await rig.finish(job)
  expect(await rig.row(job)).toMatchObject({ status: "partial", suspect: 1, round: 3 })
  expect((await holds(job)).map(({ round, status }) => [round, status])).toEqual([
    [1, "settled"],
    [2, "settled"],
    [3, "settled"],
  ])
})

test("a retry of a job that has not ended, or is retried already, is refused and changes nothing", async () => {
  const job = await rig.queued(account, items(1))
  await expect(retry(job)).rejects.toMatchObject({ code: "conflict", details: { status: "queued" } })
  await run(job, ["fail"])
  await expect(retry(job)).rejects.toMatchObject({ code: "conflict", details: { status: "running" } })
  await rig.finish(job)
  const both = await Promise.allSettled([retry(job), retry(job)])
  expect(both.map(({ status }) => status).toSorted()).toEqual(["fulfilled", "rejected"])
  expect((await holds(job)).map(({ round }) => round)).toEqual([1, 2])
  await expect(retry({ ...job, id: "job_x" as JobRow["id"] })).rejects.toMatchObject({ code: "not_found" })
  const other = await fundedAccount(rig.store, 1n)
  await expect(retry(job, { account: other })).rejects.toMatchObject({ code: "not_found" })
})

test("rulings, Retry: an empty selection and an index out of range are refused by name", async () => {
  const job = await ended(["ok", "ok"])
  const wrong: [Partial<RetryRequest>, string][] = [
    [{ filter: "failed" }, "filter"],
    [{ filter: "low_quality" }, "filter"],
    [{ filter: "indexes", indexes: [] }, "indexes"],
    [{ filter: "indexes", indexes: null }, "indexes"],
    [{ filter: "indexes", indexes: [0, 2] }, "indexes[1]"],
    [{ filter: "failed", indexes: [0] }, "indexes"],
  ]
  for (const [request, path] of wrong) {
    await expect(retry(job, request)).rejects.toMatchObject({ code: "invalid_request", details: [{ path }] })
  }
  expect(await rig.row(job)).toEqual(job)
  expect(await holds(job)).toHaveLength(1)
})

test("rulings, Holds: an account that is short gets a quote for the second hold, and the job stays as it was", async () => {
  const poor = await fundedAccount(rig.store, 600n)
  await rig.project(poor)
  const job = await rig.queued(poor, items(2))
  await run(job, ["fail", "fail"], 59_000)
  await rig.finish(job)
  const before = await rig.row(job)
  const refused = retry(before)
  await expect(refused).rejects.toMatchObject({
    code: "insufficient_funds",
    details: { required_usd: Number(job.reserveMicro * 2n) / 1e6 },
  })
  const quote = await refused.catch((error: unknown) => (error as { body: { quote: { id: string } } }).body.quote.id)
  expect(await rig.row(job)).toEqual(before)
  expect(await storedTask(rig.store, job.seq, 0)).toMatchObject({ state: "failed", retriedFrom: null })
  expect(await holds(job)).toHaveLength(1)
  // The same request again, by its key, keeps the quote.
  const again = retry(before, { earlierQuote: quote as NonNullable<RetryRequest["earlierQuote"]> })
  await expect(again).rejects.toMatchObject({ body: { quote: { id: quote } } })
  // One of the two fits.
  expect(await retry(before, { filter: "indexes", indexes: [1] })).toMatchObject({ queued: 1, failed: 1 })
})

test("a job's revision that is not kept any more cannot be run again; one that runs again is kept", async () => {
  const job = await ended(["fail"])
  await rig.store.write((tx) =>
    tx.run("UPDATE projects SET active_revision = 'rev_other' WHERE active_revision = ?", job.revision),
  )
  const isGoing = () => rig.store.read((view) => isSuperseded(view, revisionId(job.revision)))
  expect(await isGoing()).toBe(true)
  const again = await retry(job)
  expect(await isGoing()).toBe(false)
  await run(again, ["fail"])
  await rig.finish(again)
  await rig.store.write((tx) => tx.run("DELETE FROM revisions WHERE id = ?", job.revision))
  await expect(retry(again)).rejects.toMatchObject({ code: "conflict", message: /not kept any more/ })
  expect(await rig.row(job)).toMatchObject({ status: "failed", round: 2 })
})

test("architecture §4: a large selection is put back slice by slice, and a crash between them loses nothing", async () => {
  const count = 2 * SLICE_TASKS + 200
  const job = await largeFailure(count)
  const again = await retry(job)
  // All of it is decided in one write; rows follow.
  expect(again).toMatchObject({ status: "queued", queued: count, failed: 0, round: 2 })
  expect(again.retrying).not.toBeNull()
  expect((await holds(job))[1]).toMatchObject({ amount: job.reserveMicro * BigInt(count), status: "active" })
  const waiting = () => rig.store.read((view) => countTasks(view, job.seq, ["queued"]))
  expect(await waiting()).toBe(0)
  const slice = () => rig.store.write((tx) => putBackSlice(tx, job.seq, rig.clock.now()))
  expect([await slice(), await waiting()]).toEqual(["more", SLICE_TASKS])
  // A start finds it by its rows, and goes on behind what is done.
  expect((await rig.store.read(unfinishedJobs)).map(({ seq, retrying }) => [seq, retrying !== null])).toEqual([
    [job.seq, true],
  ])
  const stop = new AbortController()
  stop.abort(new Error("stop"))
  await expect(putBackTasks(rig, job.seq, stop.signal)).rejects.toThrow("stop")
  await putBackTasks(rig, job.seq, NO_SIGNAL)
  expect(await waiting()).toBe(count)
  const whole = await rig.row(job)
  expect(whole).toMatchObject({ queued: count, retrying: null, status: "queued" })
  await putBackTasks(rig, job.seq, NO_SIGNAL)
  expect(await rig.row(job)).toEqual(whole)
  expect(await rig.grant(job, 3)).toHaveLength(3)
})

test("a job that is cancelled while a large selection is put back ends whole: rows and sums agree, and it can be retried", async () => {
  const count = 2 * SLICE_TASKS + 10
  const job = await largeFailure(count)
  await retry(job)
  await rig.store.write((tx) => putBackSlice(tx, job.seq, rig.clock.now()))
  await rig.cancel(job)
  const cancelled = await rig.row(job)
  expect(cancelled).toMatchObject({ status: "cancelled", cancelled: count, failed: 0, queued: 0, retrying: null })
  expect(await rig.store.read((view) => countTasks(view, job.seq, ["cancelled"]))).toBe(count)
  expect((await holds(job)).map(({ status }) => status)).toEqual(["settled", "released"])
  // Named by their indexes they run again: the failed ones are none any more.
  await expect(retry(cancelled)).rejects.toMatchObject({ code: "invalid_request" })
  expect(await retry(cancelled, { filter: "indexes", indexes: [0, count - 1] })).toMatchObject({ queued: 2 })
})

test("tasks that a job lost sight of while it was planned can be run again", async () => {
  const body = { ...LEAST_JOB, ...items(2_500) }
  const { job } = await rig.submit({ account, user: null, body, bodyText: JSON.stringify(body) })
  const stop = new AbortController()
  const clock = { ...rig.clock, now: () => (stop.abort(new Error("stop")), rig.clock.now()) }
  await expect(expandJob({ store: rig.store, clock }, job, stop.signal)).rejects.toThrow()
  await rig.cancel(job)
  const again = await retry(await rig.row(job), { filter: "indexes", indexes: [5, 2_400] })
  await putBackTasks(rig, again.seq, NO_SIGNAL)
  expect(await rig.row(job)).toMatchObject({ queued: 2, cancelled: 2_498, plannedUpto: 2_500 })
  await run(again, ["ok", "ok"])
  await rig.finish(again)
  expect(await rig.row(job)).toMatchObject({ status: "partial", completed: 2, cancelled: 2_498 })
})

test("work of an ended round that comes late changes nothing of the next one", async () => {
  const job = await ended(["fail", "ok"])
  const [late = claimNumber(0)] = await rig.store
    .read((view) => view.all<{ claim: ClaimNumber }>("SELECT claim FROM attempts ORDER BY claim"))
    .then((rows) => rows.map(({ claim }) => claim))
  await retry(job)
  const before = await rig.row(job)
  expect(await rig.report(late, { result: { text: '{"late":1}' } })).toBe("spent")
  // A sweep and a merge of the round that ended leave the new one alone.
  await sweepTasks(rig, job.seq, NO_SIGNAL)
  await finishJob(rig, job.seq, NO_SIGNAL)
  expect(await rig.row(job)).toEqual(before)
  expect(await storedTask(rig.store, job.seq, 0)).toMatchObject({ state: "queued" })
})

test("L-003: a strict job goes on with the failed tasks that its retry left out, and ends by the first new failure", async () => {
  const strict = await rig.queued(account, { ...items(3), reliability_mode: "strict_complete" })
  await run(strict, ["ok", "fail", "fail"])
  await rig.finish(strict)
  const again = await retry(await rig.row(strict), { filter: "indexes", indexes: [1] })
  expect(again).toMatchObject({ failed: 1, failedBefore: 1, queued: 1 })
  expect((await holds(strict))[1]?.amount).toBe(strict.reserveMicro)
  await run(strict, ["ok"])
  await rig.finish(strict)
  expect(await rig.row(strict)).toMatchObject({ status: "failed", completed: 2, failed: 1 })
})

test("the schema: a task completes once in a round, and a round has one hold", async () => {
  const job = await ended(["ok"])
  const attempt = { task: taskKey(job.seq, 0), number: 9, node: rig.node, budgetMs: null, at: 1 }
  const complete = (claim: number, round: number) =>
    rig.store.write(async (tx) => {
      await insertAttempt(tx, { ...attempt, claim: claimNumber(claim), round })
      await tx.run("UPDATE attempts SET state = 'completed', ended_at = 1 WHERE claim = ?", claim)
    })
  await expect(complete(11, 1)).rejects.toThrow(/UNIQUE/)
  await complete(12, 2)
  await rig.store.write((tx) => tx.run("DELETE FROM attempts WHERE claim = 12"))
  const hold = (round: number) =>
    rig.store.write((tx) =>
      tx.run(
        "INSERT INTO holds (id, account, job_id, round, amount, created_at) VALUES ('hold_x', ?, ?, ?, 0, 1)",
        account,
        job.id,
        round,
      ),
    )
  await expect(hold(1)).rejects.toThrow(/UNIQUE/)
})

test("charges of a retried task stand under the hold of their round", async () => {
  const job = await ended(["fail"])
  await retry(job)
  const [claim = claimNumber(0)] = await run(job, ["ok"])
  const [first, second] = await holds(job)
  const charge = await rig.store.read((view) => chargesOf(view, [claim]))
  expect(second?.charged).toBe(charge.get(claim))
  expect(first?.charged).toBeGreaterThan(0n)
})

/** A job of which every task failed, its rows made by hand: a thousand reports would take their time. */
async function largeFailure(count: number): Promise<JobRow> {
  const job = await rig.queued(account, { ...items(count), timeout_s: 1 })
  await run(job, ["fail"], 900)
  await rig.store.write(async (tx) => {
    await tx.run("UPDATE tasks SET state = 'failed', completed_at = 1 WHERE state = 'queued'")
    await tx.run("UPDATE jobs SET failed = task_count, queued = 0, status = 'finishing' WHERE seq = ?", job.seq)
  })
  await rig.finish(job)
  return rig.row(job)
}
