import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { systemRandom } from "../../protocol/base/random.ts"
import type { AccountId } from "../../protocol/domain/ids.ts"
import { mountProjectKv } from "../../coordinator/http/routes/project-kv.ts"
import { removeProject } from "../../coordinator/projects/remove.ts"
import { sweepSharedState } from "../../coordinator/projects/shared-state.ts"
import { fundedAccount } from "../support/accounts.ts"
import { send, startHttpDoor, type HttpDoor, type PlainReply } from "../support/http-door.ts"
import { TEST_TOKENS, testIdentities } from "../support/identities.ts"
import { startJobRig, type JobRig } from "../support/job-rig.ts"

/** A project's shared state by HTTP, with the real store and a clock that the test moves. */

const { alice, bob, carol, viewer, bootstrap } = TEST_TOKENS
let rig: JobRig
let door: HttpDoor
let owner: AccountId

beforeEach(async () => {
  rig = await startJobRig()
  owner = await fundedAccount(rig.store, 50_000_000n)
  await rig.project(owner)
  await rig.project(await fundedAccount(rig.store, 1n), "others")
  door = await startHttpDoor()
  mountProjectKv(door.app, { ...rig, ...projectParts() })
  door.app.open({ store: rig.store, ...testIdentities })
})
afterEach(async () => {
  await door[Symbol.asyncDispose]()
  await rig[Symbol.asyncDispose]()
})

const projectParts = () => ({
  store: rig.store,
  clock: rig.clock,
  random: systemRandom,
  fleet: () => ({ isLive: () => false, workers: 0, workersWithoutImage: 0, builders: 0, trouble: () => null }),
  changed: () => {},
})

const call = (method: string, path: string, body?: unknown, token: string = alice): Promise<PlainReply> =>
  send(door.server.origin, method, `/api/v1/projects${path}`, { token, ...(body !== undefined && { body }) })
const put = (key: string, value: unknown, more: object = {}): Promise<PlainReply> =>
  call("PUT", `/p/kv/${key}`, { value, ...more })
const get = (key: string): Promise<PlainReply> => call("GET", `/p/kv/${key}`)
const keysOf = async (query = ""): Promise<unknown[]> =>
  ((await call("GET", `/p/kv${query}`)).get("entries") as { key: string }[]).map(({ key }) => key)

describe("one value", () => {
  test("KV-002, KV-003: any JSON value is set and read back as it was", async () => {
    const values = [
      { status: "ready" },
      null,
      false,
      0,
      "",
      "ü\u0000\n",
      [1, [2, { a: null }]],
      { "": { __proto__x: 1 } },
      1.5e-7,
    ]
    for (const value of values) {
      const set = await put("k", value)
      expect(set.status, set.text).toBe(200)
      expect(set.json).toMatchObject({ project: "p", key: "k", value, expires_at: null, meta: { account: owner } })
      expect(set.json).not.toHaveProperty("ttl_s")
      const read = await get("k")
      expect(read.json).toEqual(set.json)
    }
    const own = await send(door.server.origin, "PUT", "/api/v1/projects/p/kv/own", {
      token: alice,
      body: '{"value":{"__proto__":{"admin":true},"constructor":1}}',
    })
    expect(own.text).toContain('"value":{"__proto__":{"admin":true},"constructor":1}')
  })

  test("KV-002: without a value, with a bad time to live, or with a number that would change it is 422", async () => {
    for (const body of [{}, { ttl_s: 5 }, { value: 1, ttl_s: 0 }, { value: 1, ttl_s: 1.5 }, { value: 1, ttl_s: "5" }]) {
      const reply = await call("PUT", "/p/kv/k", body)
      expect(reply.status, reply.text).toBe(422)
      expect(reply.json["recommended_action"]).toBeTruthy()
    }
    const changed = { token: alice, body: '{"value":9007199254740993}' }
    expect((await send(door.server.origin, "PUT", "/api/v1/projects/p/kv/k", changed)).status).toBe(422)
    expect((await get("k")).status).toBe(404)
    expect((await put("k", 1, { ttl_s: null })).status).toBe(200)
  })

  test("KV-004: what was deleted is not found, and deleting it again is not either", async () => {
    await put("k", 1)
    const gone = await call("DELETE", "/p/kv/k")
    expect([gone.status, gone.json]).toEqual([200, { status: "deleted", project: "p", key: "k" }])
    expect((await get("k")).status).toBe(404)
    expect((await call("DELETE", "/p/kv/k")).status).toBe(404)
  })

  test("KV-005, rulings: after its time an entry is gone from reads and lists; a PUT without ttl_s clears the time", async () => {
    const set = await put("short", 1, { ttl_s: 60 })
    expect(set.json).toMatchObject({ ttl_s: 60 })
    const { updated_at: updated, expires_at: expires } = set.json as { updated_at: string; expires_at: string }
    expect(Date.parse(expires) - Date.parse(updated)).toBe(60_000)
    await put("kept", 1, { ttl_s: 60 })
    await put("kept", 2)
    await put("long", 1, { ttl_s: 3_600 })
    rig.pass(59_000)
    expect((await get("short")).json).toMatchObject({ ttl_s: 60, value: 1 })
    rig.pass(1_001)
    expect((await get("short")).status).toBe(404)
    expect((await call("DELETE", "/p/kv/short")).status).toBe(404)
    expect(await keysOf()).toEqual(["kept", "long"])
    expect((await get("kept")).json).not.toHaveProperty("ttl_s")
  })

  test("KV-005: what expired is removed by the sweep, and what replaced it stays", async () => {
    const expiresAt = rig.clock.now() + 10_000
    await rig.store.write(async (tx) => {
      const insert = `INSERT INTO project_kv (project, key, value, ttl_s, expires_at, updated_at) VALUES (1, ?, '1', 10, ?, 1)`
      for (let n = 0; n < 450; n++) await tx.run(insert, `k${n}`, expiresAt)
    })
    expect(await keysOf("?limit=1000")).toHaveLength(450)
    rig.pass(11_000)
    await put("k7", "again")
    await sweepSharedState(rig, rig.clock.now())
    const left = await rig.store.read((view) => view.all<{ key: string }>("SELECT key FROM project_kv"))
    expect(left).toEqual([{ key: "k7" }])
    expect((await get("k7")).json).toMatchObject({ value: "again" })
  })

  test("GAP-18, rulings: 64 KiB of UTF-8 JSON are kept, a byte more is 413; keys of other characters are 422", async () => {
    const full = "ü".repeat(32_767)
    expect((await put("full", full)).status).toBe(200)
    const over = await put("full", `${full}x`)
    expect([over.status, over.json["code"]]).toEqual([413, "body_too_large"])
    expect(over.get("details")).toEqual({ value_bytes: 65_537, limit_bytes: 65_536 })
    expect((await get("full")).json).toMatchObject({ value: full })
    expect((await put(`${"a".repeat(126)}:.`, 1)).status).toBe(200)
    for (const key of ["a".repeat(129), "a%20b", "%C3%BC", "a%2Fb", "a%00", "a*b"]) {
      for (const method of ["PUT", "GET", "DELETE"]) {
        const reply = await call(method, `/p/kv/${key}`, method === "PUT" ? { value: 1 } : undefined)
        expect([key, method, reply.status]).toEqual([key, method, 422])
      }
    }
  })
})

describe("the list", () => {
  test("KV-001, rulings: keys in byte order, by prefix, and page by page with after", async () => {
    const keys = ["b", "a", "B", "a.b", "a-b", "a_b", "a:b", "ab", "_", "0"]
    for (const key of keys) await put(key, key)
    const sorted = keys.toSorted((x, y) => Buffer.compare(Buffer.from(x), Buffer.from(y)))
    const all = await call("GET", "/p/kv")
    expect(all.json).toMatchObject({ project: "p", prefix: "", count: keys.length })
    expect(await keysOf()).toEqual(sorted)
    expect(await keysOf("?prefix=a")).toEqual(sorted.filter((key) => key.startsWith("a")))
    expect((await call("GET", "/p/kv?prefix=a.")).json).toMatchObject({ prefix: "a.", count: 1 })
    expect(await keysOf("?prefix=a%25")).toEqual([])
    const paged: unknown[] = []
    for (let after = ""; ;) {
      const page = await keysOf(`?limit=3&after=${after}`)
      paged.push(...page)
      if (page.length === 0) break
      after = String(page.at(-1))
    }
    expect(paged).toEqual(sorted)
    expect(all.get("entries", 0)).toEqual({
      key: "0",
      value: "0",
      updated_at: expect.stringMatching(/Z$/) as unknown,
      expires_at: null,
      meta: { account: owner },
    })
  })

  test("GAP-18, rulings: a hundred entries without a limit, at most a thousand; below 1 is 422", async () => {
    await rig.store.write(async (tx) => {
      for (let n = 0; n < 1_100; n++) {
        await tx.run(
          "INSERT INTO project_kv (project, key, value, updated_at) VALUES (1, ?, ?, 1)",
          `k${String(n).padStart(4, "0")}`,
          String(n),
        )
      }
    })
    expect(await keysOf()).toHaveLength(100)
    const most = await call("GET", "/p/kv?limit=5000")
    expect(most.json).toMatchObject({ count: 1_000 })
    expect(most.get("entries", 999)).toMatchObject({ key: "k0999", value: 999, meta: {} })
    for (const limit of ["0", "-1", "1.5", "x"])
      expect((await call("GET", `/p/kv?limit=${limit}`)).status, limit).toBe(422)
  })
})

describe("whose it is", () => {
  test("KV-006: another account finds neither project nor values, a viewer reads and writes nothing", async () => {
    await put("k", 1)
    for (const token of [bob, carol]) {
      for (const [method, path, body] of [
        ["GET", "/p/kv", undefined],
        ["GET", "/p/kv/k", undefined],
        ["PUT", "/p/kv/k", { value: 2 }],
        ["DELETE", "/p/kv/k", undefined],
      ] as const) {
        expect((await call(method, path, body, token)).status, `${method} ${path}`).toBe(404)
      }
    }
    expect((await call("GET", "/p/kv/k", undefined, viewer)).json).toMatchObject({ value: 1 })
    expect((await call("GET", "/p/kv", undefined, viewer)).status).toBe(200)
    expect((await call("PUT", "/p/kv/k", { value: 2 }, viewer)).status).toBe(403)
    expect((await call("DELETE", "/p/kv/k", undefined, viewer)).status).toBe(403)
    expect((await call("GET", "/p/kv/k", undefined, "flk_wrong")).status).toBe(401)
    expect((await call("PUT", "/missing/kv/k", { value: 1 })).status).toBe(404)
    expect((await get("k")).json).toMatchObject({ value: 1 })
    const byAdmin = await call("PUT", "/p/kv/k", { value: 3 }, bootstrap)
    expect(byAdmin.json).toMatchObject({ value: 3, meta: {} })
  })

  test("GAP-12: with a project its values go, and one of the same name starts empty", async () => {
    await put("k", 1)
    await removeProject(projectParts(), owner, "p")
    expect((await get("k")).status).toBe(404)
    await rig.project(owner)
    expect((await get("k")).status).toBe(404)
    expect(await keysOf()).toEqual([])
  })
})

describe("what jobs publish", () => {
  const items = (count: number): object => ({ fan_out: { items: Array.from({ length: count }, (_, n) => ({ n })) } })
  const eventsOf = async (job: number): Promise<{ type: string; data: string }[]> =>
    await rig.store.read((view) =>
      view.all<{ type: string; data: string }>(
        "SELECT type, data FROM events WHERE job = ? AND type = 'state.publish_failed' ORDER BY id",
        job,
      ),
    )

  test("J-020, SS-002, SS-004, GAP-56: a path picks from the outcome, a value is literal; both are there when the job has ended", async () => {
    const publish = {
      best_score: { path: "results.0.score" },
      wrapped: { path: "results.1.result.score" },
      unwrapped: { path: "results.2.score" },
      exact: { path: "results.0.id" },
      deep: { path: "results.1.list.1.name" },
      all: { path: "aggregate_result" },
      status: { path: "status" },
      quality: { path: "summary.quality.mean_quality" },
      counts: { path: "summary.task_outcome_counts.completed" },
      whole: { path: "results" },
      ready: { value: true },
      nothing: { value: null },
      both: { path: "results.0.score", value: null },
    }
    const job = await rig.queued(owner, { ...items(3), state: { publish } })
    const [first, second, third] = await rig.grant(job, 3)
    if (first === undefined || second === undefined || third === undefined) throw new Error("three are granted")
    await rig.start([first, second, third])
    await rig.report(first, { result: { text: '{"score": 0.50, "id": 12345678901234567890}' } })
    await rig.report(second, { result: { text: '{"score": 2, "list": [1, {"name": "x.y"}]}' } })
    await rig.report(third, { result: { text: '{"result": {"score": 3}}' } })
    expect((await get("ready")).status).toBe(404)
    await rig.finish(job)
    const value = async (key: string): Promise<unknown> => (await get(key)).json["value"]
    expect(await value("best_score")).toBe(0.5)
    expect(await value("both")).toBe(0.5)
    expect(await value("wrapped")).toBe(2)
    expect(await value("unwrapped")).toBe(3)
    expect(await value("deep")).toBe("x.y")
    expect((await get("exact")).text).toContain('"value":12345678901234567890,')
    expect(await value("all")).toHaveLength(3)
    expect(await value("whole")).toEqual(await value("all"))
    expect(await value("status")).toBe("completed")
    expect(await value("quality")).toBe(1)
    expect(await value("counts")).toBe(3)
    expect(await value("ready")).toBe(true)
    expect((await get("nothing")).json).toMatchObject({ value: null })
    expect((await get("ready")).json).toMatchObject({ meta: { account: owner, job_id: job.id }, expires_at: null })
    expect(await eventsOf(job.seq)).toEqual([])
  })

  test("SS-004, rulings: a missing path and an oversized value are events, and the rest is published", async () => {
    await put("large", "before")
    const publish = {
      missing: { path: "results.0.score.deeper" },
      outside: { path: "results.7" },
      nowhere: { path: "elsewhere.0" },
      failed: { path: "results.1" },
      large: { path: "results.0.text" },
      literal: { value: "x".repeat(65_535) },
      there: { path: "results.0.score" },
    }
    const job = await rig.queued(owner, { ...items(2), state: { publish } })
    const [done, failed] = await rig.grant(job, 2)
    if (done === undefined || failed === undefined) throw new Error("two are granted")
    await rig.start([done, failed])
    await rig.report(done, { result: { text: JSON.stringify({ score: 4, text: "y".repeat(70_000) }) } })
    await rig.report(failed, { failure_kind: "exit_code", exit_code: 1, result: null })
    await rig.finish(job)
    expect((await rig.row(job)).status).toBe("partial")
    expect((await get("there")).json).toMatchObject({ value: 4 })
    expect((await get("large")).json).toMatchObject({ value: "before" })
    const told = (await eventsOf(job.seq)).map(({ data }) => JSON.parse(data) as { key: string; reason: string })
    expect(told.map(({ key }) => key)).toEqual(["missing", "outside", "nowhere", "failed", "large", "literal"])
    expect(told[4]?.reason).toContain("70002 bytes")
  })

  test("AW-008, SS-002: a path reaches into a result that was spilled", async () => {
    const job = await rig.queued(owner, { state: { publish: { deep: { path: "results.0.deep.value" } } } })
    await rig.runWhole(job, () => ({ pad: "x".repeat(300_000), deep: { value: 7 } }))
    const row = await rig.store.read((view) =>
      view.get<{ result: string | null }>("SELECT result FROM task_results LIMIT 1"),
    )
    expect(row?.result).toBe(null)
    expect((await get("deep")).json).toMatchObject({ value: 7 })
  })

  test("SS-004, rulings: failed and cancelled jobs publish nothing", async () => {
    const state = { publish: { ready: { value: true } } }
    const failing = await rig.queued(owner, { state })
    const [claim] = await rig.grant(failing, 1)
    if (claim === undefined) throw new Error("one is granted")
    await rig.start([claim])
    await rig.report(claim, { failure_kind: "exit_code", exit_code: 1, result: null })
    await rig.finish(failing)
    expect((await rig.row(failing)).status).toBe("failed")
    const cancelled = await rig.queued(owner, { state })
    await rig.cancel(cancelled)
    expect((await get("ready")).status).toBe(404)
  })
})
