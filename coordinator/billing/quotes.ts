import type { Instant } from "../../protocol/base/clock.ts"
import { invalidField } from "../../protocol/domain/errors.ts"
import type { AccountId, QuoteId } from "../../protocol/domain/ids.ts"
import { usd, type MicroUsd } from "../../protocol/domain/money.ts"
import * as rows from "../store/quotes.ts"
import type { Store, Tx } from "../store/store.ts"

export type Quote = rows.QuoteRow
export type QuoteStatus = "open" | "paid" | "expired"

/** What is to be quoted. The id is new, made outside the write. */
export interface NewQuote {
  id: QuoteId
  account: AccountId
  amount: MicroUsd
  description: string
  at: Instant
  expiresAt: Instant
}

/**
 * Stores the quote over what an account lacks. `earlier` is the quote that the same request (by its Idempotency-Key) was
 * given before: as long as it is unpaid it keeps its id, with the present amount and expiry.
 */
export async function quoteShortfall(tx: Tx, quote: NewQuote, earlier: QuoteId | null = null): Promise<Quote> {
  const renewed = earlier === null ? null : await rows.renewQuote(tx, { ...quote, id: earlier })
  return renewed ?? insert(tx, "shortfall", quote)
}

/** Stores a top-up quote. 422 when the amount is not above $0 and at most $10,000 (B-009). */
export async function quoteTopup(tx: Tx, quote: NewQuote): Promise<Quote> {
  if (quote.amount <= 0n || quote.amount > LARGEST_TOPUP) {
    throw invalidField("amount_usd", "must be above 0 and at most 10000; split larger amounts into several top-ups")
  }
  return insert(tx, "topup", quote)
}

/** Paid once, for good; else open until it expires. */
export function quoteStatus(quote: Quote, at: Instant): QuoteStatus {
  if (quote.paidAt !== null) return "paid"
  return quote.expiresAt <= at ? "expired" : "open"
}

/** An account's quotes, newest first. */
export async function listQuotes(
  store: Store,
  account: AccountId,
  page: { limit: number; offset: number },
): Promise<Quote[]> {
  return store.read((view) => rows.listQuotes(view, account, page))
}

/** GAP-07: the quote as the API shows it; also inside a 402, hence here. */
export function quoteBody(quote: Quote, at: Instant) {
  return {
    id: quote.id,
    kind: quote.kind,
    amount_usd: usd(quote.amount),
    status: quoteStatus(quote, at),
    description: quote.description,
    expires_at: new Date(quote.expiresAt).toISOString(),
    created_at: new Date(quote.createdAt).toISOString(),
    paid_at: quote.paidAt === null ? null : new Date(quote.paidAt).toISOString(),
  }
}

const LARGEST_TOPUP: MicroUsd = 10_000_000_000n

async function insert(tx: Tx, kind: Quote["kind"], quote: NewQuote): Promise<Quote> {
  const { id, account, amount, description, expiresAt } = quote
  const stored: Quote = { id, account, kind, amount, description, createdAt: quote.at, expiresAt, paidAt: null }
  await rows.insertQuote(tx, stored)
  return stored
}
