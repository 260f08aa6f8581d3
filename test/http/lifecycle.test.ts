import { existsSync, readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { afterAll, beforeAll, expect, test } from "vitest"
import { startFleet, type Client, type Json } from "../support/fleet.ts"
import { startMarkedFleet, type MarkedFleet } from "../support/marked-fleet.ts"

/** The life of jobs from outside (L-*): how they go from state to state, how they stop, and when they are forgotten. */

const RETENTION_MS = 4_000

const RUN_PY = `import json, os, sys, time
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
marks = os.environ["MARKS"]
wait = payload.get("wait")
if wait: open(os.path.join(marks, f"pid-{wait}-{payload.get('n', 0)}"), "w").write(str(os.getpid()))
while wait and not os.path.exists(os.path.join(marks, wait)):
    time.sleep(0.02)
if payload.get("fail"): sys.exit(3)
json.dump({"ok": True, "filler": "x" * payload.get("bytes", 0)}, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))
`

let world: MarkedFleet
let client: Client
let marks: string
beforeAll(async () => {
  world = await startMarkedFleet({ project: "run", files: { "run.py": RUN_PY } })
  ;({ client, marks } = world)
})
afterAll(() => world[Symbol.asyncDispose]())

const submit = (payload: Json, more: Json = {}, by = client): Promise<string> =>
  by.submit({ project: "run", runner_command: ["python3", "run.py"], payload, ...more })

test("L-001: states come in one order, and the last one never changes", async () => {
  const ORDER = ["planning", "queued", "running", "completed"]
  const ids = [
    await submit({ wait: "order" }),
    await submit({}, { fan_out: { chunks: 3, total: 3 } }),
    await submit({ fail: true }),
    await submit({}, { fan_out: { items: [{}, { fail: true }] } }),
    await submit({}, { result_schema: { required_fields: ["absent"] } }),
    await submit({ wait: "never" }, { tags: ["stop"] }),
  ]
  const seen = new Map<string, string[]>(ids.map((id) => [id, []]))
  const look = async (): Promise<void> => {
    const { jobs } = (await client.call("GET", "/api/v1/jobs?limit=500")).json as { jobs: Json[] }
    for (const { id, status } of jobs) {
      const before = seen.get(String(id))
      if (before && before.at(-1) !== status) before.push(String(status))
    }
  }
  await look()
  await client.until(ids[5] ?? "", ({ status }) => status === "running")
  await client.call("PUT", `/api/v1/jobs/${ids[5]}/cancel`, {})
  world.go("order")
  const isOver = (states: string[]): boolean =>
    ["completed", "partial", "failed", "cancelled"].includes(states.at(-1) ?? "")
  await expect
    .poll(
      async () => {
        await look()
        return [...seen.values()].every(isOver)
      },
      { timeout: 50_000, interval: 20 },
    )
    .toBe(true)
  const ends = [...seen.values()].map((states) => states.at(-1))
  expect(ends).toEqual(["completed", "completed", "failed", "partial", "partial", "cancelled"])
  for (const [id, states] of seen) {
    const ranks = states.map((state) => (ORDER.includes(state) ? ORDER.indexOf(state) : ORDER.length - 1))
    expect(ranks, states.join()).toEqual(ranks.toSorted((a, b) => a - b))
    expect(states.filter((state) => !["planning", "queued", "running"].includes(state))).toHaveLength(1)
    // A word that comes too late changes nothing.
    const late = await client.call("PUT", `/api/v1/jobs/${id}/cancel`, { reason: "late" })
    expect(late.status).toBe(states.at(-1) === "cancelled" ? 200 : 409)
    expect((await client.call("GET", `/api/v1/jobs/${id}`)).json).toMatchObject({ status: states.at(-1) })
  }
})

test("L-003, GAP-24, J-018: a strict job fails by one task: the others are stopped, results stay, and retries were held for", async () => {
  const fanOut = {
    items: [{}, { fail: true, wait: "strict", n: 1 }, { wait: "endless", n: 2 }, { wait: "endless", n: 3 }],
  }
  const ids = { strict: "", lenient: "" }
  for (const [name, mode] of [
    ["lenient", "best_effort"],
    ["strict", "strict_complete"],
  ] as const) {
    ids[name] = await submit({}, { fan_out: fanOut, reliability_mode: mode, max_retries: 1 })
    if (name === "lenient") await client.call("PUT", `/api/v1/jobs/${ids.lenient}/cancel`, {})
  }
  const estimateOf = async (id: string): Promise<number> => {
    const { summary } = (await client.call("GET", `/api/v1/jobs/${id}`)).json as { summary: Json }
    const estimate = summary["billing_estimate"] as Json
    return Math.round(Number(estimate["estimated_hold_usd"]) * 1e6)
  }
  expect(await estimateOf(ids.strict)).toBe(2 * (await estimateOf(ids.lenient)))
  // All have begun: what is stopped while it waits has no attempt.
  const begun = (counts: Json): boolean => counts["completed"] === 1 && counts["running"] === 3
  await client.until(ids.strict, ({ task_counts: counts }) => begun(counts as Json))
  world.go("strict")
  const ended = await client.ended(ids.strict)
  expect(ended).toMatchObject({
    status: "failed",
    reliability_mode: "strict_complete",
    task_counts: { completed: 1, failed: 1, cancelled: 2 },
    error: expect.stringContaining("1 of 4 tasks failed"),
  })
  const tasks = await client.tasks(ids.strict)
  expect(tasks.map(({ status, attempt }) => [status, attempt])).toEqual([
    ["completed", 1],
    ["failed", 2],
    ["cancelled", 1],
    ["cancelled", 1],
  ])
  expect(tasks[0]).toMatchObject({ result: { ok: true } })
})

test("L-003: low quality alone makes a strict job partial", async () => {
  const id = await submit({}, { reliability_mode: "strict_complete", result_schema: { required_fields: ["absent"] } })
  expect(await client.ended(id)).toMatchObject({ status: "partial", task_counts: { completed: 1 } })
})

test("L-007: cancelling a job stops all its tasks at once, those that run and those that wait", async () => {
  const id = await submit({ wait: "fan" }, { fan_out: { items: Array.from({ length: 9 }, (_, n) => ({ n })) } })
  await client.until(id, ({ task_counts: counts }) => (counts as Json)["running"] === 4)
  const pids = (): string[] => readdirSync(marks).filter((name) => name.startsWith("pid-fan-"))
  await expect.poll(() => pids().length).toBe(4)
  const reply = await client.call("PUT", `/api/v1/jobs/${id}/cancel`, { reason: "enough" })
  expect(reply.json).toMatchObject({
    status: "cancelled",
    error: "enough",
    task_counts: { total: 9, cancelled: 9, running: 0, queued: 0 },
  })
  expect((await client.tasks(id)).map(({ status }) => status)).toEqual(Array(9).fill("cancelled"))
  await expect.poll(runners).toBe(0)
  expect(pids()).toHaveLength(4)
})

test("L-009: two hundred pollers are answered, all of them", async () => {
  const id = await submit({})
  await client.ended(id)
  for (let round = 0; round < 2; round++) {
    const replies = await Promise.all(Array.from({ length: 200 }, () => client.call("GET", `/api/v1/jobs/${id}`)))
    expect(new Set(replies.map(({ status }) => status))).toEqual(new Set([200]))
  }
})

test(
  "L-008, RS-014: jobs and results are there for their time and gone after it, bytes too; what they cost stays",
  { timeout: 120_000 },
  async () => {
    const flags = [
      `--job-retention-days=${RETENTION_MS / 86_400_000}`,
      "--stuck-sweep-s=0.5",
      "--result-spill-bytes=1000",
      `--artifact-ttl-hours=${RETENTION_MS / 3_600_000}`,
    ]
    await using other = await startFleet({ coordinatorFlags: flags })
    const owner = await other.member()
    await owner.project("run", { "run.py": RUN_PY }, { env: { MARKS: marks } })
    const id = await submit({ bytes: 5_000 }, { tags: ["old"], client_ref: "ref" }, owner)
    const ended = await owner.ended(id)
    expect(ended).toMatchObject({ status: "completed" })
    const expiresAt = Date.parse(String(ended["completed_at"])) + RETENTION_MS
    const paths = ["", "/tasks", "/output", "/events", "/metrics", "/stream"].map((path) => `/api/v1/jobs/${id}${path}`)
    paths.push(`/api/v1/results/${id}`)
    const lists = [
      "/api/v1/jobs",
      "/api/v1/jobs?tag=old",
      "/api/v1/results?client_ref=ref",
      `/api/v1/results?ids=${id}`,
    ]
    const money = async (): Promise<unknown> => [
      (await owner.call("GET", "/api/v1/account/ledger")).json,
      (await owner.call("GET", "/api/v1/account/holds")).json,
    ]
    const before = await money()
    expect(JSON.stringify(before)).toContain(id)
    const statuses = []
    for (const path of paths) statuses.push((await owner.call("GET", path)).status)
    const totals = []
    for (const path of lists) totals.push((await owner.call("GET", path)).get("total"))
    if (Date.now() < expiresAt) {
      expect(statuses).toEqual(paths.map(() => 200))
      expect(totals).toEqual(lists.map(() => 1))
    }
    await new Promise((resolve) => setTimeout(resolve, Math.max(0, expiresAt - Date.now())))
    for (const path of paths) expect((await owner.call("GET", path)).status, path).toBe(404)
    for (const path of lists) expect((await owner.call("GET", path)).get("total"), path).toBe(0)
    expect((await owner.call("PUT", `/api/v1/jobs/${id}/cancel`, {})).status).toBe(404)
    const body = { type: "structured_runner", project: "run", runner_command: ["python3", "run.py"], depends_on: [id] }
    expect((await owner.call("POST", "/api/v1/jobs", body)).status).toBe(422)
    // A stop in between loses no sweep.
    await other.endCoordinator("SIGKILL")
    await other.startCoordinator()
    const blobs = (): number => {
      const folder = join(other.folder, "coordinator", "blobs")
      return readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile()).length
    }
    // The tarball and its listing are the project's.
    await expect.poll(blobs, { timeout: 60_000 }).toBe(2)
    expect(await money()).toEqual(before)
    await other.expectAudit()
  },
)

/** Processes of the tasks, wherever they are. */
function runners(): number {
  return readdirSync(marks)
    .filter((name) => name.startsWith("pid-fan-"))
    .filter((name) => existsSync(`/proc/${readPid(name)}`)).length
}

function readPid(name: string): string {
  return readFileSync(join(marks, name), "utf8")
}
