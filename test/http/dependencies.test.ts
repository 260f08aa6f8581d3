import { afterAll, beforeAll, describe, expect, test } from "vitest"
import type { Client, Fleet, Json } from "../support/fleet.ts"
import { startMarkedFleet, type MarkedFleet } from "../support/marked-fleet.ts"

/** Jobs that depend on jobs, from outside: a coordinator and a node as programs, and nothing but requests. */

/** Waits for a mark where it is told to, then ends as it is told to. */
const RUN_PY = `import json, os, sys, time
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
wait = payload.get("wait")
while wait and not os.path.exists(os.path.join(os.environ["MARKS"], wait)):
    time.sleep(0.02)
if payload.get("fail"): sys.exit(3)
json.dump({"ok": True}, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))
`

let world: MarkedFleet
let fleet: Fleet
let client: Client
beforeAll(async () => {
  world = await startMarkedFleet({ project: "run", files: { "run.py": RUN_PY } })
  ;({ fleet, client } = world)
})
afterAll(() => world[Symbol.asyncDispose]())

const submit = (payload: Json, dependsOn: string[] = [], more: Json = {}): Promise<string> =>
  client.submit({
    project: "run",
    runner_command: ["python3", "run.py"],
    payload,
    ...(dependsOn.length > 0 ? { depends_on: dependsOn } : {}),
    ...more,
  })
const post = (body: Json, headers?: Record<string, string>) =>
  client.call("POST", "/api/v1/jobs", { type: "structured_runner", timeout_s: 60, ...body }, headers)
const job = async (id: string): Promise<Json> => (await client.call("GET", `/api/v1/jobs/${id}`)).json as Json
const held = async (): Promise<number> => Number((await client.balance())["held_usd"])
const jobEvents = async (id: string): Promise<unknown[]> => {
  const { events } = (await client.call("GET", `/api/v1/jobs/${id}/events`)).json as { events: Json[] }
  return events.map(({ type }) => type).filter((type) => String(type).startsWith("job."))
}
const time = (job: Json, field: string): number => Date.parse(String(job[field]))

describe("order", () => {
  test("J-011, G-001, G-002: a dependent is queued, says what it waits for, and starts when that has completed", async () => {
    const first = await submit({ wait: "first" })
    const second = await submit({}, [first])
    await client.until(first, ({ status }) => status === "running")
    const waiting = await job(second)
    expect(waiting).toMatchObject({
      status: "queued",
      depends_on: [first],
      started_at: null,
      queue_reason: { code: "waiting_for_dependency", blocked_by: [first], eligible_slots: 4 },
    })
    expect(await client.tasks(second)).toMatchObject([
      { status: "queued", attempt: 0, queue_reason: { code: "waiting_for_dependency", blocked_by: [first] } },
    ])
    const { jobs } = (await client.call("GET", "/api/v1/jobs?status=queued")).json as { jobs: Json[] }
    expect(jobs).toMatchObject([{ id: second, depends_on: [first], queue_reason: { blocked_by: [first] } }])
    world.go("first")
    const [a, b] = [await client.ended(first), await client.ended(second)]
    expect([a["status"], b["status"], b["queue_reason"]]).toEqual(["completed", "completed", null])
    expect(time(b, "started_at")).toBeGreaterThanOrEqual(time(a, "completed_at"))
    expect(await jobEvents(second)).toEqual([
      "job.planning",
      "job.queued",
      "job.queued",
      "job.running",
      "job.completed",
    ])
  })

  test("G-004, G-005: a diamond around a fan-out runs in order, each start after the last end of what it waits for", async () => {
    const top = await submit({})
    const fan = await submit({}, [top], { fan_out: { chunks: 6, total: 6 } })
    const side = await submit({}, [top])
    const bottom = await submit({}, [fan, side, top])
    const [a, b, c, d] = [
      await client.ended(top),
      await client.ended(fan),
      await client.ended(side),
      await client.ended(bottom),
    ]
    expect([a, b, c, d].map((one) => one["status"])).toEqual(["completed", "completed", "completed", "completed"])
    for (const later of [b, c]) expect(time(later, "started_at")).toBeGreaterThanOrEqual(time(a, "completed_at"))
    const ends = (await client.tasks(fan)).map((task) => time(task, "completed_at"))
    expect(time(d, "started_at")).toBeGreaterThanOrEqual(Math.max(...ends, time(c, "completed_at")))
  })
})

describe("a dependency that does not complete", () => {
  test("G-003, C-02: a partial one cancels its dependents and theirs; each says why, and the money is back", async () => {
    const before = await held()
    const first = await submit({ wait: "partial" }, [], { fan_out: { items: [{}, { fail: true }, {}] } })
    const second = await submit({}, [first])
    const third = await submit({}, [second])
    const apart = await submit({})
    expect(await held()).toBeGreaterThan(before)
    world.go("partial")
    expect(await client.ended(first)).toMatchObject({ status: "partial" })
    const cancelled = await client.ended(second)
    expect(cancelled).toMatchObject({
      status: "cancelled",
      error: `dependency ${first} ended partial`,
      recommended_action: expect.stringContaining("best_effort"),
      task_counts: { total: 1, cancelled: 1 },
      summary: { billing_hold: { status: "released" } },
      started_at: null,
    })
    expect(cancelled["recommended_action"]).toContain(first)
    expect(await client.ended(third)).toMatchObject({
      status: "cancelled",
      error: `dependency ${second} ended cancelled`,
      recommended_action: expect.stringContaining(second),
    })
    // L-010
    expect(await client.ended(apart)).toMatchObject({ status: "completed" })
    await expect.poll(held).toBe(before)
    const { results } = (await client.call("GET", "/api/v1/results?status=cancelled")).json as { results: Json[] }
    expect(results.map((row) => row["job_id"])).toEqual([third, second])
  })

  test("G-003: so does a failed one, and a cancelled one", async () => {
    const failing = await submit({ wait: "failing", fail: true }, [], { reliability_mode: "strict_complete" })
    const stopped = await submit({ wait: "never" })
    const [afterFailed, afterCancelled] = [await submit({}, [failing]), await submit({}, [stopped])]
    world.go("failing")
    expect(await client.ended(afterFailed)).toMatchObject({
      status: "cancelled",
      error: `dependency ${failing} ended failed`,
      recommended_action: expect.stringContaining("strict_complete"),
    })
    await client.call("PUT", `/api/v1/jobs/${stopped}/cancel`, { reason: "enough" })
    expect(await client.ended(afterCancelled)).toMatchObject({ error: `dependency ${stopped} ended cancelled` })
  })

  test("GAP-62, GAP-69: one that ended so before: 201, cancelled in the answer, and the same again under its key", async () => {
    const failed = await submit({ fail: true })
    await client.ended(failed)
    const before = await held()
    const body = { project: "run", runner_command: ["python3", "run.py"], depends_on: [failed] }
    const key = { "idempotency-key": "a dependent of a failed one" }
    const [first, again] = [await post(body, key), await post(body, key)]
    expect(first.status, first.text).toBe(201)
    expect(first.json).toMatchObject({
      status: "cancelled",
      error: `dependency ${failed} ended failed`,
      depends_on: [failed],
      summary: { billing_hold: { status: "released" } },
    })
    expect(again.json).toEqual(first.json)
    expect(await held()).toBe(before)
    expect(await client.ended(String(first.get("id")))).toMatchObject({ task_counts: { cancelled: 1 } })
    expect(await jobEvents(String(first.get("id")))).toEqual(["job.planning", "job.cancelled"])
  })
})

describe("refusals", () => {
  test("G-006, GAP-62: unknown and foreign ids, more than 100, and what is no list of ids: 422, and nothing is made", async () => {
    const stranger = await fleet.member()
    await stranger.project("run", { "run.py": RUN_PY })
    const foreign = await stranger.submit({ project: "run", runner_command: ["python3", "run.py"] })
    const own = await submit({})
    const total = async () => (await client.call("GET", "/api/v1/jobs?limit=1")).get("total")
    const before = await total()
    const least = { project: "run", runner_command: ["python3", "run.py"] }
    const unknown = "job_20260312_143000_abc123"
    const wrong: [depends_on: unknown, path: string, told: string][] = [
      [[unknown], "depends_on", unknown],
      [[own, foreign], "depends_on", foreign],
      [Array.from({ length: 101 }, (_, n) => `job_${n}`), "depends_on", "100"],
      ["job_1", "depends_on", "list"],
      [[own, 1], "depends_on[1]", "string"],
      [[""], "depends_on[0]", "256"],
    ]
    for (const [depends_on, path, told] of wrong) {
      const refused = await post({ ...least, depends_on })
      expect(refused.status, refused.text).toBe(422)
      expect(refused.json).toMatchObject({ code: "invalid_request", recommended_action: expect.any(String) })
      expect(refused.get("details")).toEqual([{ path, problem: expect.stringContaining(told) }])
    }
    expect(await total()).toBe(before)
    // Named many times it is named once.
    const taken = await post({ ...least, depends_on: Array.from({ length: 300 }, () => own) })
    expect([taken.status, taken.get("depends_on")]).toEqual([201, [own]])
    expect(taken.get("warnings")).toEqual([])
    expect(await client.ended(String(taken.get("id")))).toMatchObject({ status: "completed" })
  })
})

describe("projects", () => {
  test("P-028: cancel-queued takes planning and queued jobs of its tag, those that wait too, and no running one", async () => {
    const running = await submit({ wait: "p28" }, [], { tags: ["t"] })
    await client.until(running, ({ status }) => status === "running")
    const tagged = await submit({}, [running], { tags: ["t", "u"] })
    const chained = await submit({}, [tagged], { tags: ["t"] })
    const other = await submit({}, [running], { tags: ["u"] })
    const behind = await submit({}, [chained])
    const reply = await client.call("PUT", "/api/v1/projects/run/cancel-queued", { tag: "t", reason: "not this time" })
    expect(reply.json).toMatchObject({ status: "ok", project: "run", tag: "t", queued_before: 2, cancelled_jobs: 2 })
    for (const id of [tagged, chained]) {
      expect(await client.ended(id)).toMatchObject({ status: "cancelled", error: "not this time" })
    }
    expect(await client.ended(behind)).toMatchObject({ error: `dependency ${chained} ended cancelled` })
    expect([(await job(running))["status"], (await job(other))["status"]]).toEqual(["running", "queued"])
    const rest = await client.call("PUT", "/api/v1/projects/run/cancel-queued", {})
    expect(rest.json).toMatchObject({ queued_before: 1, cancelled_jobs: 1 })
    expect(rest.json).not.toHaveProperty("tag")
    expect(await job(other)).toMatchObject({ status: "cancelled", error: "cancelled by its owner" })
    expect((await client.call("PUT", "/api/v1/projects/run/cancel-queued", {})).json).toMatchObject({
      queued_before: 0,
      cancelled_jobs: 0,
    })
    world.go("p28")
    expect(await client.ended(running)).toMatchObject({ status: "completed" })
  })

  test("P-012, GAP-12: a project with a job that waits for another is not deleted; with ended ones it is, and they stay", async () => {
    await client.project("passing", { "run.py": RUN_PY })
    const first = await submit({ wait: "deleting" })
    const next = await submit({}, [first], { project: "passing" })
    const refused = await client.call("DELETE", "/api/v1/projects/passing")
    expect([refused.status, refused.get("details")]).toEqual([409, { active_jobs: 1 }])
    world.go("deleting")
    expect(await client.ended(next)).toMatchObject({ status: "completed" })
    expect((await client.call("DELETE", "/api/v1/projects/passing")).json).toMatchObject({ status: "deleted" })
    expect(await job(next)).toMatchObject({ status: "completed", depends_on: [first] })
    expect(await client.results(next)).toMatchObject({ result_count: 1 })
    // What waits for it needs its project no more than it needs the job's.
    expect(await client.ended(await submit({}, [next]))).toMatchObject({ status: "completed" })
  })
})

describe("crashes", () => {
  test("kill -9 of the coordinator while jobs wait: what ends meanwhile releases and cancels them after the start", async () => {
    const good = await submit({ wait: "crash" })
    const bad = await submit({ wait: "crash", fail: true })
    const released = await Promise.all(Array.from({ length: 5 }, () => submit({}, [good])))
    const cancelled = await submit({}, [good, bad])
    const behind = await submit({}, [cancelled])
    for (const id of [good, bad]) await client.until(id, ({ status }) => status === "running")
    await fleet.endCoordinator("SIGKILL")
    world.go("crash")
    await fleet.startCoordinator()
    for (const id of released) expect(await client.ended(id)).toMatchObject({ status: "completed" })
    expect(await client.ended(cancelled)).toMatchObject({ error: `dependency ${bad} ended failed` })
    expect(await client.ended(behind)).toMatchObject({ error: `dependency ${cancelled} ended cancelled` })
    for (const id of released) expect((await client.tasks(id))[0]).toMatchObject({ attempt: 1 })
    await fleet.expectAudit()
    await expect.poll(held).toBe(0)
  })
})
