import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { claimNumber, type AccountId, type ClaimNumber } from "../../protocol/domain/ids.ts"
import { listHolds } from "../../coordinator/billing/holds.ts"
import { newJobOnWire } from "../../coordinator/jobs/read/job-object.ts"
import { blockedBy } from "../../coordinator/jobs/read/read-job.ts"
import { createQueueTimeout } from "../../coordinator/scheduler/queue-timeout.ts"
import { closeDependency, insertDependency, openDependents } from "../../coordinator/store/dependencies.ts"
import { jobEvents } from "../../coordinator/store/events.ts"
import { findHold } from "../../coordinator/store/holds.ts"
import { countActiveJobs, type JobRow } from "../../coordinator/store/jobs.ts"
import { openReservations } from "../../coordinator/store/reservations.ts"
import { fundedAccount } from "../support/accounts.ts"
import { crashingStore, type Crashes } from "../support/crashing-store.ts"
import { failedItem, LEAST_JOB, type JobRig } from "../support/job-rig.ts"
import { startLifeRig, type LifeRig } from "../support/life-rig.ts"

const MINUTE = 60_000

let rig: JobRig & LifeRig
let crashes: Crashes
let account: AccountId

beforeEach(async () => {
  rig = await startLifeRig({
    wrap(store) {
      const crashing = crashingStore(store)
      crashes = crashing.crashes
      return crashing.store
    },
  })
  account = await fundedAccount(rig.store, 1_000_000_000n)
  await rig.project(account)
})
afterEach(async () => rig[Symbol.asyncDispose]())

type Job = Pick<JobRow, "id" | "seq" | "hold" | "taskCount">

/** As POST /jobs does it. */
async function submit(body: object = {}, by = account): Promise<JobRow> {
  const sent = { ...LEAST_JOB, ...body }
  const { job } = await rig.submit({ account: by, user: null, body: sent, bodyText: JSON.stringify(sent) })
  rig.life.plan(job)
  return job
}

const after = (...jobs: Pick<JobRow, "id">[]): object => ({ depends_on: jobs.map(({ id }) => id) })
const items = (count: number): object => ({ fan_out: { items: Array.from({ length: count }, (_, n) => ({ n })) } })
const statusOf = async (job: Pick<JobRow, "seq">): Promise<string> => (await rig.row(job)).status
const holdOf = async (job: Pick<JobRow, "hold">) => (await rig.store.read((view) => findHold(view, job.hold)))?.status
const blockers = async (job: Job) => {
  const row = await rig.row(job)
  return rig.store.read((view) => blockedBy(view, row))
}
const jobEventsOf = async (job: Pick<JobRow, "seq">) =>
  (await rig.store.read((view) => jobEvents(view, job.seq, 0, 1000)))
    .filter(({ type }) => type.startsWith("job."))
    .map(({ type, data }) => [type, data["blocked_by"]])
const isOffered = (job: Pick<JobRow, "seq">): Promise<void> =>
  expect.poll(() => rig.queue.waiting(job.seq), POLL).toBeGreaterThan(0)
const POLL = { timeout: 30_000, interval: 5 }
const hasEnded = (job: Pick<JobRow, "seq">, status: string): Promise<void> =>
  expect.poll(() => statusOf(job), POLL).toBe(status)

async function started(job: Job): Promise<ClaimNumber[]> {
  await isOffered(job)
  const claims = await rig.grant(await rig.row(job), job.taskCount)
  expect(claims).toHaveLength(job.taskCount)
  await rig.start(claims)
  return claims
}

/** Runs the job to this end; of a job that ends partial the first task fails, or leaves a suspect result. */
async function end(job: Job, how: "completed" | "failed" | "partial" | "cancelled"): Promise<void> {
  if (how === "cancelled") await rig.life.cancel(job.id, account, "")
  else {
    for (const [n, claim] of (await started(job)).entries()) {
      const fails = how === "failed" || (how === "partial" && n === 0)
      const { finishing, failed } = await rig.reportOutcome(claim, fails ? failedItem("exit_code") : {})
      rig.life.taskFailed(failed)
      rig.life.finish(finishing)
    }
  }
  await hasEnded(job, how)
}

describe("waiting", () => {
  test("J-011, G-001, G-002, G-004: a job waits as queued until all it depends on completed, and is handed out then", async () => {
    const [a, b] = [await submit(), await submit()]
    const c = await submit(after(a, b))
    expect(await statusOf(c)).toBe("queued")
    expect(await blockers(c)).toEqual([a.id, b.id])
    expect(await holdOf(c)).toBe("active")
    await end(a, "completed")
    await expect.poll(() => blockers(c)).toEqual([b.id])
    // Whatever memory believes: the rows decide.
    expect(rig.queue.waiting(c.seq)).toBe(0)
    expect(await rig.grant(c, 1)).toEqual([])
    rig.pass(MINUTE)
    await end(b, "completed")
    await isOffered(c)
    expect(await blockers(c)).toEqual([])
    const { queuedAt } = await rig.row(c)
    expect(queuedAt).toBeGreaterThanOrEqual((await rig.row(b)).completedAt ?? Number.NaN)
    await end(c, "completed")
    expect((await rig.row(c)).startedAt).toBeGreaterThanOrEqual((await rig.row(b)).completedAt ?? Number.NaN)
    expect(await jobEventsOf(c)).toEqual([
      ["job.planning", undefined],
      ["job.queued", [a.id, b.id]],
      ["job.queued", []],
      ["job.running", undefined],
      ["job.completed", undefined],
    ])
    expect(await holdOf(c)).not.toBe("active")
  })

  test("G-004: a diamond runs in order", async () => {
    const top = await submit()
    const left = await submit(after(top))
    const right = await submit(after(top))
    const bottom = await submit(after(left, right))
    await end(top, "completed")
    await end(right, "completed")
    expect(rig.queue.waiting(bottom.seq)).toBe(0)
    await end(left, "completed")
    await end(bottom, "completed")
  })

  test("G-005: who depends on a fan-out waits for its last task", async () => {
    const many = await submit(items(3))
    const next = await submit(after(many))
    const claims = await started(many)
    for (const claim of claims.slice(0, 2)) await rig.report(claim)
    expect(await blockers(next)).toEqual([many.id])
    expect(await rig.grant(next, 1)).toEqual([])
    const { finishing } = await rig.reportOutcome(claims[2] ?? claimNumber(0))
    // All tasks are done, the job is not: its results are being merged.
    expect(await blockers(next)).toEqual([many.id])
    rig.life.finish(finishing)
    await isOffered(next)
  })

  test("GAP-62: what has completed already is not waited for, and naming it twice is naming it once", async () => {
    const done = await submit()
    await end(done, "completed")
    const running = await submit()
    const next = await submit({ depends_on: [done.id, running.id, done.id] })
    expect(await blockers(next)).toEqual([running.id])
    const free = await submit(after(done, done))
    expect(await blockers(free)).toEqual([])
    await isOffered(free)
    expect(newJobOnWire(free, []).depends_on).toEqual([done.id])
    expect(await jobEventsOf(free)).toEqual([
      ["job.planning", undefined],
      ["job.queued", undefined],
    ])
  })

  test("a job of many tasks is released while they are being written, and starts when they are", async () => {
    const first = await submit()
    const body = { ...LEAST_JOB, ...after(first), fan_out: { chunks: 2_500, total: 2_500 } }
    const { job } = await rig.submit({ account, user: null, body, bodyText: JSON.stringify(body) })
    expect(job.status).toBe("planning")
    await end(first, "completed")
    await expect.poll(() => rig.store.read((view) => openDependents(view, first.seq, 1))).toEqual([])
    expect(await statusOf(job)).toBe("planning")
    rig.life.plan(job)
    await expect.poll(() => rig.queue.waiting(job.seq), POLL).toBe(2_500)
    expect(await jobEventsOf(job)).toEqual([
      ["job.planning", undefined],
      ["job.queued", undefined],
    ])
  })

  test("GAP-63, L-006: waiting for other jobs is no waiting in the queue, neither for the time-out nor for rank", async () => {
    const first = await submit({ timeout_s: 7_200 })
    const next = await submit(after(first))
    const timeout = createQueueTimeout({
      ...rig,
      queueTimeoutMs: null,
      intervalMs: 30_000,
      hasCapacity: () => true,
      cancel: (job, reason) => rig.life.cancelWaiting(job, reason),
    })
    const pass = async (minutes: number): Promise<void> => {
      for (let passed = 0; passed < minutes * 2; passed++) {
        rig.pass(30_000)
        await timeout.look()
      }
    }
    await timeout.load()
    await timeout.look()
    await pass(60)
    expect(await statusOf(next)).toBe("queued")
    await end(first, "completed")
    await isOffered(next)
    const ready = rig.queue.first(rig.clock.now(), () => true)
    expect(ready?.seq).toBe(next.seq)
    expect(rig.clock.now() - (ready?.readySince ?? 0)).toBeLessThan(MINUTE)
    await pass(29)
    expect(await statusOf(next)).toBe("queued")
    await pass(2)
    expect(await statusOf(next)).toBe("cancelled")
  })

  test("P-012, PR-015: a job that waits for others is an active job of its project", async () => {
    await rig.project(account, "other")
    const first = await submit()
    await submit({ ...after(first), project: "other" })
    expect(await rig.store.read((view) => countActiveJobs(view, account, "other"))).toMatchObject({
      activeJobs: 1,
      queuedTasks: 1,
    })
  })
})

describe("refusals", () => {
  test("G-006, GAP-62: unknown, foreign and expired ids are refused, and nothing is created", async () => {
    const stranger = await fundedAccount(rig.store, 1_000_000_000n)
    await rig.project(stranger)
    const own = await submit()
    const foreign = await submit({}, stranger)
    const old = await submit()
    await end(old, "completed")
    rig.pass(31 * 86_400_000)
    const before = await listHolds(rig.store, account, { status: null, limit: 50, offset: 0 })
    for (const id of ["job_20260312_143000_abc123", foreign.id, old.id]) {
      await expect(submit({ depends_on: [own.id, id] })).rejects.toMatchObject({
        status: 422,
        details: [{ path: "depends_on", problem: expect.stringContaining(id) }],
      })
    }
    expect(await listHolds(rig.store, account, { status: null, limit: 50, offset: 0 })).toEqual(before)
    await submit(after(own))
  })

  test("V-002: nothing is guaranteed to a job that would wait for others, and nothing is created", async () => {
    const [done, waiting] = [await submit(), await submit()]
    await end(done, "completed")
    const reservation = { mode: "guaranteed", parallelism: 1 }
    const before = await listHolds(rig.store, account, { status: null, limit: 50, offset: 0 })
    await expect(submit({ ...after(done, waiting), reservation })).rejects.toMatchObject({
      status: 409,
      details: { depends_on: waiting.id },
    })
    expect(await listHolds(rig.store, account, { status: null, limit: 50, offset: 0 })).toEqual(before)
    expect(await rig.store.read(openReservations)).toEqual([])
    await isOffered(await submit({ ...after(done), reservation }))
    await end(waiting, "completed")
    await isOffered(await submit({ ...after(done, waiting), reservation }))
    expect(await rig.store.read(openReservations)).toHaveLength(2)
  })

  test("G-004: no cycle can be made: a job names only what was there before it", async () => {
    const [first, second] = [await submit(), await submit()]
    await rig.store.write((tx) => insertDependency(tx, second.seq, first.seq, null))
    for (const [job, upstream] of [
      [first, second],
      [first, first],
    ] as const) {
      await expect(rig.store.write((tx) => insertDependency(tx, job.seq, upstream.seq, null))).rejects.toThrow("CHECK")
    }
  })
})

describe("a dependency that does not complete", () => {
  test.each(["partial", "failed", "cancelled"] as const)(
    "G-003, C-02: one that ends %s cancels its dependents, and theirs, each with its direct cause",
    async (how) => {
      const first = await submit(how === "partial" ? items(2) : {})
      const second = await submit(after(first))
      const third = await submit({ ...after(second), ...items(3) })
      const fourth = await submit(after(first, third))
      const other = await submit()
      const waitsForBoth = await submit(after(other, second))
      await end(first, how)
      for (const job of [second, third, fourth, waitsForBoth]) {
        await hasEnded(job, "cancelled")
        expect(await holdOf(job)).toBe("released")
      }
      const errorOf = async (job: Job): Promise<string | null> => (await rig.row(job)).error
      expect(await errorOf(second)).toBe(`dependency ${first.id} ended ${how}`)
      expect(await errorOf(third)).toBe(`dependency ${second.id} ended cancelled`)
      expect([`dependency ${first.id} ended ${how}`, `dependency ${third.id} ended cancelled`]).toContain(
        await errorOf(fourth),
      )
      expect(await errorOf(waitsForBoth)).toBe(`dependency ${second.id} ended cancelled`)
      await expect.poll(async () => (await rig.row(third)).outcome).not.toBe(null)
      expect((await jobEventsOf(third)).map(([type]) => type)).toEqual(["job.planning", "job.queued", "job.cancelled"])
      // L-010: what is independent goes on; its end finds nobody that waits any more.
      await end(other, "completed")
      expect(await statusOf(waitsForBoth)).toBe("cancelled")
    },
  )

  test("GAP-62: one that has ended so already: the job is made, and cancelled in the same write", async () => {
    const broken = await submit()
    await end(broken, "failed")
    const fine = await submit()
    for (const body of [after(fine, broken), { ...after(broken), fan_out: { chunks: 2_500, total: 2_500 } }]) {
      const job = await submit(body)
      expect(job).toMatchObject({ status: "cancelled", error: `dependency ${broken.id} ended failed` })
      expect(newJobOnWire(job, [])).toMatchObject({
        status: "cancelled",
        error: `dependency ${broken.id} ended failed`,
        summary: { billing_hold: { status: "released" }, billing_admission: { admitted: true } },
      })
      expect(await holdOf(job)).toBe("released")
      await expect.poll(async () => (await rig.row(job)).outcome, POLL).not.toBe(null)
      expect((await jobEventsOf(job)).map(([type]) => type)).toEqual(["job.planning", "job.cancelled"])
      const dependent = await submit(after(job))
      expect(dependent).toMatchObject({ status: "cancelled", error: `dependency ${job.id} ended cancelled` })
    }
  })

  test("L-003: a strict job that cannot succeed any more cancels who waits for it, while its other tasks are stopped", async () => {
    const strict = await submit({ ...items(3), reliability_mode: "strict_complete" })
    const next = await submit(after(strict))
    const [claim] = await started(strict)
    if (claim === undefined) throw new Error("three tasks run")
    rig.life.taskFailed((await rig.reportOutcome(claim, failedItem("exit_code"))).failed)
    await hasEnded(strict, "failed")
    await hasEnded(next, "cancelled")
    expect((await rig.row(next)).error).toBe(`dependency ${strict.id} ended failed`)
  })

  test("who cancels a waiting job is told apart, and what it waited for goes on", async () => {
    const first = await submit()
    const next = await submit(after(first))
    await rig.life.cancel(next.id, account, "changed my mind")
    expect(await rig.row(next)).toMatchObject({ status: "cancelled", error: "changed my mind" })
    await end(first, "failed")
    expect(await rig.row(next)).toMatchObject({ status: "cancelled", error: "changed my mind" })
    await expect.poll(() => rig.store.read((view) => openDependents(view, first.seq, 1))).toEqual([])
  })

  test("rulings, Dependencies: a later retry of the upstream revives nothing", async () => {
    const first = await submit()
    const next = await submit(after(first))
    await end(first, "failed")
    await hasEnded(next, "cancelled")
    const done = await rig.row(next)
    await rig.store.write((tx) => tx.run("UPDATE jobs SET status = 'completed' WHERE seq = ?", first.seq))
    await rig.restart()
    rig.life.finish([first.seq])
    await rig.life.takeUp(next.seq)
    expect(await rig.row(next)).toMatchObject({ ...done, outcome: expect.anything() })
    expect(rig.queue.waiting(next.seq)).toBe(0)
  })
})

describe("a retry", () => {
  const again = (job: Job): Promise<JobRow> => rig.retried({ id: job.id, account, filter: "indexes", indexes: [0] })
  const isWhole = (job: Job): Promise<void> =>
    expect.poll(async () => (await rig.row(job)).outcome, POLL).not.toBe(null)

  test("G-001, rulings Retry: a job that was cancelled while it waited waits again, and starts when all completed", async () => {
    const [first, second] = [await submit(), await submit()]
    const next = await submit(after(first, second))
    await end(first, "completed")
    await rig.life.cancel(next.id, account, "changed my mind")
    const retried = await again(next)
    expect(retried).toMatchObject({ status: "queued", round: 2 })
    expect(await blockers(next)).toEqual([second.id])
    expect((await jobEventsOf(next)).at(-1)).toEqual(["job.retried", [second.id]])
    // It is known only when it is released, and the rows would refuse it.
    await rig.life.settled(next.seq)
    await rig.life.takeUp(next.seq)
    expect(rig.queue.waiting(next.seq)).toBe(0)
    expect(await rig.grant(await rig.row(next), 1)).toEqual([])
    await rig.restart()
    await end(second, "completed")
    await end(next, "completed")
    expect((await rig.row(next)).startedAt).toBeGreaterThanOrEqual((await rig.row(second)).completedAt ?? Number.NaN)
  })

  test("G-001, G-003: it is refused while one that it depends on has ended without completing; that is retried first", async () => {
    const first = await submit()
    const next = await submit({ ...after(first), ...items(2) })
    await end(first, "failed")
    await hasEnded(next, "cancelled")
    await isWhole(next)
    const before = await rig.row(next)
    await expect(again(next)).rejects.toMatchObject({ status: 409, message: expect.stringContaining(first.id) })
    expect(await rig.row(next)).toEqual(before)
    await again(first)
    await again(next)
    expect(await blockers(next)).toEqual([first.id])
    await end(first, "completed")
    await isOffered(next)
    const [claim] = await rig.grant(await rig.row(next), 1)
    const { finishing } = await rig.reportOutcome(claim ?? claimNumber(0))
    rig.life.finish(finishing)
    await hasEnded(next, "partial")
    expect(await rig.store.read((view) => openDependents(view, first.seq, 1))).toEqual([])
  })

  test("G-003: one that waits again is cancelled again with what it waits for", async () => {
    const first = await submit()
    const next = await submit(after(first))
    await rig.life.cancel(next.id, account, "changed my mind")
    await again(next)
    await end(first, "failed")
    await hasEnded(next, "cancelled")
    expect((await rig.row(next)).error).toBe(`dependency ${first.id} ended failed`)
  })

  test("G-001, rulings Retry: a job is not opened again while one that depends on it counts on what it came to", async () => {
    const first = await submit()
    const next = await submit(after(first))
    const running = await submit(after(first))
    for (const claim of await started(first)) await rig.report(claim)
    // It has ended, and nobody was told yet.
    await rig.finish(first)
    expect(await statusOf(first)).toBe("completed")
    const whole = await rig.row(first)
    const refused = { status: 409, details: { status: "completed", dependent: next.id } }
    await expect(again(first)).rejects.toMatchObject(refused)
    await rig.restart()
    await isOffered(next)
    await started(running)
    await expect(again(first)).rejects.toMatchObject(refused)
    expect(await rig.row(first)).toEqual(whole)
    await end(next, "completed")
    await expect(again(first)).rejects.toMatchObject({ details: { dependent: running.id } })
    await rig.life.cancel(running.id, account, "no longer needed")
    expect(await again(first)).toMatchObject({ status: "queued", round: 2 })
    await end(first, "failed")
    expect(await statusOf(next)).toBe("completed")
  })

  test("G-003, rulings Retry: it waits until those that its end cancels are cancelled, and revives none of them", async () => {
    const first = await submit()
    const waiting = await Promise.all(Array.from({ length: 300 }, () => submit(after(first))))
    await end(first, "failed")
    expect(await again(first)).toMatchObject({ status: "queued", round: 2 })
    for (const next of waiting) expect(await statusOf(next)).toBe("cancelled")
  })

  test("RS-014: what completed for it and is gone since is not asked for again; what never did is", async () => {
    const [first, second] = [await submit(), await submit()]
    const [next, other] = [await submit(after(first)), await submit(after(first, second))]
    await end(first, "completed")
    await end(second, "failed")
    await end(next, "failed")
    await hasEnded(other, "cancelled")
    await isWhole(other)
    await rig.store.write((tx) => tx.run("UPDATE jobs SET completed_at = 0 WHERE seq IN (?, ?)", first.seq, second.seq))
    await expect(again(other)).rejects.toMatchObject({ status: 409, message: expect.stringContaining(second.id) })
    await again(next)
    await isOffered(next)
  })
})

describe("many", () => {
  test("a thousand dependents of one job are released, and a thousand cancelled, in slices", async () => {
    const [first, second] = [await submit(), await submit()]
    const waiting = async (on: Job): Promise<JobRow[]> => {
      const made = Array.from({ length: 1_000 }, () => submit(after(on)))
      return await Promise.all(made)
    }
    const [released, cancelled] = [await waiting(first), await waiting(second)]
    await end(first, "completed")
    await expect
      .poll(() => released.filter(({ seq }) => rig.queue.waiting(seq) === 1).length, { timeout: 60_000 })
      .toBe(1_000)
    await end(second, "failed")
    await expect
      .poll(async () => (await statuses(cancelled)).filter((status) => status === "cancelled").length, {
        timeout: 60_000,
      })
      .toBe(1_000)
    expect(await activeHolds()).toBe(1_000)
    expect(new Set(await statuses(released))).toEqual(new Set(["queued"]))
  }, 180_000)

  test("G-003: a chain of a thousand is cancelled from its first to its last", async () => {
    const first = await submit()
    const chain = [first]
    let [before, last] = [first, first]
    for (let n = 1; n < 1_000; n++) {
      before = last
      last = await submit(after(before))
      chain.push(last)
    }
    await rig.life.cancel(first.id, account, "no longer needed")
    await expect.poll(() => statusOf(last), { timeout: 60_000 }).toBe("cancelled")
    expect((await rig.row(last)).error).toBe(`dependency ${before.id} ended cancelled`)
    expect(new Set(await statuses(chain))).toEqual(new Set(["cancelled"]))
    expect(await activeHolds()).toBe(0)
  }, 180_000)

  async function statuses(jobs: readonly Pick<JobRow, "seq">[]): Promise<string[]> {
    const rows = await rig.store.read((view) =>
      view.all<{ seq: number; status: string }>("SELECT seq, status FROM jobs"),
    )
    const bySeq = new Map(rows.map(({ seq, status }) => [seq, status]))
    return jobs.map(({ seq }) => bySeq.get(seq) ?? "gone")
  }

  const activeHolds = async (): Promise<number> =>
    (await rig.store.read((view) => view.all("SELECT id FROM holds WHERE status = 'active'"))).length
})

describe("a crash", () => {
  test.each(Array.from({ length: 12 }, (_, commits) => commits))(
    "after %i writes from the ends of what jobs wait for: the next start releases and cancels the rest, once",
    async (commits) => {
      const [good, bad] = [await submit(), await submit()]
      const released = [await submit(after(good)), await submit(after(good))]
      const cancelled = [await submit(after(good, bad))]
      cancelled.push(await submit(after(...cancelled)))
      const [goodClaim] = await started(good)
      const [badClaim] = await started(bad)
      if (goodClaim === undefined || badClaim === undefined) throw new Error("both run")
      crashes.crashAfter(commits)
      const reported: [ClaimNumber, object][] = [
        [goodClaim, {}],
        [badClaim, failedItem("exit_code")],
      ]
      for (const [claim, item] of reported) {
        try {
          rig.life.finish((await rig.reportOutcome(claim, item)).finishing)
        } catch {
          expect(crashes.hasCrashed()).toBe(true)
        }
      }
      // What is under way comes to its end, or to the crash.
      await expect
        .poll(async () => crashes.hasCrashed() || (await statusOf(cancelled[1] ?? bad)) === "cancelled")
        .toBe(true)
      await rig.restart(() => crashes.recover())
      // What the node was not answered it says again.
      for (const [claim, item] of reported) rig.life.finish((await rig.reportOutcome(claim, item)).finishing)
      for (const job of released) await isOffered(job)
      for (const job of cancelled) await hasEnded(job, "cancelled")
      for (const job of released) {
        expect((await jobEventsOf(job)).map(([type]) => type)).toEqual(["job.planning", "job.queued", "job.queued"])
        await end(job, "completed")
      }
      for (const job of cancelled) {
        expect((await jobEventsOf(job)).filter(([type]) => type === "job.cancelled")).toHaveLength(1)
        expect(await holdOf(job)).toBe("released")
      }
    },
  )

  test("L-005: what a start did not find the sweep finds", async () => {
    const first = await submit()
    const next = await submit(after(first))
    await end(first, "completed")
    await isOffered(next)
    // As if the end had never been acted upon.
    await rig.store.write((tx) => tx.run("UPDATE job_dependencies SET ended = NULL WHERE job = ?", next.seq))
    rig.queue.remove(next.seq)
    await rig.life.takeUp(next.seq)
    await isOffered(next)
    expect(await rig.store.write((tx) => closeDependency(tx, next.seq, first.seq, "completed"))).toBe(false)
  })
})
