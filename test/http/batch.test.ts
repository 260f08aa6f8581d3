import { afterEach, beforeEach, expect, test } from "vitest"
import { silentLog, type Log } from "../../protocol/base/log.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import type { AccountId } from "../../protocol/domain/ids.ts"
import { DEFAULT_PRICES } from "../../coordinator/billing/pricing.ts"
import { mountAccount } from "../../coordinator/http/routes/account.ts"
import { mountBatch } from "../../coordinator/http/routes/batch.ts"
import { mountJobs } from "../../coordinator/http/routes/jobs.ts"
import { submitBatch, type BatchRequest } from "../../coordinator/jobs/submit-batch.ts"
import { fundedAccount } from "../support/accounts.ts"
import { send, startHttpDoor, type HttpDoor, type PlainReply } from "../support/http-door.ts"
import { TEST_TOKENS, testIdentities } from "../support/identities.ts"
import { LEAST_JOB, startJobRig, type JobRig } from "../support/job-rig.ts"

/** The real door over the real store and the real acts; nothing takes the jobs. */

let rig: JobRig
let door: HttpDoor
let alice: AccountId
/** Stands before the act of a batch: a test lets it fail. */
let interrupt: (request: BatchRequest) => Promise<void>
let logged: string[]

beforeEach(async () => {
  rig = await startJobRig()
  alice = await fundedAccount(rig.store, 50_000_000n)
  await rig.project(alice)
  await fundedAccount(rig.store, 50_000_000n)
  door = await startHttpDoor()
  interrupt = async () => {}
  logged = []
  const log: Log = { ...silentLog, error: (event) => void logged.push(event) }
  const parts = {
    ...rig,
    random: systemRandom,
    prices: DEFAULT_PRICES,
    quoteTtlMs: 60_000,
    plan: () => {},
    reserve: () => ({ keep() {}, [Symbol.dispose]() {} }),
  }
  mountBatch(door.app, {
    log,
    async submitBatch(request) {
      await interrupt(request)
      return submitBatch(parts, request)
    },
  })
  const never = (): never => {
    throw new Error("no job is asked why it waits")
  }
  mountJobs(door.app, {
    ...rig,
    queueReasons: {
      job: () => ({ code: "capacity_busy", message: "m", eligible_slots: 0, busy_slots: 0, suggestion: "s" }),
      contactLost: never,
    },
    submit: (request) => rig.submit(request),
    cancel: never,
    ssePingMs: 1_000,
    sseLimitMs: 60_000,
  })
  mountAccount(door.app, rig)
  door.app.open({ store: rig.store, ...testIdentities })
})
afterEach(async () => {
  await door[Symbol.asyncDispose]()
  await rig[Symbol.asyncDispose]()
})

type Row = Record<string, unknown>

const post = (body: unknown, key?: string, token: string = TEST_TOKENS.alice): Promise<PlainReply> =>
  send(door.server.origin, "POST", "/api/v1/jobs/batch", {
    token,
    body,
    ...(key !== undefined && { headers: { "idempotency-key": key } }),
  })
const get = (path: string): Promise<PlainReply> =>
  send(door.server.origin, "GET", `/api/v1${path}`, { token: TEST_TOKENS.alice })
const jobs = (count: number, more: object = {}): object[] =>
  Array.from({ length: count }, (_, n) => ({ ...LEAST_JOB, payload: { n }, ...more }))
const total = async (): Promise<unknown> => (await get("/jobs?limit=1")).get("total")
const rows = (reply: PlainReply, name: "jobs" | "errors"): Row[] => reply.get(name) as Row[]

test("BT-001, BT-003, BT-004: two hundred jobs at once, in their order, each as its submission is answered", async () => {
  const reply = await post({ jobs: jobs(200, { meta: { from: "batch" }, variant: "v", tags: ["t"] }) })
  expect([reply.status, reply.get("submitted"), reply.get("error_count"), reply.get("errors")]).toEqual([
    201,
    200,
    0,
    [],
  ])
  expect(rows(reply, "jobs").map(({ index, payload }) => [index, payload])).toEqual(
    Array.from({ length: 200 }, (_, n) => [n, { n }]),
  )
  const [first] = rows(reply, "jobs")
  expect(first).toMatchObject({
    id: expect.stringMatching(/^job_/) as string,
    status: "queued",
    type: "structured_runner",
    project: "p",
    meta: { from: "batch" },
    variant: "v",
    tags: ["t"],
    warnings: [],
    summary: { billing_estimate: {}, billing_admission: { admitted: true }, billing_hold: { status: "active" } },
  })
  for (const absent of ["request", "output", "feedback_summary"]) expect(first).not.toHaveProperty(absent)
  expect(new Set(rows(reply, "jobs").map(({ id }) => id)).size).toBe(200)
  // What one of them was sent stands in it as it was written.
  const shown = await get(`/jobs/${String(first?.["id"])}`)
  expect(shown.get("request")).toMatchObject({ ...LEAST_JOB, payload: { n: 0 } })
  expect(await total()).toBe(200)
})

test("BT-001, GAP-41: more than two hundred, none, and what is no list are refused, and nothing is created", async () => {
  for (const body of [{ jobs: jobs(201) }, { jobs: [] }, { jobs: {} }, { jobs: null }, {}, { jobs: "x" }]) {
    const reply = await post(body)
    expect([reply.status, reply.get("details", 0, "path")]).toEqual([422, "jobs"])
  }
  expect(await total()).toBe(0)
})

test("BT-002, BT-003, BT-005: what is wrong with some leaves the others be; errors name their place and the next step", async () => {
  const [first, last] = jobs(2)
  const reply = await post({
    jobs: [
      first,
      { ...LEAST_JOB, priority: "urgent" },
      null,
      ["x"],
      { ...LEAST_JOB, project: "unknown" },
      { ...LEAST_JOB, runner_command: ["bash", "x"] },
      { ...LEAST_JOB, type: "sweep", rank_by: "a", parameters: { a: [1, 2] } },
      last,
    ],
  })
  expect([reply.status, reply.get("submitted"), reply.get("error_count")]).toEqual([207, 3, 5])
  expect(rows(reply, "jobs").map(({ index }) => index)).toEqual([0, 6, 7])
  expect(rows(reply, "errors")).toMatchObject([
    { index: 1, status: 422, code: "invalid_request", details: [{ path: "priority" }] },
    { index: 2, status: 422, error: "the body: must be a JSON object" },
    { index: 3, status: 422 },
    { index: 4, status: 404, code: "not_found" },
    { index: 5, status: 422, code: "command_not_allowed" },
  ])
  for (const error of rows(reply, "errors")) expect(error["recommended_action"]).toEqual(expect.any(String))
  expect(await total()).toBe(3)
  expect(logged).toEqual([])
})

test("GAP-41: all refused is 207 with nothing submitted", async () => {
  const reply = await post({ jobs: [{}, 5] })
  expect([reply.status, reply.get("submitted"), reply.get("error_count")]).toEqual([207, 0, 2])
})

test("BT-005, rulings: the account's money goes to the first ones; the others get a quote each", async () => {
  const dear = { timeout_s: 604_800, requirements: { cpu: 64, memory_mb: 1024 } }
  const alone = await send(door.server.origin, "POST", "/api/v1/jobs", {
    token: TEST_TOKENS.alice,
    body: { ...LEAST_JOB, ...dear, requirements: { cpu: 640 } },
  })
  expect(alone.status).toBe(402)
  const [cheap] = jobs(1)
  const costly = { ...LEAST_JOB, timeout_s: 200_000, requirements: { cpu: 64 } }
  const reply = await post({ jobs: [costly, costly, cheap, costly] })
  expect(reply.status).toBe(207)
  // The first one takes most of the money; what is left still buys a cheap one.
  expect(rows(reply, "jobs").map(({ index }) => index)).toEqual([0, 2])
  expect(rows(reply, "errors").map(({ index }) => index)).toEqual([1, 3])
  for (const error of rows(reply, "errors")) {
    expect(error).toMatchObject({
      status: 402,
      code: "insufficient_funds",
      quote: { id: expect.any(String) as string, status: "open" },
      pay: { method: "POST", path: expect.stringContaining("/pay/x402") as string },
    })
  }
  expect((await get("/account/balance")).get("open_quote_count")).toBe(3)
})

test("BT-005, V-001: who asks for guaranteed capacity is not overtaken by those behind him while it is looked for", async () => {
  const costly = { ...LEAST_JOB, timeout_s: 200_000, requirements: { cpu: 64 } }
  const guaranteed = { ...costly, reservation: { mode: "guaranteed", parallelism: 1, guaranteed_for_s: 60 } }
  const reply = await post({ jobs: [...jobs(2), guaranteed, costly, ...jobs(1)] })
  expect(rows(reply, "jobs").map(({ index }) => index)).toEqual([0, 1, 2, 4])
  expect(rows(reply, "errors")).toMatchObject([{ index: 3, status: 402 }])
})

test("GAP-69: the same key and body give the first answer again; another body is refused", async () => {
  const sent = { jobs: [...jobs(2), { ...LEAST_JOB, project: "unknown" }] }
  const first = await post(sent, "k")
  const again = await post(sent, "k")
  expect([first.status, again.status, again.headers["idempotent-replayed"]]).toEqual([207, 207, "true"])
  expect(again.text).toBe(first.text)
  expect(await total()).toBe(2)
  expect((await post({ jobs: jobs(1) }, "k")).status).toBe(422)
  expect(await total()).toBe(2)
  // Nobody else has used the key.
  expect((await post(sent, "k", TEST_TOKENS.bob)).get("submitted")).toBe(0)
})

test("GAP-41, GAP-69: a batch that was interrupted goes on where it stopped, and makes no job twice", async () => {
  const sent = { jobs: jobs(60) }
  const parts = {
    ...rig,
    random: systemRandom,
    prices: DEFAULT_PRICES,
    quoteTtlMs: 60_000,
    plan: () => {},
    reserve: () => ({ keep() {}, [Symbol.dispose]() {} }),
  }
  // Forty were made, and then the coordinator fell over.
  interrupt = async (request) => {
    await submitBatch(parts, { ...request, elements: request.elements.slice(0, 40) })
    throw new Error("interrupted")
  }
  expect((await post(sent, "k")).status).toBe(500)
  expect(await total()).toBe(40)
  interrupt = async () => {}
  expect((await post({ jobs: jobs(61) }, "k")).status).toBe(422)
  const whole = await post(sent, "k")
  expect([whole.status, whole.get("submitted")]).toEqual([201, 60])
  expect(rows(whole, "jobs").map(({ payload }) => payload)).toEqual(Array.from({ length: 60 }, (_, n) => ({ n })))
  expect(await total()).toBe(60)
  expect((await post(sent, "k")).text).toBe(whole.text)
})

test("what may pass by itself is tried again under the same key", async () => {
  const sent = { jobs: jobs(3) }
  interrupt = async ({ elements }) => {
    const second = elements[1]
    if (second) {
      Object.assign(second, {
        async also() {
          throw new Error("a fault of our own")
        },
      })
    }
  }
  const first = await post(sent, "k")
  expect([first.status, first.get("submitted")]).toEqual([207, 2])
  expect(rows(first, "errors")).toMatchObject([{ index: 1, status: 500, code: "internal" }])
  expect(first.text).not.toContain("a fault of our own")
  expect(logged).toEqual(["batch element failed"])
  interrupt = async () => {}
  const second = await post(sent, "k")
  expect([second.status, second.get("submitted")]).toEqual([201, 3])
  expect(rows(second, "jobs")[0]?.["id"]).toBe(rows(first, "jobs")[0]?.["id"])
  expect(await total()).toBe(3)
})

test("A-021: viewers submit no batch", async () => {
  expect((await post({ jobs: jobs(1) }, undefined, TEST_TOKENS.viewer)).status).toBe(403)
})
