import { join } from "node:path"
import { afterEach, beforeEach, expect, test } from "vitest"
import { systemRandom } from "../../protocol/base/random.ts"
import { identityFromSeed, loadOrCreateIdentity } from "../../protocol/mesh/identity.ts"
import { signEpoch } from "../../protocol/wire/epoch.ts"
import {
  CONTROL_PROTOCOL,
  encodeMessage,
  MOST_HELD,
  REVOKED_IN_FRAME,
  type Welcome,
} from "../../protocol/wire/control.ts"
import { send } from "../support/http-door.ts"
import { openTestStore } from "../support/store.ts"
import { HELLO, startTestCoordinator, startWorker, type TestCoordinator, verdictsOf } from "../support/scripted-node.ts"

let rig: TestCoordinator
beforeEach(async () => {
  rig = await startTestCoordinator()
})
afterEach(async () => rig[Symbol.asyncDispose]())

const statusOf = async (job: string): Promise<unknown> => (await rig.job(job))["status"]
const items = (count: number): object => ({ fan_out: { items: Array.from({ length: count }, (_, n) => ({ n })) } })

const eventTypes = async (job: string): Promise<string[]> => {
  const events = (await rig.as("GET", `/jobs/${job}/events?limit=1000`)).get("events") as { type: string }[]
  return events.map(({ type }) => type)
}

test("a job goes from grant over accept and start to a result, which is stored once", async () => {
  const node = await startWorker(rig)
  const job = await rig.submit({ payload: { n: 1 } })
  const claim = await node.next()
  expect(node.granted[0]).toMatchObject({ index: 0, attempt: 1, payload: { text: '{"n":1}' } })
  await expect.poll(() => statusOf(job)).toBe("running")
  await node.report(claim)
  await expect.poll(() => node.verdicts()).toMatchObject([{ claim, kind: "result", verdict: "stored" }])
  await expect.poll(() => statusOf(job)).toBe("completed")
  await node.report(claim)
  await expect.poll(() => verdictsOf(node)).toEqual(["stored", "already"])
  await node.report(claim, { output: "another story" })
  await expect.poll(() => verdictsOf(node)).toEqual(["stored", "already", "spent"])
})

test("many tasks go to a node at once, and no task to two", async () => {
  const nodes = [await startWorker(rig), await startWorker(rig)]
  const job = await rig.submit(items(4))
  await expect.poll(() => nodes.map(({ granted }) => granted.length)).toEqual([2, 2])
  const indexes = nodes.flatMap(({ granted }) => granted.map(({ index }) => index))
  expect(indexes.toSorted((a, b) => a - b)).toEqual([0, 1, 2, 3])
  for (const node of nodes) for (const { claim } of node.granted) await node.report(claim)
  await expect.poll(() => statusOf(job)).toBe("completed")
})

test("a payload above 64 KiB comes by digest, and only its node may fetch it", async () => {
  const node = await startWorker(rig, { cpu: 1 })
  const other = await startWorker(rig, { cpu: 0.01 })
  const text = "x".repeat(70_000)
  await rig.submit({ payload: { text } })
  const claim = await node.next()
  expect(node.granted[0]?.payload).toMatchObject({ size: text.length + 11 })
  const fetched = await rig.call("GET", `/nodes/payloads/${claim}`, undefined, node.transferToken)
  expect(fetched.json).toEqual({ text })
  expect((await rig.call("GET", `/nodes/payloads/${claim}`, undefined, other.transferToken)).status).toBe(404)
  expect((await rig.call("GET", `/nodes/payloads/${claim}`, undefined, "nds_unknown")).status).toBe(401)
})

test("grants with payloads that are three bytes a character still fit their frames", async () => {
  const node = await startWorker(rig, { cpu: 8 })
  const job = await rig.submit({
    fan_out: { items: Array.from({ length: 8 }, (_, n) => ({ n, text: "漢".repeat(20_000) })) },
  })
  await expect.poll(() => node.granted.length).toBe(8)
  for (const { claim } of node.granted) await node.report(claim)
  await expect.poll(() => statusOf(job)).toBe("completed")
})

test("a job whose command and environment fit no frame fails, and its node keeps its stream", async () => {
  const node = await startWorker(rig)
  const job = await rig.submit({ runner_command: ["python3", "x".repeat(300_000)] })
  await expect.poll(() => statusOf(job)).toBe("failed")
  expect(node.streamEnded).toBe(false)
})

// ── who may speak ───────────────────────────────────────────────────────────────────────────────────────────────────

test("a node of another protocol version is told so", async () => {
  const node = await rig.node()
  expect(await node.connect({ version: 2 })).toMatchObject({ type: "refusal", reason: "version" })
  expect(await node.connect()).toMatchObject({ type: "welcome", version: 1 })
})

test("shown a later epoch of its own the coordinator stores it, ends, and starts again only to take over; a forged one changes nothing", async () => {
  const node = await rig.node()
  const welcome = await node.connect()
  if (welcome.type !== "welcome") throw new Error("it is welcome")
  const epoch = welcome.epoch + 5_000
  const stranger = await identityFromSeed(systemRandom.bytes(32))
  for (const forged of [welcome.epoch_proof, signEpoch(stranger, epoch), "AAAA", null]) {
    expect(await node.connect({ epoch, epoch_proof: forged })).toMatchObject({ type: "welcome" })
  }
  expect(rig.fatal).toEqual([])
  await rig.restart()

  const key = await loadOrCreateIdentity(join(rig.dataDir, "coordinator.key"), systemRandom)
  const refused = await node.connect({ epoch, epoch_proof: signEpoch(key, epoch) })
  expect(refused).toMatchObject({ type: "refusal", reason: "epoch" })
  await expect.poll(() => rig.fatal).toHaveLength(1)
  expect(rig.fatal[0]?.message).toMatch(/^this is an older copy of the data .*--take-over[^\n]*$/)
  await expect(rig.restart()).rejects.toThrow(rig.fatal[0]?.message.slice(0, 40))

  await rig.restart({ takeOver: true })
  expect(await node.connect({ epoch, epoch_proof: signEpoch(key, epoch) })).toMatchObject({ epoch: epoch + 1 })
  await rig.restart()
  expect(await node.connect()).toMatchObject({ epoch: epoch + 2 })
})

test("a member whose row was lost is taken in again by its certificate, with its id; a revoked one is not", async () => {
  const node = await rig.node()
  await node.connect()
  const between = async (): Promise<void> => {
    await using store = await openTestStore({ dataDir: rig.dataDir })
    await store.write((tx) => tx.run("DELETE FROM nodes"))
  }
  await rig.restart({ between })
  expect(await node.connect()).toMatchObject({ type: "welcome" })
  const rows = async (): Promise<unknown> => (await rig.call("GET", "/admin/nodes")).get("nodes")
  expect(await rows()).toMatchObject([{ id: node.id, peer_id: node.identity.peerId, roles: ["worker"] }])
  await rig.call("PUT", `/admin/nodes/${node.id}`, { state: "revoked" })
  await rig.restart()
  await expect(node.connect()).rejects.toThrow()
  expect(await rows()).toMatchObject([{ id: node.id, state: "revoked" }])
})

test("certificates are renewed while the stream stays open, before they end", async () => {
  await rig[Symbol.asyncDispose]()
  rig = await startTestCoordinator({ COMPUTALOT_CERTIFICATE_TTL_S: "3" })
  const node = await startWorker(rig)
  const renewed = (): string[] => node.heard.flatMap((one) => (one.type === "certificate" ? [one.certificate] : []))
  await expect.poll(() => renewed().length).toBeGreaterThanOrEqual(2)
  expect(new Set([node.certificate, ...renewed()]).size).toBe(renewed().length + 1)
})

test("a revoked node is cut off, and its task runs elsewhere without a loss", async () => {
  const first = await startWorker(rig)
  const job = await rig.submit()
  await first.next()
  const second = await startWorker(rig)
  expect((await rig.call("PUT", `/admin/nodes/${first.id}`, { state: "revoked", reason: "test" })).status).toBe(200)
  await expect.poll(() => first.streamEnded).toBe(true)
  const claim = await second.next()
  expect(await eventTypes(job)).not.toContain("task.lost")
  await second.report(claim)
  await expect.poll(() => statusOf(job)).toBe("completed")
  await expect(first.connect()).rejects.toThrow()
})

test("architecture §5.1: who was revoked is told to all in frames that fit, until the certificate has ended", async () => {
  const node = await rig.node()
  const count = 7_500
  const day = 24 * 3600_000
  const between = async (): Promise<void> => {
    await using store = await openTestStore({ dataDir: rig.dataDir })
    // Certificates live for seven days, and are believed for one more by members that lack the coordinator.
    await store.write((tx) =>
      tx.run(
        `WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?)
         INSERT INTO nodes (id, peer_id, token, roles, state, agent_version, enrolled_at, revoked_at)
         SELECT 'node_' || CASE WHEN i < 10 THEN 'ended_' WHEN i < 20 THEN 'unknown_' ELSE 'revoked_' END || i, 'peer_' || i,
           (SELECT token FROM nodes LIMIT 1), '[]', 'revoked', 'x', 1,
           CASE WHEN i < 10 THEN ? WHEN i < 20 THEN NULL ELSE ? END FROM n`,
        count,
        Date.now() - 8 * day - 11 * 60_000,
        Date.now() - 8 * day - 9 * 60_000,
      ),
    )
  }
  await rig.restart({ between })
  const welcome = await node.connect()
  if (welcome.type !== "welcome") throw new Error("it is a member")
  expect(welcome.revoked).toHaveLength(count - 10)
  expect(welcome.revoked.filter((id) => id.startsWith("node_ended"))).toEqual([])
  expect(welcome.revoked.filter((id) => id.startsWith("node_unknown"))).toHaveLength(10)
  expect(welcome.revocation_version).toBe(count)
  expect(node.frameBytes.length).toBe(Math.ceil((count - 10) / REVOKED_IN_FRAME))
  expect(Math.max(...node.frameBytes)).toBeLessThan(CONTROL_PROTOCOL.largestFrameBytes)

  const other = await rig.node()
  await rig.call("PUT", `/admin/nodes/${other.id}`, { state: "revoked" })
  expect((await node.connect()) as Welcome).toMatchObject({ revoked: expect.arrayContaining([other.id]) as string[] })
})

test("architecture §5.3: a node may hold as many attempts as a hello carries; one with more is not heard", async () => {
  const node = await rig.node()
  const held = Array.from({ length: MOST_HELD }, (_, n) => ({
    claim: Number.MAX_SAFE_INTEGER - n,
    state: n % 2 === 0 ? ("done" as const) : ("running" as const),
  }))
  const welcome = await node.connect({ attempts: held })
  if (welcome.type !== "welcome") throw new Error("it is a member")
  expect(welcome.attempts.map(({ verdict }) => verdict)).toEqual(held.map((_, n) => (n % 2 === 0 ? "keep" : "spent")))
  await node.heartbeat(...held.map(({ claim }) => claim))
  await expect.poll(() => node.heard.at(-1)).toMatchObject({ type: "heartbeat_reply", spent: { length: MOST_HELD } })
  const tooMany = [...held, { claim: 1, state: "running" as const }]
  expect(await node.connect({ attempts: tooMany })).toMatchObject({ type: "refusal", reason: "malformed" })
  expect(await node.connect()).toMatchObject({ type: "welcome" })
})

test("a malformed frame ends its peer's stream and nobody else's", async () => {
  const [bad, good] = [await startWorker(rig), await startWorker(rig)]
  await bad.sayBytes(new TextEncoder().encode('{"type":"nonsense"}'))
  await expect.poll(() => bad.streamEnded).toBe(true)
  await bad.connect()
  await bad.sayBytes(new Uint8Array([0xff, 0xfe]))
  await expect.poll(() => bad.streamEnded).toBe(true)
  await bad.connect()
  await bad.say({ type: "heartbeat", n: 1, attempts: [] })
  await expect.poll(() => bad.heard.some(({ type }) => type === "heartbeat_reply")).toBe(true)
  expect(good.streamEnded).toBe(false)
})

test("rulings, /metrics: what a node says that it fetched from others is counted from its first word on", async () => {
  const node = await startWorker(rig)
  const fetched = async (): Promise<string | undefined> => {
    const { text } = await send(rig.coordinator.origin, "GET", "/metrics")
    return /^computalot_content_bytes_total\{source="peer"\} (\d+)$/m.exec(text)?.[1]
  }
  for (const [at, peer_bytes] of [1_000, 5_000, 5_000].entries()) {
    await node.say({ type: "heartbeat", n: 100 + at, attempts: [], peer_bytes })
    await expect.poll(() => node.heard.some((one) => one.type === "heartbeat_reply" && one.n === 100 + at)).toBe(true)
  }
  expect(await fetched()).toBe("4000")
})

test("a first frame that is no hello is refused", async () => {
  const node = await rig.node()
  const peer = await node.mesh.dial(rig.coordinator.meshAddresses[0] ?? "")
  const stream = await node.mesh.openStream(peer, CONTROL_PROTOCOL)
  await stream.send(encodeMessage({ type: "accept", claims: [1] }))
  const frames = stream.frames()[Symbol.asyncIterator]()
  const answer = await frames.next()
  expect(new TextDecoder().decode(answer.value as Uint8Array)).toContain("malformed")
})

test("a newer stream of a node takes the place of the older one, with what it holds", async () => {
  const node = await startWorker(rig)
  const job = await rig.submit()
  const claim = await node.next()
  const before = node.transferToken
  const welcome = await node.connect({ attempts: [{ claim, state: "running" }] })
  expect(welcome).toMatchObject({ attempts: [{ claim, verdict: "keep" }] })
  expect(node.transferToken).not.toBe(before)
  expect((await rig.call("GET", `/nodes/payloads/${claim}`, undefined, before)).status).toBe(401)
  await node.report(claim)
  await expect.poll(() => verdictsOf(node)).toEqual(["stored"])
  await expect.poll(() => statusOf(job)).toBe("completed")
})

// ── ends ────────────────────────────────────────────────────────────────────────────────────────────────────────────

test("J-040: cancel reaches the node, whose later result is spent", async () => {
  const node = await startWorker(rig)
  const job = await rig.submit()
  const claim = await node.next()
  expect((await rig.as("PUT", `/jobs/${job}/cancel`, { reason: "enough" })).status).toBe(200)
  await expect.poll(() => node.heard).toContainEqual({ type: "cancel", claims: [claim], reason: "enough" })
  await node.report(claim)
  await expect.poll(() => verdictsOf(node)).toEqual(["spent"])
  expect(await statusOf(job)).toBe("cancelled")
})

test("a cancel of more attempts than a frame may name is told in several", async () => {
  const node = await startWorker(rig, { cpu: 70 })
  const job = await rig.submit({ ...items(600), requirements: { cpu: 0.1, memory_mb: 16, storage_gb: 1 } })
  await expect.poll(() => node.granted.length).toBeGreaterThan(300)
  await rig.as("PUT", `/jobs/${job}/cancel`, {})
  const cancelled = (): number => node.heard.flatMap((one) => (one.type === "cancel" ? one.claims : [])).length
  await expect.poll(cancelled).toBe(node.granted.length)
  expect(node.streamEnded).toBe(false)
})

test("L-003: a strict job ends with its first failed task, and its other attempts are cancelled", async () => {
  const node = await startWorker(rig)
  const job = await rig.submit({ ...items(2), reliability_mode: "strict_complete" })
  const [failing, other] = [await node.next(), await node.next()]
  await node.report(failing, { failure_kind: "exit_code", exit_code: 1, result: null })
  await expect.poll(() => statusOf(job)).toBe("failed")
  await expect.poll(() => node.heard.flatMap((one) => (one.type === "cancel" ? one.claims : []))).toContain(other)
})

test("a draining node is asked back what it has not started, and gets nothing new", async () => {
  const first = await startWorker(rig)
  const job = await rig.submit(items(2))
  await expect.poll(() => first.granted.length).toBe(2)
  const started = await first.next()
  await expect.poll(() => statusOf(job)).toBe("running")
  await rig.call("PUT", `/admin/nodes/${first.id}`, { state: "draining" })
  await expect.poll(() => first.heard).toContainEqual({ type: "node_state", state: "draining" })
  const rest = first.granted.map(({ claim }) => claim).filter((claim) => claim !== started)
  await expect.poll(() => first.heard).toContainEqual({ type: "take_back", claims: rest })
  await first.say({ type: "taken_back", not_started: rest, started: [] })
  const second = await startWorker(rig)
  const claim = await second.next()
  await second.report(claim)
  await first.report(started)
  await expect.poll(() => statusOf(job)).toBe("completed")
  expect(first.granted).toHaveLength(2)
  expect(await eventTypes(job)).not.toContain("task.lost")
})

test("a node that is taken back while it is away hears of it, and gets work again", async () => {
  const node = await startWorker(rig)
  await rig.call("PUT", `/admin/nodes/${node.id}`, { state: "draining" })
  await expect.poll(() => node.heard).toContainEqual({ type: "node_state", state: "draining" })
  node.breakStream()
  await expect.poll(() => node.streamEnded).toBe(true)
  expect((await rig.call("PUT", `/admin/nodes/${node.id}`, { state: "active" })).status).toBe(200)
  await node.connect()
  await expect.poll(() => node.heard).toContainEqual({ type: "node_state", state: "active" })
  await node.claim()
  const job = await rig.submit()
  await node.report(await node.next())
  await expect.poll(() => statusOf(job)).toBe("completed")
})

test("a node that reads nothing is cut off, and others go on", async () => {
  const slow = await rig.node()
  const peer = await slow.mesh.dial(rig.coordinator.meshAddresses[0] ?? "")
  const stream = await slow.mesh.openStream(peer, CONTROL_PROTOCOL)
  await stream.send(encodeMessage(HELLO))
  // Each heartbeat asks for an answer of some 15 KB, and none is read.
  const attempts = Array.from({ length: 900 }, (_, n) => ({ claim: n + 1, running_ms: null }))
  const heartbeat = encodeMessage({ type: "heartbeat", n: 1, attempts })
  const pouring = (async () => {
    for (let n = 0; n < 3_000 && !stream.ended.aborted; n++) await stream.send(heartbeat)
  })().catch(() => undefined)
  const good = await startWorker(rig)
  const job = await rig.submit()
  const claim = await good.next()
  await good.report(claim)
  await expect.poll(() => statusOf(job)).toBe("completed")
  await expect.poll(() => stream.ended.aborted, { timeout: 40_000 }).toBe(true)
  await pouring
  expect(good.streamEnded).toBe(false)
})
