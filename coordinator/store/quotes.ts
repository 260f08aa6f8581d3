import type { Instant } from "../../protocol/base/clock.ts"
import { accountId, quoteId, type AccountId, type QuoteId } from "../../protocol/domain/ids.ts"
import type { MicroUsd } from "../../protocol/domain/money.ts"
import { moneyFrom } from "./money.ts"
import type { Tx, View } from "./store.ts"

export interface QuoteRow {
  id: QuoteId
  account: AccountId
  kind: "topup" | "shortfall"
  amount: MicroUsd
  description: string
  createdAt: Instant
  expiresAt: Instant
  paidAt: Instant | null
}

export async function insertQuote(tx: Tx, quote: QuoteRow): Promise<void> {
  await tx.run(
    "INSERT INTO quotes (id, account, kind, amount, description, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
    quote.id,
    quote.account,
    quote.kind,
    quote.amount,
    quote.description,
    quote.createdAt,
    quote.expiresAt,
  )
}

/** Gives an unpaid quote of this account a new amount and expiry; null when there is none. */
export async function renewQuote(
  tx: Tx,
  quote: { id: QuoteId; account: AccountId; amount: MicroUsd; expiresAt: Instant },
): Promise<QuoteRow | null> {
  const row = await tx.get<RawQuote>(
    `UPDATE quotes SET amount = ?, expires_at = ? WHERE id = ? AND account = ? AND paid_at IS NULL
     RETURNING ${QUOTE_COLUMNS}`,
    quote.amount,
    quote.expiresAt,
    quote.id,
    quote.account,
  )
  return row ? toQuote(row) : null
}

/** Newest first. */
export async function listQuotes(
  view: View,
  account: AccountId,
  page: { limit: number; offset: number },
): Promise<QuoteRow[]> {
  const rows = await view.all<RawQuote>(
    `SELECT ${QUOTE_COLUMNS} FROM quotes WHERE account = ? ORDER BY created_at DESC, id DESC LIMIT ? OFFSET ?`,
    account,
    page.limit,
    page.offset,
  )
  return rows.map(toQuote)
}

interface RawQuote {
  id: string
  account: number
  kind: "topup" | "shortfall"
  amount: number
  description: string
  created_at: number
  expires_at: number
  paid_at: number | null
}

const QUOTE_COLUMNS = "id, account, kind, amount, description, created_at, expires_at, paid_at"

function toQuote(row: RawQuote): QuoteRow {
  return {
    id: quoteId(row.id),
    account: accountId(row.account),
    kind: row.kind,
    amount: moneyFrom(row.amount),
    description: row.description,
    createdAt: row.created_at,
    expiresAt: row.expires_at,
    paidAt: row.paid_at,
  }
}
