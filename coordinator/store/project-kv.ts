import type { Instant } from "../../protocol/base/clock.ts"
import { accountId, jobId, type AccountId, type JobId } from "../../protocol/domain/ids.ts"
import type { Tx, View } from "./store.ts"

export interface KvEntry {
  key: string
  /** JSON text. */
  value: string
  /** As it was set; null where the entry stays. */
  ttlSeconds: number | null
  expiresAt: Instant | null
  updatedAt: Instant
  /** Who wrote it; null: an administrator without an account. */
  account: AccountId | null
  /** The job that published it. */
  job: JobId | null
}

/** Sets an entry in place of what was there, its time to live included. */
export async function putKvEntry(tx: Tx, project: number, entry: KvEntry): Promise<void> {
  await tx.run(
    `INSERT INTO project_kv (project, key, value, ttl_s, expires_at, updated_at, account, job)
     VALUES (?, ?, ?, ?, ?, ?, ?, ?)
     ON CONFLICT (project, key) DO UPDATE SET value = excluded.value, ttl_s = excluded.ttl_s,
       expires_at = excluded.expires_at, updated_at = excluded.updated_at, account = excluded.account, job = excluded.job`,
    project,
    entry.key,
    entry.value,
    entry.ttlSeconds,
    entry.expiresAt,
    entry.updatedAt,
    entry.account,
    entry.job,
  )
}

/** The entry while it lasts. */
export async function findKvEntry(view: View, project: number, key: string, at: Instant): Promise<KvEntry | null> {
  const row = await view.get<KvRow>(
    `SELECT ${COLUMNS} FROM project_kv WHERE project = ? AND key = ? AND (expires_at IS NULL OR expires_at > ?)`,
    project,
    key,
    at,
  )
  return row === undefined ? null : fromRow(row)
}

/** Entries whose keys start with `prefix` and come after `after`, in byte order of their keys. */
export async function listKvEntries(
  view: View,
  project: number,
  { prefix, after, limit }: { prefix: string; after: string; limit: number },
  at: Instant,
): Promise<KvEntry[]> {
  const rows = await view.all<KvRow>(
    `SELECT ${COLUMNS} FROM project_kv
     WHERE project = ? AND key > ? AND key >= ? AND key < ? AND (expires_at IS NULL OR expires_at > ?)
     ORDER BY key LIMIT ?`,
    project,
    after,
    prefix,
    // Keys are ASCII: what starts with the prefix comes before the prefix and the last character there is.
    `${prefix}\u{10ffff}`,
    at,
    limit,
  )
  return rows.map(fromRow)
}

/** False when there was none that lasted. */
export async function deleteKvEntry(tx: Tx, project: number, key: string, at: Instant): Promise<boolean> {
  const { changes } = await tx.run(
    "DELETE FROM project_kv WHERE project = ? AND key = ? AND (expires_at IS NULL OR expires_at > ?)",
    project,
    key,
    at,
  )
  return changes === 1
}

/** Removes up to `most` entries whose time is over; how many. */
export async function deleteExpiredKvEntries(tx: Tx, at: Instant, most: number): Promise<number> {
  const over = await tx.all<{ project: number; key: string }>(
    "SELECT project, key FROM project_kv WHERE expires_at IS NOT NULL AND expires_at <= ? ORDER BY expires_at LIMIT ?",
    at,
    most,
  )
  for (const { project, key } of over) {
    await tx.run("DELETE FROM project_kv WHERE project = ? AND key = ?", project, key)
  }
  return over.length
}

const COLUMNS = "key, value, ttl_s, expires_at, updated_at, account, job"

interface KvRow {
  key: string
  value: string
  ttl_s: number | null
  expires_at: number | null
  updated_at: number
  account: number | null
  job: string | null
}

function fromRow(row: KvRow): KvEntry {
  return {
    key: row.key,
    value: row.value,
    ttlSeconds: row.ttl_s,
    expiresAt: row.expires_at,
    updatedAt: row.updated_at,
    account: row.account === null ? null : accountId(row.account),
    job: row.job === null ? null : jobId(row.job),
  }
}
