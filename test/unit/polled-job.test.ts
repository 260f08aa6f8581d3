import { afterEach, beforeEach, expect, test } from "vitest"
import { stringifyJson } from "../../protocol/base/json-text.ts"
import { jobId, type AccountId, type ClaimNumber, type JobId } from "../../protocol/domain/ids.ts"
import { createAggregates } from "../../coordinator/jobs/read/aggregates.ts"
import { createJobCache } from "../../coordinator/jobs/read/job-cache.ts"
import { jobOnWire } from "../../coordinator/jobs/read/job-object.ts"
import { polledJob, type StoredJob } from "../../coordinator/jobs/read/polled-job.ts"
import { readJob, type QueueReason } from "../../coordinator/jobs/read/read-job.ts"
import type { JobRow } from "../../coordinator/store/jobs.ts"
import { fundedAccount } from "../support/accounts.ts"
import { failedItem, startJobRig, type JobRig } from "../support/job-rig.ts"
import { watchStatements, type Statements } from "../support/watched-store.ts"
import { Chance } from "../simulation/chance.ts"

let rig: JobRig
let alice: AccountId
const statements: Statements = new Map()
beforeEach(async () => {
  rig = await startJobRig({ jobRetentionMs: 3_600_000, wrap: (store) => watchStatements(store, statements) })
  alice = await fundedAccount(rig.store, 50_000_000n)
  await rig.project(alice)
})
afterEach(() => rig[Symbol.asyncDispose]())

const items = (count: number): object => ({ fan_out: { items: Array.from({ length: count }, (_, n) => ({ n })) } })
const because: QueueReason = { code: "capacity_busy", message: "", eligible_slots: 0, busy_slots: 0, suggestion: "" }

function poller() {
  const queueReasons = { job: () => because, contactLost: () => because }
  const jobCache = createJobCache<StoredJob>(rig.store)
  const parts = { ...rig, queueReasons, aggregates: createAggregates(rig), jobCache }
  return {
    poll: async (id: JobId, account: AccountId | null = alice): Promise<unknown> =>
      JSON.parse((await polledJob(parts, id, account)).text),
    /** As it is read without any cache. */
    fresh: async (id: JobId): Promise<unknown> =>
      JSON.parse(stringifyJson(await jobOnWire(parts, await readJob(parts, id, alice)))),
  }
}

test("what is polled is read once, until something stored of it changes; live words need no read", async () => {
  const { poll, fresh } = poller()
  const job = await rig.queued(alice, items(3))
  const other = await rig.queued(alice, {})
  await poll(job.id)
  await poll(other.id)
  statements.clear()
  expect(await poll(job.id)).toMatchObject({ status: "queued", task_counts: { queued: 3 } })
  expect(statements.size, "nothing was read again").toBe(0)

  const [claim] = await rig.grant(job, 1)
  if (claim === undefined) throw new Error("one is granted")
  await rig.start([claim])
  expect(await poll(job.id)).toMatchObject({ status: "running", task_counts: { running: 1, queued: 2 } })
  statements.clear()
  rig.say(claim, { progress: { percent: 30 }, tail: "working\n" })
  expect(await poll(job.id)).toMatchObject({ progress: 10, output: "working\n" })
  await poll(other.id)
  expect(statements.size, "neither for what a task says nor for another job's change").toBe(0)
  expect(await poll(job.id)).toEqual(await fresh(job.id))
})

test("GAP-04, RS-014: what is kept is no more visible than what is stored", async () => {
  const { poll } = poller()
  const bob = await fundedAccount(rig.store, 1n)
  const job = await rig.queued(alice, {})
  await rig.runWhole(job, () => ({ ok: true }))
  await poll(job.id)
  await expect(poll(job.id, bob)).rejects.toMatchObject({ code: "not_found" })
  expect(await poll(job.id, null)).toMatchObject({ status: "completed" })
  rig.pass(3_600_001)
  await expect(poll(job.id)).rejects.toMatchObject({ code: "not_found" })
})

test("long texts are read at each poll", async () => {
  const { poll } = poller()
  const job = await rig.queued(alice, { payload: { long: "x".repeat(20_000) } })
  await poll(job.id)
  statements.clear()
  await poll(job.id)
  expect(statements.size).toBeGreaterThan(0)
})

test("a thousand jobs are kept: those kept longest make room", () => {
  const cache = createJobCache<number>(rig.store)
  const keep = (seq: number): void => cache.keep({ id: jobId(`job_${seq}`), seq }, seq, 10, cache.version())
  for (let seq = 1; seq <= 1_001; seq++) keep(seq)
  expect([1, 2, 1_001].map((seq) => cache.get(jobId(`job_${seq}`)))).toEqual([null, 2, 1_001])
  cache.keep({ id: jobId("job_large"), seq: 2_000 }, 0, 16 * 1024 + 1, cache.version())
  expect(cache.get(jobId("job_large"))).toBeNull()
})

test("a change that comes while a job is read is not hidden by what was read", async () => {
  const { poll } = poller()
  const job = await rig.queued(alice, items(2))
  const [polled] = await Promise.all([poll(job.id), rig.grant(job, 1).then((claims) => rig.start(claims))])
  expect(polled).toBeDefined()
  expect(await poll(job.id)).toMatchObject({ status: "running", task_counts: { running: 1 } })
})

test.each(["1", "2", "3"])(
  "whatever becomes of jobs, a poll shows what is stored (walk %s)",
  { timeout: 60_000 },
  async (seed) => {
    const random = new Chance(`polled-job-${seed}`)
    const polling = poller()
    const jobs: JobRow[] = []
    for (const count of [1, 3, 5]) jobs.push(await rig.queued(alice, { ...items(count), max_retries: 1 }))
    const claims: ClaimNumber[] = []
    const pick = <T>(list: readonly T[]): T | undefined => list[random.integer(Math.max(1, list.length))]
    const acts: ((job: JobRow) => Promise<unknown>)[] = [
      async (job) => claims.push(...(await rig.grant(job, 1 + random.integer(2)))),
      async (job) => claims.push(...(await rig.grant(job, 1))),
      async () => rig.start(claims.filter((claim) => rig.members.attempt(claim)?.state === "offered")),
      async () => withClaim((claim) => rig.say(claim, { progress: { percent: random.integer(100) }, tail: "words\n" })),
      async () => withClaim((claim) => rig.report(claim, { output: `by ${claim}\n` })),
      async () => withClaim((claim) => rig.report(claim, { output: `by ${claim}\n` })),
      async () => withClaim((claim) => rig.report(claim, { ...failedItem("exit_code"), error_tail: "Traceback" })),
      async () => withClaim((claim) => rig.lose(claim)),
      async (job) => rig.finish(job),
      async (job) => random.integer(4) === 0 && rig.cancel(job, alice),
      async (job) => random.integer(4) === 0 && rig.endEarly(job, "failed", "given up"),
      async (job) => rig.retry({ id: job.id, account: alice, filter: "failed", indexes: null, earlierQuote: null }),
      async () => rig.pass(100),
    ]
    async function withClaim(act: (claim: ClaimNumber) => unknown): Promise<void> {
      const claim = pick(claims.filter((one) => rig.members.attempt(one) !== undefined))
      if (claim !== undefined) await act(claim)
    }
    let refused = 0
    for (let step = 0; step < 150; step++) {
      const job = pick(jobs)
      const act = pick(acts)
      if (!job || !act) continue
      try {
        await act(job)
      } catch {
        refused += 1
      }
      for (const { id } of jobs) expect(await polling.poll(id), `after step ${step}`).toEqual(await polling.fresh(id))
    }
    expect(refused, "most steps are possible").toBeLessThan(75)
  },
)
