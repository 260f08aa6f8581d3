import type { Instant } from "../../protocol/base/clock.ts"
import { keyId, userId, waitlistId, type KeyId, type UserId, type WaitlistId } from "../../protocol/domain/ids.ts"
import type { Tx, View } from "./store.ts"

export interface WaitlistRow {
  id: WaitlistId
  email: string | null
  walletAddress: string | null
  note: string | null
  createdAt: Instant
  approvedAt: Instant | null
  /** What an approved e-mail address got. */
  user: UserId | null
  key: KeyId | null
}

/** Whoever asks again stays where they are. */
export async function insertWaiting(
  tx: Tx,
  {
    id,
    email,
    walletAddress,
    note,
    createdAt,
  }: Pick<WaitlistRow, "id" | "email" | "walletAddress" | "note" | "createdAt">,
): Promise<void> {
  await tx.run(
    `INSERT INTO waitlist (id, email, wallet_address, note, created_at) VALUES (?, ?, ?, ?, ?)
     ON CONFLICT (email, wallet_address) DO NOTHING`,
    id,
    email ?? "",
    walletAddress ?? "",
    note,
    createdAt,
  )
}

export async function findWaiting(view: View, id: WaitlistId): Promise<WaitlistRow | null> {
  const row = await view.get<RawWaiting>(`${SELECT_WAITING} WHERE id = ?`, id)
  return row ? toRow(row) : null
}

/** Newest first, and how many there are. */
export async function pageOfWaitlist(
  view: View,
  { limit, offset }: { limit: number; offset: number },
): Promise<{ rows: WaitlistRow[]; total: number }> {
  const rows = await view.all<RawWaiting>(`${SELECT_WAITING} ORDER BY seq DESC LIMIT ? OFFSET ?`, limit, offset)
  const count = await view.get<{ total: number }>("SELECT count(*) AS total FROM waitlist")
  return { rows: rows.map(toRow), total: count?.total ?? 0 }
}

/** How many wait: approved ones do not. */
export async function countWaiting(view: View): Promise<number> {
  const count = await view.get<{ waiting: number }>(
    "SELECT count(*) AS waiting FROM waitlist WHERE approved_at IS NULL",
  )
  return count?.waiting ?? 0
}

/** Notes what the entry got. False when it was approved before. */
export async function markApproved(
  tx: Tx,
  id: WaitlistId,
  got: { user: UserId; key: KeyId; at: Instant },
): Promise<boolean> {
  const { changes } = await tx.run(
    "UPDATE waitlist SET approved_at = ?, user_id = ?, api_key = ? WHERE id = ? AND approved_at IS NULL",
    got.at,
    got.user,
    got.key,
    id,
  )
  return changes === 1
}

interface RawWaiting {
  id: string
  email: string
  wallet_address: string
  note: string | null
  created_at: number
  approved_at: number | null
  user_id: number | null
  api_key: string | null
}

const SELECT_WAITING = "SELECT id, email, wallet_address, note, created_at, approved_at, user_id, api_key FROM waitlist"

function toRow(row: RawWaiting): WaitlistRow {
  return {
    id: waitlistId(row.id),
    email: row.email === "" ? null : row.email,
    walletAddress: row.wallet_address === "" ? null : row.wallet_address,
    note: row.note,
    createdAt: row.created_at,
    approvedAt: row.approved_at,
    user: row.user_id === null ? null : userId(row.user_id),
    key: row.api_key === null ? null : keyId(row.api_key),
  }
}
