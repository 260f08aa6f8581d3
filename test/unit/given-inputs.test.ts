import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { Readable } from "node:stream"
import { systemRandom } from "../../protocol/base/random.ts"
import { digest, newArtifactId, newNodeId, peerId, taskId, type AccountId } from "../../protocol/domain/ids.ts"
import type { ContentRef } from "../../protocol/wire/content-source.ts"
import { createObjectContent } from "../../coordinator/artifacts/object-content.ts"
import type { MemberFacts } from "../../coordinator/fleet/members.ts"
import { createKnownJobs, jobFacts } from "../../coordinator/jobs/job-facts.ts"
import { sweepSharedState } from "../../coordinator/projects/shared-state.ts"
import { createGivenInputs, type GivenInputs } from "../../coordinator/scheduler/task-inputs.ts"
import { insertArtifact } from "../../coordinator/store/artifacts.ts"
import { addBlobReference } from "../../coordinator/store/blobs.ts"
import type { JobRow } from "../../coordinator/store/jobs.ts"
import { putKvEntry } from "../../coordinator/store/project-kv.ts"
import { sharedValuesOf } from "../../coordinator/store/shared-values.ts"
import { fundedAccount } from "../support/accounts.ts"
import { failedItem, startJobRig, type JobRig } from "../support/job-rig.ts"

/** What the tasks of a job are given of jobs that have ended before it. */

let rig: JobRig
let account: AccountId
let given: GivenInputs
let granted: ContentRef[]
const known = createKnownJobs()
beforeEach(async () => {
  rig = await startJobRig()
  account = await fundedAccount(rig.store, 50_000_000n)
  await rig.project(account)
  granted = []
  given = createGivenInputs({
    ...rig,
    known,
    content: createObjectContent(rig.files),
    contentGrant(_, blobs) {
      granted = blobs
      return "grant"
    },
  })
})
afterEach(async () => rig[Symbol.asyncDispose]())

const items = (count: number): object => ({ fan_out: { items: Array.from({ length: count }, (_, n) => ({ n })) } })

/** A job with this payload, as a submission that depends on others leaves it. */
async function dependent(payload: object, of: AccountId = account): Promise<JobRow> {
  const job = await rig.queued(of, {})
  await rig.store.write((tx) =>
    tx.run(
      "UPDATE jobs SET submission = json_set(submission, '$.payload', json(?)) WHERE seq = ?",
      JSON.stringify(payload),
      job.seq,
    ),
  )
  const row = await rig.row(job)
  known.put(jobFacts(row))
  return row
}

/** What `_shared.values` come to for a job that asks for these, or why they do not. */
async function resolved(resolve: object, of: AccountId = account): Promise<unknown> {
  const job = await dependent({ _shared: { resolve } }, of)
  const { granted: rows } = await rig.grantOutcome(job, 1)
  const [inputs] = [...(await given.granted(rows)).values()]
  const claim = rows[0]?.claim
  if (!inputs || claim === undefined) throw new Error("the task was granted and asks for something")
  const stored = await rig.store.read((view) => sharedValuesOf(view, claim))
  expect(stored).toBe(inputs.values)
  return inputs.values === null ? inputs.unresolved : (JSON.parse(inputs.values) as unknown)
}

describe("shared values of a job that has ended", () => {
  test("SS-001, SS-002, GAP-56: results by index, wrapped or not, the aggregate, the summary and the status", async () => {
    const job = await rig.queued(account, items(3))
    await rig.runWhole(job, (n) => (n === 2 ? { result: { score: 9 } } : { score: n + 0.5, list: [{ a: n }] }))
    const at = (path: string) => ({ job_id: job.id, path })
    expect(
      await resolved({
        best: at("results.0.score"),
        wrapped: at("results.1.result.score"),
        unwrapped: at("results.2.score"),
        deep: at("results.1.list.0.a"),
        whole: at("results.1"),
        status: at("status"),
        aggregate: at("aggregate_result.0.score"),
        counts: at("summary.task_outcome_counts.completed"),
      }),
    ).toEqual({
      best: 0.5,
      wrapped: 1.5,
      unwrapped: 9,
      deep: 1,
      whole: { score: 1.5, list: [{ a: 1 }] },
      status: "completed",
      aggregate: 0.5,
      counts: 3,
    })
  })

  test("rulings: a failed task, a missing path, a job that runs and another account's job are unresolved", async () => {
    const job = await rig.queued(account, items(2))
    const [done, failed] = await rig.grant(job, 2)
    if (done === undefined || failed === undefined) throw new Error("two are granted")
    await rig.start([done, failed])
    const path = (of: string) => ({ x: { job_id: job.id, path: of } })
    expect(await resolved(path("results.0"))).toContain("has not ended")
    await rig.report(done, { result: { text: "null" } })
    await rig.report(failed, failedItem("exit_code"))
    await rig.finish(job)
    expect(await resolved(path("results.0"))).toEqual({ x: null })
    for (const of of ["results.1", "results.1.score"]) expect(await resolved(path(of))).toContain("did not complete")
    for (const of of ["results.0.score", "results.9.score", "results.x", "summary.nothing", "elsewhere"]) {
      expect(await resolved(path(of)), of).toContain("_shared.resolve.x: the path")
    }
    const stranger = await fundedAccount(rig.store, 50_000_000n)
    await rig.project(stranger)
    expect(await resolved(path("results.0"), stranger)).toContain("has not ended, or is gone")
  })

  test("AW-008, GAP-55: a spilled result is read; more than a megabyte of values in all is too much", async () => {
    const job = await rig.queued(account, {})
    await rig.runWhole(job, () => ({ pad: "x".repeat(600_000), deep: { score: 3 } }))
    const at = (path: string) => ({ job_id: job.id, path })
    expect(await resolved({ score: at("results.0.deep.score") })).toEqual({ score: 3 })
    expect(await resolved({ one: at("results.0.pad") })).toEqual({ one: "x".repeat(600_000) })
    expect(await resolved({ one: at("results.0.pad"), two: at("results.0.pad") })).toContain("more than 1048576 bytes")
  })

  test("SS-001: tasks that ask for the same share a row, which stays while their job runs and goes after it", async () => {
    const project = await rig.store.read((view) => view.get<{ id: number }>("SELECT id FROM projects LIMIT 1"))
    const entry = { key: "k", value: '"x"', ttlSeconds: null, expiresAt: null, updatedAt: 1, account, job: null }
    await rig.store.write((tx) => putKvEntry(tx, project?.id ?? 0, entry))
    const job = await dependent({ _shared: { resolve: { x: { key: "k" } } } })
    const other = await dependent({ _shared: { resolve: { x: { key: "missing" } } } })
    const rows = async (): Promise<unknown[]> =>
      rig.store.read((view) => view.all("SELECT job, text FROM shared_values"))
    const { granted: first } = await rig.grantOutcome(job, 1)
    await given.granted(first)
    await given.granted(first)
    await given.granted((await rig.grantOutcome(other, 1)).granted)
    await sweepSharedState(rig, rig.clock.now())
    expect(await rows()).toEqual([{ job: job.seq, text: '{"x":"x"}' }])
    const attempt = rig.members.attempt(first[0]?.claim ?? 0)
    if (!attempt) throw new Error("it is held")
    expect(JSON.parse(await given.payload(attempt))).toMatchObject({ _shared: { values: { x: "x" } } })
    await rig.cancel(job)
    await sweepSharedState(rig, rig.clock.now())
    expect(await rows()).toEqual([])
  })
})

describe("files of a job that has ended", () => {
  async function artifact(job: JobRow, index: number, name: string, text: string, lastsMs = 60_000): Promise<string> {
    const id = newArtifactId(systemRandom)
    using blob = await rig.files.put(Readable.from([Buffer.from(text)]), { maxBytes: 100 })
    const at = rig.clock.now()
    await rig.store.write(async (tx) => {
      await insertArtifact(tx, {
        id,
        account: job.account,
        job: job.id,
        task: taskId(job.id, index),
        name,
        filename: `${name}.csv`,
        contentType: "text/csv",
        source: "local",
        digest: blob.digest,
        size: blob.size,
        createdAt: at,
        expiresAt: at + lastsMs,
      })
      await addBlobReference(tx, blob.digest, { kind: "artifact", owner: id })
    })
    return blob.digest
  }
  const asked = async (download: object, of: AccountId = account) => {
    const job = await dependent({ _artifacts: { download } }, of)
    const [claim] = await rig.grant(job, 1)
    if (claim === undefined) throw new Error("one is granted")
    const files = await given.files(claim, rig.node)
    if (!files) throw new Error("the node holds the task")
    return files
  }

  test("AW-004, GAP-54: of the first task that made one, of the one asked for, and the latest of several", async () => {
    const job = await rig.queued(account, items(12))
    await artifact(job, 10, "dataset", "ten")
    const two = await artifact(job, 2, "dataset", "two")
    await artifact(job, 2, "other", "other")
    const latest = await artifact(job, 10, "dataset", "ten again")
    const from = { job_id: job.id, artifact: "dataset" }
    const found = await asked({ first: from, tenth: { ...from, task_index: 10 } })
    expect(found).toMatchObject({
      unavailable: null,
      content_grant: "grant",
      files: [
        { name: "first", filename: "dataset.csv", file: { digest: two, size: 3 }, holders: [] },
        { name: "tenth", file: { digest: latest } },
      ],
    })
    expect(granted.map(({ digest }) => digest)).toEqual([two, latest])
  })

  test("AR-019, rulings: what was never made, is over, is another account's or has lost its bytes is unavailable", async () => {
    const job = await rig.queued(account, items(2))
    const blob = await artifact(job, 0, "dataset", "mine")
    await artifact(job, 1, "over", "over", -1)
    const from = (name: string, more: object = {}) => ({ x: { job_id: job.id, artifact: name, ...more } })
    expect((await asked(from("dataset"))).unavailable).toBe(null)
    for (const download of [from("nothing"), from("over"), from("dataset", { task_index: 1 }), { x: "art_unknown" }]) {
      expect(await asked(download)).toMatchObject({ files: [], content_grant: null })
      expect((await asked(download)).unavailable).toContain("x: the artifact")
    }
    const stranger = await fundedAccount(rig.store, 50_000_000n)
    await rig.project(stranger)
    expect((await asked(from("dataset"), stranger)).unavailable).toContain("is not there")
    await rig.files.remove(digest(blob), async () => false)
    expect((await asked(from("dataset"))).unavailable).toContain("has lost its bytes")
  })

  test("architecture §5.6: members that were given a blob are named to the next one, never to themselves", async () => {
    const job = await rig.queued(account, items(1))
    await artifact(job, 0, "dataset", "shared by many")
    const from = { x: { job_id: job.id, artifact: "dataset" } }
    rig.member.facts = FACTS
    expect((await asked(from)).files[0]?.holders).toEqual([])
    expect((await asked(from)).files[0]?.holders).toEqual([])
    const other = newNodeId(systemRandom)
    const second = rig.members.add({ id: other, peer: peerId("other"), name: null, roles: ["worker"], state: "active" })
    second.session = { send: () => {}, close: () => {} }
    second.facts = FACTS
    const waiting = await dependent({ _artifacts: { download: from } })
    const [claim] = await rig.grant(waiting, 1)
    const attempt = rig.members.attempt(claim ?? 0)
    if (claim === undefined || !attempt) throw new Error("one is granted")
    expect(await given.files(claim, other)).toBe(null)
    rig.members.release(claim)
    rig.members.hold(second, { ...attempt, node: other })
    expect((await given.files(claim, other))?.files[0]?.holders).toEqual([
      { peer_id: "12D3KooWTestPeer", addresses: ["/ip4/127.0.0.1/tcp/1"] },
    ])
  })
})

const FACTS: MemberFacts = {
  agentVersion: "test",
  bootId: "boot-1",
  roles: ["worker"],
  capacity: { cpu: 1, memoryMb: 1, storageGb: 1, gpus: [] },
  runtime: "process",
  isolation: "none",
  enforces: [],
  network: "none",
  addresses: ["/ip4/127.0.0.1/tcp/1"],
}
