import { afterEach, beforeEach, expect, test } from "vitest"
import { accountEndpoints } from "../../protocol/api/account.ts"
import { adminEndpoints } from "../../protocol/api/admin.ts"
import { artifactEndpoints } from "../../protocol/api/artifacts.ts"
import type { Endpoint } from "../../protocol/api/endpoint.ts"
import { jobEndpoints } from "../../protocol/api/jobs-endpoints.ts"
import { nodeEndpoints } from "../../protocol/api/nodes.ts"
import { projectEndpoints } from "../../protocol/api/projects.ts"
import type { AccountId } from "../../protocol/domain/ids.ts"
import { send, type PlainReply } from "../support/http-door.ts"
import { TEST_TOKENS } from "../support/identities.ts"
import { failedItem, LEAST_JOB, type JobRig } from "../support/job-rig.ts"
import { items, startJobsDoor, type JobsDoor } from "../support/jobs-door.ts"

/** Rows of the contract about submissions, lists and results that no other test names, through the real server. */

let jobs: JobsDoor
let rig: JobRig
let alice: AccountId
let bob: AccountId

beforeEach(async () => {
  jobs = await startJobsDoor({ resultSpillBytes: 100_000 })
  ;({ rig, alice, bob } = jobs)
  await rig.project(alice, "other")
})
afterEach(() => jobs[Symbol.asyncDispose]())

type Row = Record<string, unknown>
const get = (path: string, token?: string): Promise<PlainReply> => jobs.get(path, token)
const post = (body: object, token: string = TEST_TOKENS.alice): Promise<PlainReply> =>
  send(jobs.origin, "POST", "/api/v1/jobs", { token, body: { ...LEAST_JOB, ...body } })
const rowsOf = (reply: PlainReply, name: string): Row[] => reply.get(name) as Row[]
const idsOf = (reply: PlainReply): unknown[] => rowsOf(reply, "results").map(({ job_id }) => job_id)

async function expectRefused(body: object, path: string): Promise<void> {
  const reply = await post(body)
  expect([reply.status, reply.get("details", 0, "path")], JSON.stringify(body)).toEqual([422, path])
}

test("J-003, GAP-21: the project is one of the account's own", async () => {
  expect((await post({ project: "p" })).get("project")).toBe("p")
  expect((await post({ project: "other" }, TEST_TOKENS.bob)).status).toBe(404)
  expect((await post({ project: "nothing" })).json).toMatchObject({ code: "not_found" })
  await expectRefused({ project: "" }, "project")
})

test("J-006: the payload is an object, kept to the letter", async () => {
  const payload = { a: [1, { b: null }], "ü ": "\u0000\n", n: 1e-7, __proto__x: {} }
  const made = await post({ payload })
  expect(made.get("payload")).toEqual(payload)
  expect((await get(`/jobs/${String(made.get("id"))}/tasks`)).get("tasks", 0, "payload")).toEqual(payload)
  for (const wrong of [[], "x", 5, true]) await expectRefused({ payload: wrong }, "payload")
})

test("J-008, B-016: the hint lowers the hold and nothing else: a longer task completes", async () => {
  const plain = Number((await post({})).get("summary", "billing_hold", "amount_usd"))
  const hinted = await post({ runtime_hint_s: 10 })
  const amount = Number(hinted.get("summary", "billing_hold", "amount_usd"))
  expect(amount).toBeGreaterThan(0)
  expect(amount).toBeLessThan(plain / 2)
  const job = await rig.queued(alice, { runtime_hint_s: 10 })
  const claims = await rig.grant(job, 1)
  await rig.start(claims)
  rig.pass(50_000)
  for (const claim of claims) await rig.report(claim, { runtime_ms: 50_000 })
  await rig.finish(job)
  expect((await get(`/jobs/${job.id}`)).json).toMatchObject({ status: "completed", runtime_hint_s: 10 })
  for (const wrong of [0, 61, 1.5, "10"]) await expectRefused({ runtime_hint_s: wrong }, "runtime_hint_s")
})

test("J-010, J-018, GAP-24: priority and reliability_mode, their defaults, and nothing else", async () => {
  expect((await post({})).json).toMatchObject({
    priority: "normal",
    reliability_mode: "best_effort",
    summary: { billing_estimate: { reliability_mode: "best_effort" } },
  })
  for (const priority of ["high", "normal", "low"]) expect((await post({ priority })).get("priority")).toBe(priority)
  const strict = await post({ reliability_mode: "strict_complete" })
  expect(strict.get("summary", "billing_estimate", "reliability_mode")).toBe("strict_complete")
  for (const wrong of ["urgent", "", 1, "HIGH"]) await expectRefused({ priority: wrong }, "priority")
  for (const wrong of ["strict", 1]) await expectRefused({ reliability_mode: wrong }, "reliability_mode")
})

test("J-012: twenty tags of text, and no more", async () => {
  const tags = Array.from({ length: 20 }, (_, n) => `t${n}`)
  expect((await post({ tags })).get("tags")).toEqual(tags)
  expect((await post({ tags: ["twice", "twice"] })).status).toBe(201)
  expect((await get("/jobs?tag=twice")).get("total")).toBe(1)
  await expectRefused({ tags: [...tags, "one more"] }, "tags")
  await expectRefused({ tags: ["a", 1] }, "tags[1]")
  await expectRefused({ tags: [""] }, "tags[0]")
  await expectRefused({ tags: "a" }, "tags")
})

test("J-015, J-022: what a job may ask of its place is shown as it was resolved", async () => {
  expect((await post({})).json).toMatchObject({
    reservation: { mode: "best_effort" },
    execution_policy: "sandboxed",
    placement_policy: "shared",
  })
  const asked = { mode: "best_effort", parallelism: 2, guaranteed_for_s: 60, max_wait_s: 0 }
  expect((await post({ reservation: asked })).get("reservation")).toEqual(asked)
  const wrong: [object, string][] = [
    [{ reservation: { mode: "x" } }, "reservation.mode"],
    [{ reservation: { parallelism: 0 } }, "reservation.parallelism"],
    [{ reservation: { parallelism: 1001 } }, "reservation.parallelism"],
    [{ reservation: { guaranteed_for_s: 86_401 } }, "reservation.guaranteed_for_s"],
    [{ reservation: { max_wait_s: -1 } }, "reservation.max_wait_s"],
    [{ execution_policy: "x" }, "execution_policy"],
    [{ placement_policy: "x" }, "placement_policy"],
  ]
  for (const [body, path] of wrong) await expectRefused(body, path)
})

test("J-023, RS-015, GAP-25: meta, variant and client_ref are kept and come back, in job, list and results", async () => {
  const labels = { meta: { env: { A: "1" }, deep: { list: [1, null] } }, variant: { arm: "b" }, client_ref: "run 7" }
  const job = await rig.queued(alice, labels)
  await rig.runWhole(job, () => ({}))
  for (const path of ["jobs", "results"]) expect((await get(`/${path}/${job.id}`)).json).toMatchObject(labels)
  expect((await get("/jobs")).get("jobs", 0)).toMatchObject(labels)
  expect((await get("/results")).get("results", 0)).toMatchObject(labels)
  for (const variant of ["a", 1, false, { x: 1 }]) expect((await post({ variant })).get("variant")).toEqual(variant)
  await expectRefused({ variant: [1] }, "variant")
  await expectRefused({ client_ref: "x".repeat(257) }, "client_ref")
  await expectRefused({ meta: { env: { A: 1 } } }, "meta.env.A")
  // {"text":"…"}: 11 bytes around the text.
  const text = "x".repeat(16 * 1024 - 11)
  expect((await post({ meta: { text }, client_ref: "x".repeat(256) })).get("meta", "text")).toBe(text)
  await expectRefused({ meta: { text: `${text}x` } }, "meta")
})

test("J-024: client_ref and tags are labels, no identifiers", async () => {
  const job = await rig.queued(alice, { client_ref: "batch_123", tags: ["t"] })
  await rig.runWhole(job, () => 1)
  for (const label of ["batch_123", "t"]) {
    expect((await get(`/results/${label}`)).status).toBe(404)
    expect((await get(`/jobs/${label}`)).status).toBe(404)
  }
  expect(idsOf(await get("/results?client_ref=batch_123"))).toEqual([job.id])
  expect((await get("/jobs?client_ref=batch_123")).get("jobs", 0, "id")).toBe(job.id)
})

test("J-027, J-029: the list is the account's own, its pages cover it once, and its total is constant", async () => {
  for (let n = 0; n < 12; n++) {
    await rig.queued(alice, { project: n % 3 === 0 ? "other" : "p" })
    // Several have the same time: ids decide then.
    if (n % 4 === 0) rig.pass(1)
  }
  await rig.queued(bob, {})
  const seen: unknown[] = []
  for (let offset = 0; offset < 15; offset += 5) {
    const page = await get(`/jobs?limit=5&offset=${offset}`)
    expect(page.json).toMatchObject({ total: 12, limit: 5, offset, count: Math.min(5, 12 - offset) })
    seen.push(...rowsOf(page, "jobs").map(({ id }) => id))
  }
  expect(new Set(seen).size).toBe(12)
  expect((await get("/jobs")).json).toMatchObject({ limit: 50, offset: 0, count: 12 })
  expect((await get("/jobs?limit=10000")).json).toMatchObject({ limit: 500 })
  expect((await get("/jobs?offset=99")).json).toMatchObject({ count: 0, total: 12, jobs: [] })
  expect((await get("/jobs?project=other")).get("total")).toBe(4)
  for (const wrong of ["limit=", "limit=1.0", "limit=0x5", "offset=", "offset=x", "status=", "limit=5&limit=6"]) {
    expect((await get(`/jobs?${wrong}`)).status, wrong).toBe(422)
  }
})

test("J-031, C-20: output is all tasks' text in order, error the failure's; both keys always", async () => {
  const job = await rig.queued(alice, items(3))
  expect((await get(`/jobs/${job.id}/output`)).json).toEqual({ output: "", error: null })
  const claims = await rig.grant(job, 3)
  await rig.start(claims)
  for (const [n, claim] of [...claims.entries()].toReversed()) {
    await rig.report(claim, n === 1 ? { ...failedItem("exit_code"), output: "two" } : { output: `task ${n}\n` })
  }
  await rig.finish(job)
  expect((await get(`/jobs/${job.id}/output`)).json).toEqual({
    output: "task 0\ntwo\ntask 2\n",
    error: "1 of 3 tasks failed; first: exit_code_3: two",
  })
})

test("J-043, GAP-32: a task's payload has at most 1 MiB; the refusal points to artifacts", async () => {
  expect((await post({ payload: { text: "x".repeat(1024 * 1024 - 11) } })).status).toBe(201)
  const refused = await post({ payload: { text: "x".repeat(1024 * 1024) } })
  expect(refused.json).toMatchObject({ code: "payload_too_large" })
  expect([refused.status, refused.text]).toEqual([422, expect.stringContaining("artifacts")])
  expect((await post({ payload: { text: "x".repeat(11 * 1024 * 1024) } })).status).toBe(413)
})

test("J-044: a job of a thousand tasks completes, and each has its row", async () => {
  const job = await rig.queued(alice, items(1_000))
  await rig.runWhole(job, (n) => ({ n }))
  const results = await get(`/results/${job.id}?limit=400&offset=700`)
  expect(results.json).toMatchObject({ status: "completed", total: 1_000, count: 300, result_count: 1_000 })
  expect(rowsOf(results, "results").at(-1)).toMatchObject({ index: 999, result: { n: 999 } })
  expect((await get(`/jobs/${job.id}/tasks`)).json).toMatchObject({
    count: 1_000,
    total: 1_000,
    limit: 1_000,
    offset: 0,
  })
}, 60_000)

test("RS-003: result is the JSON that the program wrote, to the letter", async () => {
  const job = await rig.queued(alice, {})
  const text = '{"ü":[1.0,-0,1e400,"\\u2028"],"big":123456789012345678901234567890}'
  const claims = await rig.grant(job, 1)
  await rig.start(claims)
  for (const claim of claims) await rig.report(claim, { result: { text } })
  await rig.finish(job)
  for (const path of [`/results/${job.id}`, `/jobs/${job.id}/tasks`]) expect((await get(path)).text).toContain(text)
})

test("RS-011, C-19, GAP-58: each filter narrows the list, shows in applied_filters, and groups count all that match", async () => {
  const jobs: Record<string, string> = {}
  const bodies: [string, object][] = [
    ["a", { client_ref: "x", tags: ["red", "big"] }],
    ["b", { client_ref: "x", tags: ["red"], project: "other" }],
    ["c", { client_ref: "y" }],
    ["d", { type: "map_reduce", split: { field: "s", total: 2, chunks: 2 }, reduce: { v: "sum" } }],
  ]
  for (const [name, body] of bodies) {
    const job = await rig.queued(alice, body)
    jobs[name] = job.id
    if (name === "c") await rig.cancel(job)
    else await rig.runWhole(job, () => ({ v: 1 }))
    rig.pass(10)
  }
  const running = await rig.queued(alice, { client_ref: "x" })
  const foreign = await rig.queued(bob, { client_ref: "x" })
  await rig.runWhole(foreign, () => 1)
  const { a = "", b = "", c = "", d = "" } = jobs
  const cases: [string, string[], Row][] = [
    ["", [d, c, b, a], {}],
    [`job_id=${a}`, [a], { job_id: a }],
    [`job_id=${running.id}`, [], { job_id: running.id }],
    [`job_id=${foreign.id}`, [], { job_id: foreign.id }],
    [`ids=${a},${c},${a},%20${d},job_x`, [d, c, a], { ids: [a, c, d, "job_x"] }],
    [`ids=${a},${c}&job_id=${c}`, [c], { ids: [a, c], job_id: c }],
    [`ids=${a}&job_id=${c}`, [], { ids: [a], job_id: c }],
    ["ids=", [], { ids: [] }],
    ["project=other", [b], { project: "other" }],
    ["client_ref=x", [b, a], { client_ref: "x" }],
    ["tag=red", [b, a], { tag: "red" }],
    ["tag=red&project=p", [a], { tag: "red", project: "p" }],
    ["type=map_reduce", [d], { type: "map_reduce" }],
    ["status=cancelled", [c], { status: "cancelled" }],
    ["user_id=42", [], { user_id: 42 }],
    ["recipe_cache_key=k", [], { recipe_cache_key: "k" }],
    ["recipe_cache_scope=user", [], { recipe_cache_scope: "user" }],
    ["recipe_cache_hit=true", [], { recipe_cache_hit: true }],
    ["recipe_cache_hit=false", [d, c, b, a], { recipe_cache_hit: false }],
    ["include_tasks=false", [d, c, b, a], { include_tasks: false }],
    ["unknown=1", [d, c, b, a], {}],
  ]
  for (const [query, expected, applied] of cases) {
    const reply = await get(`/results?${query}`)
    expect([query, reply.status, idsOf(reply)]).toEqual([query, 200, expected])
    expect(reply.json).toMatchObject({ total: expected.length, count: expected.length, limit: 20, offset: 0 })
    expect(reply.get("applied_filters"), query).toEqual(applied)
    expect(reply.get("groups"), query).toBeUndefined()
  }
  const groups = async (by: string, more = "") => {
    const reply = await get(`/results?group_by=${by}&limit=1${more}`)
    expect(reply.json).toMatchObject({ group_by: by, applied_filters: { group_by: by } })
    return rowsOf(reply, "groups").map(({ key, count }) => [key, count])
  }
  expect(await groups("project")).toEqual([
    ["other", 1],
    ["p", 3],
  ])
  expect(await groups("client_ref")).toEqual([
    [null, 1],
    ["x", 2],
    ["y", 1],
  ])
  expect(await groups("tag", "&client_ref=x")).toEqual([
    ["big", 1],
    ["red", 2],
  ])
  expect(await groups("type")).toEqual([
    ["map_reduce", 1],
    ["structured_runner", 3],
  ])
  expect(await groups("status")).toEqual([
    ["cancelled", 1],
    ["completed", 3],
  ])
  expect(await groups("recipe_cache_key")).toEqual([[null, 4]])
  for (const wrong of ["user_id=x", "user_id=-1", "type=x", "status=queued", "group_by=id", "include_tasks=maybe"]) {
    expect((await get(`/results?${wrong}`)).status, wrong).toBe(422)
  }
  expect((await get(`/results?ids=${Array.from({ length: 1_001 }, (_, n) => `job_${n}`).join(",")}`)).status).toBe(422)
})

test("RS-009, D-027: the list says how to find results", async () => {
  const guide = (await get("/results")).get("result_guide") as Row
  expect(Object.keys(guide).toSorted()).toEqual(["canonical_lookup", "identifiers", "live_updates", "search"])
  expect(Object.keys(guide["identifiers"] as Row).toSorted()).toEqual(["artifact_id", "client_ref", "job_id", "tags"])
})

test("RS-010, GAP-57: limit and offset are whole numbers; too large a limit is cut, and both are echoed", async () => {
  for (const name of ["limit", "offset"]) {
    for (const wrong of ["x", "-1", "1.5", "", "1e2", " 5"]) {
      const reply = await get(`/results?${name}=${encodeURIComponent(wrong)}`)
      expect([reply.status, reply.get("details", 0, "path")], `${name}=${wrong}`).toEqual([422, name])
      expect(reply.get("error")).toContain("whole number")
    }
  }
  expect((await get("/results?limit=0")).status).toBe(422)
  expect((await get("/results?limit=101&offset=3")).json).toMatchObject({ limit: 100, offset: 3, count: 0 })
})

test("Q-005, Q-006: mean_quality and suspects agree with the rows, also after some ran again", async () => {
  const job = await rig.queued(alice, { ...items(4), result_schema: { required_fields: ["a", "b"] } })
  await rig.runWhole(job, (n) => (n < 2 ? { a: 1, b: 1 } : { a: 1 }))
  const agrees = async (suspects: number): Promise<void> => {
    const shown = await get(`/jobs/${job.id}`)
    const rows = rowsOf(await get(`/jobs/${job.id}/tasks`), "tasks").filter(({ status }) => status === "completed")
    const qualities = rows.map(({ result_quality: quality }) => Number(quality))
    const quality = shown.get("summary", "quality") as Row
    expect(quality["mean_quality"]).toBeCloseTo(qualities.reduce((sum, one) => sum + one, 0) / qualities.length, 9)
    const suspect = rows.filter(({ result_quality: one }) => Number(one) < 0.5).map(({ task_id }) => task_id)
    expect(quality).toMatchObject({ suspect_count: suspects, suspect_task_ids: suspect })
    expect(suspect).toHaveLength(suspects)
  }
  await agrees(2)
  await rig.retry({ id: job.id, account: null, filter: "indexes", indexes: [0, 3] })
  await agrees(1)
})

test("GAP-69: every POST that creates something takes an Idempotency-Key", () => {
  const table: readonly Endpoint[] = [
    ...accountEndpoints,
    ...adminEndpoints,
    ...artifactEndpoints,
    ...projectEndpoints,
    ...jobEndpoints,
    ...nodeEndpoints,
  ]
  // What these two make has a key of its own: the node's public key, the quote that is paid.
  const own = new Set(["nodes-enroll", "quotes-pay"])
  const creating = table.filter((row) => row.method === "POST" && row.status === 201 && row.access !== "public")
  expect(creating.length).toBeGreaterThan(5)
  expect(creating.filter(({ id, creates }) => creates === undefined && !own.has(id)).map(({ id }) => id)).toEqual([])
  expect(table.find(({ id }) => id === "jobs-retry")?.creates).toBe(true)
})
