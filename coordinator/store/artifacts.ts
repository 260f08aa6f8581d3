import type { Instant } from "../../protocol/base/clock.ts"
import {
  accountId,
  artifactId,
  digest as asDigest,
  indexOfTaskId,
  jobId,
  type AccountId,
  type ArtifactId,
  type Digest,
  type JobId,
  type TaskId,
} from "../../protocol/domain/ids.ts"
import type { Tx, View } from "./store.ts"

export type ArtifactSource = "local" | "r2" | "external"

export interface Artifact {
  id: ArtifactId
  account: AccountId
  job: JobId | null
  task: TaskId | null
  /** What `_artifacts.upload` called it; null for archives and uploads. */
  name: string | null
  filename: string
  contentType: string
  source: ArtifactSource
  /** Null until known (external ones). */
  digest: Digest | null
  /** Bytes; null until known. */
  size: number | null
  createdAt: Instant
  expiresAt: Instant
}

/** An artifact whose bytes lie on the coordinator's own disk. */
export type LocalArtifact = Artifact & { source: "local"; digest: Digest; size: number }

export async function insertArtifact(tx: Tx, artifact: Artifact): Promise<void> {
  await tx.run(
    `INSERT INTO artifacts (id, account, job, task, task_index, name, filename, content_type, source, digest, size, created_at,
       expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
    artifact.id,
    artifact.account,
    artifact.job,
    artifact.task,
    artifact.task === null ? null : indexOfTaskId(artifact.task),
    artifact.name,
    artifact.filename,
    artifact.contentType,
    artifact.source,
    artifact.digest,
    artifact.size,
    artifact.createdAt,
    artifact.expiresAt,
  )
}

/** The artifact while it lasts, for its account; `account` null asks for anybody's (administrators). */
export async function findArtifact(
  view: View,
  id: ArtifactId,
  account: AccountId | null,
  at: Instant,
): Promise<Artifact | null> {
  const row = await view.get<ArtifactRow>(
    `SELECT ${COLUMNS} FROM artifacts WHERE id = ? AND expires_at > ? AND (? IS NULL OR account = ?)`,
    id,
    at,
    account,
    account,
  )
  return row === undefined ? null : fromRow(row)
}

/** Those of `ids` that are not artifacts of the account, or no longer. */
export async function missingArtifacts(
  view: View,
  ids: readonly ArtifactId[],
  account: AccountId,
  at: Instant,
): Promise<ArtifactId[]> {
  const rows = await view.all<{ id: string }>(
    `SELECT id FROM artifacts WHERE id IN (${ids.map(() => "?").join(", ")}) AND account = ? AND expires_at > ?`,
    ...ids,
    account,
    at,
  )
  const there = new Set(rows.map(({ id }) => id))
  return ids.filter((id) => !there.has(id))
}

/**
 * What a task of the job called by this name, while it lasts: of the first task that made one, or of the one asked for, and
 * the latest where it made several (GAP-54).
 */
export async function findNamedArtifact(
  view: View,
  wanted: { job: JobId; account: AccountId; name: string; taskIndex: number | null },
  at: Instant,
): Promise<Artifact | null> {
  const row = await view.get<ArtifactRow>(
    `SELECT ${COLUMNS} FROM artifacts
     WHERE job = ? AND name = ? AND task_index ${wanted.taskIndex === null ? "IS NOT NULL" : "= ?"} AND account = ?
       AND expires_at > ?
     ORDER BY task_index, seq DESC LIMIT 1`,
    wanted.job,
    wanted.name,
    ...(wanted.taskIndex === null ? [] : [wanted.taskIndex]),
    wanted.account,
    at,
  )
  return row === undefined ? null : fromRow(row)
}

export interface ArtifactFilter {
  account: AccountId
  job?: JobId
  source?: ArtifactSource
  limit: number
  offset: number
}

/** Newest first. */
export async function listArtifacts(view: View, filter: ArtifactFilter, at: Instant): Promise<Artifact[]> {
  const conditions = ["account = ?", "expires_at > ?"]
  const values: (string | number)[] = [filter.account, at]
  if (filter.job !== undefined) {
    conditions.push("job = ?")
    values.push(filter.job)
  }
  if (filter.source !== undefined) {
    conditions.push("source = ?")
    values.push(filter.source)
  }
  const rows = await view.all<ArtifactRow>(
    `SELECT ${COLUMNS} FROM artifacts WHERE ${conditions.join(" AND ")} ORDER BY seq DESC LIMIT ? OFFSET ?`,
    ...values,
    filter.limit,
    filter.offset,
  )
  return rows.map(fromRow)
}

/** False when there was none. */
export async function deleteArtifact(tx: Tx, id: ArtifactId): Promise<boolean> {
  return (await tx.run("DELETE FROM artifacts WHERE id = ?", id)).changes === 1
}

/** It lasts until then, if that is later than what was promised before. */
export async function keepArtifactUntil(tx: Tx, id: ArtifactId, expiresAt: Instant): Promise<void> {
  await tx.run("UPDATE artifacts SET expires_at = ? WHERE id = ? AND expires_at < ?", expiresAt, id, expiresAt)
}

/** What kept it longer is over. */
export async function endArtifactAt(tx: Tx, id: ArtifactId, expiresAt: Instant): Promise<void> {
  await tx.run("UPDATE artifacts SET expires_at = ? WHERE id = ?", expiresAt, id)
}

/** Removes up to `most` records whose time is over and answers which. */
export async function deleteExpiredArtifacts(tx: Tx, at: Instant, most: number): Promise<ArtifactId[]> {
  const rows = await tx.all<{ id: string }>(
    `DELETE FROM artifacts WHERE id IN (SELECT id FROM artifacts WHERE expires_at <= ? ORDER BY expires_at LIMIT ?) RETURNING id`,
    at,
    most,
  )
  return rows.map(({ id }) => artifactId(id))
}

/** Is this a job of the account? An upload may be linked to no other. */
export async function isJobOf(view: View, job: JobId, account: AccountId): Promise<boolean> {
  return (await view.get("SELECT 1 AS found FROM jobs WHERE id = ? AND account = ?", job, account)) !== undefined
}

const COLUMNS = "id, account, job, task, name, filename, content_type, source, digest, size, created_at, expires_at"

interface ArtifactRow {
  id: string
  account: number
  job: string | null
  task: string | null
  name: string | null
  filename: string
  content_type: string
  source: ArtifactSource
  digest: string | null
  size: number | null
  created_at: number
  expires_at: number
}

function fromRow(row: ArtifactRow): Artifact {
  return {
    id: artifactId(row.id),
    account: accountId(row.account),
    job: row.job === null ? null : jobId(row.job),
    task: row.task as TaskId | null,
    name: row.name,
    filename: row.filename,
    contentType: row.content_type,
    source: row.source,
    digest: row.digest === null ? null : asDigest(row.digest),
    size: row.size,
    createdAt: row.created_at,
    expiresAt: row.expires_at,
  }
}
