import { afterAll, beforeAll, expect, test } from "vitest"
import type { Client, Fleet, Json } from "../support/fleet.ts"
import { startMarkedFleet, type MarkedFleet } from "../support/marked-fleet.ts"

/** Retries and limited budgets with real programs: a coordinator that is killed, and tasks that are stopped. */

const RUN_PY = `import json, os, sys, time
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
ready = os.path.exists(os.path.join(os.environ["MARKS"], "ready"))
if payload.get("sleep"): time.sleep(payload["sleep"])
if not ready and payload.get("fails", True):
    print("not ready", flush=True)
    sys.exit(3)
folder = os.environ["COMPUTALOT_ARTIFACT_DIR"]
open(os.path.join(folder, "made.txt"), "w").write(str(payload))
json.dump({"score": payload.get("n", 0)}, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))
`

let world: MarkedFleet
let fleet: Fleet
let client: Client
beforeAll(async () => {
  world = await startMarkedFleet({ project: "run", files: { "run.py": RUN_PY } })
  ;({ fleet, client } = world)
})
afterAll(() => world[Symbol.asyncDispose]())

const job = (more: Json): Json => ({ project: "run", runner_command: ["python3", "run.py"], ...more })
const retry = (id: string, body: Json) => client.call("POST", `/api/v1/jobs/${id}/retry`, body)
const holdsOf = async (id: string): Promise<Json[]> =>
  ((await client.call("GET", "/api/v1/account/holds")).json["holds"] as Json[]).filter(({ job_id: of }) => of === id)

test("rulings, Holds: a program is stopped when max_cost_usd is spent, and is billed no more than that", async () => {
  // A minute of the least task costs about 0.00017: this buys a second or so.
  const id = await client.submit(job({ payload: { sleep: 30 }, max_cost_usd: 0.000003 }))
  const ended = await client.ended(id)
  expect(ended).toMatchObject({ status: "failed", max_cost_usd: 0.000003 })
  const seconds = Number(ended["effective_timeout_s"])
  expect(seconds).toBeGreaterThan(0.1)
  expect(seconds).toBeLessThan(5)
  const [task] = await client.tasks(id)
  expect(task).toMatchObject({ failure_kind: "budget_spent", effective_timeout_s: seconds, attempt: 1 })
  expect(task?.["error"]).toContain("budget_spent")
  expect(Number(task?.["runtime_s"])).toBeLessThan(seconds + 10)
  expect(await holdsOf(id)).toMatchObject([{ amount_usd: 0.000003, settled_amount_usd: 0.000003, status: "settled" }])
  await fleet.expectAudit()
})

test("rulings, Retry: failed programs run again in the same job, and what both rounds made is kept", async () => {
  const id = await client.submit(job({ fan_out: { items: [{ n: 0, fails: false }, { n: 1 }, { n: 2 }] } }))
  expect(await client.ended(id)).toMatchObject({ status: "partial", task_counts: { completed: 1, failed: 2 } })
  const before = await client.results(id)
  world.go("ready")
  const reply = await retry(id, { filter: "failed" })
  expect([reply.status, reply.get("status"), reply.get("task_counts", "queued")], reply.text).toEqual([
    200,
    "queued",
    2,
  ])
  expect(await client.ended(id)).toMatchObject({ status: "completed", error: null })
  const results = await client.results(id)
  expect(results["aggregate_result"]).toEqual([{ score: 0 }, { score: 1 }, { score: 2 }])
  expect((await client.tasks(id)).map(({ attempt, max_attempts: most }) => [attempt, most])).toEqual([
    [1, 1],
    [2, 2],
    [2, 2],
  ])
  // A completed task may run again too: artifacts of both runs stay.
  expect((await retry(id, { filter: "indexes", indexes: [0] })).status).toBe(200)
  expect(await client.ended(id)).toMatchObject({ status: "completed" })
  const [first] = (await client.results(id))["results"] as Json[]
  const [old] = before["results"] as Json[]
  const ids = first?.["artifact_ids"] as string[]
  expect(ids).toHaveLength(2)
  expect(ids).toEqual(expect.arrayContaining(old?.["artifact_ids"] as string[]))
  for (const artifact of ids) expect((await client.call("GET", `/api/v1/artifacts/${artifact}`)).status).toBe(200)
  expect((await holdsOf(id)).map(({ status }) => status)).toEqual(["settled", "settled", "settled"])
  await fleet.expectAudit()
})

test("kill -9 in the middle of a large retry: it is there whole, once, and goes on", async () => {
  // None of these can be placed: they end by the cancel, and are queued by the retry.
  const count = 3_000
  const id = await client.submit(
    job({ fan_out: { chunks: count, total: count }, requirements: { memory_mb: 1_000_000 }, timeout_s: 1 }),
  )
  await client.until(id, ({ status }) => status === "queued")
  expect((await client.call("PUT", `/api/v1/jobs/${id}/cancel`, {})).status).toBe(200)
  const indexes = Array.from({ length: count - 1 }, (_, index) => index)
  const body = { filter: "indexes", indexes }
  const key = { "idempotency-key": "large-retry" }
  const asked = client.call("POST", `/api/v1/jobs/${id}/retry`, body, key).catch(() => null)
  const isOpen = async (): Promise<boolean> => (await holdsOf(id)).length === 2
  await expect.poll(isOpen, { interval: 5, timeout: 30_000 }).toBe(true)
  await fleet.endCoordinator("SIGKILL")
  await asked
  await fleet.startCoordinator()
  const again = await client.call("POST", `/api/v1/jobs/${id}/retry`, body, key)
  expect([again.status, again.get("task_counts", "queued")], again.text).toEqual([200, count - 1])
  const queued = async (): Promise<unknown> =>
    (await client.call("GET", `/api/v1/jobs/${id}/tasks?status=queued&limit=1&offset=${count - 2}`)).get("count")
  await expect.poll(queued, { timeout: 30_000 }).toBe(1)
  expect(await client.until(id, () => true)).toMatchObject({
    status: "queued",
    task_counts: { queued: count - 1, cancelled: 1 },
  })
  expect(new Set((await holdsOf(id)).map(({ status }) => status))).toEqual(new Set(["active", "released"]))
  await fleet.expectAudit()
  expect((await client.call("PUT", `/api/v1/jobs/${id}/cancel`, {})).status).toBe(200)
  expect(await client.until(id, ({ status }) => status === "cancelled")).toMatchObject({
    task_counts: { cancelled: count },
  })
  await fleet.expectAudit()
}, 180_000)
