import { Readable } from "node:stream"
import { afterEach, beforeEach, expect, test } from "vitest"
import { systemRandom } from "../../protocol/base/random.ts"
import type { AccountId } from "../../protocol/domain/ids.ts"
import { sweepArtifacts } from "../../coordinator/artifacts/retention.ts"
import { sweepStaged } from "../../coordinator/artifacts/stage.ts"
import { auditMoney } from "../../coordinator/billing/audit.ts"
import { listHolds } from "../../coordinator/billing/holds.ts"
import { listLedger } from "../../coordinator/billing/ledger.ts"
import { storeCheckpoint } from "../../coordinator/jobs/checkpoints.ts"
import { jobFacts } from "../../coordinator/jobs/job-facts.ts"
import { createGroupCache } from "../../coordinator/jobs/read/groups.ts"
import { findJobs } from "../../coordinator/jobs/read/list.ts"
import { readJob } from "../../coordinator/jobs/read/read-job.ts"
import { retryJob } from "../../coordinator/jobs/retry.ts"
import { sweepExpiredJobs } from "../../coordinator/jobs/retention.ts"
import { stageBlob } from "../../coordinator/store/blobs.ts"
import type { JobRow } from "../../coordinator/store/jobs.ts"
import { taskKey } from "../../coordinator/store/tasks.ts"
import { fundedAccount } from "../support/accounts.ts"
import { failedItem, LEAST_JOB, startJobRig, type JobRig } from "../support/job-rig.ts"
import { EVERY_JOB } from "../support/job-filter.ts"

const DAY = 86_400_000
const NO_SIGNAL = new AbortController().signal

let rig: JobRig
let account: AccountId
/** Writes so far; one of them may end the sweep. */
let writes = 0
let stopAt = Number.POSITIVE_INFINITY
let stop = new AbortController()

beforeEach(async () => {
  writes = 0
  stopAt = Number.POSITIVE_INFINITY
  stop = new AbortController()
  rig = await startJobRig({
    resultSpillBytes: 200,
    wrap: (store) => ({
      ...store,
      async write(act) {
        const result = await store.write(act)
        if (++writes >= stopAt) stop.abort(new Error("stopped"))
        return result
      },
    }),
  })
  account = await fundedAccount(rig.store, 1_000_000_000n)
  await rig.project(account)
})
afterEach(async () => rig[Symbol.asyncDispose]())

const items = (count: number): object => ({ fan_out: { items: Array.from({ length: count }, (_, n) => ({ n })) } })
const sweep = (signal = NO_SIGNAL): Promise<number> => sweepExpiredJobs(rig, signal)
const filter = () => ({ ...EVERY_JOB, account })
const listed = async (more: object = {}): Promise<{ ids: number[]; total: number }> => {
  const { seqs, total } = await findJobs(rig, { ...filter(), ...more }, { limit: 50, offset: 0 })
  return { ids: seqs, total }
}

async function completed(body: object = {}): Promise<JobRow> {
  const job = await rig.queued(account, body)
  await rig.runWhole(job, (index) => ({ index }))
  return job
}

/** Every row of any table that belongs to the job, money and artifacts excepted. */
async function rowsOf({ seq }: Pick<JobRow, "seq">): Promise<Record<string, number>> {
  const jobs = Array<number>(4).fill(seq)
  const tasks = Array.from({ length: 10 }, (_, n) => taskKey(seq + (n % 2), 0))
  const counts = await rig.store.read((view) =>
    view.get<Record<string, number>>(
      `SELECT (SELECT count(*) FROM jobs WHERE seq = ?) AS jobs,
        (SELECT count(*) FROM job_tags WHERE job = ?) AS tags,
        (SELECT count(*) FROM events WHERE job = ?) AS events,
        (SELECT count(*) FROM job_dependencies WHERE job = ?) AS dependencies,
        (SELECT count(*) FROM tasks WHERE id >= ? AND id < ?) AS tasks,
        (SELECT count(*) FROM task_results WHERE task >= ? AND task < ?) AS results,
        (SELECT count(*) FROM attempts WHERE task >= ? AND task < ?) AS attempts,
        (SELECT count(*) FROM checkpoints WHERE task >= ? AND task < ?) AS checkpoints,
        (SELECT count(*) FROM task_progress WHERE task >= ? AND task < ?) AS progress`,
      ...jobs,
      ...tasks,
    ),
  )
  return Object.fromEntries(Object.entries(counts ?? {}).filter(([, count]) => count > 0))
}

test("RS-014, L-008: a job is there until the moment it expires, and from then on it is not, swept or not", async () => {
  const job = await completed({ tags: ["old"] })
  const waits = await rig.queued(account, {})
  const { completedAt } = await rig.row(job)
  rig.pass((completedAt ?? 0) + rig.jobRetentionMs - rig.clock.now() - 5_000)
  const groupCache = createGroupCache(rig)
  const queued = { key: "queued", count: 1, statuses: { queued: 1 } }
  const ended = { key: "completed", count: 1, statuses: { completed: 1 } }
  expect(await groupCache.groups(filter(), "status")).toEqual([ended, queued])
  expect((await readJob(rig, job.id, account)).head.seq).toBe(job.seq)
  expect(await listed()).toEqual({ ids: [waits.seq, job.seq], total: 2 })
  expect(await sweep()).toBe(0)
  rig.pass(5_001)
  for (const asker of [account, null]) {
    await expect(readJob(rig, job.id, asker)).rejects.toMatchObject({ code: "not_found" })
  }
  for (const one of [{}, { tag: "old" }, { ids: [job.id] }, { statuses: ["completed"] }, { account: null }]) {
    expect((await listed(one)).ids).not.toContain(job.seq)
  }
  expect((await listed()).total).toBe(1)
  expect(await groupCache.groups(filter(), "status")).toEqual([queued])
  // What was begun with it just before comes to its end.
  rig.pass(50_000)
  expect(await sweep()).toBe(0)
  expect(Object.keys(await rowsOf(job))).toContain("jobs")
  rig.pass(10_000)
  expect(await sweep()).toBe(1)
  expect(await rowsOf(job)).toEqual({})
  // One that waits has not ended, however old it is.
  rig.pass(1_000 * DAY)
  expect(await sweep()).toBe(0)
  expect((await readJob(rig, waits.id, account)).head.status).toBe("queued")
})

test("L-008, rulings Retry: a job that expires while its retry is under way is gone, however much the sweep has left", async () => {
  const job = await rig.queued(account, { fan_out: { chunks: 1_400, total: 1_400 } })
  await rig.cancel(job)
  const again = { id: job.id, account, filter: "indexes" as const, indexes: [0, 1_399] }
  const retried = retryJob(
    {
      ...rig,
      random: systemRandom,
      quoteTtlMs: 1_000,
      again: () => {},
      async settled() {
        rig.pass(31 * DAY)
        stopAt = writes + 1
        await expect(sweep(stop.signal)).rejects.toThrow("stopped")
      },
    },
    again,
  )
  await expect(retried).rejects.toMatchObject({ code: "not_found" })
  const tasks = Number((await rowsOf(job))["tasks"])
  expect([tasks > 0, tasks < 1_400]).toEqual([true, true])
  expect(await listHolds(rig.store, account, { status: "active", limit: 50, offset: 0 })).toEqual([])
  expect(await sweep()).toBe(1)
  expect(await rowsOf(job)).toEqual({})
})

test("L-008: what a job cost outlives it, and the sums still agree", async () => {
  const job = await completed(items(3))
  const cancelled = await rig.queued(account, {})
  await rig.cancel(cancelled)
  const money = async () => ({
    holds: await listHolds(rig.store, account, { status: null, limit: 50, offset: 0 }),
    entries: await listLedger(rig.store, account, { limit: 50, offset: 0 }),
    charges: await rig.store.read((view) => view.all("SELECT * FROM charges ORDER BY claim")),
  })
  const before = await money()
  expect(before.charges).toHaveLength(3)
  expect(before.holds.map(({ job: of }) => of).toSorted()).toEqual([job.id, cancelled.id].toSorted())
  rig.pass(31 * DAY)
  expect(await sweep()).toBe(2)
  expect(await money()).toEqual(before)
  const { checks } = await auditMoney(rig.store)
  expect(checks.filter(({ ok }) => !ok)).toEqual([])
})

test("a large job goes in slices; one that was interrupted is gone for readers and is gone on with", async () => {
  const large = await rig.queued(account, { fan_out: { chunks: 3_000, total: 3_000 }, tags: ["t"] })
  const claims = await rig.grant(large, 40)
  await rig.start(claims)
  for (const claim of claims) await rig.report(claim)
  await rig.cancel(large)
  const small = [await completed(), await completed()]
  rig.pass(31 * DAY)
  const before = await rowsOf(large)
  expect(before).toMatchObject({ tasks: 3_000, results: 40, attempts: 40 })
  writes = 0
  stopAt = 3
  await expect(sweep(stop.signal)).rejects.toThrow("stopped")
  expect(writes).toBe(3)
  const after = await rowsOf(large)
  expect(after["jobs"]).toBe(1)
  expect(after["tasks"]).toBeGreaterThan(1_000)
  expect(after["tasks"]).toBeLessThan(3_000)
  await expect(readJob(rig, large.id, account)).rejects.toMatchObject({ code: "not_found" })
  stopAt = Number.POSITIVE_INFINITY
  expect(await sweep()).toBe(3)
  for (const job of [large, ...small]) expect(await rowsOf(job)).toEqual({})
  expect(await rig.store.read((view) => view.all("SELECT * FROM job_tags"))).toEqual([])
})

test("large results and texts count for more: few of them go in one write", async () => {
  const text = "x".repeat(700_000)
  const jobs: JobRow[] = []
  for (let n = 0; n < 6; n++) {
    const job = await rig.queued(account, { payload: { text } })
    await rig.cancel(job)
    jobs.push(job)
  }
  rig.pass(31 * DAY)
  writes = 0
  expect(await sweep()).toBe(6)
  // Each has its request and its submission.
  expect(writes).toBeGreaterThanOrEqual(3)
  for (const job of jobs) expect(await rowsOf(job)).toEqual({})
})

test("RS-014: the bytes of large results and of checkpoints are freed once their artifacts have expired too", async () => {
  const spilled = await rig.queued(account, {})
  const [claim] = await rig.grant(spilled, 1)
  if (claim === undefined) throw new Error("the task is granted")
  await rig.start([claim])
  const text = JSON.stringify({ text: "large".repeat(100) })
  await rig.report(claim, { result: { text } })
  await rig.finish(spilled)

  const resuming = await rig.queued(account, { checkpointing: { enabled: true, resume_from_latest: true } })
  const [leaving] = await rig.grant(resuming, 1)
  if (leaving === undefined) throw new Error("the task is granted")
  await rig.start([leaving])
  using blob = await rig.files.put(Readable.from([Buffer.from("weights")]), { maxBytes: 9 })
  const { digest, size } = blob
  const left = {
    claim: leaving,
    n: 1,
    digest,
    state: "{}",
    line: "{}",
    file: { digest, size, filename: "f" },
    problem: null,
  }
  await rig.store.write((tx) => stageBlob(tx, { claim: leaving, digest, size, at: 0 }))
  const keeping = { ...rig, random: systemRandom, artifactTtlMs: DAY }
  expect(await storeCheckpoint(keeping, rig.node, left, jobFacts(resuming))).toMatchObject({ verdict: "stored" })
  await rig.report(leaving, failedItem("exit_code"))
  await rig.finish(resuming)
  blob[Symbol.dispose]()

  const digests = await rig.store.read((view) =>
    view.all<{ digest: string }>("SELECT DISTINCT digest FROM blob_references WHERE kind IN ('result', 'checkpoint')"),
  )
  expect(digests).toHaveLength(2)
  const sizes = () => Promise.all(digests.map(({ digest: one }) => rig.files.size(one as typeof digest)))
  expect(await sizes()).not.toContain(null)
  rig.pass(31 * DAY)
  // Artifacts may go first: while the job is there, its result is.
  await sweepArtifacts(rig, rig.clock.now())
  await sweepStaged({ store: rig.store, liveClaims: async () => new Set() }, rig.clock.now())
  expect(await sizes()).not.toContain(null)
  expect(await sweep()).toBe(2)
  expect(await sizes()).toEqual([null, null])
  expect(await rowsOf(resuming)).toEqual({})
  expect(await rig.store.read((view) => view.all("SELECT * FROM blob_references WHERE kind <> 'revision'"))).toEqual([])
})

test("a job whose results are being merged stays, and so does one that another has not heard of yet", async () => {
  const merging = await rig.queued(account, {})
  await rig.endEarly(merging, "failed", "over")
  const first = await completed()
  const body = { ...LEAST_JOB, depends_on: [first.id] }
  const { job: next } = await rig.submit({ account, user: null, body, bodyText: JSON.stringify(body) })
  await rig.store.write((tx) => tx.run("UPDATE job_dependencies SET ended = NULL WHERE job = ?", next.seq))
  rig.pass(31 * DAY)
  expect(await sweep()).toBe(0)
  await rig.finish(merging)
  await rig.store.write((tx) => tx.run("UPDATE job_dependencies SET ended = 'completed' WHERE job = ?", next.seq))
  expect(await sweep()).toBe(2)
  // What it named is gone; that it named it is not.
  expect((await readJob(rig, next.id, account)).submission.dependsOn).toEqual([first.id])
  await rig.runWhole(next, () => null)
})
