import { afterAll, beforeAll, expect, test } from "vitest"
import { startHttp, type CoordinatorHttp, type Person } from "../support/coordinator-http.ts"

let http: CoordinatorHttp
let admin: string
let member: Person
let viewer: Person

beforeAll(async () => {
  http = await startHttp({ signupCredit: 2_500_000n })
  admin = http.admin
  member = await http.person("member")
  viewer = await http.person("viewer", member.account)
})
afterAll(async () => http[Symbol.asyncDispose]())

test("a user is made with an account of its own, or in one that is named; lists have their count", async () => {
  const made = await http.call(admin, "POST", "/api/v1/admin/users", {
    body: { name: "Ada", email: "ada@example.org" },
  })
  expect(made.status).toBe(201)
  expect(made.json).toEqual({
    user: {
      id: expect.any(Number) as number,
      account_id: expect.any(Number) as number,
      name: "Ada",
      email: "ada@example.org",
      role: "member",
      created_at: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/) as string,
    },
  })
  const account = made.get("user", "account_id")
  const second = await http.call(admin, "POST", "/api/v1/admin/users", {
    body: { name: "Bo", role: "viewer", account_id: account },
  })
  expect(second.json["user"]).toMatchObject({ account_id: account, role: "viewer", email: null })
  const all = await http.call(admin, "GET", "/api/v1/admin/users")
  expect((all.json["users"] as unknown[]).length).toBe(all.json["count"])
  expect(all.json["users"]).toContainEqual(made.json["user"])
})

test.each([
  [{}, "name"],
  [{ name: "" }, "name"],
  [{ name: 7 }, "name"],
  [{ name: "a", email: "nobody" }, "email"],
  [{ name: "a", role: "owner" }, "role"],
  [{ name: "a", account_id: "1" }, "account_id"],
])("a user of %j is 422 and names %s", async (body, path) => {
  const refused = await http.call(admin, "POST", "/api/v1/admin/users", { body })
  expect([refused.status, refused.get("details", 0, "path")]).toEqual([422, path])
})

test("an unknown account, user or key is 404", async () => {
  const statuses = [
    await http.call(admin, "POST", "/api/v1/admin/users", { body: { name: "a", account_id: 999_999 } }),
    await http.call(admin, "POST", "/api/v1/admin/users/999999/keys", { body: {} }),
    await http.call(admin, "GET", "/api/v1/admin/users/ada/keys"),
    await http.call(admin, "DELETE", "/api/v1/admin/keys/key_nothing"),
    await http.call(admin, "GET", "/api/v1/admin/accounts/999999"),
    await http.call(admin, "POST", "/api/v1/admin/accounts/999999/credits", { body: { amount_usd: 1 } }),
    await http.call(admin, "GET", "/api/v1/account/ledger?account_id=999999"),
  ].map(({ status }) => status)
  expect(statuses).toEqual(statuses.map(() => 404))
})

test("A-002: a key starts with flk_, is shown once, works for its role, and stops at its revocation at once", async () => {
  const made = await http.call(admin, "POST", `/api/v1/admin/users/${member.user}/keys`, { body: { name: "laptop" } })
  expect(made.status).toBe(201)
  const token = String(made.json["token"])
  expect(token).toMatch(/^flk_/)
  expect(made.json["key"]).toEqual({
    id: expect.any(String) as string,
    name: "laptop",
    role: "member",
    prefix: token.slice(0, 10),
    created_at: expect.any(String) as string,
    expires_at: null,
  })
  expect((await http.call(token, "GET", "/api/v1/account/balance")).status).toBe(200)
  const id = String(made.get("key", "id"))
  const revoked = await http.call(admin, "DELETE", `/api/v1/admin/keys/${id}`)
  expect([revoked.status, revoked.json]).toEqual([200, { status: "revoked", id }])
  expect((await http.call(token, "GET", "/api/v1/account/balance")).status).toBe(401)
  expect((await http.call(admin, "DELETE", `/api/v1/admin/keys/${id}`)).status).toBe(200)
  const all = await http.call(admin, "GET", `/api/v1/admin/users/${member.user}/keys`)
  expect(all.json["count"]).toBe(2)
  expect(all.text).not.toContain(token)
})

test("a key expires, cannot expire in the past, and never stands above its user", async () => {
  const path = `/api/v1/admin/users/${viewer.user}/keys`
  const soon = new Date(Date.now() + 400).toISOString()
  const token = String((await http.call(admin, "POST", path, { body: { expires_at: soon } })).json["token"])
  expect((await http.call(token, "GET", "/api/v1/account/balance")).status).toBe(200)
  await expect.poll(async () => (await http.call(token, "GET", "/api/v1/account/balance")).status).toBe(401)
  for (const body of [
    { expires_at: "2020-01-01T00:00:00Z" },
    { expires_at: "tomorrow" },
    { role: "member" },
    { role: "admin" },
  ]) {
    expect((await http.call(admin, "POST", path, { body })).status).toBe(422)
  }
})

test("A-021, GAP-03: viewers read and nobody but an admin administers", async () => {
  expect((await http.call(viewer.token, "GET", "/api/v1/account/balance")).status).toBe(200)
  const writes = [
    await http.call(viewer.token, "POST", "/api/v1/account/quotes/topup", { body: { amount_usd: 5 } }),
    await http.call(viewer.token, "POST", "/api/v1/account/quotes/quote_x/pay/x402"),
    await http.call(viewer.token, "POST", "/api/v1/admin/users", { body: { name: "x" } }),
    await http.call(viewer.token, "DELETE", `/api/v1/admin/keys/${viewer.key}`),
    await http.call(member.token, "GET", "/api/v1/admin/users"),
    await http.call(member.token, "POST", `/api/v1/admin/accounts/${member.account}/credits`, {
      body: { amount_usd: 5 },
    }),
    await http.call(member.token, "GET", "/api/v1/admin/audit"),
  ]
  expect(writes.map(({ status }) => status)).toEqual(writes.map(() => 403))
})

test("a key of role admin administers as the bootstrap token does", async () => {
  const other = await http.person("admin")
  expect((await http.call(other.token, "GET", "/api/v1/admin/users")).status).toBe(200)
})

test("accounts show their balances flat; the sign-up credit is given once", async () => {
  const one = await http.call(admin, "GET", `/api/v1/admin/accounts/${member.account}`)
  expect(one.json).toEqual({
    account: {
      id: member.account,
      name: "someone",
      created_at: expect.any(String) as string,
      ledger_balance_usd: 2.5,
      held_usd: 0,
      available_usd: 2.5,
      active_hold_count: 0,
      open_quote_count: 0,
    },
  })
  const all = await http.call(admin, "GET", "/api/v1/admin/accounts")
  expect(all.json["accounts"]).toContainEqual(one.json["account"])
  expect((all.json["accounts"] as unknown[]).length).toBe(all.json["count"])
})

test("the audit names its sums and checks, and agrees", async () => {
  const audit = await http.call(admin, "GET", "/api/v1/admin/audit")
  expect([audit.status, audit.json["ok"]]).toEqual([200, true])
  const checks = audit.json["checks"] as { ok: boolean }[]
  expect(checks.length).toBeGreaterThan(3)
  expect(checks.every(({ ok }) => ok)).toBe(true)
})
