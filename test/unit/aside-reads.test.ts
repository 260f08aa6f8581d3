import { describe, expect, test } from "vitest"
import { auditMoney } from "../../coordinator/billing/audit.ts"
import { auditRead } from "../../coordinator/store/audit.ts"
import type { Store } from "../../coordinator/store/store.ts"
import { fundedAccount } from "../support/accounts.ts"
import { brokenRead, countUpRead, forEverRead, mainThreadMs, twiceRead } from "../support/aside.ts"
import { openTestStore } from "../support/store.ts"

const isFull = process.env["COMPUTALOT_TEST_FULL"] === "1"
const CHARGES = isFull ? 1_000_000 : 50_000
/** Architecture §4. */
const LONGEST_STALL_MS = 20

describe.each([
  ["in a thread", false],
  ["inline", true],
])("a long read %s", (_where, asideInline) => {
  test("gives its answer, its arguments being what was asked", async () => {
    await using store = await openTestStore({ asideInline })
    expect(await store.readAside(countUpRead, 1_000)).toBe(1_000)
    expect(await store.readAside(countUpRead, 7)).toBe(7)
  })

  test("sees what was committed before it was asked, and one snapshot throughout", async () => {
    await using store = await openTestStore({ asideInline })
    await store.write((tx) => tx.run("INSERT INTO numbers (name, value) VALUES ('before', 1)"))
    const reading = store.readAside(twiceRead, 2_000_000)
    for (let n = 0; n < 50; n++) {
      await store.write((tx) => tx.run("INSERT INTO numbers (name, value) VALUES (?, 1)", `during-${n}`))
      await new Promise((resolve) => setTimeout(resolve, 5))
    }
    const [first, second] = await reading
    expect(first).toBeGreaterThan(0)
    expect(second).toBe(first)
    const [after] = await store.readAside(twiceRead, 1)
    expect(after).toBeGreaterThanOrEqual(first)
    expect(after).toBeGreaterThan(50)
  })

  test("that fails says so, and the next one is not harmed", async () => {
    await using store = await openTestStore({ asideInline })
    await expect(store.readAside(brokenRead)).rejects.toThrow("no_such_table")
    expect(await store.readAside(countUpRead, 3)).toBe(3)
  })

  test("is not asked for inside an act", async () => {
    await using store = await openTestStore({ asideInline })
    await expect(store.read(() => store.readAside(countUpRead, 1))).rejects.toThrow("does not call the store")
  })
})

test("architecture §4: a long read leaves the main thread alone, and closing the store ends it", async () => {
  const store = await openTestStore({ asideInline: false })
  const upto = 10_000_000
  expect(await mainThreadMs(() => store.read((view) => countUpRead.run(view, upto)))).toBeGreaterThan(LONGEST_STALL_MS)
  await store.readAside(countUpRead, 1)
  expect(await mainThreadMs(() => store.readAside(countUpRead, upto))).toBeLessThan(LONGEST_STALL_MS)
  const reading = expect(store.readAside(forEverRead)).rejects.toMatchObject({ code: "unavailable" })
  await new Promise((resolve) => setTimeout(resolve, 50))
  await store[Symbol.asyncDispose]()
  await reading
  await expect(store.readAside(countUpRead, 1)).rejects.toMatchObject({ code: "unavailable" })
})

test("architecture §4: the audit of a large ledger leaves the main thread alone, agrees, and finds a broken sum", async () => {
  await using store = await openTestStore({ asideInline: false })
  await fillLedger(store, CHARGES)
  // Its thread is there from here on.
  await auditMoney(store)
  let audit = await auditMoney(store)
  const stallMs = await mainThreadMs(async () => (audit = await auditMoney(store)))
  expect(audit.checks.filter(({ ok }) => !ok)).toEqual([])
  expect(audit.ok).toBe(true)
  expect(await store.readAside(auditRead)).toEqual(await store.read(auditRead.run))
  if (isFull) console.log(`audit of ${CHARGES} charges: ${stallMs.toFixed(1)} ms of the main thread`)
  expect(stallMs).toBeLessThan(LONGEST_STALL_MS)

  await store.write((tx) => tx.run("DELETE FROM charges WHERE claim = 77"))
  const broken = await auditMoney(store)
  expect(broken.checks.filter(({ ok }) => !ok).map(({ name }) => name)).toEqual([
    "charges are what their holds say was charged",
    "holds charged more than their amount, or other than the sum of their charges",
  ])
})

/** Settled holds of one account, a hundred charges of one micro-dollar each. */
async function fillLedger(store: Store, charges: number): Promise<void> {
  const account = await fundedAccount(store, BigInt(charges))
  const numbers = (count: number): string =>
    `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${count})`
  const holds = charges / 100
  await store.write(async (tx) => {
    await tx.run(
      `${numbers(holds)} INSERT INTO holds
         (id, account, job_id, round, amount, charged, settled_amount, status, created_at, settled_at)
       SELECT 'hold_' || i, ?, 'job_' || i, 1, 200, 100, 100, 'settled', i, i FROM n`,
      account,
    )
    await tx.run(
      `${numbers(holds)} INSERT INTO ledger_entries
         (account, counter_account, type, reason, amount, balance_after, description, job_id, hold, created_at)
       SELECT 'customer:' || ?, 'revenue', 'debit', 'usage', 100, ? - 100 * i, 'use', 'job_' || i, 'hold_' || i, i FROM n`,
      account,
      charges,
    )
    await tx.run("UPDATE ledger_accounts SET balance = balance - ? WHERE account = ?", charges, account)
    await tx.run("UPDATE ledger_accounts SET balance = balance + ? WHERE id = 'revenue'", charges)
    await tx.run(
      `${numbers(charges)} INSERT INTO charges (claim, hold, amount, milliseconds, at)
       SELECT i, 'hold_' || ((i - 1) / 100 + 1), 1, 1, i FROM n`,
    )
  })
}
