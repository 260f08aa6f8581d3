import { afterAll, beforeAll, expect, test } from "vitest"
import { send, type PlainReply } from "../support/http-door.ts"
import { tarballOf } from "../support/tarball.ts"
import { startTestCoordinator, startWorker, type TestCoordinator, type Worker } from "../support/scripted-node.ts"

/** Retries and limited budgets through the real server: the coordinator whole, its node scripted. */

let rig: TestCoordinator
let worker: Worker

beforeAll(async () => {
  rig = await startTestCoordinator()
  worker = await startWorker(rig, { cpu: 4 })
})
afterAll(async () => rig[Symbol.asyncDispose]())

const PROJECT = [
  { name: "./Dockerfile", content: "FROM python:3.11-slim\nWORKDIR /workspace\nCOPY . .\n" },
  { name: "./x.py", content: "print(1)\n" },
]

type Row = Record<string, unknown>
const items = (count: number): object => ({ fan_out: { items: Array.from({ length: count }, (_, n) => ({ n })) } })
const get = async (path: string): Promise<PlainReply> => rig.as("GET", path)
const tasks = async (id: string): Promise<Row[]> => (await get(`/jobs/${id}/tasks`)).get("tasks") as Row[]
const statusIs = (id: string, status: string): Promise<void> =>
  expect.poll(async () => (await rig.job(id))["status"], { timeout: 20_000 }).toBe(status)
const retry = (id: string, body: object = { filter: "failed" }): Promise<PlainReply> =>
  rig.as("POST", `/jobs/${id}/retry`, body)

/** The next task, ended so: with this result, or failed. */
async function end(result: unknown, more: object = {}): Promise<number> {
  const claim = await worker.next()
  await finish(claim, result, more)
  return claim
}

async function finish(claim: number, result: unknown, more: object = {}): Promise<void> {
  const failed = { failure_kind: "exit_code" as const, exit_code: 3, result: null, output: "it failed\n" }
  const ok = { result: { text: JSON.stringify(result) }, output: `made ${JSON.stringify(result)}\n` }
  await worker.report(claim, { ...(result === null ? failed : ok), ...more })
  await expect.poll(() => worker.verdicts().some((verdict) => verdict.claim === claim)).toBe(true)
  worker.mine.delete(claim)
}

async function expectAudit(): Promise<void> {
  const audit = await rig.call("GET", "/admin/audit")
  expect(audit.json, audit.text).toMatchObject({ ok: true })
}

test("rulings, Retry: a failed task runs again in the same job; the old result is read until the new attempt ends", async () => {
  const id = await rig.submit({ ...items(1), tags: ["again"] })
  await end(null)
  await statusIs(id, "failed")
  const before = (await tasks(id))[0]
  expect(before).toMatchObject({ status: "failed", attempt: 1, max_attempts: 1 })

  const reply = await retry(id)
  expect(reply.status).toBe(200)
  expect(reply.json).toMatchObject({ id, status: "queued", error: null, completed_at: null, output: "it failed\n" })
  expect(reply.get("task_counts")).toMatchObject({ queued: 1, failed: 0, total: 1 })
  expect(reply.get("summary", "billing_hold")).toMatchObject({ status: "active" })
  const claim = await worker.next()
  await statusIs(id, "running")
  expect((await tasks(id))[0]).toMatchObject({
    task_id: before?.["task_id"],
    status: "running",
    attempt: 2,
    max_attempts: 2,
    result: { failure_kind: "exit_code", exit_code: 3 },
    output: "it failed\n",
    error: "exit_code_3: it failed",
  })
  expect((await get(`/results/${id}`)).json).toMatchObject({
    status: "running",
    total: 1,
    count: 1,
    results: [{ status: "running", result: { exit_code: 3 } }],
  })
  await finish(claim, { score: 2 })
  await statusIs(id, "completed")
  expect((await tasks(id))[0]).toMatchObject({ status: "completed", attempt: 2, result: { score: 2 }, error: null })
  expect((await get(`/results/${id}`)).json).toMatchObject({ status: "completed", aggregate_result: [{ score: 2 }] })

  const events = (await get(`/jobs/${id}/events`)).get("events") as Row[]
  const types = events.map(({ type }) => String(type))
  expect(types.filter((type) => type.startsWith("job."))).toEqual([
    "job.planning",
    "job.queued",
    "job.running",
    "job.failed",
    "job.retried",
    "job.running",
    "job.completed",
  ])
  expect(types[types.indexOf("job.retried") + 1]).toBe("task.retried")
  const holds = ((await get("/account/holds")).get("holds") as Row[]).filter(({ job_id: of }) => of === id)
  expect(holds.map(({ status }) => status)).toEqual(["settled", "settled"])
  const ledger = ((await get("/account/ledger")).get("entries") as Row[]).filter(({ job_id: of }) => of === id)
  expect(ledger).toHaveLength(2)
  const billed = ledger.reduce((sum, { amount_usd: amount }) => sum + Number(amount), 0)
  expect((await get(`/jobs/${id}/metrics`)).json).toMatchObject({ attempts: 2 })
  expect((await get(`/jobs/${id}/metrics`)).get("billed_usd")).toBeCloseTo(billed, 9)
  await expectAudit()
})

test("rulings, Retry: low_quality and indexes choose; refusals are 422, 409 and 404, and change nothing", async () => {
  const id = await rig.submit({ ...items(3), result_schema: { required_fields: ["score"] } })
  expect((await retry(id)).json).toMatchObject({ code: "conflict", details: { status: "queued" } })
  for (const result of [{ score: 1 }, { other: 1 }, { score: 3 }]) await end(result)
  await statusIs(id, "partial")
  for (const [body, path] of [
    [{}, "filter"],
    [{ filter: "all" }, "filter"],
    [{ filter: "failed" }, "filter"],
    [{ filter: "indexes" }, "indexes"],
    [{ filter: "indexes", indexes: [] }, "indexes"],
    [{ filter: "indexes", indexes: [3] }, "indexes[0]"],
    [{ filter: "indexes", indexes: [0, -1] }, "indexes[1]"],
    [{ filter: "indexes", indexes: [0, 1.5] }, "indexes[1]"],
    [{ filter: "indexes", indexes: ["0"] }, "indexes[0]"],
    [{ filter: "indexes", indexes: 0 }, "indexes"],
    [{ filter: "failed", indexes: [0] }, "indexes"],
  ] as [object, string][]) {
    const refused = await retry(id, body)
    expect([refused.status, refused.get("details", 0, "path")], JSON.stringify(body)).toEqual([422, path])
  }
  expect((await retry("job_x")).status).toBe(404)
  expect((await rig.call("POST", `/jobs/${id}/retry`, { filter: "failed" }, "flk_wrong")).status).toBe(401)
  expect((await rig.as("GET", `/jobs/${id}/retry`)).status).toBe(405)
  expect(await rig.job(id)).toMatchObject({ status: "partial" })

  expect((await retry(id, { filter: "low_quality" })).json).toMatchObject({
    status: "queued",
    task_counts: { completed: 2, queued: 1 },
    summary: { quality: { suspect_count: 0, suspect_task_ids: [], mean_quality: 1 } },
  })
  expect((await tasks(id))[1]).toMatchObject({ result: { other: 1 }, attempt: 1 })
  expect((await retry(id)).status).toBe(409)
  await end({ score: 2 })
  await statusIs(id, "completed")
  expect((await retry(id, { filter: "indexes", indexes: [2, 0, 2] })).get("task_counts")).toMatchObject({ queued: 2 })
  await end({ score: 10 })
  await end({ score: 30 })
  await statusIs(id, "completed")
  expect((await tasks(id)).map(({ result, attempt }) => [result, attempt])).toEqual([
    [{ score: 10 }, 2],
    [{ score: 2 }, 2],
    [{ score: 30 }, 2],
  ])
  await expectAudit()
})

test("GAP-69: a retry under one key is made once, and answers the same again, also when the job has gone on", async () => {
  const id = await rig.submit({})
  await end(null)
  await statusIs(id, "failed")
  const keyed = (body: object, key = "retry-1") =>
    send(rig.coordinator.origin, "POST", `/api/v1/jobs/${id}/retry`, {
      token: rig.coordinator.adminToken,
      body,
      headers: { "idempotency-key": key },
    })
  const first = await keyed({ filter: "failed" })
  expect(first.status).toBe(200)
  await end({ done: 1 })
  await statusIs(id, "completed")
  const again = await keyed({ filter: "failed" })
  expect([again.status, again.text, again.headers["idempotent-replayed"]]).toEqual([200, first.text, "true"])
  expect((await keyed({ filter: "low_quality" })).status).toBe(422)
  // A refusal does not use a key up.
  expect((await keyed({ filter: "failed" }, "retry-2")).status).toBe(422)
  expect((await keyed({ filter: "indexes", indexes: [0] }, "retry-3")).status).toBe(200)
  await end({ done: 2 })
  await statusIs(id, "completed")
  await expectAudit()
})

test("E-004: a retry that is not covered answers 402 with a quote, and changes nothing", async () => {
  const user = await rig.call("POST", "/admin/users", { name: "poor" })
  const account = Number(user.get("user", "account_id"))
  const issued = await rig.call("POST", `/admin/users/${String(user.get("user", "id"))}/keys`, {})
  const token = String(issued.get("token"))
  const as = (method: string, path: string, body?: unknown) => rig.call(method, path, body, token)
  await as("POST", "/projects", { name: "q", remote_dir: "/root/q" })
  const pushed = await send(rig.coordinator.origin, "POST", "/api/v1/projects/q/push", {
    token,
    body: await tarballOf(PROJECT),
  })
  expect(pushed.status, pushed.text).toBe(200)
  const body = { type: "structured_runner", project: "q", runner_command: ["python3", "x.py"], timeout_s: 3600 }
  const made = await as("POST", "/jobs", body)
  const id = String(made.get("id"))
  await end(null)
  await expect.poll(async () => (await as("GET", `/jobs/${id}`)).get("status")).toBe("failed")
  const available = Number((await as("GET", "/account/balance")).get("available_usd"))
  await rig.call("POST", `/admin/accounts/${account}/credits`, { amount_usd: -(Math.floor(available * 1e6) / 1e6) })
  const refused = await as("POST", `/jobs/${id}/retry`, { filter: "failed" })
  expect([refused.status, refused.get("code")]).toEqual([402, "insufficient_funds"])
  expect(refused.get("quote", "id")).toEqual(expect.any(String))
  expect((await as("GET", `/jobs/${id}`)).json).toMatchObject({ status: "failed" })
  await rig.call("POST", `/admin/accounts/${account}/credits`, { amount_usd: 1 })
  expect((await as("POST", `/jobs/${id}/retry`, { filter: "failed" })).status).toBe(200)
  await end({ paid: true })
  await expect.poll(async () => (await as("GET", `/jobs/${id}`)).get("status")).toBe("completed")
  await expectAudit()
})

test("rulings, Retry: a stream that has seen done gets what was missed, and done again at the new end", async () => {
  const id = await rig.submit({})
  await end(null)
  await statusIs(id, "failed")
  const first = await stream(id)
  expect(first.text).toContain("event: done")
  const done = /event: done\nid: (\d+)/.exec(first.text)?.[1] ?? ""
  expect(done).not.toBe("")
  expect((await stream(id, done)).status).toBe(204)
  expect((await retry(id)).status).toBe(200)
  const resumed = stream(id, done)
  await end({ x: 1 })
  const more = await resumed
  expect(more.status).toBe(200)
  expect(more.text).not.toContain("event: snapshot")
  expect(more.text).toContain('"type":"job.retried"')
  expect(more.text).toContain('"type":"job.completed"')
  expect(more.text.match(/event: done/g)).toHaveLength(1)
})

test("J-040, rulings Retry: a cancelled job's tasks run again by their indexes; a cancelled retry keeps what there was", async () => {
  const id = await rig.submit(items(2))
  await end({ first: 1 })
  await worker.next()
  await rig.as("PUT", `/jobs/${id}/cancel`, { reason: "enough" })
  await statusIs(id, "cancelled")
  const reply = await retry(id, { filter: "indexes", indexes: [0] })
  expect(reply.status, reply.text).toBe(200)
  expect(reply.get("task_counts")).toMatchObject({ completed: 0, queued: 1, cancelled: 1 })
  await worker.next()
  await rig.as("PUT", `/jobs/${id}/cancel`, {})
  await statusIs(id, "cancelled")
  expect((await tasks(id))[0]).toMatchObject({ status: "cancelled", result: { first: 1 } })
  await expectAudit()
})

test("G-001, rulings Retry: jobs that depend on each other are retried in their order; what is in the way is named in a 409", async () => {
  const first = await rig.submit({})
  const next = await rig.submit({ depends_on: [first] })
  await end(null)
  await statusIs(first, "failed")
  await statusIs(next, "cancelled")
  const all = { filter: "indexes", indexes: [0] }
  const early = await retry(next, all)
  expect([early.status, early.get("code")], early.text).toEqual([409, "conflict"])
  expect(early.get("error")).toContain(first)
  expect((await retry(first)).status).toBe(200)
  const waits = await retry(next, all)
  expect([waits.status, waits.get("status")], waits.text).toEqual([200, "queued"])
  expect((await rig.job(next))["queue_reason"]).toMatchObject({ code: "waiting_for_dependency", blocked_by: [first] })
  await end({ n: 1 })
  await statusIs(first, "completed")
  const claim = await worker.next()
  await statusIs(next, "running")
  const refused = await retry(first, all)
  expect([refused.status, refused.get("details", "dependent")], refused.text).toEqual([409, next])
  await finish(claim, { n: 2 })
  await statusIs(next, "completed")
  expect((await retry(first, all)).status).toBe(200)
  await end({ n: 3 })
  await statusIs(first, "completed")
  await expectAudit()
})

test("V-002: a reservation with jobs to wait for is refused until they have ended, and holds nothing back", async () => {
  const first = await rig.submit({})
  const submit = (parallelism: number): Promise<PlainReply> =>
    rig.as("POST", "/jobs", {
      type: "structured_runner",
      project: "p",
      runner_command: ["python3", "x.py"],
      timeout_s: 60,
      depends_on: [first],
      reservation: { mode: "guaranteed", parallelism },
    })
  const refused = await submit(3)
  expect([refused.status, refused.get("details", "depends_on")], refused.text).toEqual([409, first])
  expect(refused.get("recommended_action")).toEqual(expect.any(String))
  await end({ n: 1 })
  await statusIs(first, "completed")
  const made = await submit(4)
  expect(made.status, made.text).toBe(201)
  await end({ n: 2 })
  await statusIs(String(made.get("id")), "completed")
})

test("rulings, Holds: max_cost_usd bounds the hold; what waits says so; the last task gets the time that is left; the rest fails", async () => {
  // A minute of the least task costs 0.000175.
  const reply = await rig.as("POST", "/jobs", {
    type: "structured_runner",
    project: "p",
    runner_command: ["python3", "x.py"],
    timeout_s: 60,
    max_cost_usd: 0.0002,
    ...items(3),
  })
  expect(reply.json).toMatchObject({
    max_cost_usd: 0.0002,
    summary: { billing_hold: { amount_usd: 0.0002 }, billing_estimate: { estimated_hold_usd: 0.0002 } },
    warnings: [{ field: "max_cost_usd" }],
  })
  const id = String(reply.get("id"))
  const first = await worker.next()
  await statusIs(id, "running")
  const [running, waiting] = await tasks(id)
  expect(running).toMatchObject({ status: "running", effective_timeout_s: 60, queue_reason: null })
  expect(waiting).toMatchObject({ effective_timeout_s: null, queue_reason: { code: "waiting_for_budget" } })
  await finish(first, { n: 0 }, { runtime_ms: 100 })
  // 0.1 s cost next to nothing: the reserve of the second is covered, that of a third beside it is not.
  const second = await worker.next()
  await new Promise((resolve) => setTimeout(resolve, 300))
  await finish(second, { n: 1 }, { runtime_ms: 100 })
  await end({ n: 2 })
  await statusIs(id, "completed")

  const short = await rig.submit({ ...items(2), max_cost_usd: 0.000001 })
  const alone = await worker.next()
  await statusIs(short, "running")
  const shown = await rig.job(short)
  const seconds = Number(shown["effective_timeout_s"])
  expect(seconds).toBeGreaterThan(0)
  expect(seconds).toBeLessThan(1)
  expect((await tasks(short))[0]).toMatchObject({ effective_timeout_s: seconds })
  const grants = worker.heard.flatMap((message) => (message.type === "grant" ? message.specs : []))
  expect(grants.find(({ job_id: of }) => of === short)).toMatchObject({ timeout_ms: 60_000, budget_ms: seconds * 1000 })
  await new Promise((resolve) => setTimeout(resolve, 500))
  await finish(alone, null, { failure_kind: "budget_spent", exit_code: null, runtime_ms: 500 })
  await statusIs(short, "failed")
  expect((await tasks(short)).map(({ failure_kind: kind }) => kind)).toEqual(["budget_spent", "budget_spent"])
  const holds = ((await get("/account/holds")).get("holds") as Row[]).filter(({ job_id: of }) => of === short)
  expect(holds).toMatchObject([{ amount_usd: 0.000001, settled_amount_usd: 0.000001, status: "settled" }])
  await expectAudit()
})

test("a restart between a retry and its run loses nothing: the task runs under the second hold", async () => {
  const id = await rig.submit(items(2))
  await end({ n: 0 })
  await end(null)
  await statusIs(id, "partial")
  // No node takes it before the restart.
  await worker.claim({ open: false })
  expect((await retry(id)).status).toBe(200)
  await rig.restart()
  expect(await rig.job(id)).toMatchObject({ status: "queued", task_counts: { completed: 1, queued: 1 } })
  worker = await startWorker(rig, { cpu: 4 })
  await end({ n: 1 })
  await statusIs(id, "completed")
  expect((await get(`/results/${id}`)).get("aggregate_result")).toEqual([{ n: 0 }, { n: 1 }])
  await expectAudit()
})

/** The whole of a job's stream, until it is done. */
function stream(id: string, lastEventId?: string): Promise<PlainReply> {
  return send(rig.coordinator.origin, "GET", `/api/v1/jobs/${id}/stream`, {
    token: rig.coordinator.adminToken,
    headers: lastEventId === undefined ? {} : { "last-event-id": lastEventId },
  })
}
