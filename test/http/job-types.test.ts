import { afterAll, beforeAll, expect, test } from "vitest"
import { startFleet, type Client, type Fleet, type Json } from "../support/fleet.ts"

/** Sweeps and benchmarks from the request to their leaderboards, by programs that run, on one node of four cores. */

/** Tells what it was given, and a score that its payload implies. */
const SCORE_PY = `import json, os, sys
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
print("given", json.dumps(payload, sort_keys=True))
if payload.get("fails", "nobody") == payload.get("_sweep_idx", payload.get("_candidate")):
    sys.exit(3)
result = {"saw": payload}
if payload.get("mute", "nobody") != payload.get("_sweep_idx", payload.get("_replica")):
    result["score"] = payload.get("x", 0) * payload.get("y", 1) + payload.get("seed", 0)
json.dump(result, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))
`

let fleet: Fleet
let client: Client
beforeAll(async () => {
  fleet = await startFleet()
  client = await fleet.member()
  await client.project("score", { "score.py": SCORE_PY })
})
afterAll(async () => {
  await fleet[Symbol.asyncDispose]()
})

const job = (fields: Json): Json => ({ project: "score", runner_command: ["python3", "score.py"], ...fields })
const run = async (fields: Json): Promise<Json> => client.ended(await client.submit(job(fields)))
const summaryOf = (of: Json): Json => of["summary"] as Json

const SWEEP = { type: "sweep", parameters: { x: [1, 2, 3], y: [10, 20] }, rank_by: "score" }

test("RP-001, RP-011, SW-001 … SW-006: a sweep runs each combination once and ranks what they left", async () => {
  const id = await client.submit(job({ ...SWEEP, fixed_payload: { seed: 5 } }))
  const ended = await client.ended(id)
  expect(ended).toMatchObject({
    type: "sweep",
    status: "completed",
    payload: { seed: 5 },
    task_counts: { completed: 6 },
  })
  const tasks = await client.tasks(id)
  const combinations = [1, 2, 3].flatMap((x) => [10, 20].map((y) => ({ x, y })))
  const payloads = combinations.map((params, index) => ({
    seed: 5,
    ...params,
    _sweep_idx: index,
    _sweep_params: params,
  }))
  expect(tasks.map(({ payload }) => payload)).toEqual(payloads)
  // What the program itself was given is the same, and it was started once for each.
  expect(tasks.map(({ result }) => (result as Json)["saw"])).toEqual(payloads)
  const printed = String(ended["output"])
  expect(printed.match(/^given /gm)).toHaveLength(6)

  const results = summaryOf(ended)["results"] as Json[]
  expect(results.map(({ params, rank }) => [params, rank])).toEqual([
    [{ x: 3, y: 20 }, 1],
    [{ x: 2, y: 20 }, 2],
    [{ x: 3, y: 10 }, 3],
    [{ x: 1, y: 20 }, 4],
    [{ x: 2, y: 10 }, 5],
    [{ x: 1, y: 10 }, 6],
  ])
  expect(results[0]).toMatchObject({ result: { score: 65 } })
  expect(summaryOf(ended)["best"]).toEqual(results[0])
  const whole = await client.results(id)
  expect(whole["aggregate_result"]).toEqual({ results, best: results[0] })
  expect(whole).toMatchObject({
    type: "sweep",
    completeness: { complete: true, total_items: 6 },
    aggregate_aliases: {},
  })
  expect(whole["summary"]).toMatchObject({ results, logical_items: 6 })
})

test("SW-006, rulings: of a sweep with a failed task the others are ranked, upward where asc is asked", async () => {
  const ended = await run({ ...SWEEP, fixed_payload: { fails: 1 }, rank_order: "asc" })
  expect(ended).toMatchObject({ status: "partial", task_counts: { completed: 5, failed: 1 } })
  const results = summaryOf(ended)["results"] as Json[]
  expect(results.map(({ result }) => (result as Json)["score"])).toEqual([10, 20, 30, 40, 60])
  expect(results.map(({ rank }) => rank)).toEqual([1, 2, 3, 4, 5])
})

test("SW-007, Q-006: a task that leaves out the number makes the sweep partial, and stands last without a rank", async () => {
  const ended = await run({ ...SWEEP, fixed_payload: { mute: 5 } })
  expect(ended).toMatchObject({ status: "partial", task_counts: { completed: 6 } })
  const { quality, results, best, aggregate_warnings: warnings } = summaryOf(ended)
  expect(quality).toMatchObject({ suspect_count: 1, suspect_task_ids: [expect.stringMatching(/_5$/)] })
  expect((results as Json[]).at(-1)).toMatchObject({ params: { x: 3, y: 20 }, rank: null })
  expect(best).toMatchObject({ params: { x: 2, y: 20 }, rank: 1 })
  expect(warnings).toEqual(["task 5 is not ranked: its result has no number score"])
})

const BENCHMARK = {
  type: "benchmark",
  candidates: { steady: { x: 1, y: 4 }, wild: { x: 2, y: 1, seed: 100 }, broken: { x: 9 } },
  replicas: 3,
  rank_by: "score",
}

test("RP-011, BM-003 … BM-007: a benchmark runs every candidate's replicas and compares them", async () => {
  const shared = { fails: "broken", seed: 0 }
  const id = await client.submit(
    job({ ...BENCHMARK, shared_payload: shared, replica_vary: { field: "seed", stride: 10 } }),
  )
  const ended = await client.ended(id)
  expect(ended).toMatchObject({ type: "benchmark", status: "partial", task_counts: { completed: 6, failed: 3 } })
  const tasks = await client.tasks(id)
  const configs = Object.entries(BENCHMARK.candidates)
  expect(tasks.map(({ payload }) => payload)).toEqual(
    configs.flatMap(([name, config]) =>
      [1, 2, 3].map((replica) => {
        const base = ("seed" in config ? config.seed : undefined) ?? 0
        return { ...shared, ...config, seed: base + (replica - 1) * 10, _candidate: name, _replica: replica }
      }),
    ),
  )
  expect(tasks[1]?.["result"]).toMatchObject({ saw: tasks[1]?.["payload"] })
  const leaderboard = [
    { candidate: "wild", mean: 112, std: 10, min: 102, max: 122, count: 3, rank: 1 },
    { candidate: "steady", mean: 14, std: 10, min: 4, max: 24, count: 3, rank: 2 },
    { candidate: "broken", mean: null, std: null, min: null, max: null, count: 0, rank: null },
  ]
  expect(summaryOf(ended)["leaderboard"]).toEqual(leaderboard)
  expect((await client.results(id))["aggregate_result"]).toEqual({ leaderboard })
})

test("BM-008: replicas without the number are suspect and do not count", async () => {
  const ended = await run({ ...BENCHMARK, shared_payload: { mute: 2 } })
  expect(ended).toMatchObject({ status: "partial", summary: { quality: { suspect_count: 3 } } })
  const leaderboard = summaryOf(ended)["leaderboard"] as Json[]
  expect(leaderboard.map(({ candidate, count, rank }) => [candidate, count, rank])).toEqual([
    ["wild", 2, 1],
    ["broken", 2, 2],
    ["steady", 2, 3],
  ])
})

test("B-016: each type's hold is a task's price times its tasks", async () => {
  const estimate = async (fields: Json): Promise<number> => {
    const reply = await client.call("POST", "/api/v1/jobs", job({ timeout_s: 1000, ...fields }))
    expect(reply.status, reply.text).toBe(201)
    return Math.round(Number(reply.get("summary", "billing_estimate", "estimated_hold_usd")) * 1e6)
  }
  const one = await estimate({ type: "structured_runner" })
  expect(await estimate(SWEEP)).toBe(6 * one)
  expect(await estimate(BENCHMARK)).toBe(9 * one)
})

test("J-039, GAP-30: metrics tell counts, times, attempts and cost of a job that has ended", async () => {
  const id = await client.submit(job({ ...SWEEP, fixed_payload: { fails: 0 }, max_retries: 1 }))
  const ended = await client.ended(id)
  const metrics = await client.call("GET", `/api/v1/jobs/${id}/metrics`)
  expect(metrics.status).toBe(200)
  expect(Object.keys(metrics.json).toSorted()).toEqual(
    ["job_id", "tasks", "queue_s", "runtime_s", "attempts", "cpu_seconds", "billed_usd"].toSorted(),
  )
  expect(metrics.json).toMatchObject({
    job_id: id,
    tasks: { total: 6, by_status: { queued: 0, running: 0, completed: 5, failed: 1, cancelled: 0 } },
    // The failed one was tried twice.
    attempts: 7,
  })
  const runtime = metrics.get("runtime_s") as { sum: number; mean: number; max: number }
  expect(runtime.max).toBeGreaterThan(0)
  expect(runtime.mean).toBeLessThanOrEqual(runtime.max)
  expect(runtime.sum).toBeGreaterThanOrEqual(runtime.max)
  expect(metrics.get("queue_s")).toBeGreaterThanOrEqual(0)
  expect(metrics.get("cpu_seconds")).toBeGreaterThan(0)
  const holds = (await client.call("GET", "/api/v1/account/holds")).json["holds"] as Json[]
  const settled = holds.find(({ job_id: of }) => of === ended["id"])
  expect(metrics.get("billed_usd")).toBe(settled?.["settled_amount_usd"])
  expect((await client.call("GET", "/api/v1/jobs/job_x/metrics")).status).toBe(404)
})

test("PS-001: each preset's requirements and reservation are accepted as they are", async () => {
  const rich = await fleet.member(500)
  await rich.project("score", { "score.py": SCORE_PY })
  const presets = (await rich.call("GET", "/api/v1/presets")).json["presets"] as Json[]
  for (const { name, requirements, reservation, timeout_s } of presets) {
    const body = { type: "structured_runner", ...job({ requirements, reservation, timeout_s }) }
    const reply = await rich.call("POST", "/api/v1/jobs", body)
    expect([name, reply.status, reply.json]).toMatchObject([
      name,
      201,
      { requirements, reservation, timeout_s, warnings: [] },
    ])
    await rich.call("PUT", `/api/v1/jobs/${String(reply.get("id"))}/cancel`)
  }
})

test("J-045: how many jobs have a status can be asked without reading them", async () => {
  const before = await Promise.all(["completed", "partial"].map(counted))
  await run({ type: "structured_runner" })
  await run({ ...SWEEP, fixed_payload: { fails: 0 } })
  expect(await Promise.all(["completed", "partial"].map(counted))).toEqual(before.map((count) => count + 1))
})

async function counted(status: string): Promise<number> {
  const reply = await client.call("GET", `/api/v1/jobs?status=${status}&limit=1`)
  expect(Number(reply.get("count"))).toBeLessThanOrEqual(1)
  return Number(reply.get("total"))
}
