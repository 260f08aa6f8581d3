import fc from "fast-check"
import { expect, test } from "vitest"
import type { ClaimNumber } from "../../protocol/domain/ids.ts"
import { auditMoney } from "../../coordinator/billing/audit.ts"
import { jobEvents } from "../../coordinator/store/events.ts"
import type { JobRow } from "../../coordinator/store/jobs.ts"
import { fundedAccount } from "../support/accounts.ts"
import { crashingStore, type Crashes } from "../support/crashing-store.ts"
import { failedItem, LEAST_JOB, type JobRig } from "../support/job-rig.ts"
import { startLifeRig, type LifeRig } from "../support/life-rig.ts"

/** How a job would end if it came to run: all of its tasks complete, one of two fails, all fail, or its owner cancels it. */
type Outcome = "completed" | "partial" | "failed" | "cancelled"

interface PlannedJob {
  /** Of earlier ones, by index. */
  upstreams: number[]
  outcome: Outcome
}

/** `submit`: the next job comes; `run`: some job that machines may take runs; `crash`: after so many more writes. */
type Step = { step: "submit" } | { step: "run"; which: number } | { step: "crash"; after: number }

const dag = fc.array(fc.record({ picks: fc.array(fc.nat(), { maxLength: 3 }), outcome: fc.nat(9) }), {
  minLength: 2,
  maxLength: 9,
})
const steps = fc.array(
  fc.oneof(
    { weight: 3, arbitrary: fc.constant<Step>({ step: "submit" }) },
    { weight: 4, arbitrary: fc.record({ step: fc.constant("run" as const), which: fc.nat() }) },
    { weight: 1, arbitrary: fc.record({ step: fc.constant("crash" as const), after: fc.nat(12) }) },
  ),
  { maxLength: 40 },
)

/** Most jobs complete, else hardly anything would run behind them. */
const outcomeOf = (n: number): Outcome => (["partial", "failed", "cancelled"] as const)[n] ?? "completed"

const planned = (jobs: { picks: number[]; outcome: number }[]): PlannedJob[] =>
  jobs.map(({ picks, outcome }, index) => ({
    upstreams: index === 0 ? [] : [...new Set(picks.map((pick) => pick % index))],
    outcome: outcomeOf(outcome),
  }))

/** What each job must come to, whatever happens in between. */
function expectedEnds(jobs: readonly PlannedJob[]): Outcome[] {
  const ends: Outcome[] = []
  for (const { upstreams, outcome } of jobs) {
    ends.push(upstreams.every((upstream) => ends[upstream] === "completed") ? outcome : "cancelled")
  }
  return ends
}

test(
  "G-001, G-003, G-004: in any DAG, with crashes at any commit, a job runs once all it depends on completed and else is cancelled",
  { timeout: 300_000 },
  async () => {
    await fc.assert(
      fc.asyncProperty(dag, steps, async (jobs, doings) => {
        await using world = await startWorld(planned(jobs))
        for (const doing of doings) await world.take(doing)
        await world.bringToItsEnd()
        await world.check()
      }),
      { numRuns: process.env["COMPUTALOT_TEST_FULL"] === "1" ? 300 : 30 },
    )
  },
)

async function startWorld(plan: readonly PlannedJob[]) {
  let crashes: Crashes | null = null
  const rig: JobRig & LifeRig = await startLifeRig({
    wrap(store) {
      const crashing = crashingStore(store)
      crashes = crashing.crashes
      return crashing.store
    },
  })
  const account = await fundedAccount(rig.store, 1_000_000_000n)
  await rig.project(account)
  const jobs: JobRow[] = []
  /** Live, with how their reports will read: what a node was not answered it says again. */
  const running = new Map<ClaimNumber, object>()
  const wrong: string[] = []

  async function submitNext(): Promise<void> {
    const next = plan[jobs.length]
    if (!next) return
    const body = {
      ...LEAST_JOB,
      client_ref: `job ${jobs.length}`,
      depends_on: next.upstreams.flatMap((upstream) => jobs[upstream]?.id ?? []),
      ...(next.outcome === "partial" ? { fan_out: { chunks: 2, total: 2 } } : {}),
    }
    const { job } = await rig.submit({ account, user: null, body, bodyText: JSON.stringify(body) })
    rig.life.plan(job)
    jobs.push(job)
  }

  async function runOne(which: number): Promise<void> {
    for (const [claim] of running) await report(claim)
    const offered = jobs.filter(({ seq }) => rig.queue.waiting(seq) > 0)
    const job = offered[which % Math.max(1, offered.length)]
    if (!job) return
    const index = jobs.indexOf(job)
    for (const upstream of plan[index]?.upstreams ?? []) {
      const row = jobs[upstream]
      const status = row && (await rig.row(row)).status
      // The heart of it: nothing is handed out before all that it depends on completed.
      if (status !== "completed") wrong.push(`job ${index} is offered while job ${upstream} is ${status}`)
    }
    const outcome = plan[index]?.outcome
    if (outcome === "cancelled") return void (await rig.life.cancel(job.id, account, "as planned"))
    const claims = await rig.grant(job, job.taskCount)
    for (const [n, claim] of claims.entries()) {
      const fails = outcome === "failed" || (outcome === "partial" && n === 0)
      running.set(claim, fails ? failedItem("exit_code") : {})
    }
    await rig.start(claims)
    for (const claim of claims) await report(claim)
  }

  async function report(claim: ClaimNumber): Promise<void> {
    const { finishing } = await rig.reportOutcome(claim, running.get(claim))
    running.delete(claim)
    rig.life.finish(finishing)
  }

  /** False when the process crashed meanwhile: a new one goes on. */
  async function lives(act: () => Promise<void>): Promise<boolean> {
    try {
      await act()
    } catch (error) {
      if (!crashes?.hasCrashed()) throw error
    }
    if (!crashes?.hasCrashed()) return true
    await rig.restart(() => crashes?.recover())
    return false
  }

  async function survive(act: () => Promise<void>): Promise<void> {
    await lives(act)
    while (!(await lives(takeStock))) continue
  }

  /** What was done and not answered: a submission is found by its reference, as a client would find it by its key. */
  async function takeStock(): Promise<void> {
    if (jobs.length < plan.length) {
      const ref = `job ${jobs.length}`
      const seq = await rig.store.read((view) =>
        view.get<{ seq: number }>("SELECT seq FROM jobs WHERE client_ref = ?", ref),
      )
      if (seq) jobs.push(await rig.row(seq))
    }
    for (const live of await liveClaims()) if (!running.has(live.claim)) running.set(live.claim, live.item)
  }

  /** Attempts whose grant was not answered: their node heard nothing of it, or of all but the answer; here it runs them. */
  async function liveClaims(): Promise<{ claim: ClaimNumber; item: object }[]> {
    const rows = await rig.store.read((view) =>
      view.all<{ claim: ClaimNumber; job: number; index: number }>(
        `SELECT claim, task / 131072 AS job, task % 131072 AS "index" FROM attempts WHERE ended_at IS NULL`,
      ),
    )
    return rows.map(({ claim, job, index }) => {
      const outcome = plan[jobs.findIndex(({ seq }) => seq === job)]?.outcome
      const fails = outcome === "failed" || (outcome === "partial" && index === 0)
      return { claim, item: fails ? failedItem("exit_code") : {} }
    })
  }

  return {
    async take(doing: Step): Promise<void> {
      await survive(async () => {
        if (doing.step === "submit") await submitNext()
        else if (doing.step === "run") await runOne(doing.which)
        else crashes?.crashAfter(doing.after)
      })
    },
    async bringToItsEnd(): Promise<void> {
      const giveUpAt = Date.now() + 60_000
      for (;;) {
        while (jobs.length < plan.length) await survive(submitNext)
        await survive(() => runOne(0))
        const open = await rig.store
          .read((view) => view.all("SELECT seq FROM jobs WHERE outcome IS NULL"))
          .catch(() => [{}])
        if (open.length === 0 && !crashes?.hasCrashed()) return
        if (Date.now() > giveUpAt) throw new Error(`jobs that never end: ${JSON.stringify(open)}`)
        await new Promise((resolve) => setTimeout(resolve, 2))
      }
    },
    async check(): Promise<void> {
      crashes?.recover()
      expect(wrong).toEqual([])
      const ends = expectedEnds(plan)
      for (const [index, job] of jobs.entries()) {
        const row = await rig.row(job)
        expect(row.status, `job ${index}`).toBe(ends[index])
        const broken = (plan[index]?.upstreams ?? []).filter((upstream) => ends[upstream] !== "completed")
        if (broken.length > 0) {
          const causes = broken.map((upstream) => `dependency ${jobs[upstream]?.id} ended ${ends[upstream]}`)
          expect(causes).toContain(row.error)
          expect(row.attempts).toBe(0)
        }
        const types = (await rig.store.read((view) => jobEvents(view, job.seq, 0, 1000))).map(({ type }) => type)
        expect(types.filter((type) => type === `job.${row.status}`)).toHaveLength(1)
        expect(types.filter((type) => type === "job.queued").length).toBeLessThanOrEqual(2)
      }
      const open = await rig.store.read((view) => view.all("SELECT * FROM job_dependencies WHERE ended IS NULL"))
      expect(open).toEqual([])
      const { checks } = await auditMoney(rig.store)
      expect(checks.filter(({ ok }) => !ok)).toEqual([])
      expect(await rig.store.read((view) => view.all("SELECT id FROM holds WHERE status = 'active'"))).toEqual([])
    },
    [Symbol.asyncDispose]: () => rig[Symbol.asyncDispose](),
  }
}
