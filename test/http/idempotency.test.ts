import { afterAll, beforeAll, expect, test } from "vitest"
import { z } from "zod"
import { endpoint } from "../../protocol/api/endpoint.ts"
import { systemClock, type Clock } from "../../protocol/base/clock.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import { newQuoteId } from "../../protocol/domain/ids.ts"
import { insufficientFunds, missingFunds } from "../../coordinator/billing/shortfall.ts"
import { quoteShortfall } from "../../coordinator/billing/quotes.ts"
import { mount, type HttpApp } from "../../coordinator/http/app.ts"
import { createIdempotencyKeys } from "../../coordinator/http/idempotency.ts"
import type { Store } from "../../coordinator/store/store.ts"
import { startHttp, type CoordinatorHttp, type Person } from "../support/coordinator-http.ts"

/** Stands for submit: costs three dollars, 402 with a stored quote when they are not there. */
const buy = endpoint({
  id: "test-buy",
  method: "POST",
  path: "/api/v1/test/buy",
  access: "member",
  summary: "Buys for three dollars.",
  creates: true,
  body: z.object({ what: z.string().optional() }),
  status: 201,
  reply: z.object({ bought: z.int() }),
})
const slow = endpoint({
  id: "test-slow",
  method: "POST",
  path: "/api/v1/test/slow",
  access: "member",
  summary: "Takes until it is let go.",
  creates: true,
  body: z.object({}),
  status: 201,
  reply: z.object({ run: z.int() }),
})
const upload = endpoint({
  id: "test-raw",
  method: "POST",
  path: "/api/v1/test/raw",
  access: "member",
  summary: "Counts bytes.",
  creates: true,
  rawBody: { limitBytes: 1000, contentType: "application/octet-stream" },
  status: 201,
  reply: z.object({ bytes: z.int(), run: z.int() }),
})

let http: CoordinatorHttp
let alice: Person
let bob: Person
let slowRuns = 0
let uploads = 0
let bought = 0
let letGo = (): void => {}
let timeShift = 0
const clock: Clock = { ...systemClock, now: () => systemClock.now() + timeShift }

function mountTests(app: HttpApp, store: Store): void {
  mount(app, buy, async (request) => {
    const now = clock.now()
    const id = newQuoteId(systemRandom)
    const account = request.account()
    const short = await store.write(async (tx) => {
      const shortfall = await missingFunds(tx, account, 3_000_000n)
      if (shortfall === null) return null
      const quote = { id, account, amount: shortfall.missing, description: "test", at: now, expiresAt: now + 60_000 }
      return { shortfall, quote: await quoteShortfall(tx, quote, request.idempotency.earlierQuote) }
    })
    if (short !== null) throw insufficientFunds(short.shortfall, short.quote, now)
    return { bought: ++bought }
  })
  mount(app, slow, async () => {
    await new Promise<void>((resolve) => (letGo = resolve))
    return { run: ++slowRuns }
  })
  mount(app, upload, async (request) => {
    let bytes = 0
    for await (const chunk of request.openBody()) bytes += (chunk as Buffer).length
    return { bytes, run: ++uploads }
  })
}

beforeAll(async () => {
  http = await startHttp({ clock, mountMore: mountTests })
  alice = await http.person()
  bob = await http.person()
})
afterAll(async () => http[Symbol.asyncDispose]())

const post = (token: string, path: string, key: string, body: unknown) =>
  http.call(token, "POST", path, { body, headers: { "idempotency-key": key } })
const userCount = async () => (await http.call(http.admin, "GET", "/api/v1/admin/users")).json["count"] as number

test("GAP-69: the same key and body give the first answer again, and nothing new is made", async () => {
  const before = await userCount()
  const first = await post(http.admin, "/api/v1/admin/users", "k1", { name: "Ada" })
  const again = await post(http.admin, "/api/v1/admin/users", "k1", { name: "Ada" })
  expect([first.status, again.status, again.text]).toEqual([201, 201, first.text])
  expect([first.headers["idempotent-replayed"], again.headers["idempotent-replayed"]]).toEqual([undefined, "true"])
  expect(await userCount()).toBe(before + 1)
})

test("GAP-69: ten at once make one; the others are in flight or get the first answer", async () => {
  const before = await userCount()
  const all = await Promise.all(
    Array.from({ length: 10 }, () => post(http.admin, "/api/v1/admin/users", "k2", { name: "Bo" })),
  )
  for (const reply of all) expect([201, 409]).toContain(reply.status)
  const made = all.filter(({ status }) => status === 201)
  expect(new Set(made.map(({ text }) => text)).size).toBe(1)
  expect(await userCount()).toBe(before + 1)
})

test("GAP-69: while the first is at work a second is 409; afterwards it gets the answer", async () => {
  const first = post(alice.token, "/api/v1/test/slow", "k3", {})
  await expect
    .poll(async () => (await post(alice.token, "/api/v1/test/slow", "k3", {})).json["code"])
    .toBe("request_in_flight")
  letGo()
  expect((await first).json).toEqual({ run: 1 })
  expect((await post(alice.token, "/api/v1/test/slow", "k3", {})).json).toEqual({ run: 1 })
})

test("GAP-69: a key stands for one body and path; over 255 characters and empty ones are refused", async () => {
  await post(http.admin, "/api/v1/admin/users", "k4", { name: "Cy" })
  const otherBody = await post(http.admin, "/api/v1/admin/users", "k4", { name: "Di" })
  const otherPath = await post(http.admin, `/api/v1/admin/users/${alice.user}/keys`, "k4", { name: "Cy" })
  for (const refused of [otherBody, otherPath])
    expect([refused.status, refused.json["code"]]).toEqual([422, "idempotency_key_reused"])
  expect((await post(http.admin, "/api/v1/admin/users", "x".repeat(255), { name: "Ed" })).status).toBe(201)
  expect((await post(http.admin, "/api/v1/admin/users", "x".repeat(256), { name: "Ed" })).status).toBe(422)
  expect((await post(http.admin, "/api/v1/admin/users", "", { name: "Ed" })).status).toBe(422)
})

test("keys of two accounts are apart; administrators share the deployment's", async () => {
  await post(http.admin, `/api/v1/admin/accounts/${alice.account}/credits`, "k5", { amount_usd: 3 })
  await post(http.admin, `/api/v1/admin/accounts/${bob.account}/credits`, "k5b", { amount_usd: 3 })
  const one = await post(alice.token, "/api/v1/test/buy", "k5", {})
  const two = await post(bob.token, "/api/v1/test/buy", "k5", {})
  expect(one.json["bought"]).not.toBe(two.json["bought"])
  const admin = await http.person("admin")
  expect(
    (await post(admin.token, `/api/v1/admin/accounts/${alice.account}/credits`, "k5", { amount_usd: 3 })).headers[
      "idempotent-replayed"
    ],
  ).toBe("true")
})

test("a repeated creation of a secret gives the same id and no secret", async () => {
  const path = `/api/v1/admin/users/${alice.user}/keys`
  const first = await post(http.admin, path, "k6", {})
  const again = await post(http.admin, path, "k6", {})
  expect(first.json["token"]).toMatch(/^flk_/)
  expect(again.json).toEqual({ key: first.json["key"], token: null })
})

test("refusals do not use a key up", async () => {
  expect((await post(http.admin, "/api/v1/admin/users", "k7", { name: "" })).status).toBe(422)
  expect((await post(http.admin, "/api/v1/admin/users", "k7", { name: "Flo" })).status).toBe(201)
})

test("a 402 keeps its quote under the key until the money is there; then one thing is made", async () => {
  const carol = await http.person()
  const first = await post(carol.token, "/api/v1/test/buy", "k8", { what: "x" })
  const again = await post(carol.token, "/api/v1/test/buy", "k8", { what: "x" })
  expect([first.status, again.status]).toEqual([402, 402])
  expect(again.get("quote", "id")).toBe(first.get("quote", "id"))
  expect((await post(carol.token, "/api/v1/test/buy", "k8", { what: "y" })).json["code"]).toBe("idempotency_key_reused")
  const listed = await http.call(carol.token, "GET", "/api/v1/account/quotes")
  expect(listed.json["count"]).toBe(1)
  await http.call(http.admin, "POST", `/api/v1/admin/accounts/${carol.account}/credits`, { body: { amount_usd: 3 } })
  const made = await post(carol.token, "/api/v1/test/buy", "k8", { what: "x" })
  const repeated = await post(carol.token, "/api/v1/test/buy", "k8", { what: "x" })
  expect([made.status, repeated.status, repeated.text]).toEqual([201, 201, made.text])
})

test("raw bodies count too: same bytes, first answer; other bytes, refused", async () => {
  const first = await post(alice.token, "/api/v1/test/raw", "k9", "abc")
  expect(first.json).toEqual({ bytes: 3, run: 1 })
  expect((await post(alice.token, "/api/v1/test/raw", "k9", "abc")).json).toEqual({ bytes: 3, run: 1 })
  expect((await post(alice.token, "/api/v1/test/raw", "k9", "abd")).json["code"]).toBe("idempotency_key_reused")
})

test("after a crash nothing is in flight, and what was stored is known", async () => {
  const caller = { role: "member", account: null, user: null, key: "bootstrap" } as const
  const request = (body: string) => ({ line: "POST /x", bodyDigest: async () => body, toJson: JSON.stringify })
  const before = createIdempotencyKeys({ store: http.store, clock })
  const done = await before.take(caller, "done", request("a"))
  if (done.kind === "taken") await done.held.storeReply({ status: 201, body: { id: 1 } })
  expect((await before.take(caller, "cut", request("a"))).kind).toBe("taken")
  const restarted = createIdempotencyKeys({ store: http.store, clock })
  expect(await restarted.take(caller, "done", request("a"))).toEqual({
    kind: "answered",
    status: 201,
    bodyJson: '{"id":1}',
  })
  expect((await restarted.take(caller, "cut", request("a"))).kind).toBe("taken")
})

test("two answers under one key cannot be stored: the second act fails whole", async () => {
  const caller = { role: "member", account: null, user: null, key: "bootstrap" } as const
  const request = { line: "POST /x", bodyDigest: async () => "a", toJson: JSON.stringify }
  const [one, two] = [
    createIdempotencyKeys({ store: http.store, clock }),
    createIdempotencyKeys({ store: http.store, clock }),
  ]
  const takes = [await one.take(caller, "twice", request), await two.take(caller, "twice", request)]
  const [first, second] = takes.map((take) => (take.kind === "taken" ? take.held : null))
  await first?.storeReply({ status: 201, body: 1 })
  await expect(second?.storeReply({ status: 201, body: 2 })).rejects.toMatchObject({ code: "request_in_flight" })
})

test("keys are kept a day and then swept", async () => {
  const keys = createIdempotencyKeys({ store: http.store, clock })
  await post(http.admin, "/api/v1/admin/users", "old", { name: "Gus" })
  timeShift = 24 * 3_600_000 - 60_000
  await keys.sweep()
  expect((await post(http.admin, "/api/v1/admin/users", "old", { name: "Gus" })).headers["idempotent-replayed"]).toBe(
    "true",
  )
  timeShift = 24 * 3_600_000 + 60_000
  expect(await keys.sweep()).toBeGreaterThan(0)
  expect(
    (await post(http.admin, "/api/v1/admin/users", "old", { name: "Gus" })).headers["idempotent-replayed"],
  ).toBeUndefined()
  timeShift = 0
})
