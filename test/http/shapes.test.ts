import { afterAll, beforeAll, expect, test } from "vitest"
import { ENDPOINTS } from "../support/endpoints.ts"
import { startFleet, type Client, type Fleet, type Json } from "../support/fleet.ts"
import { send, type PlainReply } from "../support/http-door.ts"

/** What all routes have in common: who may ask, what malformed input answers, how times and lists look. One live node. */

const RUN = `import json, os, sys
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
print("hello")
if payload.get("fails"): sys.exit(3)
open(os.path.join(os.environ["COMPUTALOT_ARTIFACT_DIR"], "left.txt"), "w").write("left")
json.dump({"ok": True}, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))
`

let fleet: Fleet
let client: Client
let other: Client
let done: string
let failed: string
beforeAll(async () => {
  fleet = await startFleet()
  client = await fleet.member(100)
  other = await fleet.member(10)
  await client.project("shapes", { "job.py": RUN })
  done = await client.submit(job({ tags: ["experiment_42"], client_ref: "batch_123" }))
  failed = await client.submit(job({ fan_out: { items: [{ fails: true }, {}] } }))
  for (const id of [done, failed]) await client.ended(id)
})
afterAll(() => fleet[Symbol.asyncDispose]())

const job = (fields: Json = {}): Json => ({
  type: "structured_runner",
  project: "shapes",
  runner_command: ["python3", "job.py"],
  ...fields,
})
const call = (method: string, path: string, body?: unknown): Promise<PlainReply> =>
  client.call(method, `/api/v1${path}`, body)

test("A-001, A-006, C-05: what is not public is answered with a bearer, and is 401 without one", async () => {
  const protectedPaths = [
    "/account/balance",
    "/account/holds",
    "/account/ledger",
    "/account/quotes",
    "/projects",
    "/projects/shapes",
    "/projects/shapes/status",
    "/projects/shapes/kv",
    "/jobs",
    `/jobs/${done}`,
    `/jobs/${done}/tasks`,
    `/leases/${done}`,
    `/results/${done}`,
    "/results",
    "/artifacts",
    "/presets",
  ]
  for (const path of protectedPaths) {
    expect([path, (await call("GET", path)).status]).toEqual([path, 200])
    const refused = await send(fleet.origin, "GET", `/api/v1${path}`)
    expect([path, refused.status, refused.headers["www-authenticate"]]).toEqual([path, 401, "Bearer"])
  }
})

test("A-005, C-05: health, documents, feedback, registration and the waitlist ask for no token", async () => {
  const gets =
    "/ /health /live /ready /docs /docs/projects/project-manifest /llms.txt /llms-full.txt /skill.md /api/v1/docs /api/v1/docs/recipes"
  for (const path of gets.split(" ")) {
    expect([path, (await send(fleet.origin, "GET", path)).status]).toEqual([path, 200])
  }
  const posts: [path: string, body: Json, status: number][] = [
    ["/api/v1/feedback", { type: "bug", title: "t", description: "d" }, 201],
    ["/api/v1/auth/register", {}, 403],
    ["/api/v1/waitlist", { email: "someone@example.org" }, 201],
  ]
  for (const [path, body, status] of posts) {
    expect([path, (await send(fleet.origin, "POST", path, { body })).status]).toEqual([path, status])
  }
})

test("C-33, A-020, A-021, A-024, GAP-03: each route lets in the roles that it is for, and nobody else", async () => {
  const tokens: Record<string, string> = { member: client.token }
  const made = await fleet.admin("POST", "/api/v1/admin/users", { name: "roles", role: "admin" })
  for (const role of ["viewer", "admin"]) {
    const key = await fleet.admin("POST", `/api/v1/admin/users/${String(made.get("user", "id"))}/keys`, { role })
    tokens[role] = String(key.get("token"))
  }
  const reach: Record<string, string[]> = {
    viewer: ["viewer", "member", "admin"],
    member: ["member", "admin"],
    admin: ["admin"],
  }
  let asked = 0
  for (const endpoint of ENDPOINTS) {
    const letsIn = reach[endpoint.access]
    if (letsIn === undefined) continue
    const path = endpoint.path.replaceAll(/:[a-z_]+/g, "nothing")
    const body = ["POST", "PUT"].includes(endpoint.method) ? { body: "{" } : {}
    for (const role of ["viewer", "member", "admin"]) {
      // Whoever may come in is told 404 or 422; the largest thing that this makes is an artifact of one byte.
      const token = tokens[role] ?? ""
      const { status } = await send(fleet.origin, endpoint.method, path, { token, ...body })
      asked += 1
      expect([endpoint.method, path, role, status === 403]).toEqual([
        endpoint.method,
        path,
        role,
        !letsIn.includes(role),
      ])
      expect([endpoint.method, path, role, status]).not.toContain(401)
    }
    expect([path, (await send(fleet.origin, endpoint.method, path, body)).status]).toEqual([path, 401])
  }
  expect(asked).toBeGreaterThan(120)
})

test("A-023: what only an owner may do to a project is 404 for anybody else, and changes nothing", async () => {
  await call("PUT", "/projects/shapes/kv/kept", { value: 1 })
  const before = (await call("GET", "/projects/shapes")).json
  const acts: [method: string, path: string, body?: unknown][] = [
    ["PUT", "", { setup_timeout_s: 9 }],
    ["DELETE", ""],
    ["POST", "/push", Buffer.from("x")],
    ["POST", "/init", {}],
    ["POST", "/invalidate"],
    ["PUT", "/cancel-queued", {}],
    ["GET", "/kv"],
    ["PUT", "/kv/kept", { value: 2 }],
    ["GET", "/kv/kept"],
    ["DELETE", "/kv/kept"],
  ]
  for (const [method, path, body] of acts) {
    const refused = await other.call(method, `/api/v1/projects/shapes${path}`, body)
    expect([method, path, refused.status, refused.get("code")]).toEqual([method, path, 404, "not_found"])
  }
  expect((await call("GET", "/projects/shapes")).json).toEqual(before)
  expect((await call("GET", "/projects/shapes/kv/kept")).get("value")).toBe(1)
})

test("E-005: malformed input is 422 in every group; only a push that is not gzip is 400", async () => {
  const wrong: [method: string, path: string, body?: unknown][] = [
    ["POST", "/account/quotes/topup", { amount_usd: "abc" }],
    ["POST", "/jobs", { type: "x" }],
    ["POST", "/jobs", job({ timeout_s: 0 })],
    ["POST", "/jobs", "{"],
    ["POST", "/jobs/batch", { jobs: {} }],
    ["POST", `/jobs/${done}/retry`, {}],
    ["GET", "/jobs?limit=x"],
    ["GET", `/jobs/${done}/events?limit=0`],
    ["GET", "/jobs/watch"],
    ["GET", "/results?limit=0"],
    ["GET", "/results?offset=-1"],
    ["POST", "/projects", { name: "A" }],
    ["PUT", "/projects/shapes", { setup_timeout_s: 0 }],
    ["PUT", "/projects/shapes", { tarball: "x" }],
    ["PUT", "/projects/shapes/kv/k", {}],
    ["POST", "/projects/shapes/init", { max_nodes: 0 }],
    ["POST", "/feedback", { type: "praise", title: "t", description: "d" }],
    ["GET", "/artifacts?limit=0"],
  ]
  for (const [method, path, body] of wrong) {
    const refused = await call(method, path, body)
    expect([method, path, refused.status], refused.text).toEqual([method, path, 422])
    expect(refused.get("error")).toEqual(expect.any(String))
  }
  expect((await call("POST", "/projects/shapes/push", Buffer.from("no gzip"))).status).toBe(400)
  const badManifest = await client.push("shapes", { "computalot.project.json": `{"version": 2}`, "job.py": RUN })
  expect([badManifest.status, badManifest.get("code")]).toEqual([422, "invalid_manifest"])
})

test("E-006: every *_at of every reply is null, or UTC with milliseconds", async () => {
  const paths = [
    "/account/ledger",
    "/account/holds",
    "/account/quotes",
    "/projects",
    "/projects/shapes",
    "/projects/shapes/status/details",
    "/projects/shapes/kv",
    "/jobs",
    ...[done, failed].flatMap((id) => [`/jobs/${id}`, `/jobs/${id}/tasks`, `/jobs/${id}/events`, `/results/${id}`]),
    `/leases/${done}`,
    "/results?include_tasks=true",
    "/artifacts",
  ]
  const replies = await Promise.all(paths.map((path) => call("GET", path)))
  for (const path of ["users", "nodes", "feedback", "accounts"]) {
    replies.push(await fleet.admin("GET", `/api/v1/admin/${path}`))
  }
  const times = replies.flatMap(({ status, json }) => (expect(status).toBe(200), timesIn(json)))
  for (const [name, value] of times) {
    if (value !== null) expect([name, value]).toEqual([name, expect.stringMatching(ISO)])
  }
  const named = new Set(times.flatMap(([name, value]) => (value === null ? [] : [name])))
  const expected = "created_at started_at completed_at inserted_at updated_at settled_at expires_at last_seen_at"
  expect([...named]).toEqual(expect.arrayContaining(expected.split(" ")))
})

const ISO = /^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z$/

function timesIn(value: unknown): [name: string, value: unknown][] {
  if (typeof value !== "object" || value === null) return []
  return Object.entries(value).flatMap(([name, inner]) =>
    name.endsWith("_at") ? [[name, inner] as [string, unknown]] : timesIn(inner),
  )
}

test("E-011: lists stand under their name and say how many rows there are", async () => {
  const lists: [path: string, name: string, more: string[]][] = [
    ["/jobs", "jobs", ["total", "limit", "offset"]],
    ["/results", "results", ["total", "limit", "offset", "applied_filters", "result_guide"]],
    ["/projects", "projects", []],
    [`/jobs/${failed}/tasks`, "tasks", ["total"]],
    [`/jobs/${failed}/events`, "events", []],
    [`/results/${failed}`, "results", ["total"]],
    ["/projects/shapes/kv", "entries", ["project", "prefix"]],
    ["/artifacts", "artifacts", ["limit", "offset"]],
    ["/account/ledger", "entries", ["limit", "offset"]],
    ["/account/holds", "holds", ["limit", "offset"]],
    ["/account/quotes", "quotes", ["limit", "offset"]],
    ["/presets", "presets", []],
  ]
  await call("PUT", "/projects/shapes/kv/kept", { value: 1 })
  for (const [path, name, more] of lists) {
    const { json } = await call("GET", path)
    const rows = json[name] as unknown[]
    expect([path, json["count"]]).toEqual([path, rows.length])
    if (name !== "quotes") expect(rows.length, path).toBeGreaterThan(0)
    expect(Object.keys(json), path).toEqual(expect.arrayContaining(more))
  }
})

test("J-024: what is found by tag, and by project and client_ref", async () => {
  expect((await call("GET", "/jobs?tag=experiment_42")).json).toMatchObject({ count: 1, jobs: [{ id: done }] })
  const found = await call("GET", "/results?project=shapes&client_ref=batch_123")
  expect(found.json).toMatchObject({ count: 1, results: [{ job_id: done }] })
  expect((await call("GET", "/results?project=my-proj&client_ref=batch_123")).json).toMatchObject({ count: 0 })
})

test("GAP-73: user_id is the number of the account; another's finds nothing", async () => {
  const made = await fleet.admin("POST", "/api/v1/admin/users", { name: "colleague", account_id: client.account })
  const colleague = Number(made.get("user", "id"))
  expect(colleague).not.toBe(client.account)
  const key = await fleet.admin("POST", `/api/v1/admin/users/${colleague}/keys`, {})
  const body = job({ requirements: { cpu: 5 } })
  const theirs = await send(fleet.origin, "POST", "/api/v1/jobs", { token: String(key.get("token")), body })
  expect([theirs.status, theirs.get("user_id")]).toEqual([201, client.account])
  await call("PUT", `/jobs/${String(theirs.get("id"))}/cancel`)
  const rows = (await call("GET", "/jobs")).json["jobs"] as Json[]
  expect(rows.map(({ user_id }) => user_id)).toEqual(rows.map(() => client.account))
  expect((await call("GET", `/results/${String(theirs.get("id"))}`)).get("user_id")).toBe(client.account)
  expect((await call("GET", `/results?user_id=${client.account}`)).get("total")).toBe(3)
  expect((await call("GET", `/results?user_id=${other.account}`)).get("total")).toBe(0)
  const admin = await fleet.admin("GET", `/api/v1/results?user_id=${client.account}`)
  expect(admin.get("total")).toBe(3)
  const none = await fleet.admin("GET", `/api/v1/results?user_id=${other.account}`)
  expect(none.get("total")).toBe(0)
})

test("GAP-70: the largest limits are taken, one above is 422 with its path", async () => {
  const guaranteed = (fields: Json): Json => ({ reservation: { mode: "best_effort", ...fields } })
  const limits: [path: string, most: number, fields: (value: number) => Json][] = [
    ["timeout_s", 604_800, (value) => ({ timeout_s: value })],
    ["max_retries", 100, (value) => ({ max_retries: value })],
    ["runtime_hint_s", 60, (value) => ({ timeout_s: 60, runtime_hint_s: value })],
    ["reservation.guaranteed_for_s", 86_400, (value) => guaranteed({ guaranteed_for_s: value })],
    ["reservation.parallelism", 1_000, (value) => guaranteed({ parallelism: value })],
  ]
  for (const [path, most, fields] of limits) {
    const large = job({ requirements: { cpu: 5 } })
    const taken = await call("POST", "/jobs", { ...large, ...fields(most) })
    expect([path, taken.status], taken.text).toEqual([path, 201])
    const refused = await call("POST", "/jobs", { ...large, ...fields(most + 1) })
    expect([refused.status, refused.get("details", 0, "path")]).toEqual([422, path])
    await call("PUT", `/jobs/${String(taken.get("id"))}/cancel`)
  }
})

test("AR-017, GAP-53: what artifacts answer in lists, about one and when they go", async () => {
  const put = await client.call("POST", "/api/v1/artifacts", Buffer.from("abc"), { "x-artifact-filename": "a.txt" })
  const id = String(put.get("id"))
  const keys = [
    "id",
    "sha256",
    "size",
    "filename",
    "content_type",
    "source",
    "job_id",
    "task_id",
    "created_at",
    "expires_at",
  ]
  const meta = (await call("GET", `/artifacts/${id}/meta`)).json
  expect(Object.keys(meta)).toEqual(expect.arrayContaining(keys))
  const sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
  expect(meta).toMatchObject({ id, sha256, size: 3, filename: "a.txt", source: "local", job_id: null, task_id: null })
  const listed = (await call("GET", "/artifacts?limit=1")).json
  expect(listed).toMatchObject({ count: 1, limit: 1, offset: 0, artifacts: [{ id, sha256, size: 3 }] })
  expect((await call("DELETE", `/artifacts/${id}`)).json).toEqual({ status: "deleted", id })
  for (const path of [`/artifacts/${id}`, `/artifacts/${id}/meta`]) expect((await call("GET", path)).status).toBe(404)
})

test("AR-021: downloads cost nothing", async () => {
  const ledger = (await call("GET", "/account/ledger")).text
  const artifacts = (await call("GET", "/artifacts")).json["artifacts"] as Json[]
  expect(artifacts.length).toBeGreaterThan(0)
  for (const { id } of artifacts) expect((await call("GET", `/artifacts/${String(id)}`)).status).toBe(200)
  expect((await call("GET", "/account/ledger")).text).toBe(ledger)
})
