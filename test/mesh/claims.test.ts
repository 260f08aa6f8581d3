import { setTimeout } from "node:timers/promises"
import { afterEach, beforeEach, expect, test } from "vitest"
import {
  startTestCoordinator,
  startWorker,
  type ScriptedNode,
  type TestCoordinator,
  verdictsOf,
  type Worker,
} from "../support/scripted-node.ts"

let rig: TestCoordinator
beforeEach(async () => {
  rig = await startTestCoordinator()
})
afterEach(async () => rig[Symbol.asyncDispose]())

const statusOf = async (job: string): Promise<unknown> => (await rig.job(job))["status"]
const items = (count: number): object => ({ fan_out: { items: Array.from({ length: count }, (_, n) => ({ n })) } })

const isSuspect = async ({ id }: ScriptedNode): Promise<void> => {
  const rows = async () => (await rig.call("GET", "/admin/nodes")).get("nodes") as { id: string; contact: string }[]
  await expect.poll(async () => (await rows()).find((row) => row.id === id)?.contact).toBe("suspect")
}
const eventTypes = async (job: string): Promise<string[]> => {
  const events = (await rig.as("GET", `/jobs/${job}/events?limit=1000`)).get("events") as { type: string }[]
  return events.map(({ type }) => type)
}

// ── losses ──────────────────────────────────────────────────────────────────────────────────────────────────────────

test("a grant that a node's next hello does not list goes back at once, and is no loss", async () => {
  const node = await rig.node()
  await node.connect()
  await node.claim()
  const job = await rig.submit()
  await expect.poll(() => node.granted.length).toBe(1)
  node.breakStream()
  await node.connect()
  await node.claim()
  await expect.poll(() => node.granted.length).toBe(2)
  expect(node.granted[1]?.attempt).toBe(1)
  expect(node.granted[1]?.claim).toBeGreaterThan(node.granted[0]?.claim ?? 0)
  await node.report(node.granted[0]?.claim ?? 0)
  await node.report(node.granted[1]?.claim ?? 0)
  await expect.poll(() => verdictsOf(node)).toEqual(["spent", "stored"])
  expect(await eventTypes(job)).not.toContain("task.lost")
})

test("a node back within the wait goes on with the same attempt", async () => {
  const node = await startWorker(rig)
  const job = await rig.submit()
  const claim = await node.next()
  node.breakStream()
  await isSuspect(node)
  const welcome = await node.connect({ attempts: [{ claim, state: "running" }] })
  expect(welcome).toMatchObject({ attempts: [{ claim, verdict: "keep" }] })
  await node.report(claim)
  await expect.poll(() => verdictsOf(node)).toEqual(["stored"])
  const types = await eventTypes(job)
  expect(types.filter((type) => type === "task.started")).toHaveLength(1)
  expect(types).not.toContain("task.lost")
})

test("a task whose node is gone runs on another after the wait, and the first one's late result is spent", async () => {
  const first = await startWorker(rig, { cpu: 1 })
  const job = await rig.submit()
  const lost = await first.next()
  const second = await startWorker(rig, { cpu: 1 })
  first.mine.clear()
  first.breakStream()
  const claim = await second.next()
  expect(claim).toBeGreaterThan(lost)
  expect(second.granted[0]).toMatchObject({ index: 0, attempt: 2 })
  const welcome = await first.connect({ attempts: [{ claim: lost, state: "done" }] })
  expect(welcome).toMatchObject({ attempts: [{ claim: lost, verdict: "keep" }] })
  await first.report(lost)
  await expect.poll(() => verdictsOf(first)).toEqual(["spent"])
  await second.report(claim)
  await expect.poll(() => statusOf(job)).toBe("completed")
  expect(await eventTypes(job)).toEqual(expect.arrayContaining(["task.contact_lost", "task.lost", "task.completed"]))
})

test("a node that returns after the wait but before another could run its task goes on, and no loss is counted", async () => {
  const node = await startWorker(rig)
  const job = await rig.submit()
  const claim = await node.next()
  node.breakStream()
  await expect.poll(() => eventTypes(job), { timeout: 15_000 }).toContain("task.contact_lost")
  await node.connect({ attempts: [{ claim, state: "running" }] })
  await expect.poll(() => eventTypes(job)).toContain("task.contact_restored")
  await node.claim()
  await node.report(claim)
  await expect.poll(() => verdictsOf(node)).toEqual(["stored"])
  await expect.poll(() => statusOf(job)).toBe("completed")
  expect(await eventTypes(job)).not.toContain("task.lost")
  expect(node.granted).toHaveLength(1)
})

test("architecture §5.5: a node that stands still with its stream open is granted nothing until it speaks again", async () => {
  const node = await rig.node()
  await node.connect()
  await node.claim()
  const job = await rig.submit()
  await expect.poll(() => node.granted.length).toBe(1)
  const claim = node.granted[0]?.claim ?? 0
  await node.say({ type: "accept", claims: [claim] })
  await node.say({ type: "started", claims: [claim] })
  await expect.poll(() => eventTypes(job), { timeout: 15_000 }).toContain("task.contact_lost")
  const waiting = await rig.submit()
  // Its task may be granted again by then, and only this node has room.
  await setTimeout(3_000)
  expect(node.granted).toHaveLength(1)
  await node.heartbeat(claim)
  await expect.poll(() => node.granted.length).toBe(2)
  await node.report(claim)
  await node.report(node.granted[1]?.claim ?? 0)
  await expect.poll(() => statusOf(waiting)).toBe("completed")
  expect(await eventTypes(job)).toEqual(expect.arrayContaining(["task.contact_restored", "task.completed"]))
  expect(await eventTypes(job)).not.toContain("task.lost")
})

test("architecture §5.5: a grant whose accept is held up on the way is not taken from a node that is not heard", async () => {
  const node = await rig.node()
  await node.connect()
  await node.claim()
  const job = await rig.submit()
  await expect.poll(() => node.granted.length).toBe(1)
  const claim = node.granted[0]?.claim ?? 0
  await expect.poll(() => eventTypes(job), { timeout: 15_000 }).toContain("task.contact_lost")
  // Longer than an accept may take from a node that is heard.
  await setTimeout(12_000)
  await node.say({ type: "accept", claims: [claim] })
  await node.say({ type: "started", claims: [claim] })
  await node.report(claim)
  await expect.poll(() => verdictsOf(node)).toEqual(["stored"])
  await expect.poll(() => statusOf(job)).toBe("completed")
  expect(node.granted).toHaveLength(1)
})

test("a node that came back without an attempt has lost it: it runs again", async () => {
  const node = await startWorker(rig)
  const job = await rig.submit()
  const lost = await node.next()
  node.mine.clear()
  await node.connect({ boot_id: "boot-2" })
  await node.claim()
  const claim = await node.next()
  expect(claim).toBeGreaterThan(lost)
  await node.report(claim)
  await expect.poll(() => statusOf(job)).toBe("completed")
  expect(await eventTypes(job)).toContain("task.lost")
})

test("a heartbeat renews what it names and says what is no longer the node's", async () => {
  const node = await startWorker(rig)
  await rig.submit()
  const claim = await node.next()
  await node.heartbeat(claim, 12)
  await expect.poll(() => node.heard).toContainEqual({ type: "heartbeat_reply", n: 1, renewed: [claim], spent: [12] })
})

test("an attempt that runs a minute past its timeout is not renewed any more", async () => {
  const node = await startWorker(rig)
  await rig.submit({ timeout_s: 60 })
  const claim = await node.next()
  node.mine.clear()
  const renewed = (n: number): unknown => node.heard.find((one) => one.type === "heartbeat_reply" && one.n === n)
  for (const [n, running_ms] of [
    [71, 119_000],
    [72, 121_000],
  ] as const) {
    await node.say({ type: "heartbeat", n, attempts: [{ claim, running_ms }] })
  }
  await expect.poll(() => renewed(71)).toMatchObject({ renewed: [claim] })
  await expect.poll(() => renewed(72)).toMatchObject({ renewed: [], spent: [] })
})

test("a refused report is a loss: the task runs again", async () => {
  const node = await startWorker(rig)
  const job = await rig.submit()
  const first = await node.next()
  const missing = { name: null, filename: "f", digest: "a".repeat(64), size: 3, content_type: "text/plain" }
  await node.report(first, { artifacts: [missing] })
  await expect.poll(() => verdictsOf(node)).toEqual(["refused"])
  node.mine.delete(first)
  const second = await node.next()
  await node.report(second)
  await expect.poll(() => statusOf(job)).toBe("completed")
  await node.report(first)
  await expect.poll(() => verdictsOf(node)).toEqual(["refused", "stored", "spent"])
})

// ── the coordinator starts again ────────────────────────────────────────────────────────────────────────────────────

test("a restart of the coordinator keeps attempts, runs nothing twice and takes what ended meanwhile", async () => {
  const node = await startWorker(rig)
  const job = await rig.submit(items(2))
  const [running, done] = [await node.next(), await node.next()]
  await expect.poll(() => statusOf(job)).toBe("running")
  await rig.restart()
  const welcome = await node.connect({
    attempts: [
      { claim: running, state: "running" },
      { claim: done, state: "done" },
    ],
  })
  expect(welcome).toMatchObject({ attempts: [{ verdict: "keep" }, { verdict: "keep" }] })
  await node.claim()
  await node.report(done)
  await node.report(running)
  await expect.poll(() => verdictsOf(node)).toEqual(["stored", "stored"])
  await expect.poll(() => statusOf(job)).toBe("completed")
  expect(node.granted).toHaveLength(2)
  const types = await eventTypes(job)
  expect(types.filter((type) => type === "task.started")).toHaveLength(2)
  expect(types).not.toContain("task.lost")
})

test("a grant that was offered before a restart and never arrived goes back without a loss", async () => {
  const node = await rig.node()
  await node.connect()
  await node.claim()
  const job = await rig.submit()
  await expect.poll(() => node.granted.length).toBe(1)
  await rig.restart()
  await node.connect()
  await node.claim()
  await expect.poll(() => node.granted.length).toBe(2)
  expect(node.granted[1]).toMatchObject({ index: 0, attempt: 1 })
  await node.report(node.granted[1]?.claim ?? 0)
  await expect.poll(() => statusOf(job)).toBe("completed")
})

/** The revision of the first grant. */
function revisionOf(node: ScriptedNode): string {
  const grant = node.heard.find((message) => message.type === "grant")
  return grant?.type === "grant" ? (grant.specs[0]?.runtime.revision ?? "") : ""
}

// ── preparation ─────────────────────────────────────────────────────────────────────────────────────────────────────

test("rulings, Failed set-up: tasks given back after preparing failed everywhere fail like the others", async () => {
  const node = await startWorker(rig, { cpu: 1 })
  const job = await rig.submit(items(4))
  await expect.poll(() => node.granted.length).toBe(1)
  const claim = node.granted[0]?.claim ?? 0
  await node.say({ type: "accept", claims: [claim] })
  const revision = revisionOf(node)
  await node.say({ type: "replica", revision, state: "failed", message: "no such command", log_tail: null })
  // Three fail at once; the fourth is still with the node, and comes back only now.
  await expect.poll(async () => (await rig.job(job))["task_counts"]).toMatchObject({ failed: 3, queued: 1 })
  await node.say({ type: "give_back", items: [{ claim, reason: "the runtime could not be prepared" }] })
  await expect.poll(() => statusOf(job)).toBe("failed")
  expect((await rig.job(job))["task_counts"]).toMatchObject({ failed: 4 })
})

test("a node that cannot prepare a revision by its own fault is not handed the same grant again at once", async () => {
  const node = await startWorker(rig, { cpu: 1 })
  const job = await rig.submit()
  await expect.poll(() => node.granted.length).toBe(1)
  const claim = node.granted[0]?.claim ?? 0
  await node.say({ type: "accept", claims: [claim] })
  const revision = revisionOf(node)
  await node.say({ type: "replica", revision, state: "unable", message: "the base image is not here", log_tail: null })
  await node.say({ type: "give_back", items: [{ claim, reason: "the base image is not here" }] })
  await expect.poll(() => statusOf(job)).toBe("queued")
  const granted = node.granted.length
  const other = await startWorker(rig, { cpu: 1 })
  await other.report(await other.next())
  await expect.poll(() => statusOf(job)).toBe("completed")
  expect(node.granted.length).toBe(granted)
})

// ── taking back ─────────────────────────────────────────────────────────────────────────────────────────────────────

/** A node with one slot that has run one task of a second: two more stand ahead of the one that runs. */
async function withTasksAhead(): Promise<{ node: Worker; revision: string; ahead: number[] }> {
  const node = await startWorker(rig, { cpu: 1 })
  await rig.submit(items(4))
  const first = await node.next()
  const revision = revisionOf(node)
  await node.claim({ warm: [revision], capacity: ONE_CORE })
  node.mine.delete(first)
  // No run counts for more than the time it was here: 0.8 s each, two of them ahead of one slot.
  await setTimeout(1_000)
  await node.report(first, { runtime_ms: 800 })
  await expect.poll(() => node.granted.length).toBe(4)
  await node.next()
  const ahead = node.granted.slice(2).map(({ claim }) => claim)
  await node.say({ type: "accept", claims: ahead })
  return { node, revision, ahead }
}
const ONE_CORE = { cpu: 1, memory_mb: 65_536, storage_gb: 1_000, gpus: [] }
const asksOf = ({ heard }: ScriptedNode): number[][] =>
  heard.flatMap((one) => (one.type === "take_back" ? [one.claims] : []))

test("architecture §5.4: a free slot elsewhere takes a task back, once its node says it has not started it", async () => {
  const { node, revision, ahead } = await withTasksAhead()
  const other = await startWorker(rig, { cpu: 1 })
  await other.claim({ warm: [revision], capacity: ONE_CORE })
  const last = ahead.at(-1) ?? 0
  await expect.poll(() => asksOf(node)).toEqual([[last]])
  expect(other.granted).toEqual([])
  await node.say({ type: "taken_back", not_started: [last], started: [] })
  await other.next()
  expect(other.granted[0]).toMatchObject({ attempt: 1, index: node.granted.at(-1)?.index })
  await node.report(last)
  await expect.poll(() => verdictsOf(node)).toEqual(["stored", "spent"])
})

test("architecture §5.4: a task that was started after all stays where it is, and is not asked for again", async () => {
  const { node, revision, ahead } = await withTasksAhead()
  const other = await startWorker(rig, { cpu: 1 })
  await other.claim({ warm: [revision], capacity: ONE_CORE })
  const last = ahead.at(-1) ?? 0
  await expect.poll(() => asksOf(node)).toEqual([[last]])
  await node.say({ type: "taken_back", not_started: [], started: [last] })
  await node.say({ type: "started", claims: [last] })
  await node.report(last)
  await expect.poll(() => verdictsOf(node)).toEqual(["stored", "stored"])
  expect(
    asksOf(node)
      .flat()
      .filter((claim) => claim === last),
  ).toEqual([last])
})

test("architecture §5.4: a job of higher priority gets the slot that others stand ahead of", async () => {
  const { node, ahead } = await withTasksAhead()
  const running = node.granted[1]?.claim ?? 0
  const job = await rig.submit({ priority: "high" })
  await expect
    .poll(() =>
      asksOf(node)
        .flat()
        .toSorted((a, b) => a - b),
    )
    .toEqual(ahead)
  await node.say({ type: "taken_back", not_started: ahead, started: [] })
  await node.report(running)
  await expect.poll(() => node.granted.length).toBeGreaterThan(4)
  const next = node.granted[4]?.claim ?? 0
  await node.report(next)
  await expect.poll(() => statusOf(job)).toBe("completed")
})

test("architecture §5.4: to give back what was asked for is no fault: the node gets the next task at once", async () => {
  const { node, ahead } = await withTasksAhead()
  await rig.submit({ priority: "high" })
  const asked = (): number[] => asksOf(node).flat()
  await expect.poll(() => asked().toSorted((a, b) => a - b)).toEqual(ahead)
  for (const claim of ahead) await node.say({ type: "taken_back", not_started: [claim], started: [] })
  await node.report(node.granted[1]?.claim ?? 0)
  // Two faults in a row would have it rest for five seconds.
  await expect.poll(() => node.granted.length, { timeout: 4_000 }).toBeGreaterThan(4)
})

// ── waiting too long ────────────────────────────────────────────────────────────────────────────────────────────────

test("L-006: a job that fits no machine is cancelled at the limit once a worker takes work, and not before", async () => {
  await using short = await startTestCoordinator({ COMPUTALOT_QUEUE_TIMEOUT_S: "1" })
  const job = await short.submit({ requirements: { cpu: 64 } })
  const draining = await startWorker(short)
  await draining.claim({ draining: true })
  await setTimeout(2_500)
  expect(await short.job(job)).toMatchObject({ status: "queued" })
  await startWorker(short)
  await expect.poll(async () => (await short.job(job))["status"]).toBe("cancelled")
  expect((await short.job(job))["error"]).toContain("no machine started it")
})
