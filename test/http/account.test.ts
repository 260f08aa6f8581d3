import { afterAll, beforeAll, expect, test } from "vitest"
import { systemClock } from "../../protocol/base/clock.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import { accountId, claimNumber, jobId, newHoldId, newQuoteId } from "../../protocol/domain/ids.ts"
import { chargeAttempts, placeHold, settleHold } from "../../coordinator/billing/holds.ts"
import { quoteShortfall } from "../../coordinator/billing/quotes.ts"
import { startHttp, type CoordinatorHttp, type Person } from "../support/coordinator-http.ts"

let http: CoordinatorHttp
let alice: Person
let bob: Person

beforeAll(async () => {
  http = await startHttp()
  alice = await http.person()
  bob = await http.person()
})
afterAll(async () => http[Symbol.asyncDispose]())

const credit = (account: number, amount_usd: unknown, more: object = {}) =>
  http.call(http.admin, "POST", `/api/v1/admin/accounts/${account}/credits`, { body: { amount_usd, ...more } })
const balanceOf = async (person: Person) => (await http.call(person.token, "GET", "/api/v1/account/balance")).json
const at = systemClock.now()

test("B-002, B-003, B-004, B-005: credits, holds and settlements add up, step by step", async () => {
  const funded = await credit(alice.account, 10.123456, { description: "welcome" })
  expect(funded.status).toBe(201)
  expect(funded.json["entry"]).toMatchObject({
    type: "credit",
    amount_usd: 10.123456,
    balance_after_usd: 10.123456,
    description: "welcome",
  })
  expect(funded.json["balance"]).toEqual(await balanceOf(alice))

  const job = jobId("job_20260312_143000_abc123")
  const id = newHoldId(systemRandom)
  await http.store.write((tx) =>
    placeHold(tx, { id, account: accountId(alice.account), job, round: 1, amount: 4_000_000n, at }),
  )
  expect(await balanceOf(alice)).toEqual({
    ledger_balance_usd: 10.123456,
    held_usd: 4,
    available_usd: 6.123456,
    active_hold_count: 1,
    open_quote_count: 0,
  })
  const active = await http.call(alice.token, "GET", "/api/v1/account/holds?status=active")
  expect(active.json).toEqual({
    holds: [
      {
        id,
        job_id: job,
        amount_usd: 4,
        status: "active",
        settled_amount_usd: null,
        created_at: new Date(at).toISOString(),
        settled_at: null,
      },
    ],
    count: 1,
    limit: 50,
    offset: 0,
  })

  await http.store.write(async (tx) => {
    await chargeAttempts(tx, [{ claim: claimNumber(7), hold: id, amount: 1_500_000n, milliseconds: 1000, at }])
    await settleHold(tx, id, at)
  })
  expect(await balanceOf(alice)).toMatchObject({ ledger_balance_usd: 8.623456, held_usd: 0, available_usd: 8.623456 })
  expect((await http.call(alice.token, "GET", "/api/v1/account/holds")).get("holds", 0)).toMatchObject({
    status: "settled",
    settled_amount_usd: 1.5,
  })
  const ledger = await http.call(alice.token, "GET", "/api/v1/account/ledger")
  expect(ledger.json["entries"]).toMatchObject([
    { type: "debit", amount_usd: 1.5, balance_after_usd: 8.623456, job_id: job },
    { type: "credit", amount_usd: 10.123456, balance_after_usd: 10.123456 },
  ])
  expect(ledger.get("entries", 1)).not.toHaveProperty("job_id")
  expect((await http.call(http.admin, "GET", "/api/v1/admin/audit")).json["ok"]).toBe(true)
})

test("A-022: another account sees nothing of it; an admin does when it names the account", async () => {
  for (const [path, name] of [
    ["ledger", "entries"],
    ["holds", "holds"],
    ["quotes", "quotes"],
  ]) {
    expect(
      (await http.call(bob.token, "GET", `/api/v1/account/${path}?account_id=${alice.account}`)).json[name ?? ""],
    ).toEqual([])
  }
  const named = await http.call(http.admin, "GET", `/api/v1/account/balance?account_id=${alice.account}`)
  expect(named.json).toEqual(await balanceOf(alice))
  const unnamed = await http.call(http.admin, "GET", "/api/v1/account/balance")
  expect([unnamed.status, unnamed.get("details", 0, "path")]).toEqual([422, "account_id"])
})

test("GAP-07: lists are paged, newest first; limit is cut to 500 and refused below 1", async () => {
  for (let i = 1; i <= 4; i++) await credit(bob.account, i)
  const page = await http.call(bob.token, "GET", "/api/v1/account/ledger?limit=2&offset=1")
  expect(page.json).toMatchObject({ count: 2, limit: 2, offset: 1, entries: [{ amount_usd: 3 }, { amount_usd: 2 }] })
  expect((await http.call(bob.token, "GET", "/api/v1/account/ledger?limit=9999")).json["limit"]).toBe(500)
  for (const query of ["limit=0", "limit=-1", "limit=x", "offset=-1", "offset=1.5", "limit=1&limit=2"]) {
    expect((await http.call(bob.token, "GET", `/api/v1/account/ledger?${query}`)).status).toBe(422)
  }
  expect((await http.call(bob.token, "GET", "/api/v1/account/holds?status=lost")).status).toBe(422)
})

test("B-006: quotes are listed, open ones counted, and expire", async () => {
  const quote = (ms: number) => ({
    id: newQuoteId(systemRandom),
    account: accountId(bob.account),
    amount: 250_000n,
    description: "shortfall of a job",
    at,
    expiresAt: at + ms,
  })
  const open = await http.store.write((tx) => quoteShortfall(tx, quote(600_000)))
  await http.store.write((tx) => quoteShortfall(tx, quote(-1)))
  expect((await balanceOf(bob))["open_quote_count"]).toBe(1)
  const listed = await http.call(bob.token, "GET", "/api/v1/account/quotes")
  expect(listed.json["count"]).toBe(2)
  expect(listed.json["quotes"]).toContainEqual({
    id: open.id,
    kind: "shortfall",
    amount_usd: 0.25,
    status: "open",
    description: "shortfall of a job",
    expires_at: new Date(at + 600_000).toISOString(),
    created_at: new Date(at).toISOString(),
    paid_at: null,
  })
})

test("credits of zero, of too many decimals and of no number are 422; taking back more than is available is 409", async () => {
  for (const amount of [0, 0.0000001, 1.2345678, "5", null, 1e12])
    expect((await credit(bob.account, amount)).status).toBe(422)
  const carol = await http.person()
  await credit(carol.account, 5)
  await http.store.write((tx) =>
    placeHold(tx, {
      id: newHoldId(systemRandom),
      account: accountId(carol.account),
      job: jobId("job_20260312_143000_carol1"),
      round: 1,
      amount: 3_000_000n,
      at,
    }),
  )
  const refused = await credit(carol.account, -2.000001)
  expect([refused.status, refused.json["code"]]).toEqual([409, "held_funds"])
  const taken = await credit(carol.account, -2)
  expect([taken.status, taken.json["entry"]]).toEqual([
    201,
    expect.objectContaining({ type: "debit", amount_usd: 2, balance_after_usd: 3 }),
  ])
})

test("B-009: a malformed top-up is 422; without x402 top-up and pay answer 503", async () => {
  for (const amount_usd of ["abc", 0, -1, 10000.01, undefined]) {
    const refused = await http.call(bob.token, "POST", "/api/v1/account/quotes/topup", { body: { amount_usd } })
    expect(refused.status).toBe(422)
  }
  const topup = await http.call(bob.token, "POST", "/api/v1/account/quotes/topup", {
    body: { amount_usd: 5.0, description: "x" },
  })
  const pay = await http.call(bob.token, "POST", "/api/v1/account/quotes/quote_x/pay/x402")
  for (const refused of [topup, pay])
    expect([refused.status, refused.json["code"]]).toEqual([503, "payments_not_configured"])
})
