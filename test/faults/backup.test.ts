import { execFile } from "node:child_process"
import { cpSync, readFileSync, renameSync, statSync } from "node:fs"
import { join } from "node:path"
import { DatabaseSync } from "node:sqlite"
import { promisify } from "node:util"
import { afterAll, beforeAll, expect, test } from "vitest"
import { auditMoney } from "../../coordinator/billing/audit.ts"
import type { Client, Fleet, Json } from "../support/fleet.ts"
import { startMarkedFleet, WORK_PY, type MarkedFleet } from "../support/marked-fleet.ts"
import { openTestStore } from "../support/store.ts"
import { storedRows } from "../support/stored-rows.ts"

/** Backups of a deployment at work, and what becomes of its nodes when an older copy of its data goes on. */

let world: MarkedFleet
let fleet: Fleet
let client: Client
const flags = ["--claim-lifetime-s=12", "--lost-after-s=1"]
const dataDir = (): string => join(fleet.folder, "coordinator")
beforeAll(async () => {
  world = await startMarkedFleet({
    nodes: [{ flags: ["--cpus=2"] }],
    coordinatorFlags: flags,
    project: "work",
    files: { "work.py": WORK_PY },
    creditUsd: 100,
  })
  ;({ fleet, client } = world)
})
afterAll(() => world[Symbol.asyncDispose]())

const submit = (payload: Json, more: Json = {}): Promise<string> =>
  client.submit({ project: "work", runner_command: ["python3", "work.py"], payload, ...more })
const runs = (name: string): number => world.runs(name)

/** The program with these flags, to its end. */
async function coordinator(...args: string[]): Promise<{ line: Json; log: string }> {
  const { stdout, stderr } = await promisify(execFile)(process.execPath, ["coordinator/main.ts", ...args])
  return { line: JSON.parse(stdout) as Json, log: stderr }
}

async function failing(...args: string[]): Promise<{ code: number; stderr: string }> {
  return await coordinator(...args).then(
    () => Promise.reject(new Error("it did not fail")),
    (error: unknown) => error as { code: number; stderr: string },
  )
}

function numberNamed(dir: string, name: string): number {
  return Number(storedRows<{ value: unknown }>(dir, "SELECT value FROM numbers WHERE name = ?", name)[0]?.value)
}

async function debitsOf(job: string): Promise<number> {
  const entries = (await client.call("GET", "/api/v1/account/ledger?limit=500")).json["entries"] as Json[]
  return entries.filter(({ job_id: id }) => id === job).length
}

test("a backup taken while jobs are submitted, run and end restores to rows and money that agree", async () => {
  const file = join(fleet.folder, "under-load.tar")
  const jobs: string[] = []
  let loading = true
  const load = (async () => {
    while (loading) {
      const names = Array.from({ length: 20 }, (_, index) => `load-${jobs.length}-${index}`)
      jobs.push(await submit({ name: names }, { fan_out: { by: "name" } }))
    }
  })()
  await expect.poll(() => runs("load-0-0")).toBe(1)
  const { line } = await coordinator("--data-dir", dataDir(), "--backup", file)
  const before = jobs.length
  await expect.poll(() => jobs.length).toBeGreaterThan(before)
  loading = false
  await load
  expect(line).toMatchObject({ event: "backup", file, bytes: statSync(file).size, ms: expect.any(Number) as number })

  const target = join(fleet.folder, "from-load")
  expect((await coordinator("--data-dir", target, "--restore", file)).line).toMatchObject({ event: "restored" })
  const copy = new DatabaseSync(join(target, "computalot.db"))
  expect(copy.prepare("PRAGMA integrity_check").get()).toEqual({ integrity_check: "ok" })
  expect(copy.prepare("PRAGMA foreign_key_check").all()).toEqual([])
  expect(Number(copy.prepare("SELECT count(*) AS jobs FROM jobs").get()?.["jobs"])).toBeGreaterThan(0)
  copy.close()
  await using store = await openTestStore({ dataDir: target })
  const audit = await auditMoney(store)
  expect(audit.checks.filter(({ ok }) => !ok)).toEqual([])
  for (const job of jobs) await client.call("PUT", `/api/v1/jobs/${job}/cancel`)
})

test("both commands refuse in one line what they cannot do", async () => {
  const file = join(fleet.folder, "under-load.tar")
  expect(await failing("--data-dir", dataDir(), "--backup", file)).toMatchObject({
    code: 1,
    stderr: `computalot-coordinator: ${file} exists already: a backup overwrites nothing\n`,
  })
  const refused = await failing("--data-dir", dataDir(), "--restore", file)
  expect(refused.code).toBe(1)
  expect(refused.stderr).toMatch(
    /^computalot-coordinator: the data directory \S+ is in use by another coordinator\b[^\n]*\n$/,
  )
})

test("restored, what ended after the backup runs again and is charged once, and nodes go on", async () => {
  const done = await submit({ name: "done" })
  await client.ended(done)
  const running = await submit({ name: "running", go: "running-go" })
  await expect.poll(() => runs("running")).toBe(1)
  const live = await submit({ name: "live", go: "live-go" })
  await expect.poll(() => runs("live")).toBe(1)
  const file = join(fleet.folder, "before.tar")
  await coordinator("--data-dir", dataDir(), "--backup", file)

  // After the backup one ends and its node forgets it, a node joins, and one is submitted that the copy never hears of.
  world.go("running-go")
  await client.ended(running)
  const late = await fleet.addNode({ flags: ["--cpus=1", "--gpus=1:1000"] })
  const unheard = await submit({ name: "unheard", go: "unheard-go" }, { gpu_required: true })
  await expect.poll(() => runs("unheard")).toBe(1)
  const reached = { epoch: numberNamed(dataDir(), "epoch"), claim: numberNamed(dataDir(), "claim") }
  await fleet.endCoordinator("SIGKILL")
  // It ends while no coordinator runs: its result waits in the outbox.
  world.go("unheard-go")

  renameSync(dataDir(), join(fleet.folder, "lost"))
  const restored = await coordinator("--data-dir", dataDir(), "--restore", file)
  expect(restored.line["missing_blobs"]).toBeGreaterThan(0)
  expect(restored.log).toContain('"a blob is missing"')
  cpSync(join(fleet.folder, "lost", "blobs"), join(dataDir(), "blobs"), { recursive: true })
  await fleet.startCoordinator()

  expect(numberNamed(dataDir(), "epoch")).toBeGreaterThan(reached.epoch)
  world.go("live-go")
  for (const job of [done, running, live]) {
    expect(await client.ended(job)).toMatchObject({ status: "completed" })
    expect(await debitsOf(job)).toBe(1)
  }
  expect([runs("done"), runs("running"), runs("live")]).toEqual([1, 2, 1])
  expect(numberNamed(dataDir(), "claim")).toBeGreaterThan(reached.claim)
  expect((await client.call("GET", `/api/v1/jobs/${unheard}`)).status).toBe(404)
  // The node that joined after the backup is a member still, and was told that its result is for nobody.
  await expect.poll(() => readFileSync(late.logFile, "utf8")).toMatch(/result came too late|claim is spent/)
  const waiting = (): unknown => {
    using outbox = new DatabaseSync(join(late.dataDir, "outbox.sqlite"), { readOnly: true })
    return outbox.prepare("SELECT count(*) AS waiting FROM results").get()
  }
  await expect.poll(waiting).toEqual({ waiting: 0 })
  const rows = (await fleet.admin("GET", "/api/v1/admin/nodes")).json["nodes"] as Json[]
  expect(rows.find(({ id }) => id === late.id)).toMatchObject({ contact: "connected", state: "active" })
  await fleet.expectAudit()
  await client.ended(await submit({ name: "after" }, { gpu_required: true }))
})

test("an older copy that meets a node of the later one ends for good; the node finds the later one again", async () => {
  const copy = join(fleet.folder, "older")
  await fleet.endCoordinator("SIGTERM")
  cpSync(dataDir(), copy, { recursive: true })
  // As if the later one had been started where the clock is an hour ahead.
  const ahead = numberNamed(dataDir(), "epoch") + 3_600
  const store = new DatabaseSync(join(dataDir(), "computalot.db"))
  store.prepare("UPDATE numbers SET value = ? WHERE name = 'epoch'").run(ahead)
  store.close()
  await fleet.startCoordinator()
  const job = await submit({ name: "through", go: "through-go" })
  await expect.poll(() => runs("through")).toBe(1)
  await fleet.endCoordinator("SIGKILL")

  renameSync(dataDir(), join(fleet.folder, "later"))
  renameSync(copy, dataDir())
  await fleet.startCoordinator()
  expect(await fleet.coordinator.ended).toBe(78)
  const lines = (): string[] =>
    readFileSync(join(fleet.folder, "coordinator.log"), "utf8")
      .split("\n")
      .filter((line) => line.startsWith("computalot-coordinator:"))
  expect(lines()).toEqual([expect.stringMatching(/older copy .* \(epoch \d+\): .* --take-over/)])
  await expect(fleet.startCoordinator()).rejects.toThrow(/ended with 78: computalot-coordinator: this is an older copy/)

  renameSync(dataDir(), copy)
  renameSync(join(fleet.folder, "later"), dataDir())
  await fleet.startCoordinator()
  world.go("through-go")
  expect(await client.ended(job)).toMatchObject({ status: "completed" })
  expect(runs("through")).toBe(1)
  await fleet.expectAudit()

  // Whoever has lost the later one for good goes on from the older.
  await fleet.endCoordinator("SIGTERM")
  renameSync(dataDir(), join(fleet.folder, "later"))
  renameSync(copy, dataDir())
  flags.push("--take-over")
  await fleet.startCoordinator()
  flags.pop()
  expect(numberNamed(dataDir(), "epoch")).toBeGreaterThan(ahead)
  expect((await client.call("GET", `/api/v1/jobs/${job}`)).status).toBe(404)
  expect(await client.ended(await submit({ name: "taken-over" }))).toMatchObject({ status: "completed" })
  await fleet.expectAudit()
})
