import type { Clock, Instant } from "../../protocol/base/clock.ts"
import { ComputalotError, invalidField, notFound } from "../../protocol/domain/errors.ts"
import type { AccountId } from "../../protocol/domain/ids.ts"
import { usd, type MicroUsd } from "../../protocol/domain/money.ts"
import { findAccount, listAccounts, type AccountRow } from "../store/accounts.ts"
import * as rows from "../store/ledger.ts"
import type { Store, Tx, View } from "../store/store.ts"

export type LedgerEntry = rows.EntryRow

/** B-002, B-003: `available` = `ledger` − `held`, never below zero. */
export interface Balance extends rows.BalanceRow {
  available: MicroUsd
}

export interface CreditReceipt {
  entry: LedgerEntry
  balance: Balance
}

/**
 * An administrator gives an account credit, or with a negative amount takes some back. Refuses: zero (422), an unknown
 * account (404), taking what is held or not there (409). `also` runs in the same write. A second call credits again.
 */
export async function adjustCredit(
  parts: { store: Store; clock: Clock },
  credit: { account: AccountId; amount: MicroUsd; description: string | null },
  also: (tx: Tx, receipt: CreditReceipt) => Promise<void> = async () => {},
): Promise<CreditReceipt> {
  const at = parts.clock.now()
  const { account, amount } = credit
  if (amount === 0n || amount > LARGEST_CREDIT || amount < -LARGEST_CREDIT) {
    throw invalidField("amount_usd", "must not be 0, and at most 1000000 either way")
  }
  return parts.store.write(async (tx) => {
    if ((await findAccount(tx, account)) === null) throw notFound(`account ${account}`)
    const { available } = await readBalance(tx, account, at)
    if (available + amount < 0n) throw heldFunds(-amount, available)
    const entry = await rows.postEntry(tx, {
      account,
      counterAccount: "grants",
      type: amount > 0n ? "credit" : "debit",
      reason: "admin",
      amount: amount > 0n ? amount : -amount,
      description: credit.description ?? (amount > 0n ? "credit" : "correction"),
      job: null,
      hold: null,
      quote: null,
      at,
    })
    const receipt = { entry, balance: await readBalance(tx, account, at) }
    await also(tx, receipt)
    return receipt
  })
}

/** Gives a new account its sign-up credit, in the write that makes the account; nothing when it is zero. */
export async function creditSignup(tx: Tx, account: AccountId, amount: MicroUsd, at: Instant): Promise<void> {
  if (amount === 0n) return
  await rows.postEntry(tx, {
    account,
    counterAccount: "grants",
    type: "credit",
    reason: "signup",
    amount,
    description: "sign-up credit",
    job: null,
    hold: null,
    quote: null,
    at,
  })
}

export async function readBalance(view: View, account: AccountId, at: Instant): Promise<Balance> {
  return withAvailable(await rows.readBalance(view, account, at))
}

export interface AccountBalance extends AccountRow {
  balance: Balance
}

/** Every account with its balance, oldest first. */
export async function listAccountBalances(parts: { store: Store; clock: Clock }): Promise<AccountBalance[]> {
  const at = parts.clock.now()
  return parts.store.read(async (view) => {
    const balances = new Map((await rows.listBalances(view, at)).map((row) => [row.account, withAvailable(row)]))
    const accounts = await listAccounts(view)
    return accounts.flatMap((account) => {
      const balance = balances.get(account.id)
      return balance === undefined ? [] : [{ ...account, balance }]
    })
  })
}

/** One account with its balance, or 404. */
export async function getAccountBalance(parts: { store: Store; clock: Clock }, id: AccountId): Promise<AccountBalance> {
  const at = parts.clock.now()
  return parts.store.read(async (view) => {
    const account = await findAccount(view, id)
    if (account === null) throw notFound(`account ${id}`)
    return { ...account, balance: await readBalance(view, id, at) }
  })
}

/** An account's entries, newest first. */
export async function listLedger(
  store: Store,
  account: AccountId,
  page: { limit: number; offset: number },
): Promise<LedgerEntry[]> {
  return store.read((view) => rows.listEntries(view, account, page))
}

/** A million dollars: more is a slip, and all sums stay far below 2^53 micro-dollars. */
const LARGEST_CREDIT: MicroUsd = 1_000_000_000_000n

const withAvailable = (row: rows.BalanceRow): Balance => ({ ...row, available: row.ledger - row.held })

function heldFunds(wanted: MicroUsd, available: MicroUsd): ComputalotError {
  return new ComputalotError("held_funds", `$${usd(wanted)} cannot be taken back: $${usd(available)} is available`, {
    recommendedAction: "Take back at most what is available, or wait until running jobs have settled their holds.",
    details: { available_usd: usd(available) },
  })
}
