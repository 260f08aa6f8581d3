import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterEach, beforeEach, expect, test } from "vitest"
import { startProgram, type AgentProgram } from "../support/agent.ts"
import { startTestCoordinator, startWorker, type ScriptedNode, type TestCoordinator } from "../support/scripted-node.ts"
import { tarballOf } from "../support/tarball.ts"

let rig: TestCoordinator
beforeEach(async () => {
  rig = await startTestCoordinator()
})
afterEach(async () => rig[Symbol.asyncDispose]())

const prepared = (node: ScriptedNode): string[] =>
  node.heard.flatMap((message) => (message.type === "prepare" ? [message.runtime.revision] : []))

/** A member whose standing claim has no room: what waits is not granted to it. */
async function fullNode(): Promise<ScriptedNode> {
  const node = await rig.node()
  await node.connect()
  await node.claim({ open: false })
  return node
}

/** One task runs and one waits; its revision. */
async function oneWaits(): Promise<string> {
  const busy = await startWorker(rig, { cpu: 1 })
  await rig.submit({ fan_out: { items: [{ n: 0 }, { n: 1 }] }, requirements: { cpu: 1 } })
  await busy.next()
  const grant = busy.heard.find((message) => message.type === "grant")
  return grant?.type === "grant" ? (grant.specs[0]?.runtime.revision ?? "") : ""
}

test("a node that asks for a revision that tasks wait for is told to prepare it, once", async () => {
  const revision = await oneWaits()
  const node = await fullNode()
  await node.say({ type: "want", revisions: ["rev_unknown", revision] })
  await expect.poll(() => prepared(node)).toEqual([revision])
  await new Promise((resolve) => setTimeout(resolve, 1_200))
  await node.say({ type: "want", revisions: [revision] })
  await node.heartbeat()
  await expect.poll(() => node.heard.some(({ type }) => type === "heartbeat_reply")).toBe(true)
  expect(prepared(node)).toEqual([revision])
})

test("no more nodes are told to prepare than tasks wait", async () => {
  const revision = await oneWaits()
  const first = await fullNode()
  await first.say({ type: "want", revisions: [revision] })
  await expect.poll(() => prepared(first)).toEqual([revision])
  const second = await fullNode()
  await second.say({ type: "want", revisions: [revision] })
  await second.heartbeat()
  await expect.poll(() => second.heard.some(({ type }) => type === "heartbeat_reply")).toBe(true)
  expect(prepared(second)).toEqual([])
  await first.die()
  await expect
    .poll(
      async () => {
        await second.say({ type: "want", revisions: [revision] })
        return prepared(second)
      },
      { timeout: 10_000, interval: 500 },
    )
    .toEqual([revision])
})

test("a node that says it too often is not listened to, and nothing that waits for nothing is prepared", async () => {
  const revision = await oneWaits()
  const node = await fullNode()
  await node.say({ type: "want", revisions: ["rev_unknown"] })
  await node.say({ type: "want", revisions: [revision] })
  await node.heartbeat()
  await expect.poll(() => node.heard.some(({ type }) => type === "heartbeat_reply")).toBe(true)
  expect(prepared(node)).toEqual([])
})

test("a node that hears of demand it could serve is warm before any task of it is granted", async () => {
  const home = mkdtempSync(join(tmpdir(), "computalot-want-"))
  let agent: AgentProgram | null = null
  try {
    const flags = ["--coordinator", rig.coordinator.origin, "--token", await rig.joinToken(), "--data-dir", home]
    agent = await startProgram([...flags, "--cpus", "2", "--memory-mb", "1024", "--storage-gb", "4", "--drain", "now"])
    const whole = { requirements: { cpu: 2, memory_mb: 256, storage_gb: 1 } }
    const busy = await rig.submit({ runner_command: ["python3", "-c", "import time; time.sleep(120)"], ...whole })
    await expect.poll(async () => (await rig.job(busy))["status"], { timeout: 20_000 }).toBe("running")
    const files = [
      { name: "./Dockerfile", content: "FROM python:3.11-slim\nWORKDIR /workspace\nCOPY . .\n" },
      { name: "./computalot.project.json", content: JSON.stringify(MANIFEST) },
      { name: "./x.py", content: "print(2)\n" },
    ]
    await rig.as("POST", "/projects", { name: "q", remote_dir: "/root/q" })
    expect((await rig.as("POST", "/projects/q/push", await tarballOf(files))).status).toBe(200)
    const waiting = await rig.submit({ project: "q", ...whole })
    await expect
      .poll(async () => JSON.stringify((await rig.as("GET", "/projects/q/status")).json), { timeout: 20_000 })
      .toContain('"ready_replicas":1')
    expect((await rig.job(waiting))["status"]).toBe("queued")
  } finally {
    await agent?.end("SIGTERM")
    rmSync(home, { recursive: true, force: true })
  }
})

const MANIFEST = {
  version: 1,
  runtime: { kind: "oci", sandbox: "gvisor", workdir: "/workspace" },
  entrypoint: { command: ["python3", "x.py"] },
}
