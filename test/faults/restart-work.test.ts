import { readdirSync } from "node:fs"
import { request } from "node:http"
import { join } from "node:path"
import { afterAll, beforeAll, expect, test } from "vitest"
import { PROJECT_FILES, type Client, type Fleet, type Json } from "../support/fleet.ts"
import { startMarkedFleet, WORK_PY, type MarkedFleet } from "../support/marked-fleet.ts"
import { storedRows } from "../support/stored-rows.ts"
import { tarballOf } from "../support/tarball.ts"

/** kill -9 of the coordinator while something is half done: after the next start nothing is lost and nothing is stuck. */

let world: MarkedFleet
let fleet: Fleet
let client: Client
beforeAll(async () => {
  world = await startMarkedFleet({
    nodes: [{ flags: ["--cpus=2"] }, { flags: ["--cpus=2"] }],
    coordinatorFlags: ["--claim-lifetime-s=30", "--lost-after-s=1"],
    project: "work",
    files: { "work.py": WORK_PY },
  })
  ;({ fleet, client } = world)
})
afterAll(() => world[Symbol.asyncDispose]())

const submit = (payload: Json, more: Json = {}): Promise<string> =>
  client.submit({ project: "work", runner_command: ["python3", "work.py"], payload, ...more })
const runs = (name: string): number => world.runs(name)
const incoming = (): string[] => readdirSync(join(fleet.folder, "coordinator", "incoming"))

async function killAndStart(): Promise<void> {
  await fleet.endCoordinator("SIGKILL")
  await fleet.startCoordinator()
}

const rowsOf = (sql: string): Json[] => storedRows(join(fleet.folder, "coordinator"), sql)

test("in the middle of an artifact's upload: it is sent again, the task runs once, and nothing half is left", async () => {
  const id = await submit({ name: "upload", size: 32 })
  await expect.poll(incoming, { interval: 2, timeout: 45_000 }).toHaveLength(1)
  await killAndStart()
  expect(await client.ended(id)).toMatchObject({ status: "completed" })
  expect(runs("upload")).toBe(1)
  const [row] = (await client.results(id))["results"] as Json[]
  const [artifact] = (row?.["artifact_ids"] ?? []) as string[]
  const meta = await client.call("GET", `/api/v1/artifacts/${String(artifact)}/meta`)
  expect(Number(meta.get("size"))).toBeGreaterThan(31 * 2 ** 20)
  expect(incoming()).toEqual([])
  expect(rowsOf("SELECT * FROM staged_blobs")).toEqual([])
  await fleet.expectAudit()
})

test("in the middle of a push: the former revision stands, nothing half is left, and the next push is taken", async () => {
  const contentHash = async (): Promise<unknown> =>
    (await client.call("GET", "/api/v1/projects/work")).get("content_hash")
  const before = await contentHash()
  expect(before).toMatch(/^[0-9a-f]{64}$/)
  const broken = new Promise<string>((resolve) => {
    const sent = request(`${fleet.origin}/api/v1/projects/work/push`, {
      method: "POST",
      headers: { authorization: `Bearer ${client.token}`, "content-type": "application/gzip" },
    })
    sent.on("error", (error) => resolve(error.message))
    sent.on("response", (response) => resolve(String(response.statusCode)))
    sent.write(Buffer.from([0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3]))
  })
  await expect.poll(incoming).toHaveLength(1)
  await killAndStart()
  expect(await broken).toMatch(/hang up|ECONNRESET/)
  expect(incoming()).toEqual([])
  expect(await contentHash()).toBe(before)
  const members = Object.entries({ ...PROJECT_FILES, "work.py": WORK_PY }).map(([name, content]) => ({ name, content }))
  const pushed = await client.call("POST", "/api/v1/projects/work/push", await tarballOf(members))
  expect(pushed.status, pushed.text).toBe(200)
  expect(await client.ended(await submit({ name: "pushed" }))).toMatchObject({ status: "completed" })
})

test("while a lost attempt may be granted again: its node comes back after the restart, and it is not run twice", async () => {
  const names = Array.from({ length: 4 }, (_, index) => `claimable-${index}`)
  const id = await submit({ name: names, go: "claimable-go" }, { fan_out: { by: "name" } })
  await expect.poll(() => names.map(runs)).toEqual([1, 1, 1, 1])
  // The agent alone: its attempts go on. The other node is full, so nobody takes them.
  await world.node(0).end("SIGKILL")
  const lost = (): number => Number(rowsOf("SELECT count(*) AS n FROM tasks WHERE state = 'lost'")[0]?.["n"])
  await expect.poll(lost, { timeout: 40_000 }).toBe(2)
  await killAndStart()
  expect(lost()).toBe(2)
  await world.node(0).start()
  world.go("claimable-go")
  expect(await client.ended(id)).toMatchObject({ status: "completed", task_counts: { completed: 4 } })
  expect(names.map(runs)).toEqual([1, 1, 1, 1])
  await fleet.expectAudit()
})

test("at any moment of granting, starting and reporting: each of many tasks ends once, and is charged once", async () => {
  const names = Array.from({ length: 60 }, (_, index) => `storm-${index}`)
  const id = await submit({ name: names }, { fan_out: { by: "name" } })
  for (const done of [5, 20, 40]) {
    await expect.poll(() => names.filter((name) => runs(name) > 0).length, { timeout: 40_000 }).toBeGreaterThan(done)
    await killAndStart()
  }
  expect(await client.ended(id)).toMatchObject({ status: "completed", task_counts: { completed: 60 } })
  expect(names.map(runs)).toEqual(names.map(() => 1))
  const rows = (await client.results(id))["results"] as Json[]
  expect(rows.map(({ result }) => result)).toEqual(names.map((name) => ({ name })))
  expect(rowsOf("SELECT status, count(*) AS holds FROM holds WHERE status = 'active' GROUP BY status")).toEqual([])
  expect(rowsOf("SELECT claim FROM attempts WHERE ended_at IS NULL")).toEqual([])
  await fleet.expectAudit()
})
