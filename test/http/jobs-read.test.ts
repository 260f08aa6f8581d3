import { afterEach, beforeEach, expect, test } from "vitest"
import type { AccountId } from "../../protocol/domain/ids.ts"
import { fundedAccount } from "../support/accounts.ts"
import { send, type PlainReply } from "../support/http-door.ts"
import { TEST_TOKENS } from "../support/identities.ts"
import { failedItem, LEAST_JOB, type JobRig } from "../support/job-rig.ts"
import { items, startJobsDoor, type JobsDoor } from "../support/jobs-door.ts"

let jobs: JobsDoor
let rig: JobRig
let alice: AccountId
let bob: AccountId

beforeEach(async () => {
  jobs = await startJobsDoor({ resultSpillBytes: 200 })
  ;({ rig, alice, bob } = jobs)
})
afterEach(() => jobs[Symbol.asyncDispose]())

type Row = Record<string, unknown>
const get = (path: string, token?: string): Promise<PlainReply> => jobs.get(path, token)
const rowsOf = (reply: PlainReply, name: string): Row[] => reply.get(name) as Row[]

/** A job with a completed, a failed, a running and a waiting task. */
async function mixedJob() {
  const job = await rig.queued(alice, { ...items(4), tags: ["t1"], client_ref: "ref", meta: { a: 1 } })
  const claims = await rig.grant(job, 3)
  const [done, failed, running] = claims
  if (done === undefined || failed === undefined || running === undefined) throw new Error("three are granted")
  rig.pass(2_000)
  await rig.start(claims)
  rig.pass(2_000)
  await rig.report(done, { result: { text: '{"ok":\n 1.0}' }, output: "done\n" })
  await rig.report(failed, { ...failedItem("exit_code"), output: "oops\n", error_tail: "Traceback" })
  rig.say(running, { progress: { percent: 50 }, tail: "working\n", runningMs: 1_500 })
  return { job, running }
}

test("J-001, J-025, B-019: a submission answers with the job, its hold and what it did not understand", async () => {
  const body = { ...LEAST_JOB, payload: { x: [1, "ü"] }, prioritty: "high", client_ref: "mine" }
  const reply = await send(jobs.origin, "POST", "/api/v1/jobs", { token: TEST_TOKENS.alice, body })
  expect(reply.status).toBe(201)
  expect(reply.get("id")).toMatch(/^job_\d{8}_\d{6}_[a-z0-9]+$/)
  expect(reply.json).toMatchObject({
    status: "queued",
    payload: { x: [1, "ü"] },
    request: body,
    reservation: { mode: "best_effort" },
    checkpointing: null,
    queue_reason: null,
    summary: {
      billing_estimate: { resource_class: "cpu_small" },
      billing_admission: { admitted: true },
      billing_hold: { status: "active" },
    },
    warnings: [{ field: "prioritty", did_you_mean: "priority" }],
  })
  const shown = await get(`/jobs/${String(reply.get("id"))}`)
  expect(shown.get("summary", "billing_hold")).toEqual(reply.get("summary", "billing_hold"))
  expect(shown.get("warnings")).toBeUndefined()
})

test("GAP-69: the same key and body give the first answer again, and one job", async () => {
  const sent = { token: TEST_TOKENS.alice, body: LEAST_JOB, headers: { "idempotency-key": "k" } }
  const first = await send(jobs.origin, "POST", "/api/v1/jobs", sent)
  const again = await send(jobs.origin, "POST", "/api/v1/jobs", sent)
  expect([again.status, again.text]).toEqual([201, first.text])
  expect((await get("/jobs")).get("total")).toBe(1)
})

test("E-004: an account that is short is told by a quote, and nothing is created", async () => {
  await fundedAccount(rig.store, 1n)
  const carol = TEST_TOKENS.carol
  await rig.project(3 as AccountId)
  const reply = await send(jobs.origin, "POST", "/api/v1/jobs", { token: carol, body: LEAST_JOB })
  expect(reply.status).toBe(402)
  expect(reply.get("quote", "id")).toEqual(expect.any(String))
  expect((await get("/jobs", carol)).get("total")).toBe(0)
})

test("A-020, J-041, GAP-04: viewers do not submit, ids of others are not found, administrators see all", async () => {
  const viewer = { token: TEST_TOKENS.viewer, body: LEAST_JOB }
  expect((await send(jobs.origin, "POST", "/api/v1/jobs", viewer)).status).toBe(403)
  const job = await rig.queued(alice, {})
  const paths = ["", "/output", "/tasks", "/events", "/metrics", "/stream"].map((path) => `/jobs/${job.id}${path}`)
  for (const path of [...paths, `/results/${job.id}`]) {
    expect((await get(path, TEST_TOKENS.bob)).status).toBe(404)
    expect((await get(path.replace(job.id, "job_x"))).status).toBe(404)
    if (path.endsWith("/stream")) continue
    expect((await get(path, TEST_TOKENS.bootstrap)).status).toBe(200)
    expect((await get(path, TEST_TOKENS.viewer)).status).toBe(200)
  }
  const cancel = { token: TEST_TOKENS.bob, body: {} }
  expect((await send(jobs.origin, "PUT", `/api/v1/jobs/${job.id}/cancel`, cancel)).status).toBe(404)
  expect((await get("/jobs", TEST_TOKENS.bob)).get("total")).toBe(0)
  expect((await get("/jobs", TEST_TOKENS.bootstrap)).get("total")).toBe(1)
  expect((await get(`/jobs?account_id=${bob}`, TEST_TOKENS.bootstrap)).get("total")).toBe(0)
})

test("J-027, J-028, J-045: lists page newest first, filter, count all, and leave the large fields out", async () => {
  for (let n = 0; n < 5; n++) {
    await rig.queued(alice, { tags: n % 2 === 0 ? ["even", "all"] : ["all"], client_ref: `r${n}` })
    rig.pass(1_000)
  }
  const page = await get("/jobs?limit=2&offset=1")
  expect(page.json).toMatchObject({ total: 5, count: 2, limit: 2, offset: 1 })
  expect(rowsOf(page, "jobs").map(({ client_ref }) => client_ref)).toEqual(["r3", "r2"])
  for (const absent of ["request", "output", "summary", "error"]) expect(page.get("jobs", 0, absent)).toBeUndefined()
  expect(page.get("jobs", 0)).toMatchObject({ has_error: false, has_output: false, error_snippet: null })
  expect((await get("/jobs?tag=even&limit=1")).json).toMatchObject({ total: 3, count: 1 })
  expect((await get("/jobs?client_ref=r2")).get("total")).toBe(1)
  expect((await get("/jobs?status=queued&type=structured_runner&project=p")).get("total")).toBe(5)
  expect((await get("/jobs?status=completed")).get("total")).toBe(0)
  expect((await get("/jobs?project=other")).get("total")).toBe(0)
  for (const wrong of ["limit=x", "limit=0", "offset=-1", "status=done", "type=x"]) {
    expect((await get(`/jobs?${wrong}`)).status, wrong).toBe(422)
  }
  expect((await get("/jobs?unknown=1")).status).toBe(200)
})

test("J-030, RP-008, rulings Progress: a running job shows counts, progress and its live words", async () => {
  const { job } = await mixedJob()
  rig.member.lastHeardMs = rig.clock.monotonicMs()
  const shown = await get(`/jobs/${job.id}`)
  expect(shown.json).toMatchObject({
    status: "running",
    task_counts: { total: 4, queued: 1, running: 1, completed: 1, failed: 1, cancelled: 0 },
    progress: 37.5,
    queue_reason: null,
    meta: { a: 1 },
    feedback_summary: { latest_progress: { percent: 50 }, live_feedback: { output_tail: "working\n" } },
    summary: { quality: { mean_quality: 1, suspect_count: 0, suspect_task_ids: [] } },
  })
  expect(shown.get("output")).toBe("done\noops\nworking\n")
})

test("J-034, J-036, C-21, GAP-27: task rows, by index, with status, diagnostics and the failure record", async () => {
  const { job } = await mixedJob()
  const reply = await get(`/jobs/${job.id}/tasks`)
  expect(reply.json).toMatchObject({ count: 4, total: 4 })
  const [done, failed, running, waiting] = rowsOf(reply, "tasks")
  expect(done).toMatchObject({
    index: 0,
    status: "completed",
    payload: { n: 0 },
    result: { ok: 1 },
    result_present: true,
    result_quality: 1,
    attempt: 1,
    max_attempts: 1,
    error: null,
    health_status: "terminal",
    runtime_s: 1,
    queue_reason: null,
  })
  expect(reply.text).toContain('{"ok":\n 1.0}')
  expect(failed).toMatchObject({
    status: "failed",
    failure_kind: "exit_code",
    error: "exit_code_3: Traceback",
    result_present: false,
    result_quality: null,
    result_warnings: [],
    result: {
      failure_kind: "exit_code",
      exit_code: 3,
      command: ["python3", "job.py"],
      cwd: "/workspace",
      combined_output: "oops\n",
      partial_result: null,
    },
  })
  expect(running).toMatchObject({
    status: "running",
    latest_progress: { percent: 50 },
    live_feedback: { output_tail: "working\n" },
    output: "working\n",
    runtime_s: 1.5,
    health_status: "unknown",
    queue_reason: { code: "node_contact_lost" },
  })
  expect(waiting).toMatchObject({
    status: "queued",
    attempt: 0,
    result: null,
    started_at: null,
    health_status: null,
    queue_reason: { code: "capacity_busy" },
  })
  rig.member.lastHeardMs = rig.clock.monotonicMs()
  expect((await get(`/jobs/${job.id}/tasks?status=running`)).get("tasks", 0)).toMatchObject({
    health_status: "healthy",
    queue_reason: null,
  })
  expect((await get(`/jobs/${job.id}/tasks?limit=2&offset=1`)).json).toMatchObject({ count: 2, total: 4 })
  expect((await get(`/jobs/${job.id}/tasks?status=failed`)).json).toMatchObject({ count: 1, total: 1 })
  expect((await get(`/jobs/${job.id}/tasks?status=lost`)).status).toBe(422)
})

test("J-032, J-037, L-011: a retry shows the last attempt's words until it prints its own", async () => {
  const job = await rig.queued(alice, { max_retries: 2 })
  const [first] = await rig.grant(job, 1)
  if (first === undefined) throw new Error("granted")
  await rig.start([first])
  await rig.report(first, { ...failedItem("exit_code"), output: "A\n" })
  const output = async () => (await get(`/jobs/${job.id}/output`)).json
  expect(await output()).toEqual({ output: "A\n", error: "exit_code_3: A" })
  const [second] = await rig.grant(job, 1)
  if (second === undefined) throw new Error("granted again")
  expect((await get(`/jobs/${job.id}/tasks`)).get("tasks", 0)).toMatchObject({
    status: "queued",
    attempt: 1,
    output: "A\n",
  })
  await rig.start([second])
  expect(await output()).toEqual({ output: "A\n", error: "exit_code_3: A" })
  expect((await get(`/jobs/${job.id}/tasks`)).get("tasks", 0)).toMatchObject({
    status: "running",
    attempt: 2,
    max_attempts: 3,
    output: "A\n",
    error: "exit_code_3: A",
    result: null,
  })
  rig.say(second, { tail: "B\n" })
  expect(await output()).toEqual({ output: "B\n", error: null })
})

test("J-038, GAP-29: events oldest first, and on from any of them", async () => {
  const job = await rig.queued(alice, {})
  await rig.runWhole(job, () => 1)
  const all = rowsOf(await get(`/jobs/${job.id}/events`), "events")
  expect(all.map(({ type }) => type)).toEqual([
    "job.planning",
    "job.queued",
    "job.running",
    "task.started",
    "task.completed",
    "job.completed",
  ])
  expect((await get(`/jobs/${job.id}/events?limit=1`)).json).toMatchObject({ count: 1 })
  const after = await get(`/jobs/${job.id}/events?after=${String(all[3]?.["id"])}`)
  expect(rowsOf(after, "events").map(({ type }) => type)).toEqual(["task.completed", "job.completed"])
  expect((await get(`/jobs/${job.id}/events?limit=5000`)).status).toBe(200)
  expect((await get(`/jobs/${job.id}/events?limit=0`)).status).toBe(422)
})

test("J-039, GAP-30: metrics add up", async () => {
  const { job } = await mixedJob()
  const reply = await get(`/jobs/${job.id}/metrics`)
  expect(reply.json).toMatchObject({
    job_id: job.id,
    tasks: { total: 4, by_status: { queued: 1, running: 1, completed: 1, failed: 1, cancelled: 0 } },
    runtime_s: { sum: 2, mean: 1, max: 1 },
    attempts: 3,
    cpu_seconds: 1,
  })
  expect(reply.get("billed_usd")).toBeGreaterThan(0)
})

test("RS-001, RS-007, RS-008: results while the job runs hold what has ended, and links that answer", async () => {
  const { job } = await mixedJob()
  const reply = await get(`/results/${job.id}`)
  expect(reply.json).toMatchObject({
    job_id: job.id,
    status: "running",
    client_ref: "ref",
    tags: ["t1"],
    count: 2,
    total: 2,
    result_count: 1,
    output_count: 2,
    aggregate_result: [{ ok: 1 }, null],
    completeness: { complete: false, completed_tasks: 1, failed_tasks: 1, pending_tasks: 2 },
    result_persisted: true,
    output_persisted: true,
  })
  for (const key of [
    "aggregate_result",
    "aggregate_aliases",
    "completeness",
    "task_outcome_counts",
    "result_persisted",
  ]) {
    expect(reply.get("summary", key), key).toBeDefined()
  }
  expect(reply.get("results", 0)).not.toHaveProperty("live_feedback")
  const links = reply.get("links") as Record<string, string>
  for (const [name, link] of Object.entries(links)) {
    if (name === "stream") continue
    expect((await send(jobs.origin, "GET", link, { token: TEST_TOKENS.alice })).status, name).toBe(200)
  }
})

test("SR-013, RS-004: after the end the stored aggregate stands in job and results", async () => {
  const job = await rig.queued(alice, items(3))
  await rig.runWhole(job, (n) => ({ n }))
  const shown = await get(`/jobs/${job.id}`)
  expect(shown.json).toMatchObject({ status: "completed", progress: 100, error: null })
  expect(shown.get("summary", "results")).toEqual([{ n: 0 }, { n: 1 }, { n: 2 }])
  expect(shown.get("summary", "billing_hold", "status")).toBe("settled")
  const results = await get(`/results/${job.id}?limit=1&offset=1`)
  expect(results.json).toMatchObject({ count: 1, total: 3, result_count: 3, completeness: { complete: true } })
  expect(results.get("results", 0, "index")).toBe(1)
})

test("GAP-55: a result above the limit is an artifact, and merges with its content", async () => {
  const job = await rig.queued(alice, {})
  const large = { text: "x".repeat(300) }
  await rig.runWhole(job, () => large)
  const row = (await get(`/jobs/${job.id}/tasks`)).get("tasks", 0) as Row
  const id = row["result_artifact_id"]
  expect(id).toMatch(/^art_/)
  expect(row).toMatchObject({
    result: { result_spilled: true, result_artifact_id: id, result_filename: "result.json" },
    artifact_ids: [id],
    result_present: true,
  })
  expect((await get(`/results/${job.id}`)).json).toMatchObject({ aggregate_result: [large], artifact_ids: [id] })
})

test("J-034: a task that was cancelled while it waited for another try shows the run it had, not the wait", async () => {
  const job = await rig.queued(alice, { max_retries: 1 })
  const [claim] = await rig.grant(job, 1)
  if (!claim) throw new Error("it is granted")
  await rig.start([claim])
  rig.pass(5_000)
  await rig.report(claim, { ...failedItem("exit_code"), runtime_ms: 1_000 })
  rig.pass(600_000)
  await rig.cancel(job)
  const row = (await get(`/jobs/${job.id}/tasks`)).get("tasks", 0) as Row
  expect(row).toMatchObject({ status: "cancelled", attempt: 1, runtime_s: 1 })
})

test("RS-009, RS-010, RS-012, RS-013: the list of what has ended, filtered, grouped, with tasks when asked", async () => {
  const running = await rig.queued(alice, {})
  const done = await rig.queued(alice, { client_ref: "a", tags: ["x", "y"] })
  await rig.runWhole(done, () => ({ v: 1 }))
  const cancelled = await rig.queued(alice, { client_ref: "b" })
  await rig.cancel(cancelled)
  const reply = await get("/results")
  expect(rowsOf(reply, "results").map(({ job_id }) => job_id)).toEqual([cancelled.id, done.id])
  expect(reply.json).toMatchObject({ count: 2, total: 2, limit: 20, offset: 0, applied_filters: {} })
  expect(reply.get("groups")).toBeUndefined()
  expect(reply.get("results", 0, "tasks")).toBeUndefined()
  expect(running.status).toBe("queued")
  const found = await get("/results?client_ref=a&include_tasks=true&group_by=tag")
  expect(found.json).toMatchObject({ total: 1, applied_filters: { client_ref: "a" }, group_by: "tag" })
  expect(found.get("results", 0, "tasks", 0)).toMatchObject({ status: "completed", result: { v: 1 } })
  expect(found.get("groups")).toEqual([
    { key: "x", count: 1, statuses: { completed: 1 } },
    { key: "y", count: 1, statuses: { completed: 1 } },
  ])
  expect((await get(`/results?ids=${done.id},${cancelled.id}&status=cancelled`)).get("total")).toBe(1)
  expect((await get(`/results?job_id=${done.id}`)).get("total")).toBe(1)
  expect((await get("/results?recipe_cache_hit=true")).get("total")).toBe(0)
  expect((await get("/results?limit=500")).get("limit")).toBe(100)
  for (const wrong of ["limit=x", "limit=0", "limit=1.5", "offset=-1", "group_by=x", "status=running"]) {
    expect((await get(`/results?${wrong}`)).status, wrong).toBe(422)
  }
})

test("GAP-31, C-28: cancel answers with the job, again with the same, and keeps finished results", async () => {
  const { job } = await mixedJob()
  const cancel = () =>
    send(jobs.origin, "PUT", `/api/v1/jobs/${job.id}/cancel`, {
      token: TEST_TOKENS.alice,
      body: { reason: "no longer needed" },
    })
  const first = await cancel()
  expect(first.json).toMatchObject({ status: "cancelled", error: "no longer needed" })
  expect(first.get("task_counts")).toMatchObject({ completed: 1, failed: 1, cancelled: 2, running: 0 })
  expect((await cancel()).json).toEqual(first.json)
  const whole = await rig.queued(alice, {})
  await rig.runWhole(whole, () => 1)
  const late = await send(jobs.origin, "PUT", `/api/v1/jobs/${whole.id}/cancel`, { token: TEST_TOKENS.alice })
  expect([late.status, late.get("code"), late.get("details")]).toEqual([409, "conflict", { status: "completed" }])
  const tasks = rowsOf(await get(`/jobs/${job.id}/tasks`), "tasks")
  expect(tasks.map(({ status }) => status)).toEqual(["completed", "failed", "cancelled", "cancelled"])
  expect(tasks[2]).toMatchObject({ failure_kind: "cancelled", result: null, queue_reason: null })
  expect((await get(`/results/${job.id}`)).json).toMatchObject({ total: 4, result_count: 1 })
})

test("a job that ended while it was planned still has all its tasks, cancelled", async () => {
  const body = { ...LEAST_JOB, ...items(5) }
  const { job } = await rig.submit({ account: alice, user: null, body, bodyText: JSON.stringify(body) })
  expect((await get(`/jobs/${job.id}`)).get("task_counts")).toMatchObject({ total: 5, queued: 5 })
  expect((await get(`/jobs/${job.id}/tasks?status=queued&limit=2&offset=3`)).json).toMatchObject({ count: 2, total: 5 })
  await rig.cancel(job)
  const tasks = await get(`/jobs/${job.id}/tasks?status=cancelled&offset=1`)
  expect(tasks.json).toMatchObject({ count: 4, total: 5 })
  expect(rowsOf(tasks, "tasks").map(({ index, status }) => [index, status])).toEqual(
    [1, 2, 3, 4].map((index) => [index, "cancelled"]),
  )
  expect((await get(`/results/${job.id}`)).get("completeness")).toMatchObject({ cancelled_tasks: 5, pending_tasks: 0 })
})

test("X-001, X-002: nothing of a machine is in any body, and what the client sent is", async () => {
  const { job } = await mixedJob()
  const paths = ["", "/output", "/tasks", "/events", "/metrics"].map((path) => `/jobs/${job.id}${path}`)
  for (const path of [...paths, "/jobs", `/results/${job.id}`]) {
    const { text } = await get(path)
    expect(text).not.toContain(rig.node)
    expect(text).not.toContain(rig.member.peer)
    expect(text).not.toContain("sha256:")
  }
})
