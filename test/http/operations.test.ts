import { execFileSync, spawnSync } from "node:child_process"
import { readFileSync } from "node:fs"
import { join } from "node:path"
import { networkInterfaces } from "node:os"
import { afterAll, beforeAll, expect, test } from "vitest"
import { send, type PlainReply } from "../support/http-door.ts"
import { metricProblems } from "../support/metric-rules.ts"
import { startFleet, type Client, type Fleet, type Json } from "../support/fleet.ts"

/** What operators watch: /metrics, /ready, logs and request ids of a coordinator that runs as a program, with one node. */

const METRICS_TOKEN = "flm_metrics"

let fleet: Fleet
let client: Client
beforeAll(async () => {
  fleet = await startFleet({ coordinatorFlags: [`--metrics-token=${METRICS_TOKEN}`, "--http-host=0.0.0.0"] })
  client = await fleet.member()
  await client.project("run", {
    "run.py": `import json, os
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
if payload.get("fail"): raise SystemExit(3)
json.dump({"ok": 1}, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))
`,
  })
})
afterAll(async () => {
  await fleet[Symbol.asyncDispose]()
})

const local = (): string => `http://127.0.0.1:${new URL(fleet.origin).port}`
const metrics = (headers: Record<string, string> = {}, token?: string): Promise<PlainReply> =>
  send(local(), "GET", "/metrics", { headers, ...(token !== undefined && { token }) })

async function valueOf(series: string): Promise<number | undefined> {
  const { text } = await metrics()
  const line = text.split("\n").find((one) => one.startsWith(`${series} `))
  return line === undefined ? undefined : Number(line.slice(series.length + 1))
}

test("O-004: metrics are text for Prometheus, and keep the rules of its linter", async () => {
  await client.call("GET", "/api/v1/jobs")
  const reply = await metrics()
  expect(reply.status).toBe(200)
  expect(reply.headers["content-type"]).toBe("text/plain; version=0.0.4; charset=utf-8")
  expect(metricProblems(reply.text)).toEqual([])
  for (const name of ["jobs_total", "tasks_total", "nodes", "http_requests_total", "content_bytes_total"]) {
    expect(reply.text).toContain(`\n# TYPE computalot_${name} `)
  }
})

test("O-004: promtool finds nothing to say", async ({ skip }) => {
  if (spawnSync("promtool", ["--version"]).status !== 0) return skip("promtool is not installed")
  const { text } = await metrics()
  expect(execFileSync("promtool", ["check", "metrics"], { input: text, encoding: "utf8" })).toBe("")
})

test("rulings, /metrics: jobs and tasks count under each status they came to", async () => {
  const before = {
    completed: (await valueOf('computalot_jobs_total{status="completed"}')) ?? 0,
    tasks: (await valueOf('computalot_tasks_total{status="completed"}')) ?? 0,
    failed: (await valueOf('computalot_tasks_total{status="failed"}')) ?? 0,
    queued: (await valueOf('computalot_tasks_total{status="queued"}')) ?? 0,
  }
  const job = (items: Json[], more: Json = {}): Json => ({
    project: "run",
    runner_command: ["python3", "run.py"],
    fan_out: { items },
    ...more,
  })
  await client.ended(await client.submit(job([{}, {}, {}])))
  await client.ended(await client.submit(job([{ fail: 1 }, {}])))
  const stopped = await client.submit(job([{}, {}, {}, {}], { requirements: { cpu: 900 } }))
  await client.call("PUT", `/api/v1/jobs/${stopped}/cancel`)
  expect(await valueOf('computalot_jobs_total{status="completed"}')).toBe(before.completed + 1)
  expect(await valueOf('computalot_jobs_total{status="partial"}')).toBe(1)
  expect(await valueOf('computalot_jobs_total{status="cancelled"}')).toBe(1)
  expect(await valueOf('computalot_tasks_total{status="completed"}')).toBe(before.tasks + 4)
  expect(await valueOf('computalot_tasks_total{status="failed"}')).toBe(before.failed + 1)
  expect(await valueOf('computalot_tasks_total{status="cancelled"}')).toBe(4)
  expect(await valueOf('computalot_tasks_total{status="queued"}')).toBe(before.queued + 9)
  expect(await valueOf("computalot_tasks_waiting")).toBe(0)
})

test("rulings, /metrics: nodes by state, requests by route and not by address", async () => {
  expect(await valueOf('computalot_nodes{state="active"}')).toBe(1)
  expect(await valueOf('computalot_nodes_by_contact{contact="connected"}')).toBe(1)
  await client.call("GET", "/api/v1/jobs/job_unknown")
  await client.call("GET", "/api/v1/nothing/here")
  await client.call("PATCH", "/api/v1/jobs/job_unknown")
  const { text } = await metrics()
  expect(text).toContain('computalot_http_requests_total{method="GET",route="/api/v1/jobs/:id",status="404"} ')
  expect(text).toContain('computalot_http_requests_total{method="GET",route="unmatched",status="404"} ')
  expect(text).toContain('computalot_http_requests_total{method="PATCH",route="/api/v1/jobs/:id",status="405"} ')
  expect(text).not.toContain("job_unknown")
})

test("O-004, GAP-06: a request of this machine is answered whatever its token", async () => {
  expect((await metrics({}, "flk_wrong")).status).toBe(200)
  expect((await metrics({}, client.token)).status).toBe(200)
})

test.each(["x-forwarded-for", "forwarded"])("GAP-06: with %s it needs a token that is good for it", async (header) => {
  const forwarded = { [header]: "127.0.0.1" }
  const refused = await metrics(forwarded)
  expect([refused.status, refused.headers["www-authenticate"]]).toEqual([401, "Bearer"])
  expect((await metrics(forwarded, "flk_wrong")).status).toBe(401)
  expect((await metrics(forwarded, client.token)).status).toBe(403)
  expect((await metrics(forwarded, fleet.adminToken)).status).toBe(200)
  expect((await metrics(forwarded, METRICS_TOKEN)).status).toBe(200)
  // It opens nothing else.
  expect((await send(local(), "GET", "/api/v1/jobs", { token: METRICS_TOKEN })).status).toBe(401)
})

test("GAP-06: a request from another address is not local", async ({ skip }) => {
  const address = Object.values(networkInterfaces())
    .flat()
    .find((one) => one?.family === "IPv4" && !one.internal)?.address
  if (address === undefined) return skip("this machine has no address but loopback")
  const origin = `http://${address}:${new URL(fleet.origin).port}`
  expect((await send(origin, "GET", "/metrics")).status).toBe(401)
  expect((await send(origin, "GET", "/metrics", { token: METRICS_TOKEN })).status).toBe(200)
})

test("GAP-68: a sane request id comes back, in the header, in errors and in the log; any other is replaced", async () => {
  const path = "/api/v1/feedback"
  const own = await send(local(), "POST", path, { body: {}, headers: { "x-request-id": "trace-1.a:B_2" } })
  expect([own.status, own.headers["x-request-id"], own.get("request_id")]).toEqual([
    422,
    "trace-1.a:B_2",
    "trace-1.a:B_2",
  ])
  for (const bad of ["", "a b", "x".repeat(129), 'quote"', "<b>"]) {
    const reply = await send(local(), "POST", path, { body: {}, headers: { "x-request-id": bad } })
    expect(reply.get("request_id")).toMatch(/^req_[a-z0-9]{16}$/)
    expect(reply.headers["x-request-id"]).toBe(reply.get("request_id"))
  }
  const lines = logLines().filter(({ request_id: id }) => id === "trace-1.a:B_2")
  expect(lines).toMatchObject([{ event: "request", method: "POST", route: path, status: 422 }])
})

test("logs are JSON lines that name the route of a change, never keys, payloads or addresses of things", async () => {
  const id = await client.submit({
    project: "run",
    runner_command: ["python3", "run.py"],
    payload: { secret: "not-for-the-log" },
  })
  await client.ended(id)
  const raw = readFileSync(join(fleet.folder, "coordinator.log"), "utf8")
  expect(logLines().some(({ event, route }) => event === "request" && route === "/api/v1/jobs")).toBe(true)
  for (const secret of ["not-for-the-log", client.token, fleet.adminToken, METRICS_TOKEN])
    expect(raw).not.toContain(secret)
})

test("O-003: /ready says which part is missing; a new start is ready from its ready line on", async () => {
  const whole = { status: "ready", checks: { repo: "ok", api_supervisor: "ok", controller_core: "ok" } }
  const ready = await send(local(), "GET", "/ready")
  expect([ready.status, ready.json]).toEqual([200, whole])
  await fleet.endCoordinator("SIGTERM")
  await fleet.startCoordinator()
  expect((await send(local(), "GET", "/ready")).json).toEqual(whole)
  // Counts go on from nothing, as those of a new process do.
  expect(await valueOf('computalot_jobs_total{status="cancelled"}')).toBe(0)
})

function logLines(): Json[] {
  return readFileSync(join(fleet.folder, "coordinator.log"), "utf8")
    .split("\n")
    .filter((line) => line.startsWith("{"))
    .map((line) => JSON.parse(line) as Json)
}
