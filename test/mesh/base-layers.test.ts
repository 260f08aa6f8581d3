import { createHash } from "node:crypto"
import { afterEach, beforeEach, expect, test } from "vitest"
import { peerId } from "../../protocol/domain/ids.ts"
import { imageDigest, type ImageRecord } from "../../protocol/domain/image.ts"
import { verifyContentGrant } from "../../protocol/wire/content-grant.ts"
import type { BuildOrder, Hello, RuntimeSpec } from "../../protocol/wire/control.ts"
import { publicKeyOfPeerId } from "../../protocol/wire/signing.ts"
import { startTestCoordinator, type ScriptedNode, type TestCoordinator } from "../support/scripted-node.ts"

/** Images whose base is only with nodes, as the coordinator sees it (architecture §5.6). */

let rig: TestCoordinator
beforeEach(async () => {
  rig = await startTestCoordinator()
})
afterEach(async () => rig[Symbol.asyncDispose]())

const SANDBOX: Partial<Hello> = { runtime: "gvisor", isolation: "gvisor", enforces: ["memory", "cpu", "pids"] }
const CODE = new TextEncoder().encode("the project's own layer")
const CODE_DIGEST = createHash("sha256").update(CODE).digest("hex")
const BASE = { digest: "b".repeat(64), size: 41_000_000, piece_list: "c".repeat(64) }
const REASON =
  "a base layer of the image (41 MB) is not in this node's bases directory, and no connected node could give it"

function imageOf(base = BASE): ImageRecord {
  const config = { env: {}, workdir: "/workspace", user: "" }
  const diffIds = ["1".repeat(64), "2".repeat(64)]
  const code = { digest: CODE_DIGEST, size: CODE.length, piece_list: null }
  return {
    digest: imageDigest(config, diffIds),
    config,
    layers: [
      { diff_id: diffIds[0] ?? "", unpacked_bytes: 140_000_000, base: true, blob: base },
      { diff_id: diffIds[1] ?? "", unpacked_bytes: 10_240, base: false, blob: code },
    ],
  }
}

async function newBuilder(): Promise<ScriptedNode> {
  const node = await rig.node(["builder"])
  await node.connect({ ...SANDBOX, roles: ["builder"], addresses: ["/ip4/127.0.0.1/tcp/4100"] })
  await node.claim()
  return node
}

async function newWorker(): Promise<ScriptedNode> {
  const node = await rig.node()
  await node.connect(SANDBOX)
  await node.claim({ capacity: { cpu: 1, memory_mb: 4096, storage_gb: 50, gpus: [] } })
  // Who is silent is given nothing.
  node.beat(() => node.granted.map(({ claim }) => claim))
  return node
}

const ordersOf = (node: ScriptedNode): BuildOrder[] => node.heard.filter((message) => message.type === "build")

/** Does the order that came last. */
async function build(node: ScriptedNode, { uploads = true, image = imageOf() } = {}): Promise<void> {
  const { claim } = ordersOf(node).at(-1) ?? { claim: 0 }
  if (uploads) {
    const sent = await rig.call("PUT", `/nodes/blobs/${CODE_DIGEST}?claim=${claim}`, CODE, node.transferToken)
    expect(sent.status, sent.text).toBe(200)
  }
  await node.say({ type: "built", claim, outcome: { ok: true, image }, log_tail: "" })
}

function runtimeOf(node: ScriptedNode): RuntimeSpec {
  const grant = node.heard.findLast((message) => message.type === "grant")
  const spec = grant?.specs[0]
  if (!spec) throw new Error("it was granted something")
  return spec.runtime
}

/** The worker says that it cannot have the image, and gives its task back. */
async function unable(node: ScriptedNode, missing: string): Promise<void> {
  const { revision } = runtimeOf(node)
  const claim = node.granted.at(-1)?.claim ?? 0
  await node.say({ type: "replica", revision, state: "unable", message: REASON, log_tail: null, missing })
  await node.say({ type: "give_back", items: [{ claim, reason: "the runtime could not be prepared" }] })
}

const statusOf = async () => (await rig.as("GET", "/projects/p/status")).json

test("an image counts as built with its base held by nodes alone, and the grant names the base's blob and its holders", async () => {
  const builder = await newBuilder()
  const other = await newBuilder()
  await expect.poll(() => ordersOf(builder).length).toBe(1)
  await build(builder)
  await expect.poll(() => builder.verdicts()).toMatchObject([{ verdict: "stored" }])
  const worker = await newWorker()
  await rig.submit()
  await expect.poll(() => worker.granted.length).toBe(1)
  const runtime = runtimeOf(worker)
  expect(runtime.image?.layers.map(({ base, blob }) => [base, blob?.digest])).toEqual([
    [true, BASE.digest],
    [false, CODE_DIGEST],
  ])
  // Another builder may have built on the same base: it makes the same blob of it.
  expect(runtime.holders.map(({ peer_id: peer }) => peer)).toEqual([builder.identity.peerId, other.identity.peerId])
  const key = publicKeyOfPeerId(peerId(rig.coordinator.peerId)) ?? new Uint8Array()
  const verdict = verifyContentGrant(runtime.content_grant, key, worker.identity.peerId, Date.now())
  expect(verdict.valid && verdict.grant.blobs.map(({ digest }) => digest)).toEqual(
    expect.arrayContaining([BASE.digest, CODE_DIGEST]),
  )
})

test("an image whose own layer was not uploaded is not built: the last resort must exist", async () => {
  const builder = await newBuilder()
  await expect.poll(() => ordersOf(builder).length).toBe(1)
  await build(builder, { uploads: false })
  await expect.poll(() => ordersOf(builder).length).toBe(2)
  expect(await statusOf()).toMatchObject({ init_state: "published", progress_phase: "running" })
  await build(builder)
  await expect.poll(async () => (await statusOf())["progress_phase"]).toBe("idle")
})

test("PR-013, PR-014, interfaces queue_reason: why no machine can prepare a revision is read over HTTP, and names none", async () => {
  const builder = await newBuilder()
  await expect.poll(() => ordersOf(builder).length).toBe(1)
  await build(builder)
  await expect.poll(() => builder.verdicts()).toMatchObject([{ verdict: "stored" }])
  await builder.die()
  const worker = await newWorker()
  const job = await rig.submit()
  await expect.poll(() => worker.granted.length).toBe(1)
  await unable(worker, BASE.digest)
  const reason = async () => (await rig.job(job))["queue_reason"] as Record<string, unknown> | null
  await expect.poll(async () => (await reason())?.["code"]).toBe("runtime_failed")
  expect(await reason()).toMatchObject({ message: expect.stringContaining(REASON) as string, eligible_slots: 1 })
  expect((await statusOf())["status_message"]).toContain(REASON)
  const details = await rig.as("GET", "/projects/p/status/details")
  expect(details.json["diagnostics"]).toContainEqual(
    expect.objectContaining({ status: "failed", phase: "prepare", message: REASON }),
  )
  // The project is not at fault, and nothing says which machine it was.
  expect(details.json).toMatchObject({ init_state: "published", failed_replicas: 0 })
  for (const secret of [worker.id, worker.identity.peerId, builder.id]) expect(details.text).not.toContain(secret)

  const able = await newWorker()
  await expect.poll(() => able.granted.length).toBe(1)
  await able.say({ type: "replica", revision: runtimeOf(able).revision, state: "ready", message: null, log_tail: null })
  await expect.poll(async () => (await statusOf())["ready_for_jobs"]).toBe(true)
  expect((await statusOf())["status_message"]).not.toContain(REASON)
})

test("a base that nobody can give has the tarball built again, once: not for another blob, not while a node is warm", async () => {
  const builder = await newBuilder()
  await expect.poll(() => ordersOf(builder).length).toBe(1)
  await build(builder)
  await expect.poll(() => builder.verdicts()).toMatchObject([{ verdict: "stored" }])
  const worker = await newWorker()
  const warm = await newWorker()
  await rig.submit({ fan_out: { items: [{ n: 1 }, { n: 2 }] } })
  await expect.poll(() => worker.granted.length + warm.granted.length).toBe(2)
  const { revision } = runtimeOf(worker)
  const sayAndSee = async (message: string, missing: string): Promise<void> => {
    await worker.say({ type: "replica", revision, state: "unable", message, log_tail: null, missing })
    await expect.poll(async () => (await rig.as("GET", "/projects/p/status/details")).text).toContain(message)
    expect(await statusOf()).toMatchObject({ progress_phase: "idle" })
  }
  await warm.claim({ warm: [revision] })
  await expect.poll(async () => (await rig.call("GET", "/admin/nodes")).text).toContain('"warm_revisions":1')
  await sayAndSee("it is warm elsewhere", BASE.digest)
  await warm.claim({ warm: [] })
  await expect.poll(async () => (await rig.call("GET", "/admin/nodes")).text).not.toContain('"warm_revisions":1')
  await sayAndSee("this is no blob of the image", "d".repeat(64))
  expect(ordersOf(builder)).toHaveLength(1)

  await unable(worker, BASE.digest)
  await expect.poll(() => ordersOf(builder).length).toBe(2)
  const other = { ...BASE, digest: "e".repeat(64) }
  await build(builder, { image: imageOf(other) })
  // What was said of the lost image is forgotten: it is asked at once, and its new grant names what there is now.
  await expect.poll(() => worker.granted.length).toBe(2)
  expect(runtimeOf(worker).image?.layers[0]?.blob?.digest).toBe(other.digest)
  const key = publicKeyOfPeerId(peerId(rig.coordinator.peerId)) ?? new Uint8Array()
  const verdict = verifyContentGrant(runtimeOf(worker).content_grant, key, worker.identity.peerId, Date.now())
  expect(verdict.valid && verdict.grant.blobs.map(({ digest }) => digest)).toContain(other.digest)

  await warm.die()
  await unable(worker, other.digest)
  await expect.poll(async () => (await statusOf())["status_message"]).toContain(REASON)
  expect(ordersOf(builder)).toHaveLength(2)
})
