import type { Instant } from "../../protocol/base/clock.ts"
import { accountId, jobId, type AccountId, type JobId } from "../../protocol/domain/ids.ts"
import type { JobType, TerminalJobStatus } from "../../protocol/domain/statuses.ts"
import type { Tx, View } from "./store.ts"

export interface WebhookSecrets {
  secret: string
  /** The one before, and until when it signs too. */
  previous: { secret: string; until: Instant } | null
}

export async function findSecrets(view: View, account: AccountId): Promise<WebhookSecrets | null> {
  const row = await view.get<{ secret: string; previous: string | null; previous_until: number | null }>(
    "SELECT secret, previous, previous_until FROM webhook_secrets WHERE account = ?",
    account,
  )
  if (!row) return null
  const { secret, previous, previous_until: until } = row
  return { secret, previous: previous === null || until === null ? null : { secret: previous, until } }
}

/** The account's secrets; where it has none, this one becomes its first. */
export async function ensureSecrets(tx: Tx, account: AccountId, secret: string): Promise<WebhookSecrets> {
  await tx.run(
    "INSERT INTO webhook_secrets (account, secret) VALUES (?, ?) ON CONFLICT (account) DO NOTHING",
    account,
    secret,
  )
  return (await findSecrets(tx, account)) ?? { secret, previous: null }
}

/** The present secret becomes the one before, and the one before that is dropped. */
export async function rotateSecret(tx: Tx, account: AccountId, secret: string, previousUntil: Instant): Promise<void> {
  await tx.run(
    `INSERT INTO webhook_secrets (account, secret) VALUES (?, ?)
     ON CONFLICT (account) DO UPDATE SET previous = secret, previous_until = ?, secret = excluded.secret`,
    account,
    secret,
    previousUntil,
  )
}

export interface NewWebhookCall {
  /** The job's seq. */
  job: number
  /** Of the job: the one that ended. */
  round: number
  account: AccountId
  url: string
  status: TerminalJobStatus
  error: string | null
  progress: number | null
  endedAt: Instant
}

/** Is to be made at once. */
export async function insertWebhookCall(tx: Tx, call: NewWebhookCall): Promise<void> {
  await tx.run(
    `INSERT INTO webhook_calls (job, round, account, url, status, error, progress, ended_at, due_at)
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
    call.job,
    call.round,
    call.account,
    call.url,
    call.status,
    call.error,
    call.progress,
    call.endedAt,
    call.endedAt,
  )
}

/** As a queue holds it: thin. */
export interface WaitingCall {
  seq: number
  account: AccountId
  url: string
  dueAt: Instant
}

/** Calls behind `after`, oldest first. */
export async function waitingCalls(view: View, after: number, limit: number): Promise<WaitingCall[]> {
  const rows = await view.all<{ seq: number; account: number; url: string; due_at: number }>(
    "SELECT seq, account, url, due_at FROM webhook_calls WHERE seq > ? ORDER BY seq LIMIT ?",
    after,
    limit,
  )
  return rows.map(({ seq, account, url, due_at: dueAt }) => ({ seq, account: accountId(account), url, dueAt }))
}

export interface WebhookCall extends NewWebhookCall {
  seq: number
  jobId: JobId
  project: string
  type: JobType
  tags: string[]
  attempts: number
}

/** The call with what its job says of itself; null when it was made, given up, or its job is gone. */
export async function findWebhookCall(view: View, seq: number): Promise<WebhookCall | null> {
  const row = await view.get<RawCall>(
    `SELECT webhook_calls.seq, job, webhook_calls.round, webhook_calls.account, url, webhook_calls.status, webhook_calls.error, progress, ended_at,
       webhook_calls.attempts, jobs.id, project, type, tags
     FROM webhook_calls JOIN jobs ON jobs.seq = webhook_calls.job WHERE webhook_calls.seq = ?`,
    seq,
  )
  if (!row) return null
  const { account, ended_at: endedAt, id, tags, ...rest } = row
  return { ...rest, account: accountId(account), endedAt, jobId: jobId(id), tags: JSON.parse(tags) as string[] }
}

interface RawCall {
  seq: number
  job: number
  round: number
  account: number
  url: string
  status: TerminalJobStatus
  error: string | null
  progress: number | null
  ended_at: number
  attempts: number
  id: string
  project: string
  type: JobType
  tags: string
}

/** Is the job still what it was when the call was written? Once it was retried, what it says of itself is of another round. */
export async function isOfPresentRound(
  view: View,
  { job, round }: Pick<NewWebhookCall, "job" | "round">,
): Promise<boolean> {
  return (await view.get("SELECT 1 AS present FROM jobs WHERE seq = ? AND round = ?", job, round)) !== undefined
}

/** Counts an attempt that failed; the next one is due then. */
export async function postponeWebhookCall(tx: Tx, seq: number, attempts: number, dueAt: Instant): Promise<void> {
  await tx.run("UPDATE webhook_calls SET attempts = ?, due_at = ? WHERE seq = ?", attempts, dueAt, seq)
}

/** False when it was gone already. */
export async function deleteWebhookCall(tx: Tx, seq: number): Promise<boolean> {
  return (await tx.run("DELETE FROM webhook_calls WHERE seq = ?", seq)).changes === 1
}
