import { Readable } from "node:stream"
import { afterEach, beforeEach, expect, test } from "vitest"
import { sweepArtifacts } from "../../coordinator/artifacts/retention.ts"
import { sweepStaged } from "../../coordinator/artifacts/stage.ts"
import { storeCheckpoint, sweepCheckpoints } from "../../coordinator/jobs/checkpoints.ts"
import { createMembers } from "../../coordinator/fleet/members.ts"
import { createKnownJobs, jobFacts } from "../../coordinator/jobs/job-facts.ts"
import { restoreClaims } from "../../coordinator/scheduler/restore-claims.ts"
import { findArtifact } from "../../coordinator/store/artifacts.ts"
import { stageBlob } from "../../coordinator/store/blobs.ts"
import { checkpointsOfTasks, progressOfTasks, putTaskProgress } from "../../coordinator/store/checkpoints.ts"
import type { JobRow } from "../../coordinator/store/jobs.ts"
import { taskKey } from "../../coordinator/store/tasks.ts"
import { present } from "../../protocol/base/assert.ts"
import { sha256Hex } from "../../protocol/base/digest.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import { claimNumber, type AccountId, type ClaimNumber } from "../../protocol/domain/ids.ts"
import type { CheckpointItem } from "../../protocol/wire/control.ts"
import { fundedAccount } from "../support/accounts.ts"
import { failedItem, startJobRig, type JobRig } from "../support/job-rig.ts"

/** What the coordinator keeps of the checkpoints that nodes send. */

const TTL_MS = 60_000
let rig: JobRig
let account: AccountId
let job: JobRow
beforeEach(async () => {
  rig = await startJobRig()
  account = await fundedAccount(rig.store, 1_000_000_000n)
  await rig.project(account)
  job = await rig.queued(account, { checkpointing: { enabled: true, resume_from_latest: true }, max_retries: 3 })
})
afterEach(() => rig[Symbol.asyncDispose]())

async function running(): Promise<ClaimNumber> {
  const claim = present((await rig.grant(job, 1))[0], "one task waits")
  await rig.start([claim])
  return claim
}

const itemOf = (claim: number, n: number, more: Partial<CheckpointItem> = {}): CheckpointItem => {
  const item = { claim, n, state: `{"step":${n}}`, line: "{}", file: null, problem: null, ...more }
  return { digest: sha256Hex(JSON.stringify(item)), ...item }
}

/** An item whose file was uploaded for the claim. */
async function withFile(claim: ClaimNumber, n: number, content = `file ${n}`): Promise<CheckpointItem> {
  using blob = await rig.files.put(Readable.from([Buffer.from(content)]), { maxBytes: 1000 })
  const { digest, size } = blob
  await rig.store.write((tx) => stageBlob(tx, { claim, digest, size, at: rig.clock.now() }))
  return itemOf(claim, n, { file: { digest, size, filename: "model.bin" } })
}

const store = (item: CheckpointItem) =>
  storeCheckpoint({ ...rig, random: systemRandom, artifactTtlMs: TTL_MS }, rig.node, item, jobFacts(job))
const rows = () => rig.store.read((view) => checkpointsOfTasks(view, [taskKey(job.seq, 0)]))
const sweep = async (): Promise<void> => {
  await sweepCheckpoints({ store: rig.store, artifactTtlMs: TTL_MS }, rig.clock.now())
  await sweepArtifacts({ store: rig.store, files: rig.files }, rig.clock.now())
}

test("architecture §5.6: (claim, n) must grow; the same again is already there, another one of this number is refused", async () => {
  const claim = await running()
  expect(await store(itemOf(claim, 5))).toMatchObject({ verdict: "stored", durable: true })
  expect(await store(itemOf(claim, 5))).toMatchObject({ verdict: "already", durable: false })
  expect(await store(itemOf(claim, 5, { state: "{}" }))).toMatchObject({ verdict: "refused" })
  expect(await store(itemOf(claim, 4))).toMatchObject({ verdict: "already" })
  expect((await rows()).map(({ n }) => n)).toEqual([5])
  await rig.report(claim, failedItem("exit_code"))
  const next = await running()
  expect(await store(itemOf(next, 1))).toMatchObject({ verdict: "stored" })
  expect((await rows()).map((row) => [row.claim === next, row.n])).toEqual([
    [true, 1],
    [false, 5],
  ])
})

test("fencing: a spent claim, another node and a job without checkpoints leave nothing", async () => {
  const claim = await running()
  await rig.lose(claim)
  const next = await running()
  expect(await store(itemOf(claim, 9))).toMatchObject({ verdict: "spent" })
  expect(await store(itemOf(claimNumber(1), 9))).toMatchObject({ verdict: "spent" })
  const plain = await rig.queued(account, {})
  const other = present((await rig.grant(plain, 1))[0], "one task waits")
  const parts = { ...rig, random: systemRandom, artifactTtlMs: TTL_MS }
  expect(await storeCheckpoint(parts, rig.node, itemOf(other, 1), jobFacts(plain))).toMatchObject({
    verdict: "refused",
  })
  expect(await storeCheckpoint(parts, rig.node, itemOf(next, 1), null)).toMatchObject({ verdict: "spent" })
  for (const state of ["no JSON", "[1]", "null"])
    expect(await store(itemOf(next, 1, { state }))).toMatchObject({ verdict: "refused" })
  expect(await rows()).toEqual([])
})

test("a file that was not uploaded is refused; at an attempt's end the end stands all the same, and it is told", async () => {
  const claim = await running()
  const file = { digest: "c".repeat(64), size: 4, filename: "model.bin" }
  expect(await store(itemOf(claim, 1, { file }))).toMatchObject({ verdict: "refused" })
  await store(itemOf(claim, 2))
  expect(await rig.report(claim, { ...failedItem("exit_code"), checkpoint: itemOf(claim, 3, { file }) })).toBe("stored")
  expect(await rows()).toMatchObject([
    { n: 3, durable: false, publishStatus: "failed" },
    { n: 2, durable: true },
  ])
})

test("rulings: a last checkpoint is stored in the write of its attempt's end, with its artifact, once", async () => {
  const claim = await running()
  const last = await withFile(claim, 7)
  // It had been sent by itself too, and the answer was lost.
  expect(await store(last)).toMatchObject({ verdict: "stored" })
  expect(await rig.report(claim, { ...failedItem("exit_code"), checkpoint: last })).toBe("stored")
  const again = await running()
  expect(await rig.report(again, { ...failedItem("exit_code"), checkpoint: await withFile(again, 1) })).toBe("stored")
  const kept = await rows()
  expect(kept).toMatchObject([
    { n: 1, publishStatus: "published" },
    { n: 7, publishStatus: "published" },
  ])
  const artifact = present(kept[0]?.artifact, "its artifact")
  const found = await rig.store.read((view) => findArtifact(view, artifact, account, rig.clock.now()))
  expect(found).toMatchObject({ filename: "model.bin", job: job.id, source: "local" })
})

test("architecture §5.6: the latest two stay while the job lives, whatever the retention, and then go as artifacts do", async () => {
  const claim = await running()
  for (const n of [1, 2, 3]) expect(await store(await withFile(claim, n))).toMatchObject({ verdict: "stored" })
  await store(itemOf(claim, 4, { problem: { status: "failed", reason: "outside" } }))
  const kept = await rows()
  expect(kept.map(({ n, durable }) => [n, durable])).toEqual([
    [4, false],
    [3, true],
    [2, true],
  ])
  for (let minutes = 0; minutes < 10; minutes++) {
    rig.pass(60_000)
    await sweep()
  }
  const has = async (): Promise<boolean[]> =>
    await Promise.all(
      ["file 1", "file 2", "file 3"].map(async (text) => (await rig.files.size(digestOf(text))) !== null),
    )
  expect(await has()).toEqual([false, true, true])
  const artifact = present(kept[1]?.artifact, "its artifact")
  const visible = () => rig.store.read((view) => findArtifact(view, artifact, account, rig.clock.now()))
  expect(await visible()).not.toBe(null)
  await rig.cancel(job)
  await sweep()
  expect(await visible()).not.toBe(null)
  rig.pass(TTL_MS + 1)
  await sweepStaged({ store: rig.store, liveClaims: async () => new Set() }, rig.clock.now())
  await sweep()
  expect([await visible(), await has()]).toEqual([null, [false, false, false]])
})

test("architecture §5.5: when an attempt last left something durable is known again after a restart", async () => {
  const claim = await running()
  await store(itemOf(claim, 1))
  rig.pass(30_000)
  await store(itemOf(claim, 2, { problem: { status: "failed", reason: "outside" } }))
  rig.pass(5_000)
  const members = createMembers(rig.clock, { heartbeatMs: 1_000, claimLifetimeMs: 300_000 })
  members.add({ id: rig.node, peer: rig.member.peer, name: null, roles: ["worker"], state: "active" })
  const known = createKnownJobs()
  await restoreClaims({ ...rig, members, known, queue: { runs: () => {} }, claimLifetimeMs: 300_000 }, async () =>
    known.put(jobFacts(job)),
  )
  const sinceMs = rig.clock.monotonicMs() - (members.attempt(claim)?.checkpointedAtMs ?? 0)
  expect(sinceMs).toBeGreaterThanOrEqual(35_000)
  expect(sinceMs).toBeLessThan(45_000)
})

test("CK-004: the last progress line comes with an attempt's end, whatever of it was heard before", async () => {
  const claim = await running()
  rig.say(claim, { progress: { epoch: 1 } })
  await rig.report(claim, { ...failedItem("exit_code"), progress: '{"epoch":8}' })
  const next = await running()
  rig.say(next, { progress: 50 })
  await rig.report(next, failedItem("exit_code"))
  const key = taskKey(job.seq, 0)
  expect((await rig.store.read((view) => progressOfTasks(view, [key]))).get(key)).toBe('{"epoch":8}')
})

test("CK-004: of progress the latest claim's stays", async () => {
  const key = taskKey(job.seq, 0)
  const put = (claim: number, text: string) =>
    rig.store.write((tx) => putTaskProgress(tx, key, claimNumber(claim), text))
  await put(5, '{"epoch":1}')
  await put(5, '{"epoch":2}')
  await put(4, '{"epoch":9}')
  expect((await rig.store.read((view) => progressOfTasks(view, [key]))).get(key)).toBe('{"epoch":2}')
})

const digestOf = (text: string) => sha256Hex(text) as Parameters<typeof rig.files.size>[0]
