import type { Instant } from "../../protocol/base/clock.ts"
import { sha256Hex } from "../../protocol/base/digest.ts"
import { quoteId, type QuoteId } from "../../protocol/domain/ids.ts"
import type { Tx, View } from "./store.ts"

/** What stands under a key: a finished answer, or the quote of a 402 that waits for its money. */
export type StoredAnswer =
  | { kind: "answered"; fingerprint: string; status: number; bodyJson: string }
  | { kind: "quoted"; fingerprint: string; quote: QuoteId }

export interface IdempotencyKey {
  /** `account:7`, or `deployment` for administrators (rulings, Idempotency). */
  scope: string
  key: string
}

export async function findStoredAnswer(view: View, { scope, key }: IdempotencyKey): Promise<StoredAnswer | null> {
  const row = await view.get<StoredRow>(
    "SELECT fingerprint, status, body, quote_id FROM idempotency_keys WHERE scope = ? AND key = ?",
    scope,
    key,
  )
  if (row === undefined) return null
  if (row.body !== null)
    return { kind: "answered", fingerprint: row.fingerprint, status: row.status, bodyJson: row.body }
  return { kind: "quoted", fingerprint: row.fingerprint, quote: quoteId(row.quote_id) }
}

interface StoredAnswerRow {
  fingerprint: string
  status: number
  body: string
  quote_id: null
}
interface StoredQuoteRow {
  fingerprint: string
  status: number
  body: null
  quote_id: string
}
type StoredRow = StoredAnswerRow | StoredQuoteRow

/** False when an answer stands there already, or another request's quote: then the act that created something must fail. */
export async function storeAnswer(
  tx: Tx,
  { scope, key }: IdempotencyKey,
  answer: { fingerprint: string; status: number; bodyJson: string; at: Instant },
): Promise<boolean> {
  const { changes } = await tx.run(
    `INSERT INTO idempotency_keys (scope, key, fingerprint, status, body, quote_id, created_at) VALUES (?, ?, ?, ?, ?, NULL, ?)
     ON CONFLICT (scope, key) DO UPDATE SET status = excluded.status, body = excluded.body, quote_id = NULL, created_at = excluded.created_at
     WHERE idempotency_keys.status = 402 AND idempotency_keys.fingerprint = excluded.fingerprint`,
    scope,
    key,
    answer.fingerprint,
    answer.status,
    answer.bodyJson,
    answer.at,
  )
  return changes === 1
}

/** Keeps the quote of a 402 under its key. An answer that stands there stays. */
export async function storeQuote(
  tx: Tx,
  { scope, key }: IdempotencyKey,
  quoted: { fingerprint: string; quote: QuoteId; at: Instant },
): Promise<void> {
  await tx.run(
    `INSERT INTO idempotency_keys (scope, key, fingerprint, status, body, quote_id, created_at) VALUES (?, ?, ?, 402, NULL, ?, ?)
     ON CONFLICT (scope, key) DO UPDATE SET quote_id = excluded.quote_id, created_at = excluded.created_at
     WHERE idempotency_keys.status = 402 AND idempotency_keys.fingerprint = excluded.fingerprint`,
    scope,
    key,
    quoted.fingerprint,
    quoted.quote,
    quoted.at,
  )
}

/** One of several things that a request makes, kept until the request has its answer. */
export interface MadePart {
  /** Its number in the request. */
  part: number
  id: string
  fingerprint: string
}

/** Notes in the write that makes a part that it is made. False when it was made before: then that write must fail. */
export async function storePart(tx: Tx, name: IdempotencyKey, made: MadePart, at: Instant): Promise<boolean> {
  const { changes } = await tx.run(
    `INSERT INTO idempotency_keys (scope, key, fingerprint, status, body, quote_id, created_at) VALUES (?, ?, ?, 201, ?, NULL, ?)
     ON CONFLICT (scope, key) DO NOTHING`,
    name.scope,
    `${partsPrefix(name)}${made.part}`,
    made.fingerprint,
    made.id,
    at,
  )
  return changes === 1
}

/** What of a request that has no answer yet was made. */
export async function findParts(view: View, name: IdempotencyKey): Promise<MadePart[]> {
  const prefix = partsPrefix(name)
  const rows = await view.all<{ key: string; fingerprint: string; body: string }>(
    "SELECT key, fingerprint, body FROM idempotency_keys WHERE scope = ? AND key >= ? AND key < ?",
    name.scope,
    prefix,
    `${prefix}:`,
  )
  return rows.map(({ key, fingerprint, body }) => ({ part: Number(key.slice(prefix.length)), id: body, fingerprint }))
}

/** The request has its answer: its parts need not be known by themselves any more. */
export async function deleteParts(tx: Tx, name: IdempotencyKey): Promise<void> {
  const prefix = partsPrefix(name)
  await tx.run(
    "DELETE FROM idempotency_keys WHERE scope = ? AND key >= ? AND key < ?",
    name.scope,
    prefix,
    `${prefix}:`,
  )
}

/** A line break stands in no header, so no client's key is like it; `:` sorts behind the digits. Short, whatever the key. */
const partsPrefix = ({ key }: IdempotencyKey): string => `part\n${sha256Hex(key)}\n`

/** Deletes up to `most` keys last written before `before`; returns how many. */
export async function deleteOldKeys(tx: Tx, before: Instant, most: number): Promise<number> {
  const { changes } = await tx.run(
    `DELETE FROM idempotency_keys WHERE (scope, key) IN
       (SELECT scope, key FROM idempotency_keys WHERE created_at < ? ORDER BY created_at LIMIT ?)`,
    before,
    most,
  )
  return changes
}
