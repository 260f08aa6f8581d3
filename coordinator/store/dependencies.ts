import type { Instant } from "../../protocol/base/clock.ts"
import { accountId, jobId, type AccountId, type JobId } from "../../protocol/domain/ids.ts"
import type { TerminalJobStatus } from "../../protocol/domain/statuses.ts"
import type { StoredJobStatus } from "./jobs.ts"
import type { Tx, View } from "./store.ts"

/** A job that another one names in depends_on. */
export interface Upstream {
  seq: number
  id: JobId
  account: AccountId
  status: StoredJobStatus
}

/** The job of this id; null when there is none, or when it ended at or before `expiredUpto`. */
export async function findUpstream(view: View, id: JobId, expiredUpto: Instant): Promise<Upstream | null> {
  const row = await view.get<{ seq: number; account: number; status: StoredJobStatus }>(
    `SELECT seq, account, status FROM jobs
     WHERE id = ? AND seq NOT IN (SELECT seq FROM jobs WHERE completed_at <= ?)`,
    id,
    expiredUpto,
  )
  return row ? { seq: row.seq, id, account: accountId(row.account), status: row.status } : null
}

/** The job of this seq, whoever's it is; null when it is gone. */
export async function upstreamBySeq(view: View, seq: number): Promise<Pick<Upstream, "id" | "status"> | null> {
  const row = await view.get<{ id: string; status: StoredJobStatus }>("SELECT id, status FROM jobs WHERE seq = ?", seq)
  return row ? { id: jobId(row.id), status: row.status } : null
}

/** `ended`: it is over already, and this job does not wait for it. Named twice by one job is a bug. */
export async function insertDependency(
  tx: Tx,
  job: number,
  upstream: number,
  ended: TerminalJobStatus | null,
): Promise<void> {
  await tx.run("INSERT INTO job_dependencies (job, upstream, ended) VALUES (?, ?, ?)", job, upstream, ended)
}

/** The same for a job that runs again: what its row said of an earlier round is said anew. */
export async function renewDependency(
  tx: Tx,
  job: number,
  upstream: number,
  ended: TerminalJobStatus | null,
): Promise<void> {
  await tx.run(
    `INSERT INTO job_dependencies (job, upstream, ended) VALUES (?, ?, ?)
     ON CONFLICT (job, upstream) DO UPDATE SET ended = excluded.ended`,
    job,
    upstream,
    ended,
  )
}

/** The jobs, by seq, that had completed when this one was last told of them; they may be gone by now. */
export async function completedDependencies(view: View, job: number): Promise<number[]> {
  const rows = await view.all<{ upstream: number }>(
    "SELECT upstream FROM job_dependencies WHERE job = ? AND ended = 'completed'",
    job,
  )
  return rows.map(({ upstream }) => upstream)
}

/** What the job still waits for, oldest first. */
export async function openDependencies(view: View, job: number): Promise<Omit<Upstream, "account">[]> {
  const rows = await view.all<{ seq: number; id: string; status: StoredJobStatus }>(
    `SELECT jobs.seq, jobs.id, jobs.status FROM job_dependencies JOIN jobs ON jobs.seq = job_dependencies.upstream
     WHERE job_dependencies.job = ? + 0 AND job_dependencies.ended IS NULL ORDER BY jobs.seq`,
    job,
  )
  return rows.map((row) => ({ ...row, id: jobId(row.id) }))
}

/** Does the job wait for another one? Then nothing of it may be handed out, whatever memory believes. */
export async function waitsForJobs(view: View, job: number): Promise<boolean> {
  return (
    (await view.get("SELECT 1 AS open FROM job_dependencies WHERE job = ? AND ended IS NULL LIMIT 1", job)) !==
    undefined
  )
}

/** Jobs that wait for this one, oldest first. */
export async function openDependents(view: View, upstream: number, limit: number): Promise<number[]> {
  const rows = await view.all<{ job: number }>(
    "SELECT job FROM job_dependencies WHERE upstream = ? AND ended IS NULL ORDER BY job LIMIT ?",
    upstream,
    limit,
  )
  return rows.map(({ job }) => job)
}

/**
 * A job that names this one in depends_on and has not ended, whether it waits or runs; null when there is none. By the index
 * of jobs without an outcome, to which all of those belong: the rows of many that have ended would have to be read.
 */
export async function activeDependent(view: View, upstream: number): Promise<JobId | null> {
  const row = await view.get<{ id: string }>(
    `SELECT jobs.id FROM job_dependencies
     JOIN jobs INDEXED BY jobs_without_outcome ON jobs.seq = job_dependencies.job AND jobs.outcome IS NULL
     WHERE job_dependencies.upstream = ? AND jobs.status IN ('planning', 'queued', 'running', 'finishing') LIMIT 1`,
    upstream,
  )
  return row ? jobId(row.id) : null
}

/** The job waits for that one no longer. False when it was told before. */
export async function closeDependency(
  tx: Tx,
  job: number,
  upstream: number,
  ended: TerminalJobStatus,
): Promise<boolean> {
  const { changes } = await tx.run(
    "UPDATE job_dependencies SET ended = ? WHERE job = ? AND upstream = ? AND ended IS NULL",
    ended,
    job,
    upstream,
  )
  return changes === 1
}

/** The job is over before all of them are: it waits for none of them any more. */
export async function dropOpenDependencies(tx: Tx, job: number): Promise<void> {
  await tx.run("DELETE FROM job_dependencies WHERE job = ? AND ended IS NULL", job)
}

/** From now on a queued job waits for machines and nothing else. False when it is not queued. */
export async function restartQueueTime(tx: Tx, job: number, at: Instant): Promise<boolean> {
  const { changes } = await tx.run("UPDATE jobs SET queued_at = ? WHERE seq = ? AND status = 'queued'", at, job)
  return changes === 1
}

/** How the job of this id ended for one that waited for it, and its submission; null unless it ended without completing. */
export async function brokenDependency(
  view: View,
  job: number,
  upstream: JobId,
): Promise<{ ended: TerminalJobStatus; submission: string } | null> {
  const row = await view.get<{ ended: TerminalJobStatus; submission: string }>(
    `SELECT job_dependencies.ended, jobs.submission FROM jobs
     JOIN job_dependencies ON job_dependencies.job = ? AND job_dependencies.upstream = jobs.seq
     WHERE jobs.id = ? AND job_dependencies.ended <> 'completed'`,
    job,
    upstream,
  )
  return row ?? null
}
