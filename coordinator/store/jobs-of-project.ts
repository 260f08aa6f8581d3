import type { Instant } from "../../protocol/base/clock.ts"
import type { AccountId, JobId } from "../../protocol/domain/ids.ts"
import type { StoredJobStatus } from "./jobs.ts"
import type { View } from "./store.ts"

/** What following a job takes. */
export interface JobPlace {
  seq: number
  id: JobId
  status: StoredJobStatus
}

/** Those of these jobs that the account may see; `account` null sees all. In no order. */
export async function jobPlaces(
  view: View,
  ids: readonly JobId[],
  account: AccountId | null,
  expiredUpto: Instant,
): Promise<JobPlace[]> {
  const rows = await view.all<JobPlace & { account: AccountId }>(
    `SELECT seq, id, status, account FROM jobs
     WHERE id IN (${ids.map(() => "?").join(", ")}) AND (completed_at IS NULL OR completed_at > ?)`,
    ...ids,
    expiredUpto,
  )
  return rows
    .filter((row) => account === null || row.account === account)
    .map(({ seq, id, status }) => ({ seq, id, status }))
}

/** As `jobPlaces`, by seq. */
export async function jobPlacesBySeq(view: View, seqs: readonly number[]): Promise<JobPlace[]> {
  return await view.all<JobPlace>(
    `SELECT seq, id, status FROM jobs WHERE seq IN (${seqs.map(() => "?").join(", ")})`,
    ...seqs,
  )
}

/** Accounts with a project of this name, the oldest first; no more than these are looked through for one page. */
export async function accountsWithProjectNamed(view: View, name: string): Promise<AccountId[]> {
  const rows = await view.all<{ account: AccountId }>(
    "SELECT account FROM projects WHERE name = ? ORDER BY id LIMIT 100",
    name,
  )
  return rows.map(({ account }) => account)
}

/** Jobs of a project that have not ended and have one of these statuses: the newest, and how many there are. */
export async function activeJobs(
  view: View,
  account: AccountId,
  project: string,
  statuses: readonly StoredJobStatus[],
  limit: number,
): Promise<{ seqs: number[]; total: number }> {
  const where = `account = ? AND project = ? AND status IN ('planning', 'queued', 'running', 'finishing')
     AND status IN (${statuses.map(() => "?").join(", ")})`
  const rows = await view.all<{ seq: number }>(
    `SELECT seq FROM jobs WHERE ${where} ORDER BY created_at DESC, id DESC LIMIT ?`,
    account,
    project,
    ...statuses,
    limit,
  )
  const total = rows.length < limit ? rows.length : await count(view, where, [account, project, ...statuses])
  return { seqs: rows.map(({ seq }) => seq), total }
}

/** Jobs of a project that ended since then: the latest, and how many there are. */
export async function endedJobs(
  view: View,
  account: AccountId,
  project: string,
  since: Instant,
  limit: number,
): Promise<{ ended: { seq: number; at: Instant }[]; total: number }> {
  const where = "account = ? AND project = ? AND completed_at IS NOT NULL AND completed_at >= ?"
  const rows = await view.all<{ seq: number; completed_at: number }>(
    `SELECT seq, completed_at FROM jobs WHERE ${where} ORDER BY completed_at DESC LIMIT ?`,
    account,
    project,
    since,
    limit,
  )
  const total = rows.length < limit ? rows.length : await count(view, where, [account, project, since])
  return { ended: rows.map(({ seq, completed_at: at }) => ({ seq, at })), total }
}

async function count(view: View, where: string, parameters: readonly (string | number)[]): Promise<number> {
  const row = await view.get<{ total: number }>(`SELECT count(*) AS total FROM jobs WHERE ${where}`, ...parameters)
  return row?.total ?? 0
}
