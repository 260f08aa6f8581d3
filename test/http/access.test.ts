import { afterEach, beforeEach, expect, test } from "vitest"
import { systemClock, type Clock } from "../../protocol/base/clock.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import { creditSignup } from "../../coordinator/billing/ledger.ts"
import { mountAccess } from "../../coordinator/http/routes/access.ts"
import { mountFeedback } from "../../coordinator/http/routes/feedback.ts"
import { mountPresets } from "../../coordinator/http/routes/presets.ts"
import { startHttp, type CoordinatorHttp } from "../support/coordinator-http.ts"
import type { PlainReply } from "../support/http-door.ts"

/** What people without a key may send, and what administrators make of it. */

let http: CoordinatorHttp
let aheadMs = 0
const clock: Clock = {
  ...systemClock,
  now: () => systemClock.now() + aheadMs,
  monotonicMs: () => systemClock.monotonicMs() + aheadMs,
}

beforeEach(async () => {
  aheadMs = 0
  http = await startHttp({
    clock,
    trustProxy: ["127.0.0.1"],
    mountMore(app, store) {
      const parts = { store, clock, random: systemRandom }
      mountFeedback(app, parts)
      mountAccess(app, { ...parts, welcome: (tx, account, at) => creditSignup(tx, account, 1_500_000n, at) })
      mountPresets(app)
    },
  })
})
afterEach(async () => http[Symbol.asyncDispose]())

const BUG = { type: "bug", title: "Brief summary", description: "What happened, what you expected" }

/** From a client behind the trusted proxy; without an address from this machine itself. */
const post = (path: string, body: unknown, from?: string): Promise<PlainReply> =>
  http.call(undefined, "POST", path, { body, ...(from !== undefined && { headers: { "x-forwarded-for": from } }) })
const feedback = (body: unknown, from?: string): Promise<PlainReply> => post("/api/v1/feedback", body, from)
const waitlist = (body: unknown, from?: string): Promise<PlainReply> => post("/api/v1/waitlist", body, from)
const admin = (method: string, path: string, body?: unknown): Promise<PlainReply> =>
  http.call(http.admin, method, path, body === undefined ? {} : { body })

async function times(count: number, send: () => Promise<PlainReply>): Promise<number[]> {
  const statuses: number[] = []
  for (let n = 0; n < count; n++) statuses.push((await send()).status)
  return [...new Set(statuses)]
}

test("F-001, GAP-66: anybody sends feedback; administrators read it, newest first", async () => {
  const first = await feedback(BUG)
  expect([first.status, first.json]).toEqual([
    201,
    { id: expect.stringMatching(/^feedback_/) as string, status: "received" },
  ])
  const whole = {
    type: "job_type_request",
    title: "Ünï",
    description: "d",
    job_id: "no_such_job",
    metadata: { a: [1] },
  }
  expect((await feedback(whole)).status).toBe(201)
  const list = await admin("GET", "/api/v1/admin/feedback")
  expect(list.json).toMatchObject({
    count: 2,
    total: 2,
    feedback: [whole, { ...BUG, id: first.get("id"), job_id: null, metadata: null }],
  })
  expect((await admin("GET", "/api/v1/admin/feedback?limit=1&offset=1")).get("feedback", 0, "id")).toBe(first.get("id"))
  const member = await http.person()
  expect((await http.call(member.token, "GET", "/api/v1/admin/feedback")).status).toBe(403)
})

test.each([
  [{ ...BUG, type: "praise" }, "type"],
  [{ ...BUG, type: undefined }, "type"],
  [{ ...BUG, title: undefined }, "title"],
  [{ ...BUG, title: " " }, "title"],
  [{ ...BUG, title: "x".repeat(201) }, "title"],
  [{ ...BUG, description: null }, "description"],
  [{ ...BUG, description: "x".repeat(10_001) }, "description"],
  [{ ...BUG, metadata: [] }, "metadata"],
  [{ ...BUG, metadata: { text: "x".repeat(20_000) } }, "metadata"],
  [{ ...BUG, job_id: 5 }, "job_id"],
])("F-002, GAP-66: feedback %j is 422 and names its field", async (body, path) => {
  const refused = await feedback(body)
  expect([refused.status, refused.get("details", 0, "path")]).toEqual([422, path])
  expect((await admin("GET", "/api/v1/admin/feedback")).get("total")).toBe(0)
})

test("F-002: the longest title and description are taken, and each of the four types", async () => {
  for (const type of ["bug", "feature_request", "provisioning", "job_type_request"]) {
    const sent = { type, title: "x".repeat(200), description: "x".repeat(10_000) }
    expect((await feedback(sent)).status).toBe(201)
  }
})

test("rulings, Feedback: sixty in ten minutes from one address, then 429 with Retry-After; loopback is exempt", async () => {
  expect(await times(60, () => feedback(BUG, "203.0.113.7"))).toEqual([201])
  const refused = await feedback(BUG, "203.0.113.7")
  expect([refused.status, refused.get("code")]).toEqual([429, "too_many_requests"])
  const waitS = Number(refused.headers["retry-after"])
  expect(waitS).toBeGreaterThan(500)
  expect(waitS).toBeLessThanOrEqual(600)
  expect((await feedback(BUG, "203.0.113.8")).status).toBe(201)
  expect(await times(70, () => feedback(BUG))).toEqual([201])
  aheadMs += waitS * 1000
  expect((await feedback(BUG, "203.0.113.7")).status).toBe(201)
})

test("an IPv6 site counts as one, and a forged hop is not believed", async () => {
  let n = 0
  expect(await times(60, () => feedback(BUG, `2001:db8:0:1::${(++n).toString(16)}`))).toEqual([201])
  expect((await feedback(BUG, "2001:db8:0:1:ffff::1")).status).toBe(429)
  expect((await feedback(BUG, "2001:db8:0:2::1")).status).toBe(201)
  // Only the proxy's own word counts: it stands last.
  expect((await feedback(BUG, "198.51.100.1, 2001:db8:0:1::9")).status).toBe(429)
})

test("all addresses together have a limit too", async () => {
  let n = 0
  expect(await times(1000, () => feedback(BUG, `10.${Math.floor(++n / 250)}.0.${n % 250}`))).toEqual([201])
  const refused = await feedback(BUG, "192.0.2.1")
  expect([refused.status, refused.get("error")]).toEqual([429, expect.stringContaining("everybody")])
  aheadMs += 10 * 60 * 1000
  expect((await feedback(BUG, "192.0.2.1")).status).toBe(201)
}, 60_000)

test("without a trusted proxy X-Forwarded-For says nothing", async () => {
  await http[Symbol.asyncDispose]()
  http = await startHttp({
    clock,
    mountMore: (app, store) => mountFeedback(app, { store, clock, random: systemRandom }),
  })
  expect(await times(61, () => feedback(BUG, "203.0.113.7"))).toEqual([201])
})

test("rulings, Waitlist: an address is noted once, by JSON or by a plain form, and the answer is the same on repeat", async () => {
  const received = [201, { status: "received" }]
  const json = await waitlist({ email: "Ada@Example.org", note: "hello" })
  expect([json.status, json.json]).toEqual(received)
  const form = await http.call(undefined, "POST", "/api/v1/waitlist", {
    body: "email=ada%40example.org&wallet_address=&note=a+form",
    headers: { "content-type": "application/x-www-form-urlencoded" },
  })
  expect([form.status, form.json]).toEqual(received)
  // `curl -d` calls its JSON a form.
  const curl = await http.call(undefined, "POST", "/api/v1/waitlist", {
    body: '{"wallet_address":"0xABCDEFabcdef0123456789ABCDEFabcdef012345"}',
    headers: { "content-type": "application/x-www-form-urlencoded" },
  })
  expect([curl.status, curl.json]).toEqual(received)
  const list = await admin("GET", "/api/v1/admin/waitlist")
  expect(list.json).toMatchObject({
    count: 2,
    total: 2,
    waitlist: [
      { email: null, wallet_address: "0xabcdefabcdef0123456789abcdefabcdef012345", status: "waiting" },
      { email: "ada@example.org", wallet_address: null, note: "hello", status: "waiting", approved_at: null },
    ],
  })
})

test("rulings, Waitlist: neither address, or a wrong one, is 422", async () => {
  for (const body of [{}, { note: "let me in" }, { email: null }]) {
    const refused = await waitlist(body)
    expect([refused.status, refused.get("details", 0, "path")]).toEqual([422, "email"])
  }
  expect((await waitlist({ email: "nobody" })).get("details", 0, "path")).toBe("email")
  expect((await waitlist({ wallet_address: "0x12" })).get("details", 0, "path")).toBe("wallet_address")
  const empty = await http.call(undefined, "POST", "/api/v1/waitlist", {
    body: "email=&wallet_address=",
    headers: { "content-type": "application/x-www-form-urlencoded" },
  })
  expect(empty.status).toBe(422)
  expect((await admin("GET", "/api/v1/admin/waitlist")).get("total")).toBe(0)
})

test("the waitlist takes no more than can be looked through: 429, and nobody who waits is forgotten", async () => {
  await http.store.write((tx) =>
    tx.run(
      `WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 20000)
       INSERT INTO waitlist (id, email, created_at) SELECT 'waiting_' || n, n || '@example.org', 0 FROM n`,
    ),
  )
  const refused = await waitlist({ email: "late@example.org" })
  expect([refused.status, refused.get("code"), refused.get("recommended_action")]).toEqual([
    429,
    "too_many_requests",
    expect.stringContaining("administrator"),
  ])
  const first = (await admin("GET", "/api/v1/admin/waitlist?limit=1&offset=19999")).get("waitlist", 0, "email")
  expect(first).toBe("1@example.org")
  await http.store.write((tx) => tx.run("UPDATE waitlist SET approved_at = 1 WHERE seq = 1"))
  expect((await waitlist({ email: "late@example.org" })).status).toBe(201)
})

test("rulings, Waitlist: limited like feedback, and loopback is not exempt", async () => {
  expect(await times(60, () => waitlist({ email: "a@example.org" }))).toEqual([201])
  const refused = await waitlist({ email: "a@example.org" })
  expect([refused.status, Number(refused.headers["retry-after"]) > 0]).toEqual([429, true])
})

test("rulings, Admin lists: approving an e-mail address makes an account, a member and a key, shown once", async () => {
  await waitlist({ email: "ada@example.org", note: "hello" })
  const id = String((await admin("GET", "/api/v1/admin/waitlist")).get("waitlist", 0, "id"))
  const approved = await admin("POST", `/api/v1/admin/waitlist/${id}/approve`)
  expect(approved.status).toBe(200)
  expect(approved.json).toMatchObject({
    entry: { id, status: "approved", email: "ada@example.org" },
    user: { email: "ada@example.org", role: "member" },
    key: { role: "member" },
    token: expect.stringMatching(/^flk_/) as string,
  })
  const token = String(approved.get("token"))
  const balance = await http.call(token, "GET", "/api/v1/account/balance")
  expect([balance.status, balance.get("available_usd")]).toEqual([200, 1.5])
  const again = await admin("POST", `/api/v1/admin/waitlist/${id}/approve`)
  expect([again.status, again.get("token"), again.get("key")]).toEqual([200, null, approved.get("key")])
  expect((await admin("GET", "/api/v1/admin/users")).get("count")).toBe(1)
  expect((await admin("GET", "/api/v1/admin/waitlist")).get("waitlist", 0, "approved_at")).toEqual(expect.any(String))
  expect((await admin("POST", "/api/v1/admin/waitlist/waiting_nothing/approve")).status).toBe(404)
  const member = await http.person()
  expect((await http.call(member.token, "POST", `/api/v1/admin/waitlist/${id}/approve`)).status).toBe(403)
})

test("a wallet on the waitlist is refused as not available yet, and stays there", async () => {
  await waitlist({ wallet_address: "0xabcdefabcdef0123456789abcdefabcdef012345" })
  const id = String((await admin("GET", "/api/v1/admin/waitlist")).get("waitlist", 0, "id"))
  const refused = await admin("POST", `/api/v1/admin/waitlist/${id}/approve`)
  expect([refused.status, refused.get("code")]).toEqual([422, "not_available_yet"])
  expect((await admin("GET", "/api/v1/admin/waitlist")).get("waitlist", 0, "status")).toBe("waiting")
})

test("A-005, A-007: registration is open to nobody, whatever is sent, and says where to go instead", async () => {
  for (const body of [{}, { name: "Ada", email: "ada@example.org" }, "no JSON at all"]) {
    const refused = await post("/api/v1/auth/register", body)
    expect(refused.status).toBe(403)
    expect(refused.json).toMatchObject({
      error: expect.any(String) as string,
      code: "registration_closed",
      recommended_action: expect.stringContaining("waitlist") as string,
      details: { waitlist: { path: "/api/v1/waitlist" } },
    })
  }
})

test("PS-001, GAP-44, A-006: presets name common shapes; they need a key", async () => {
  expect((await http.call(undefined, "GET", "/api/v1/presets")).status).toBe(401)
  const viewer = await http.person("viewer")
  const list = await http.call(viewer.token, "GET", "/api/v1/presets")
  expect(list.status).toBe(200)
  const presets = list.get("presets") as Record<string, Record<string, unknown>>[]
  expect(list.get("count")).toBe(presets.length)
  const shapes = presets.map(({ requirements }) => requirements)
  expect(shapes.filter((need) => need?.["profile"] === "cpu").length).toBeGreaterThanOrEqual(2)
  expect(shapes.some((need) => need?.["gpu_count"] === 1)).toBe(true)
  expect(shapes.some((need) => Number(need?.["gpu_count"]) > 1)).toBe(true)
  expect(new Set(presets.map(({ name }) => name)).size).toBe(presets.length)
  for (const { reservation } of presets) expect(reservation).toEqual({ mode: "best_effort" })
})
