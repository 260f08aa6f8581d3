import { afterEach, beforeEach, expect, test } from "vitest"
import { systemClock } from "../../protocol/base/clock.ts"
import { silentLog } from "../../protocol/base/log.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import { accountId } from "../../protocol/domain/ids.ts"
import { readLog } from "../../coordinator/jobs/read/events.ts"
import { waitingCalls } from "../../coordinator/store/webhooks.ts"
import type { Call, CallOutcome } from "../../coordinator/webhooks/call.ts"
import { createCallQueue, type QueuedCall } from "../../coordinator/webhooks/call-queue.ts"
import { createWebhooks, type Webhooks } from "../../coordinator/webhooks/deliver.ts"
import type { JobRow } from "../../coordinator/store/jobs.ts"
import { fundedAccount } from "../support/accounts.ts"
import { failedItem, startJobRig, type JobRig } from "../support/job-rig.ts"
import { until } from "../support/stream-rig.ts"

let rig: JobRig
let webhooks: Webhooks | null
let calls: { call: Call; answer: (outcome: CallOutcome) => void }[]
beforeEach(async () => {
  rig = await startJobRig()
  calls = []
  webhooks = null
})
afterEach(async () => {
  await webhooks?.[Symbol.asyncDispose]()
  await rig[Symbol.asyncDispose]()
})

function begin(limits = { inAll: 10, ofAccount: 10, ofHost: 10 }, retryMs = 50): Webhooks {
  const begun = createWebhooks({
    store: rig.store,
    clock: systemClock,
    random: systemRandom,
    log: silentLog,
    retryMs,
    limits,
    outputOf: async () => "printed",
    changed: (job) => rig.watch.changed([job]),
    call: (call, signal) =>
      new Promise((resolve, reject) => {
        signal.addEventListener("abort", () => reject(signal.reason as Error), { once: true })
        calls.push({ call, answer: resolve })
      }),
  })
  webhooks = begun
  rig.watch.listen({ changed: () => begun.wake() })
  return begun
}

const HOOK = { callback_url: "https://hooks.example/x" }
const outbox = () => rig.store.read((view) => waitingCalls(view, 0, 1_000))
const eventsOf = async (job: JobRow) =>
  (await readLog(rig.store, job.seq, 0, 1_000)).events.filter(({ type }) => type.startsWith("webhook."))

async function project(): Promise<Awaited<ReturnType<typeof fundedAccount>>> {
  const account = await fundedAccount(rig.store, 1_000_000_000n)
  await rig.project(account)
  return account
}

test("W-001: whatever ends a job leaves one call in the write that ends it, and a job without a callback_url none", async () => {
  const account = await project()
  const [whole, cancelled, strict, silent] = [
    await rig.queued(account, HOOK),
    await rig.queued(account, HOOK),
    await rig.queued(account, HOOK),
    await rig.queued(account, {}),
  ]
  expect(await outbox()).toEqual([])
  await rig.runWhole(whole, () => 1)
  expect(await outbox()).toHaveLength(1)
  // A second last write changes nothing.
  await rig.finish(whole)
  await rig.cancel(cancelled, account, "dependency job_x ended failed")
  await rig.endEarly(strict, "failed", "1 of 1 tasks failed")
  await rig.runWhole(silent, () => 1)
  expect(await outbox()).toHaveLength(3)
  begin()
  await until(() => expect(calls).toHaveLength(3))
  const bodies = calls.map(({ call }) => JSON.parse(Buffer.from(call.body).toString()) as Record<string, unknown>)
  expect(bodies.map(({ job_id, event, error, progress, output }) => [job_id, event, error, progress, output])).toEqual([
    [whole.id, "job.completed", null, 100, "printed"],
    [cancelled.id, "job.cancelled", "dependency job_x ended failed", null, "printed"],
    [strict.id, "job.failed", "1 of 1 tasks failed", null, "printed"],
  ])
  for (const { answer } of calls) answer({ kind: "delivered" })
  await expect.poll(outbox).toEqual([])
})

test("GAP-61: a refusal is an event of the job and is not tried again; a third failure is one too", async () => {
  const account = await project()
  begin()
  const refused = await rig.queued(account, HOOK)
  await rig.runWhole(refused, () => 1)
  await until(() => expect(calls).toHaveLength(1))
  calls[0]?.answer({ kind: "refused", reason: "hooks.example is at 10.0.0.1, not a public address" })
  await expect
    .poll(() => eventsOf(refused))
    .toMatchObject([
      { type: "webhook.refused", data: { reason: "hooks.example is at 10.0.0.1, not a public address", attempts: 0 } },
    ])
  expect(await outbox()).toEqual([])
  const failing = await rig.queued(account, HOOK)
  await rig.runWhole(failing, () => 1)
  for (const attempt of [1, 2, 3]) {
    await until(() => expect(calls).toHaveLength(1 + attempt))
    expect(await eventsOf(failing)).toEqual([])
    calls.at(-1)?.answer({ kind: "failed", reason: "answered 500" })
  }
  await expect.poll(() => eventsOf(failing)).toMatchObject([{ type: "webhook.failed", data: { attempts: 3 } }])
  expect(await outbox()).toEqual([])
})

test("W-001, rulings Retry: a call that is made again after a retry of its job tells nothing of the new round", async () => {
  const account = await project()
  const job = await rig.queued(account, HOOK)
  await rig.runWhole(job, () => 1)
  begin()
  await until(() => expect(calls).toHaveLength(1))
  const again = { id: job.id, account, filter: "indexes" as const, indexes: [0] }
  await rig.retry(again)
  calls[0]?.answer({ kind: "failed", reason: "answered 500" })
  await until(() => expect(calls).toHaveLength(2))
  const [claim] = await rig.grant(await rig.row(job), 1)
  if (claim === undefined) throw new Error("it runs again")
  await rig.report(claim, failedItem("exit_code"))
  await rig.finish(job)
  // Its second end has a call of its own.
  await until(() => expect(calls).toHaveLength(3))
  const bodies = calls.map(({ call }) => JSON.parse(Buffer.from(call.body).toString()) as Record<string, unknown>)
  expect(bodies.map(({ event, output }) => [event, output])).toEqual([
    ["job.completed", "printed"],
    ["job.completed", ""],
    ["job.failed", "printed"],
  ])
})

test("what a stop interrupted is attempted again under the same id; what is over is not", async () => {
  const account = await project()
  const [first, second] = [await rig.queued(account, HOOK), await rig.queued(account, HOOK)]
  for (const job of [first, second]) await rig.runWhole(job, () => 1)
  const begun = begin()
  await until(() => expect(calls).toHaveLength(2))
  const ids = calls.map(({ call }) => call.headers["webhook-id"])
  calls[0]?.answer({ kind: "delivered" })
  await expect.poll(outbox).toHaveLength(1)
  await begun[Symbol.asyncDispose]()
  begin()
  await until(() => expect(calls).toHaveLength(3))
  expect(calls[2]?.call.headers["webhook-id"]).toBe(ids[1])
})

test("W-002: the delays are a fifth longer or shorter at most, and are still waited for after a restart", async () => {
  const account = await project()
  await rig.runWhole(await rig.queued(account, HOOK), () => 1)
  const begun = begin(undefined, 1_000)
  await until(() => expect(calls).toHaveLength(1))
  const before = Date.now()
  calls[0]?.answer({ kind: "failed", reason: "answered 500" })
  await expect.poll(async () => (await outbox())[0]?.dueAt).toBeGreaterThan(before + 700)
  const [row] = await outbox()
  expect((row?.dueAt ?? 0) - before).toBeLessThan(1_300)
  await begun[Symbol.asyncDispose]()
  begin(undefined, 1_000)
  await until(() => expect(calls).toHaveLength(2))
  expect(Date.now() - before).toBeGreaterThan(790)
})

test("a job whose project is slow to answer holds up nobody else: hosts, accounts and all have bounds", async () => {
  const [slow, other] = [await project(), await project()]
  begin({ inAll: 4, ofAccount: 3, ofHost: 2 })
  const url = (host: string) => ({ callback_url: `https://${host}.example/x` })
  for (let n = 0; n < 4; n++) await rig.runWhole(await rig.queued(slow, url("slow")), () => 1)
  await until(() => expect(calls).toHaveLength(2))
  await rig.runWhole(await rig.queued(slow, url("second")), () => 1)
  await until(() => expect(calls).toHaveLength(3))
  await rig.runWhole(await rig.queued(slow, url("third")), () => 1)
  await rig.runWhole(await rig.queued(other, url("theirs")), () => 1)
  await until(() => expect(calls).toHaveLength(4))
  const hosts = () => calls.map(({ call }) => new URL(call.url).hostname)
  expect(hosts()).toEqual(["slow.example", "slow.example", "second.example", "theirs.example"])
  calls[3]?.answer({ kind: "delivered" })
  calls[0]?.answer({ kind: "delivered" })
  await until(() => expect(calls).toHaveLength(5))
  expect(hosts().at(-1)).toBe("slow.example")
})

test("accounts take turns, each in the order in which its calls are due", () => {
  const queue = createCallQueue({ inAll: 9, ofAccount: 9, ofHost: 9 })
  const entry = (seq: number, account: number, dueMs: number): QueuedCall => ({
    seq,
    account: accountId(account),
    host: "h",
    dueMs,
  })
  for (const one of [entry(1, 1, 5), entry(2, 1, 3), entry(3, 1, 4), entry(4, 2, 9), entry(5, 2, 20)]) queue.add(one)
  expect(queue.take(2)).toBe(undefined)
  expect(queue.nextDueMs(2)).toBe(3)
  const taken = Array.from({ length: 5 }, () => queue.take(10)?.seq)
  expect(taken).toEqual([2, 4, 3, 1, undefined])
  expect(queue.nextDueMs(10)).toBe(20)
})
