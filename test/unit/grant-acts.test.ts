import { afterEach, beforeEach, expect, test } from "vitest"
import type { AccountId } from "../../protocol/domain/ids.ts"
import { expandJob } from "../../coordinator/jobs/expand.ts"
import { jobFacts, rateOfJob } from "../../coordinator/jobs/job-facts.ts"
import { failWaitingTasks } from "../../coordinator/jobs/fail-waiting.ts"
import { markClaimable, recordContactReturned, returnAttempt } from "../../coordinator/scheduler/give-up.ts"
import { grantTasks } from "../../coordinator/scheduler/grant.ts"
import { affordableMs, costOf } from "../../coordinator/billing/pricing.ts"
import { countTasks } from "../../coordinator/store/tasks.ts"
import { findHold } from "../../coordinator/store/holds.ts"
import { fundedAccount } from "../support/accounts.ts"
import {
  failedItem,
  LEAST_JOB,
  liveOf,
  startJobRig,
  storedAttempt,
  storedTask,
  type JobRig,
} from "../support/job-rig.ts"

const NO_SIGNAL = new AbortController().signal

let rig: JobRig
let account: AccountId

beforeEach(async () => {
  rig = await startJobRig()
  account = await fundedAccount(rig.store, 50_000_000n)
  await rig.project(account)
})
afterEach(async () => rig[Symbol.asyncDispose]())

const items = (count: number): object => ({ fan_out: { items: Array.from({ length: count }, (_, n) => ({ n })) } })
const held = (claim: number) => {
  const attempt = rig.members.attempt(claim)
  if (!attempt) throw new Error("memory holds the attempt")
  return attempt
}
const one = <T>(all: readonly T[]): T => {
  const [first] = all
  if (first === undefined) throw new Error("there is one")
  return first
}

test("no task is granted twice, however many places are offered at once", async () => {
  const job = await rig.queued(account, items(20))
  const places = Array.from({ length: 15 }, () => ({ job: job.seq, node: rig.node, gpus: [] }))
  const writes = [1, 2, 3].map(() => rig.store.write((tx) => grantTasks(tx, places, rig.clock.now())))
  const granted = (await Promise.all(writes)).flatMap((outcome) => outcome.granted)
  expect(granted.map(({ index }) => index).toSorted((a, b) => a - b)).toEqual(Array.from({ length: 20 }, (_, n) => n))
  expect(new Set(granted.map(({ claim }) => claim)).size).toBe(20)
  expect(await rig.row(job)).toMatchObject({ queued: 0, granted: 20, attempts: 20 })
})

test("GPUs of a live attempt are stored: a restart does not lend them twice", async () => {
  const job = await rig.queued(account, {})
  const place = { job: job.seq, node: rig.node, gpus: ["GPU-1", "GPU-2"] }
  await rig.store.write((tx) => grantTasks(tx, [place], rig.clock.now()))
  expect(one(await liveOf(rig.store, job.seq)).gpus).toEqual(["GPU-1", "GPU-2"])
})

test("a task that is lost while the hold covers no second one is granted again", async () => {
  const job = await rig.queued(account, items(2))
  const [first, second] = await rig.grant(job, 2)
  if (!first || !second) throw new Error("both are granted")
  await rig.start([first, second])
  await rig.lose(second)
  const again = await rig.grantOutcome(job, 1)
  expect(again.granted).toMatchObject([{ index: 1, number: 2, budgetMs: null }])
  expect(again.spent).toEqual([second])
  expect(await storedAttempt(rig.store, second)).toMatchObject({ state: "lost" })
})

test("architecture §5.7: what failed on a node is left to another for a minute, where there is one", async () => {
  const job = await rig.queued(account, { ...items(3), max_retries: 5 })
  const place = { job: job.seq, node: rig.node, gpus: [], hasOther: true }
  const grant = (places: Parameters<typeof grantTasks>[1]) =>
    rig.store.write((tx) => grantTasks(tx, places, rig.clock.now()))
  const [failing] = await rig.grant(job, 1)
  if (!failing) throw new Error("one is granted")
  await rig.start([failing])
  await rig.report(failing, failedItem("exit_code"))
  // The two behind it are taken instead, and then nothing is left that this node should try.
  const others = await grant([place, place, place])
  expect(others.granted.map(({ index }) => index)).toEqual([1, 2])
  expect(others.short.get(job.seq)).toBe("elsewhere")
  expect((await grant([place])).short.get(job.seq)).toBe("elsewhere")
  for (const { claim } of others.granted) await rig.report(claim)
  rig.pass(61_000)
  expect((await grant([place])).granted.map(({ index }) => index)).toEqual([0])
})

test("a node that is alone tries again what failed on it", async () => {
  const job = await rig.queued(account, { max_retries: 1 })
  const [failing] = await rig.grant(job, 1)
  if (!failing) throw new Error("it is granted")
  await rig.start([failing])
  await rig.report(failing, failedItem("exit_code"))
  expect(await rig.grant(job, 1)).toHaveLength(1)
})

test("lost tasks come before those that never ran", async () => {
  const job = await rig.queued(account, items(5))
  const claims = await rig.grant(job, 4)
  await rig.start(claims)
  await rig.lose(claims[3] ?? one([]))
  expect((await rig.grantOutcome(job, 2)).granted.map(({ index }) => index)).toEqual([3, 4])
})

test("a task starts only while the hold covers its reserve; alone it gets the time that is left", async () => {
  const job = await rig.queued(account, { ...items(2), max_retries: 5 })
  const [first, second] = await rig.grant(job, 2)
  if (!first || !second) throw new Error("both are granted")
  await rig.start([first, second])
  rig.pass(40_000)
  await rig.report(first, { ...failedItem("exit_code"), runtime_ms: 40_000 })
  const blocked = await rig.grantOutcome(job, 1)
  expect([blocked.granted.length, blocked.short.get(job.seq)]).toEqual([0, "budget"])
  await rig.report(second, { ...failedItem("exit_code"), runtime_ms: 40_000 })
  const alone = await rig.grantOutcome(job, 2)
  const left = await rig.store
    .read((view) => findHold(view, job.hold))
    .then((hold) => hold && hold.amount - hold.charged)
  const rate = rateOfJob(jobFacts(await rig.row(job)))
  expect(alone.granted).toMatchObject([{ budgetMs: affordableMs(rate, left ?? 0n) }])
  expect(one(alone.granted).budgetMs).toBeLessThan(60_000)
  expect(alone.short.get(job.seq)).toBe("budget")
})

test("a hold that is spent while nothing runs ends what waits, lost tasks too", async () => {
  const job = await rig.queued(account, { ...items(3), max_retries: 5 })
  const claims = await rig.grant(job, 3)
  await rig.start(claims)
  rig.pass(10_000_000)
  for (const claim of claims.slice(0, 2)) await rig.report(claim, { ...failedItem("timeout"), runtime_ms: 9_000_000 })
  const lost = claims[2] ?? one([])
  await rig.lose(lost)
  const outcome = await rig.grantOutcome(job, 1)
  expect([outcome.granted.length, outcome.spent.length, outcome.short.get(job.seq)]).toEqual([0, 0, "spent"])
  const failure = { kind: "budget_spent" as const, message: "spent", preflight: "" }
  const failed = await failWaitingTasks(rig, job.seq, failure, NO_SIGNAL)
  expect(failed).toEqual({ isOver: true, spent: [lost] })
  expect(await rig.row(job)).toMatchObject({ status: "finishing", failed: 3, queued: 0, running: 0 })
  expect(await rig.report(lost)).toBe("spent")
  await rig.finish(job)
  expect(await rig.row(job)).toMatchObject({ status: "failed" })
  expect(await liveOf(rig.store, job.seq)).toEqual([])
})

test("waiting tasks fail in slices without attempts, and those that run finish", async () => {
  const job = await rig.queued(account, items(450))
  const [claim] = await rig.grant(job, 1)
  await rig.start([claim ?? one([])])
  const failure = { kind: "setup_failed" as const, message: "the image could not be built", preflight: "log tail" }
  expect(await failWaitingTasks(rig, job.seq, failure, NO_SIGNAL)).toEqual({ isOver: false, spent: [] })
  expect(await rig.row(job)).toMatchObject({ failed: 449, running: 1, queued: 0, attempts: 1 })
  expect(await storedTask(rig.store, job.seq, 1)).toMatchObject({ state: "failed", attempt: 0 })
  expect(await rig.report(claim ?? one([]))).toBe("stored")
  expect(await rig.row(job)).toMatchObject({ completed: 1, status: "finishing" })
  expect(await failWaitingTasks(rig, job.seq, failure, NO_SIGNAL)).toEqual({ isOver: false, spent: [] })
})

test("a lost contact shows, and its return takes it back: no loss, the time without contact is not billed", async () => {
  const job = await rig.queued(account, {})
  const claim = one(await rig.grant(job, 1))
  await rig.start([claim])
  const attempt = held(claim)
  const mark = () => rig.store.write((tx) => markClaimable(tx, [attempt], rig.clock.now()))
  expect([...(await mark())]).toEqual([claim])
  expect([...(await mark())]).toEqual([claim])
  expect(await storedTask(rig.store, job.seq, 0)).toMatchObject({ state: "lost", losses: 0 })
  const back = () => rig.store.write((tx) => recordContactReturned(tx, attempt, 700, rig.clock.now()))
  await back()
  await back()
  expect(await storedTask(rig.store, job.seq, 0)).toMatchObject({ state: "running", losses: 0 })
  expect(await storedAttempt(rig.store, claim)).toMatchObject({ state: "running", lostContactMs: 700 })
  expect(await rig.row(job)).toMatchObject({ running: 1, granted: 0, queued: 0 })
})

test("an offered task that is lost and restored counts as granted again", async () => {
  const job = await rig.queued(account, {})
  const attempt = held(one(await rig.grant(job, 1)))
  await rig.store.write((tx) => markClaimable(tx, [attempt], rig.clock.now()))
  expect(await rig.row(job)).toMatchObject({ running: 1, granted: 0 })
  await rig.store.write((tx) => recordContactReturned(tx, attempt, 0, rig.clock.now()))
  expect(await rig.row(job)).toMatchObject({ running: 0, granted: 1 })
})

test("what is given back waits again under its old attempt number, whatever it was doing", async () => {
  const job = await rig.queued(account, items(3))
  const claims = await rig.grant(job, 3)
  await rig.start(claims.slice(1))
  await rig.lose(claims[2] ?? one([]))
  const give = () => rig.store.write((tx) => returnAttempt(tx, claims, rig.clock.now()))
  expect((await give()).map(({ requeued }) => requeued)).toEqual([true, true, true])
  expect(await give()).toEqual([])
  expect(await rig.row(job)).toMatchObject({ queued: 3, granted: 0, running: 0, attempts: 0, losses: 0 })
  expect(await rig.report(claims[1] ?? one([]))).toBe("spent")
  expect((await rig.grantOutcome(job, 3)).granted.map(({ number }) => number)).toEqual([1, 1, 1])
})

test("planning goes on where a stop left it, and a second planner changes nothing", async () => {
  const body = { ...LEAST_JOB, ...items(2_500) }
  const { job } = await rig.submit({ account, user: null, body, bodyText: JSON.stringify(body) })
  const stop = new AbortController()
  const clock = { ...rig.clock, now: () => (stop.abort(new Error("stop")), rig.clock.now()) }
  await expect(expandJob({ store: rig.store, clock }, job, stop.signal)).rejects.toThrow("stop")
  const half = await rig.row(job)
  expect(half).toMatchObject({ status: "planning", plannedUpto: 1_000, queued: 1_000 })
  expect(await expandJob(rig, half, NO_SIGNAL)).toBe("queued")
  expect(await expandJob(rig, half, NO_SIGNAL)).toBe("over")
  expect(await rig.row(job)).toMatchObject({ status: "queued", plannedUpto: 2_500, queued: 2_500 })
  expect(await rig.store.read((view) => countTasks(view, job.seq, ["queued"]))).toBe(2_500)
})

test("a job that is cancelled during planning gets no further tasks, and nothing is billed", async () => {
  const body = { ...LEAST_JOB, ...items(2_500) }
  const { job } = await rig.submit({ account, user: null, body, bodyText: JSON.stringify(body) })
  const stop = new AbortController()
  const clock = { ...rig.clock, now: () => (stop.abort(new Error("stop")), rig.clock.now()) }
  await expect(expandJob({ store: rig.store, clock }, job, stop.signal)).rejects.toThrow()
  await rig.cancel(job)
  expect(await expandJob(rig, await rig.row(job), NO_SIGNAL)).toBe("over")
  expect(await rig.row(job)).toMatchObject({ status: "cancelled", plannedUpto: 1_000, cancelled: 2_500, queued: 0 })
  expect(await rig.store.read((view) => findHold(view, job.hold))).toMatchObject({ status: "released" })
  expect((await rig.grantOutcome(job, 1)).short.get(job.seq)).toBe("over")
})

test("a job of 100,000 tasks is taken in quickly, before its tasks are written", async () => {
  const body = { ...LEAST_JOB, fan_out: { chunks: 100_000, total: 1_000_000 }, timeout_s: 1 }
  const startedAt = performance.now()
  const { job } = await rig.submit({ account, user: null, body, bodyText: JSON.stringify(body) })
  expect(performance.now() - startedAt).toBeLessThan(5_000)
  expect(job).toMatchObject({ status: "planning", taskCount: 100_000, plannedUpto: 0 })
})

test("B-015: without the money nothing is created but a quote", async () => {
  const poor = await fundedAccount(rig.store, 1n)
  await rig.project(poor)
  const body = { ...LEAST_JOB, timeout_s: 3_600, requirements: { cpu: 8 } }
  const request = { account: poor, user: null, body, bodyText: JSON.stringify(body) }
  await expect(rig.submit(request)).rejects.toMatchObject({ code: "insufficient_funds" })
  const counts = await rig.store.read((view) =>
    view.get(
      "SELECT (SELECT count(*) FROM jobs) AS jobs, (SELECT count(*) FROM holds) AS holds, count(*) AS quotes FROM quotes",
    ),
  )
  expect(counts).toEqual({ jobs: 0, holds: 0, quotes: 1 })
})

test("GAP-21: a project that is not the account's is not found", async () => {
  const body = { ...LEAST_JOB, project: "other" }
  const request = { account, user: null, body, bodyText: JSON.stringify(body) }
  await expect(rig.submit(request)).rejects.toMatchObject({ code: "not_found" })
})

test("a budget buys the most milliseconds whose price is within it", () => {
  for (const numerator of [1n, 7_000_000_000n, 123_456_789_012n]) {
    for (const budget of [0n, 1n, 1_000n, 5_000_000n]) {
      const ms = affordableMs({ numerator }, budget)
      expect(costOf({ numerator }, ms)).toBeLessThanOrEqual(budget)
      if (ms < 7 * 86_400_000) expect(costOf({ numerator }, ms + 1)).toBeGreaterThan(budget)
    }
  }
})
