import { expect, test } from "vitest"
import { auditMoney } from "../../coordinator/billing/audit.ts"
import {
  chargeAttempts,
  chargesOf,
  getHold,
  holdsOfJob,
  listHolds,
  placeHold,
  settleHold,
  type Hold,
  type Placement,
} from "../../coordinator/billing/holds.ts"
import {
  adjustCredit,
  creditSignup,
  getAccountBalance,
  listAccountBalances,
  listLedger,
  readBalance,
} from "../../coordinator/billing/ledger.ts"
import { listQuotes, quoteBody, quoteShortfall, quoteStatus, quoteTopup } from "../../coordinator/billing/quotes.ts"
import { insufficientFunds, missingFunds } from "../../coordinator/billing/shortfall.ts"
import type { Store } from "../../coordinator/store/store.ts"
import { assert } from "../../protocol/base/assert.ts"
import { systemClock } from "../../protocol/base/clock.ts"
import {
  accountId,
  claimNumber,
  holdId,
  jobId,
  quoteId,
  type AccountId,
  type HoldId,
} from "../../protocol/domain/ids.ts"
import { fundedAccount } from "../support/accounts.ts"
import { openTestStore } from "../support/store.ts"

const PAGE = { limit: 50, offset: 0 }
const JOB = jobId("job_20260101_000000_aaaaaa")

const place = (store: Store, account: AccountId, amount: bigint, round = 1): Promise<Placement> =>
  store.write((tx) => placeHold(tx, { id: holdId(`hold_${round}`), account, job: JOB, round, amount, at: 5 }))

async function placed(store: Store, account: AccountId, amount: bigint, round = 1): Promise<HoldId> {
  const placement = await place(store, account, amount, round)
  assert(placement.placed, "the hold is covered")
  return placement.hold.id
}

const charge = (store: Store, hold: HoldId, ...charges: [claim: number, amount: bigint][]) =>
  store.write((tx) =>
    chargeAttempts(
      tx,
      charges.map(([claim, amount]) => ({ claim: claimNumber(claim), hold, amount, milliseconds: 10, at: 6 })),
    ),
  )

const settle = (store: Store, hold: HoldId, at = 7): Promise<Hold> => store.write((tx) => settleHold(tx, hold, at))

const sums = async (store: Store, account: AccountId): Promise<bigint[]> => {
  const { ledger, held, available } = await store.read((view) => readBalance(view, account, 10))
  return [ledger, held, available]
}

const expectSound = async (store: Store): Promise<void> => {
  const audit = await auditMoney(store)
  expect(audit.checks.filter(({ ok }) => !ok)).toEqual([])
  expect(audit.ok).toBe(true)
}

test("B-003, B-015: a hold lowers what is available, its settlement debits what was charged and gives the rest back", async () => {
  await using store = await openTestStore()
  const account = await fundedAccount(store, 1_000n)
  const hold = await placed(store, account, 600n)
  expect(await sums(store, account)).toEqual([1_000n, 600n, 400n])
  await charge(store, hold, [1, 100n], [2, 50n])
  expect(await sums(store, account)).toEqual([1_000n, 600n, 400n])
  await expectSound(store)
  expect(await settle(store, hold)).toMatchObject({
    status: "settled",
    settledAmount: 150n,
    settledAt: 7,
    charged: 150n,
  })
  expect(await sums(store, account)).toEqual([850n, 0n, 850n])
  expect(await listLedger(store, account, PAGE)).toMatchObject([
    { type: "debit", reason: "usage", amount: 150n, balanceAfter: 850n, job: JOB },
    { type: "credit", reason: "signup", amount: 1_000n, balanceAfter: 1_000n, job: null },
  ])
  await expectSound(store)
})

test("settling twice gives the first settlement again and debits once", async () => {
  await using store = await openTestStore()
  const account = await fundedAccount(store, 1_000n)
  const hold = await placed(store, account, 600n)
  await charge(store, hold, [1, 100n])
  const first = await settle(store, hold)
  expect(await settle(store, hold, 99)).toEqual(first)
  expect(await sums(store, account)).toEqual([900n, 0n, 900n])
  await expectSound(store)
})

test("a settlement of zero writes no entry and releases the hold", async () => {
  await using store = await openTestStore()
  const account = await fundedAccount(store, 1_000n)
  const hold = await placed(store, account, 600n)
  await charge(store, hold, [1, 0n])
  expect(await settle(store, hold)).toMatchObject({ status: "released", settledAmount: 0n })
  expect(await listLedger(store, account, PAGE)).toHaveLength(1)
  expect(await sums(store, account)).toEqual([1_000n, 0n, 1_000n])
  await expectSound(store)
})

test("an attempt is charged once, whatever is reported again, in the same call or later", async () => {
  await using store = await openTestStore()
  const account = await fundedAccount(store, 1_000n)
  const hold = await placed(store, account, 600n)
  expect(await charge(store, hold, [1, 100n], [1, 100n])).toEqual([
    { claim: 1, kind: "charged", amount: 100n },
    { claim: 1, kind: "repeated", amount: 100n },
  ])
  expect(await charge(store, hold, [1, 300n], [2, 5n])).toEqual([
    { claim: 1, kind: "repeated", amount: 100n },
    { claim: 2, kind: "charged", amount: 5n },
  ])
  expect((await store.read((view) => getHold(view, hold))).charged).toBe(105n)
  const claims = [claimNumber(1), claimNumber(2), claimNumber(3)]
  expect(await store.read((view) => chargesOf(view, claims))).toEqual(
    new Map([
      [1, 100n],
      [2, 5n],
    ]),
  )
  await expectSound(store)
})

test("B-018: charges never exceed the hold, and a settled hold takes no more", async () => {
  await using store = await openTestStore()
  const account = await fundedAccount(store, 1_000n)
  const hold = await placed(store, account, 150n)
  expect(await charge(store, hold, [1, 100n], [2, 100n], [3, 100n])).toMatchObject([
    { kind: "charged", amount: 100n },
    { kind: "charged", amount: 50n },
    { kind: "charged", amount: 0n },
  ])
  await settle(store, hold)
  expect(await charge(store, hold, [3, 7n], [4, 7n])).toMatchObject([
    { kind: "repeated", amount: 0n },
    { kind: "closed", amount: 0n },
  ])
  expect(await sums(store, account)).toEqual([850n, 0n, 850n])
  await expectSound(store)
})

test("two thousand attempts are charged in one call", async () => {
  await using store = await openTestStore()
  const account = await fundedAccount(store, 1_000_000n)
  const hold = await placed(store, account, 900_000n)
  const charges = Array.from({ length: 2_000 }, (_, index): [number, bigint] => [index + 1, 3n])
  await charge(store, hold, ...charges)
  expect((await settle(store, hold)).settledAmount).toBe(6_000n)
  await expectSound(store)
})

test("B-017, B-024: a hold above what is available changes nothing and says what is missing", async () => {
  await using store = await openTestStore()
  const account = await fundedAccount(store, 1_000n)
  await placed(store, account, 600n)
  expect(await place(store, account, 401n, 2)).toEqual({
    placed: false,
    shortfall: { available: 400n, required: 401n, missing: 1n },
  })
  expect(await sums(store, account)).toEqual([1_000n, 600n, 400n])
  await placed(store, account, 400n, 2)
  expect(await sums(store, account)).toEqual([1_000n, 1_000n, 0n])
  const empty = await store.write(async (tx) => missingFunds(tx, accountId(77), 5n))
  expect(empty).toEqual({ available: 0n, required: 5n, missing: 5n })
})

test("a job of a thousand years on a billion cores is refused as too large, not stored wrongly", async () => {
  await using store = await openTestStore()
  const account = await fundedAccount(store, 1_000n)
  await expect(place(store, account, 1_000_000_000_000_001n)).rejects.toMatchObject({ status: 422 })
  await expect(place(store, account, 1n << 70n)).rejects.toMatchObject({ status: 422 })
  expect(await place(store, account, 1_000_000_000_000_000n)).toMatchObject({ placed: false })
})

test("a job's round has one hold, also against the code's own belief", async () => {
  await using store = await openTestStore()
  const account = await fundedAccount(store, 1_000n)
  await placed(store, account, 100n)
  const again = store.write((tx) =>
    placeHold(tx, { id: holdId("hold_other"), account, job: JOB, round: 1, amount: 1n, at: 5 }),
  )
  await expect(again).rejects.toThrow("UNIQUE")
  await placed(store, account, 100n, 2)
  expect((await store.read((view) => holdsOfJob(view, JOB))).map(({ round }) => round)).toEqual([1, 2])
  expect(await sums(store, account)).toEqual([1_000n, 200n, 800n])
})

test("C-09: holds are listed newest first, and by status", async () => {
  await using store = await openTestStore()
  const account = await fundedAccount(store, 1_000n)
  const first = await placed(store, account, 100n)
  const second = await placed(store, account, 100n, 2)
  await settle(store, first)
  const ids = async (status: "active" | "released" | null) =>
    (await listHolds(store, account, { ...PAGE, status })).map(({ id }) => id)
  expect(await ids(null)).toEqual([second, first])
  expect(await ids("active")).toEqual([second])
  expect(await ids("released")).toEqual([first])
})

test("free work: where prices are zero a hold of zero is placed, charged and released", async () => {
  await using store = await openTestStore()
  const account = await fundedAccount(store, 0n)
  const hold = await placed(store, account, 0n)
  await charge(store, hold, [1, 0n])
  expect((await settle(store, hold)).status).toBe("released")
  await expectSound(store)
})

test("an administrator's credit is an entry; a negative one a debit, never below what is held (409)", async () => {
  await using store = await openTestStore()
  const parts = { store, clock: systemClock }
  const account = await fundedAccount(store, 0n)
  const credited = await adjustCredit(parts, { account, amount: 1_000n, description: "welcome" })
  expect(credited.entry).toMatchObject({ type: "credit", amount: 1_000n, description: "welcome", balanceAfter: 1_000n })
  expect(credited.balance).toMatchObject({ ledger: 1_000n, held: 0n, available: 1_000n })
  await placed(store, account, 600n)
  const tooMuch = adjustCredit(parts, { account, amount: -401n, description: null })
  await expect(tooMuch).rejects.toMatchObject({ code: "held_funds", status: 409 })
  const taken = await adjustCredit(parts, { account, amount: -400n, description: null })
  expect(taken.entry).toMatchObject({ type: "debit", amount: 400n, balanceAfter: 600n })
  expect(taken.balance.available).toBe(0n)
  await expect(adjustCredit(parts, { account, amount: 0n, description: null })).rejects.toMatchObject({ status: 422 })
  const stranger = adjustCredit(parts, { account: accountId(99), amount: 5n, description: null })
  await expect(stranger).rejects.toMatchObject({ code: "not_found" })
  await expectSound(store)
})

test("an account gets the sign-up credit once", async () => {
  await using store = await openTestStore()
  const account = await fundedAccount(store, 5n)
  await expect(store.write((tx) => creditSignup(tx, account, 5n, 2))).rejects.toThrow("UNIQUE")
  expect(await sums(store, account)).toEqual([5n, 0n, 5n])
})

test("B-002: balances count active holds and open quotes, of one account or of all", async () => {
  await using store = await openTestStore()
  const parts = { store, clock: { ...systemClock, now: () => 100 } }
  const account = await fundedAccount(store, 1_000n)
  const other = await fundedAccount(store, 0n)
  await placed(store, account, 100n)
  const quote = { account, amount: 9n, description: "", at: 1 }
  await store.write(async (tx) => {
    await quoteTopup(tx, { ...quote, id: quoteId("quote_open"), expiresAt: 101 })
    await quoteTopup(tx, { ...quote, id: quoteId("quote_old"), expiresAt: 100 })
  })
  const balance = { account, ledger: 1_000n, held: 100n, available: 900n, activeHolds: 1, openQuotes: 1 }
  expect((await getAccountBalance(parts, account)).balance).toEqual(balance)
  expect((await listAccountBalances(parts)).map(({ id, balance: { available } }) => [id, available])).toEqual([
    [account, 900n],
    [other, 0n],
  ])
  await expect(getAccountBalance(parts, accountId(99))).rejects.toMatchObject({ code: "not_found" })
})

test("GAP-08: a shortfall's quote is for exactly the gap, and its 402 says how to pay it", async () => {
  await using store = await openTestStore()
  const account = await fundedAccount(store, 1_000_000n)
  const shortfall = { available: 1_000_000n, required: 2_500_000n, missing: 1_500_000n }
  const wanted = { id: quoteId("quote_1"), account, amount: 1_500_000n, description: "a job", at: 5, expiresAt: 10 }
  const quote = await store.write((tx) => quoteShortfall(tx, wanted))
  const refusal = insufficientFunds(shortfall, quote, 6)
  expect(refusal).toMatchObject({
    status: 402,
    details: { available_usd: 1, required_usd: 2.5, shortfall_usd: 1.5 },
    body: {
      quote: { id: "quote_1", kind: "shortfall", amount_usd: 1.5, status: "open", paid_at: null },
      pay: { method: "POST", path: "/api/v1/account/quotes/quote_1/pay/x402" },
    },
  })
  expect(await listQuotes(store, account, PAGE)).toEqual([quote])
  expect([quoteStatus(quote, 9), quoteStatus(quote, 10), quoteStatus({ ...quote, paidAt: 7 }, 10)]).toEqual([
    "open",
    "expired",
    "paid",
  ])
  expect(quoteBody(quote, 6).expires_at).toBe("1970-01-01T00:00:00.010Z")
})

test("a repeated request keeps its quote's id while that is unpaid, and a stranger's quote is never touched", async () => {
  await using store = await openTestStore()
  const account = await fundedAccount(store, 0n)
  const other = await fundedAccount(store, 0n)
  const wanted = { id: quoteId("quote_1"), account, amount: 5n, description: "", at: 5, expiresAt: 10 }
  await store.write((tx) => quoteShortfall(tx, wanted))
  const again = { ...wanted, id: quoteId("quote_2"), amount: 3n, at: 20, expiresAt: 30 }
  const renewed = await store.write((tx) => quoteShortfall(tx, again, quoteId("quote_1")))
  expect(renewed).toMatchObject({ id: "quote_1", amount: 3n, expiresAt: 30, createdAt: 5 })
  const foreign = { ...again, id: quoteId("quote_3"), account: other }
  expect((await store.write((tx) => quoteShortfall(tx, foreign, quoteId("quote_1")))).id).toBe("quote_3")
  expect((await listQuotes(store, account, PAGE)).map(({ id }) => id)).toEqual(["quote_1"])
})

test("B-009: a top-up is above $0 and at most $10,000", async () => {
  await using store = await openTestStore()
  const account = await fundedAccount(store, 0n)
  const topup = (id: string, amount: bigint) =>
    store.write((tx) => quoteTopup(tx, { id: quoteId(id), account, amount, description: "", at: 1, expiresAt: 2 }))
  expect((await topup("quote_1", 10_000_000_000n)).kind).toBe("topup")
  for (const amount of [0n, -1n, 10_000_000_001n]) {
    await expect(topup("quote_2", amount)).rejects.toMatchObject({ status: 422 })
  }
})

test("entries and charges are never edited, entries never deleted", async () => {
  await using store = await openTestStore()
  const account = await fundedAccount(store, 100n)
  const hold = await placed(store, account, 10n)
  await charge(store, hold, [1, 5n])
  for (const sql of [
    "UPDATE ledger_entries SET amount = 1",
    "DELETE FROM ledger_entries",
    "UPDATE charges SET amount = 1",
  ]) {
    await expect(store.write((tx) => tx.run(sql))).rejects.toThrow("never")
  }
})

test("the audit finds what does not agree, and says where", async () => {
  const broken: [string, RegExp][] = [
    ["UPDATE ledger_accounts SET balance = balance + 1 WHERE account IS NOT NULL", /balance/],
    ["UPDATE ledger_accounts SET held = held + 1 WHERE account IS NOT NULL", /held money/],
    ["UPDATE holds SET charged = charged + 1 WHERE status = 'active'", /charge/],
    ["DELETE FROM charges WHERE claim = 1", /charge/],
    ["UPDATE holds SET charged = 0, settled_amount = 0, status = 'released' WHERE round = 1", /debits for use/],
    ["INSERT INTO quotes VALUES ('q', 1, 'topup', 5, '', 1, 2, 3)", /paid quotes/],
  ]
  for (const [sql, finding] of broken) {
    await using store = await openTestStore()
    const account = await fundedAccount(store, 1_000n)
    const first = await placed(store, account, 100n)
    await charge(store, first, [1, 50n])
    await settle(store, first)
    await charge(store, await placed(store, account, 100n, 2), [2, 5n])
    await expectSound(store)
    await store.write((tx) => tx.run(sql))
    const audit = await auditMoney(store)
    expect(audit.ok, sql).toBe(false)
    expect(audit.checks.filter(({ ok }) => !ok).map(({ name }) => name)).toContainEqual(expect.stringMatching(finding))
  }
})
