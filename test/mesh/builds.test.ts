import { rmSync } from "node:fs"
import { join } from "node:path"
import { afterEach, beforeEach, expect, test } from "vitest"
import { sha256Hex } from "../../protocol/base/digest.ts"
import type { BuildOrder } from "../../protocol/wire/control.ts"
import { startTestCoordinator, startWorker, type ScriptedNode, type TestCoordinator } from "../support/scripted-node.ts"
import { openTestStore } from "../support/store.ts"

/** Builds through a restart of the coordinator: the rows say who builds what, under which number (architecture §4, §6). */

let rig: TestCoordinator
beforeEach(async () => {
  rig = await startTestCoordinator()
})
afterEach(async () => rig[Symbol.asyncDispose]())

const BUILDER = { roles: ["worker" as const, "builder" as const], runtime: "bubblewrap" as const }
const orders = (node: ScriptedNode): BuildOrder[] => node.heard.filter((message) => message.type === "build")

async function startBuilder(): Promise<{ node: ScriptedNode; order: BuildOrder }> {
  const node = await rig.node(["worker", "builder"])
  await node.connect(BUILDER)
  await node.claim()
  await expect.poll(() => orders(node).length).toBe(1)
  const [order] = orders(node)
  if (!order) throw new Error("it was ordered")
  return { node, order }
}

const upload = (node: ScriptedNode, claim: number, bytes: string) =>
  rig.call("PUT", `/nodes/blobs/${sha256Hex(bytes)}?claim=${claim}`, bytes, node.transferToken)

test("a build goes on through a restart: its builder uploads and reports under the same number, and is told no other", async () => {
  const { node, order } = await startBuilder()
  await rig.restart()
  await node.connect(BUILDER)
  await node.claim()
  expect((await upload(node, order.claim, "a layer")).status).toBe(200)
  await node.say({
    type: "built",
    claim: order.claim,
    outcome: { ok: false, kind: "project", message: "the Dockerfile is wrong" },
    log_tail: "",
  })
  await expect.poll(() => node.verdicts()).toMatchObject([{ claim: order.claim, kind: "build", verdict: "stored" }])
  expect(orders(node).map(({ claim }) => claim)).toEqual([order.claim])
})

test("an order that was lost with its stream, or stored and never sent, is told again under its number", async () => {
  const { node, order } = await startBuilder()
  node.breakStream()
  await node.connect(BUILDER)
  await expect.poll(() => orders(node)).toMatchObject([{ claim: order.claim, revision: order.revision }])
  await rig.restart()
  await node.connect(BUILDER)
  await expect.poll(() => orders(node)).toMatchObject([{ claim: order.claim, revision: order.revision }])
})

test("a builder whose agent was started anew meanwhile has lost the build: it is ordered again, under another number", async () => {
  const { node, order } = await startBuilder()
  await rig.restart()
  await node.connect({ ...BUILDER, boot_id: "boot-2" })
  await node.claim()
  await expect.poll(() => orders(node).length).toBe(1)
  expect(orders(node)[0]?.claim).toBeGreaterThan(order.claim)
  expect(orders(node)[0]?.revision).toBe(order.revision)
  expect((await upload(node, order.claim, "a layer")).status).toBe(410)
})

test("a build whose number nobody stored is ordered again", async () => {
  const { node, order } = await startBuilder()
  const between = async (): Promise<void> => {
    await using store = await openTestStore({ dataDir: rig.dataDir })
    await store.write((tx) => tx.run("UPDATE revisions SET build_claim = NULL"))
  }
  await rig.restart({ between })
  await node.connect(BUILDER)
  await node.claim()
  await expect.poll(() => orders(node).length).toBe(1)
  expect(orders(node)[0]?.claim).toBeGreaterThan(order.claim)
})

test("without a revision's tarball nodes that have it ready go on, its build waits, and a push of the same files mends it", async () => {
  rmSync(join(rig.dataDir, "blobs"), { recursive: true })
  await rig.restart()
  const worker = await startWorker(rig)
  const job = await rig.submit({ payload: {} })
  const claim = await worker.next()
  await worker.report(claim)
  await expect.poll(async () => (await rig.job(job))["status"]).toBe("completed")
  expect(worker.streamEnded).toBe(false)

  const builder = await rig.node(["worker", "builder"])
  await builder.connect(BUILDER)
  await builder.claim()
  const storage = await rig.call("GET", "/admin/storage")
  expect(storage.json).toMatchObject({ ok: false, missing_count: 2 })
  expect(orders(builder)).toEqual([])
  expect((await rig.push()).status).toBe(200)
  await expect.poll(() => orders(builder).length).toBe(1)
  expect((await rig.call("GET", "/admin/storage")).json).toMatchObject({ ok: true })
})
