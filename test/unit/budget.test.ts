import fc from "fast-check"
import { afterEach, beforeEach, expect, test } from "vitest"
import { auditMoney } from "../../coordinator/billing/audit.ts"
import { costOf } from "../../coordinator/billing/pricing.ts"
import { failWaitingTasks } from "../../coordinator/jobs/fail-waiting.ts"
import { jobFacts, rateOfJob } from "../../coordinator/jobs/job-facts.ts"
import { findHold } from "../../coordinator/store/holds.ts"
import type { JobRow } from "../../coordinator/store/jobs.ts"
import type { AccountId, ClaimNumber } from "../../protocol/domain/ids.ts"
import { usd } from "../../protocol/domain/money.ts"
import { fundedAccount } from "../support/accounts.ts"
import { failedItem, startJobRig, storedTask, type JobRig } from "../support/job-rig.ts"

/** What max_cost_usd does to money and to tasks (rulings, Holds). */

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
const holdOf = (job: JobRow) => rig.store.read((view) => findHold(view, job.hold))
/** Of a task of a minute with the least requirements. */
const RESERVE = 175n

const limited = (count: number, most: bigint, more: object = {}): Promise<JobRow> =>
  rig.queued(account, { ...items(count), max_cost_usd: usd(most), ...more })

async function begin(job: JobRow, claims: readonly ClaimNumber[], ms: number): Promise<void> {
  await rig.start(claims)
  rig.pass(ms)
  expect((await rig.row(job)).status).toBe("running")
}

test("rulings, Holds: the hold is the smaller of estimate and max_cost_usd, and the reply says when that may not suffice", async () => {
  const submit = async (amount: number | null) => {
    const body = {
      type: "structured_runner",
      project: "p",
      runner_command: ["python3", "job.py"],
      timeout_s: 60,
      ...items(4),
      max_cost_usd: amount,
    }
    const { job, warnings } = await rig.submit({ account, user: null, body, bodyText: JSON.stringify(body) })
    return { amount: (await holdOf(job))?.amount, warnings: warnings.map(({ field }) => field), job }
  }
  expect(await submit(null)).toMatchObject({ amount: 4n * RESERVE, warnings: [] })
  expect(await submit(1)).toMatchObject({ amount: 4n * RESERVE, warnings: [] })
  expect(await submit(0.0003)).toMatchObject({ amount: 300n, warnings: ["max_cost_usd"] })
  expect(await submit(0.000001)).toMatchObject({ amount: 1n, warnings: ["max_cost_usd"] })
  expect(JSON.parse((await submit(0.0003)).job.billing)).toMatchObject({ estimate: "300" })
})

test("rulings, Holds: tasks start while the hold covers their reserve, then one alone for the time that is left, then none", async () => {
  const job = await limited(5, 2n * RESERVE + 50n)
  const first = await rig.grantOutcome(job, 5)
  expect([first.granted.length, first.short.get(job.seq)]).toEqual([2, "budget"])
  const [one, two] = first.granted.map(({ claim }) => claim)
  if (!one || !two) throw new Error("two are granted")
  await begin(job, [one, two], 60_000)
  await rig.report(one, { runtime_ms: 60_000 })
  // 225 are left, 175 of them for the one that runs.
  expect((await rig.grantOutcome(job, 1)).short.get(job.seq)).toBe("budget")
  await rig.report(two, { runtime_ms: 60_000 })
  const alone = await rig.grantOutcome(job, 3)
  expect([alone.granted.length, alone.short.get(job.seq)]).toEqual([1, "budget"])
  const [last] = alone.granted
  const rate = rateOfJob(jobFacts(await rig.row(job)))
  const ms = last?.budgetMs ?? 0
  expect(costOf(rate, ms)).toBeLessThanOrEqual(50n)
  expect(costOf(rate, ms + 1)).toBeGreaterThan(50n)

  // Reaching it is budget_spent: billed, and no retry.
  await begin(job, last ? [last.claim] : [], ms + 40)
  if (last) await rig.report(last.claim, { ...failedItem("budget_spent", null), runtime_ms: ms + 40 })
  expect(await storedTask(rig.store, job.seq, 2)).toMatchObject({ state: "failed", failures: 0 })
  expect(await holdOf(job)).toMatchObject({ charged: 2n * RESERVE + 50n, amount: 2n * RESERVE + 50n })
  const spent = await rig.grantOutcome(job, 1)
  expect([spent.granted.length, spent.short.get(job.seq)]).toEqual([0, "spent"])
  const failure = { kind: "budget_spent" as const, message: "the job's hold is spent", preflight: "" }
  expect(await failWaitingTasks(rig, job.seq, failure, NO_SIGNAL)).toEqual({ isOver: true, spent: [] })
  await rig.finish(job)
  expect(await rig.row(job)).toMatchObject({ status: "partial", completed: 2, failed: 3 })
  expect(await holdOf(job)).toMatchObject({ status: "settled", settledAmount: 2n * RESERVE + 50n })
  expect((await auditMoney(rig.store)).ok).toBe(true)
})

test("rulings, Holds: a job of which nothing completed before its hold was spent has failed", async () => {
  const job = await limited(2, 10n)
  const [claim] = await rig.grant(job, 2)
  if (!claim) throw new Error("one is granted")
  await begin(job, [claim], 10_000)
  await rig.report(claim, { ...failedItem("budget_spent", null), runtime_ms: 10_000 })
  const failure = { kind: "budget_spent" as const, message: "the job's hold is spent", preflight: "" }
  await failWaitingTasks(rig, job.seq, failure, NO_SIGNAL)
  await rig.finish(job)
  expect(await rig.row(job)).toMatchObject({ status: "failed", failed: 2 })
  expect(await holdOf(job)).toMatchObject({ settledAmount: 10n })
})

test("B-018, J-008: what runs when the hold is spent finishes, and the settlement is capped", async () => {
  // A hint keeps the reserve small; both run to their timeout.
  const job = await limited(3, 100n, { runtime_hint_s: 10 })
  const claims = await rig.grant(job, 3)
  expect(claims.length).toBe(2)
  await begin(job, claims, 60_000)
  for (const claim of claims) expect(await rig.report(claim, { runtime_ms: 60_000 })).toBe("stored")
  expect(await holdOf(job)).toMatchObject({ charged: 100n })
  expect((await rig.grantOutcome(job, 1)).short.get(job.seq)).toBe("spent")
  expect(await rig.row(job)).toMatchObject({ completed: 2, queued: 1 })
})

test("a retry after the hold was spent gets a hold of its own, within max_cost_usd again", async () => {
  const job = await limited(3, 2n * RESERVE)
  const claims = await rig.grant(job, 2)
  await begin(job, claims, 60_000)
  for (const claim of claims) await rig.report(claim, { runtime_ms: 60_000 })
  const failure = { kind: "budget_spent" as const, message: "the job's hold is spent", preflight: "" }
  expect((await rig.grantOutcome(job, 1)).short.get(job.seq)).toBe("spent")
  await failWaitingTasks(rig, job.seq, failure, NO_SIGNAL)
  await rig.finish(job)
  const { job: again } = await rig.retry({ id: job.id, account: null, filter: "failed", indexes: null })
  expect(await holdOf(again)).toMatchObject({ amount: RESERVE, round: 2 })
  const all = { id: job.id, account: null, filter: "indexes" as const, indexes: [0, 1, 2] }
  await rig.cancel(again)
  expect(await holdOf((await rig.retry(all)).job)).toMatchObject({ amount: 2n * RESERVE, round: 3 })
})

/** What may happen to a job, in any order. */
type Step = { do: "grant" | "ok" | "fail" | "spent" | "lose" | "cancel" | "retry"; ms: number; which: number }

test("whatever happens, no hold is exceeded, no attempt charged twice, and all sums agree at every moment", async () => {
  const step: fc.Arbitrary<Step> = fc.record({
    do: fc.constantFrom("grant", "grant", "ok", "ok", "fail", "spent", "lose", "cancel", "retry", "retry"),
    ms: fc.integer({ min: 0, max: 90_000 }),
    which: fc.nat({ max: 5 }),
  })
  const most = fc.option(fc.bigInt({ min: 1n, max: 900n }), { nil: null })
  await fc.assert(
    fc.asyncProperty(most, fc.array(step, { minLength: 10, maxLength: 40 }), async (limit, steps) => {
      const job = await rig.queued(account, {
        ...items(4),
        max_retries: 1,
        ...(limit !== null && { max_cost_usd: usd(limit) }),
      })
      let live: ClaimNumber[] = []
      for (const { do: act, ms, which } of steps) {
        live = await take(job, live, act, ms, which)
        const { checks } = await auditMoney(rig.store)
        expect(checks.filter(({ ok }) => !ok)).toEqual([])
        await agrees(job, limit)
      }
      await rig.cancel(job).catch(() => undefined)
    }),
    { numRuns: 25 },
  )
}, 120_000)

async function take(
  job: JobRow,
  live: readonly ClaimNumber[],
  act: Step["do"],
  ms: number,
  which: number,
): Promise<ClaimNumber[]> {
  const claim = live[which % Math.max(1, live.length)]
  if (act === "grant") {
    const outcome = await rig.grantOutcome(job, 1 + (which % 3))
    if (outcome.short.get(job.seq) === "spent") {
      const failure = { kind: "budget_spent" as const, message: "spent", preflight: "" }
      await failWaitingTasks(rig, job.seq, failure, NO_SIGNAL)
    }
    const granted = outcome.granted.map((one) => one.claim)
    await rig.start(granted)
    await rig.finish(job)
    return [...live.filter((one) => !outcome.spent.includes(one)), ...granted]
  }
  if (act === "cancel") {
    await rig.cancel(job).catch(() => undefined)
    return []
  }
  if (act === "retry") {
    const request = { id: job.id, account: null, filter: "indexes" as const, indexes: [which % 4, (which + 1) % 4] }
    await rig.retry(request).catch((error: unknown) => expect(error).toMatchObject({ code: "conflict" }))
    return [...live]
  }
  if (claim === undefined) return [...live]
  rig.pass(ms)
  if (act === "lose") {
    await rig.lose(claim)
    return [...live]
  }
  const item = act === "ok" ? {} : failedItem(act === "fail" ? "exit_code" : "budget_spent")
  await rig.report(claim, { ...item, runtime_ms: ms })
  // Told twice it is charged once.
  await rig.report(claim, { ...item, runtime_ms: ms })
  await rig.finish(job)
  return live.filter((one) => one !== claim)
}

/** The job's sums are those of its rows, and what its rounds cost is within what was allowed. */
async function agrees(job: JobRow, limit: bigint | null): Promise<void> {
  const row = await rig.row(job)
  const tasks = await rig.store.read((view) =>
    view.all<{ state: string; n: number }>(
      "SELECT state, count(*) AS n FROM tasks WHERE id / 131072 = ? GROUP BY state",
      job.seq,
    ),
  )
  const of = (...states: string[]): number =>
    tasks.filter(({ state }) => states.includes(state)).reduce((sum, { n }) => sum + n, 0)
  const { completed, failed, cancelled, queued, granted, running } = row
  expect({ completed, failed, cancelled, queued, granted, running }).toEqual({
    completed: of("completed"),
    failed: of("failed"),
    cancelled: of("cancelled"),
    queued: of("queued"),
    granted: of("granted"),
    running: of("running", "lost"),
  })
  const hold = await holdOf(row)
  if (limit !== null) expect(hold?.amount).toBeLessThanOrEqual(limit)
  expect(hold?.round).toBe(row.round)
}
