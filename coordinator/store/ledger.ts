import { present } from "../../protocol/base/assert.ts"
import type { Instant } from "../../protocol/base/clock.ts"
import {
  accountId,
  jobId,
  quoteId,
  type AccountId,
  type HoldId,
  type JobId,
  type QuoteId,
} from "../../protocol/domain/ids.ts"
import type { MicroUsd } from "../../protocol/domain/money.ts"
import { moneyFrom } from "./money.ts"
import type { Tx, View } from "./store.ts"

export interface BalanceRow {
  account: AccountId
  /** Credits less debits. */
  ledger: MicroUsd
  /** In active holds. */
  held: MicroUsd
  activeHolds: number
  openQuotes: number
}

export interface EntryRow {
  /** Grows with every entry. */
  seq: number
  type: "credit" | "debit"
  reason: EntryReason
  /** Above zero; the sign is the type. */
  amount: MicroUsd
  balanceAfter: MicroUsd
  description: string
  job: JobId | null
  quote: QuoteId | null
  createdAt: Instant
}

export type EntryReason = "signup" | "admin" | "payment" | "usage"
/** The house's side of an entry. */
export type HouseAccount = "grants" | "payments" | "revenue"

export interface NewEntry {
  account: AccountId
  counterAccount: HouseAccount
  type: "credit" | "debit"
  reason: EntryReason
  amount: MicroUsd
  description: string
  job: JobId | null
  hold: HoldId | null
  quote: QuoteId | null
  at: Instant
}

/**
 * Appends an entry and moves its amount between the two running balances; gives `releasing` of held money free in the
 * same statement. The schema refuses what would bring an account below its holds.
 */
export async function postEntry(tx: Tx, entry: NewEntry, releasing: MicroUsd = 0n): Promise<EntryRow> {
  const change = entry.type === "credit" ? entry.amount : -entry.amount
  await openLedgerAccount(tx, entry.account)
  const after = await tx.get<{ balance: number }>(
    "UPDATE ledger_accounts SET balance = balance + ?, held = held - ? WHERE id = ? RETURNING balance",
    change,
    releasing,
    ledgerAccount(entry.account),
  )
  await tx.run("UPDATE ledger_accounts SET balance = balance - ? WHERE id = ?", change, entry.counterAccount)
  const row = await tx.get<RawEntry>(
    `INSERT INTO ledger_entries
       (account, counter_account, type, reason, amount, balance_after, description, job_id, hold, quote, created_at)
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING ${ENTRY_COLUMNS}`,
    ledgerAccount(entry.account),
    entry.counterAccount,
    entry.type,
    entry.reason,
    entry.amount,
    present(after, "the account's new balance").balance,
    entry.description,
    entry.job,
    entry.hold,
    entry.quote,
    entry.at,
  )
  return toEntry(present(row, "the new entry"))
}

/** Sets `amount` aside when that much is available; else changes nothing and gives false. */
export async function holdMoney(tx: Tx, account: AccountId, amount: MicroUsd): Promise<boolean> {
  await openLedgerAccount(tx, account)
  const { changes } = await tx.run(
    "UPDATE ledger_accounts SET held = held + ? WHERE id = ? AND balance - held >= ?",
    amount,
    ledgerAccount(account),
    amount,
  )
  return changes === 1
}

/** Gives held money free without spending any of it. */
export async function releaseMoney(tx: Tx, account: AccountId, amount: MicroUsd): Promise<void> {
  await tx.run("UPDATE ledger_accounts SET held = held - ? WHERE id = ?", amount, ledgerAccount(account))
}

export async function readBalance(view: View, account: AccountId, at: Instant): Promise<BalanceRow> {
  const row = await view.get<RawBalance>(`${SELECT_BALANCE} WHERE accounts.id = ?`, at, account)
  return row ? toBalance(row) : { account, ledger: 0n, held: 0n, activeHolds: 0, openQuotes: 0 }
}

/** What an account may spend, without the counts of `readBalance`: those grow with the holds of waiting jobs. */
export async function readAvailable(view: View, account: AccountId): Promise<MicroUsd> {
  const row = await view.get<{ balance: number; held: number }>(
    "SELECT balance, held FROM ledger_accounts WHERE id = ?",
    ledgerAccount(account),
  )
  return row ? moneyFrom(row.balance) - moneyFrom(row.held) : 0n
}

/** Every account's balance, in the order of their ids. */
export async function listBalances(view: View, at: Instant): Promise<BalanceRow[]> {
  return (await view.all<RawBalance>(`${SELECT_BALANCE} ORDER BY accounts.id`, at)).map(toBalance)
}

/** Newest first. */
export async function listEntries(
  view: View,
  account: AccountId,
  page: { limit: number; offset: number },
): Promise<EntryRow[]> {
  const rows = await view.all<RawEntry>(
    `SELECT ${ENTRY_COLUMNS} FROM ledger_entries WHERE account = ? ORDER BY seq DESC LIMIT ? OFFSET ?`,
    ledgerAccount(account),
    page.limit,
    page.offset,
  )
  return rows.map(toEntry)
}

/** Accounts get their ledger row with their first money. */
async function openLedgerAccount(tx: Tx, account: AccountId): Promise<void> {
  await tx.run(
    "INSERT INTO ledger_accounts (id, account) VALUES (?, ?) ON CONFLICT (id) DO NOTHING",
    ledgerAccount(account),
    account,
  )
}

const ledgerAccount = (account: AccountId): string => `customer:${account}`

interface RawBalance {
  account: number
  ledger: number
  held: number
  active_holds: number
  open_quotes: number
}

interface RawEntry {
  seq: number
  type: "credit" | "debit"
  reason: EntryReason
  amount: number
  balance_after: number
  description: string
  job_id: string | null
  quote: string | null
  created_at: number
}

const ENTRY_COLUMNS = "seq, type, reason, amount, balance_after, description, job_id, quote, created_at"

const SELECT_BALANCE = `SELECT accounts.id AS account,
    coalesce(ledger_accounts.balance, 0) AS ledger, coalesce(ledger_accounts.held, 0) AS held,
    (SELECT count(*) FROM holds WHERE holds.account = accounts.id AND holds.status = 'active') AS active_holds,
    (SELECT count(*) FROM quotes
      WHERE quotes.account = accounts.id AND quotes.paid_at IS NULL AND quotes.expires_at > ?) AS open_quotes
  FROM accounts LEFT JOIN ledger_accounts ON ledger_accounts.account = accounts.id`

function toBalance(row: RawBalance): BalanceRow {
  return {
    account: accountId(row.account),
    ledger: moneyFrom(row.ledger),
    held: moneyFrom(row.held),
    activeHolds: row.active_holds,
    openQuotes: row.open_quotes,
  }
}

function toEntry(row: RawEntry): EntryRow {
  return {
    seq: row.seq,
    type: row.type,
    reason: row.reason,
    amount: moneyFrom(row.amount),
    balanceAfter: moneyFrom(row.balance_after),
    description: row.description,
    job: row.job_id === null ? null : jobId(row.job_id),
    quote: row.quote === null ? null : quoteId(row.quote),
    createdAt: row.created_at,
  }
}
