import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterEach, beforeEach, expect, test } from "vitest"
import { ProgramEnded, startProgram } from "../support/agent.ts"
import { startTestCoordinator, type TestCoordinator } from "../support/scripted-node.ts"

const CERTIFICATE_TTL_MS = 4_000
let rig: TestCoordinator
let dataDir: string
beforeEach(async () => {
  dataDir = mkdtempSync(join(tmpdir(), "computalot-membership-"))
  rig = await startTestCoordinator({ COMPUTALOT_CERTIFICATE_TTL_S: String(CERTIFICATE_TTL_MS / 1000) })
})
afterEach(async () => {
  await rig[Symbol.asyncDispose]()
  rmSync(dataDir, { recursive: true, force: true })
})

const SMALL = ["--cpus", "1", "--memory-mb", "256", "--storage-gb", "1"]
const flags = (token: string): string[] =>
  ["--coordinator", rig.coordinator.origin, "--token", token, "--data-dir", dataDir].concat(SMALL)

test("architecture §5.1: a certificate is renewed over the control stream before it ends, and kept", async () => {
  const agent = await startProgram(flags(await rig.joinToken()))
  try {
    const seen = new Map<string, number>()
    const look = (): number => {
      const { certificate } = JSON.parse(readFileSync(join(dataDir, "membership.json"), "utf8")) as Record<
        string,
        string
      >
      if (certificate !== undefined && !seen.has(certificate)) seen.set(certificate, Date.now())
      return seen.size
    }
    look()
    await expect.poll(look, { timeout: 30_000, interval: 50 }).toBe(4)
    const at = [...seen.values()]
    const gaps = at.slice(2).map((time, index) => time - (at[index + 1] ?? 0))
    for (const gap of gaps) expect(gap).toBeLessThan(CERTIFICATE_TTL_MS)
    const listed = (await rig.call("GET", "/admin/nodes")).get("nodes") as Record<string, unknown>[]
    expect(listed).toMatchObject([{ id: agent.ready["node_id"], contact: "connected" }])
  } finally {
    await agent.end("SIGTERM")
  }
})

test("rulings, Enrolment: a token that is refused ends the agent with one line and a code that is not 0", async () => {
  const ended: unknown = await startProgram(flags("fln_nobody")).catch((error: unknown) => error)
  expect(ended).toBeInstanceOf(ProgramEnded)
  expect(ended).toMatchObject({
    code: 1,
    log: expect.stringMatching(/^computalot-node: the coordinator refused to enrol this node: [^\n]+\n$/) as string,
  })
  const spent = await rig.joinToken({ max_uses: 1 })
  const first = await startProgram(flags(spent))
  expect(await first.end("SIGTERM")).toBe(0)
  rmSync(dataDir, { recursive: true })
  const second: unknown = await startProgram(flags(spent)).catch((error: unknown) => error)
  expect(second).toMatchObject({ code: 1, log: expect.stringContaining("refused to enrol") as string })
})
