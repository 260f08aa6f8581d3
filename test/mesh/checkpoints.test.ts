import { afterEach, beforeEach, expect, test } from "vitest"
import { sha256Hex } from "../../protocol/base/digest.ts"
import type { CheckpointItem } from "../../protocol/wire/control.ts"
import { failedItem } from "../support/job-rig.ts"
import { startTestCoordinator, startWorker, type ScriptedNode, type TestCoordinator } from "../support/scripted-node.ts"

/** What a node and the coordinator say to each other of checkpoints, frame by frame. */

let rig: TestCoordinator
beforeEach(async () => {
  rig = await startTestCoordinator()
})
afterEach(async () => rig[Symbol.asyncDispose]())

const ON = { checkpointing: { enabled: true, resume_from_latest: true } }

async function leave(node: ScriptedNode, claim: number, n: number, more: Partial<CheckpointItem> = {}): Promise<void> {
  const facts = { claim, n, state: `{"step":${n}}`, line: `{"epoch":${n}}`, file: null, problem: null, ...more }
  await node.say({ type: "checkpoint", item: { digest: sha256Hex(JSON.stringify(facts)), ...facts } })
  await expect.poll(() => node.verdicts().filter((verdict) => "n" in verdict && verdict.n === n)).toHaveLength(1)
}

interface Event {
  type: string
  data: Record<string, unknown>
}
const eventsOf = async (job: string): Promise<Event[]> =>
  (await rig.as("GET", `/jobs/${job}/events?limit=1000`)).get("events") as Event[]

test("a checkpoint is answered, and the next attempt's node is told what to go on from, it and no other", async () => {
  const node = await startWorker(rig)
  const job = await rig.submit({ ...ON, max_retries: 1 })
  const claim = await node.next()
  expect(node.granted[0]).not.toHaveProperty("resumes")
  await leave(node, claim, 3)
  expect(node.verdicts()).toMatchObject([{ claim, kind: "checkpoint", n: 3, verdict: "stored" }])
  await node.say({ type: "progress", items: [{ claim, progress: '{"epoch":4,"late":1}', output_tail: null }] })
  await node.report(claim, failedItem("exit_code"))
  const next = await node.next()
  expect(node.granted[1]).toMatchObject({ resumes: true })
  const ask = (of: number, token: string) => rig.call("GET", `/nodes/resumes/${of}`, undefined, token)
  const reply = await ask(next, node.transferToken)
  expect(reply.json).toMatchObject({
    payload_key: "_resume",
    progress: '{"epoch":4,"late":1}',
    points: [{ claim, n: 3, line: '{"epoch":3}', file: null }],
    content_grant: null,
  })
  const other = await startWorker(rig)
  expect((await ask(next, other.transferToken)).status).toBe(404)
  expect((await ask(claim, node.transferToken)).status).toBe(404)
  expect((await ask(next, "nds_nobody")).status).toBe(401)
  // An attempt that goes on without it says so; saying it twice, or of what is not there, tells nothing more.
  const unreadable = [{ claim, n: 3, reason: "its bytes are wrong" }]
  await node.say({ type: "fell_back", claim: next, unreadable })
  await node.say({ type: "fell_back", claim: next, unreadable: [...unreadable, { claim, n: 9, reason: "invented" }] })
  await node.report(next)
  await expect.poll(async () => (await rig.job(job))["status"]).toBe("completed")
  const told = (await eventsOf(job)).filter(({ data }) => data["unreadable"] === true)
  expect(told).toHaveLength(1)
})

test("a job that keeps no checkpoints gets none, and its node goes on", async () => {
  const node = await startWorker(rig)
  const job = await rig.submit()
  const claim = await node.next()
  await leave(node, claim, 1)
  expect(node.verdicts()).toMatchObject([{ kind: "checkpoint", verdict: "refused" }])
  await node.report(claim)
  await expect.poll(async () => (await rig.job(job))["status"]).toBe("completed")
})

test("architecture §5.5: what is at stake is the work since the last durable checkpoint", async () => {
  const node = await startWorker(rig)
  const [kept, atStake] = [await rig.submit(ON), await rig.submit(ON)]
  const claims = [await node.next(), await node.next()]
  const taskRow = async (job: string) =>
    ((await rig.as("GET", `/jobs/${job}/tasks`)).get("tasks") as { status: string }[])[0]
  for (const job of [kept, atStake]) await expect.poll(async () => (await taskRow(job))?.status).toBe("running")
  await new Promise((resolve) => setTimeout(resolve, 6_000))
  await leave(node, claims[0] ?? 0, 1)
  await leave(node, claims[1] ?? 0, 1, { problem: { status: "failed", reason: "outside" } })
  const diedAt = performance.now()
  await node.die()
  await startWorker(rig)
  const lostAfterMs = async (job: string): Promise<number> => {
    await expect.poll(async () => (await eventsOf(job)).map(({ type }) => type)).toContain("task.lost")
    return performance.now() - diedAt
  }
  const [soon, late] = await Promise.all([lostAfterMs(kept), lostAfterMs(atStake)])
  expect(late).toBeGreaterThan(5_500)
  expect(late - soon).toBeGreaterThan(2_000)
})
