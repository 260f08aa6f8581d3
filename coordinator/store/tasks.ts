import type { Instant } from "../../protocol/base/clock.ts"
import { claimNumber, nodeId, type ClaimNumber, type NodeId } from "../../protocol/domain/ids.ts"
import type { FailureKind } from "../../protocol/domain/statuses.ts"
import type { Tx, View } from "./store.ts"

/** A task's key: its job's seq and its index in one number, so that a job's tasks lie together in order. */
export type TaskKey = number

/** More than any job may have (100,000). */
export const TASKS_PER_JOB = 131_072

export const taskKey = (job: number, index: number): TaskKey => job * TASKS_PER_JOB + index
export const jobOfTask = (key: TaskKey): number => Math.floor(key / TASKS_PER_JOB)
export const indexOfTask = (key: TaskKey): number => key % TASKS_PER_JOB

/** `granted` reads as queued and `lost` as running for clients (see the migration). */
export type StoredTaskState = "queued" | "granted" | "running" | "lost" | "completed" | "failed" | "cancelled"
export type StoredAttemptState =
  | "offered"
  | "accepted"
  | "running"
  | "completed"
  | "failed"
  | "cancelled"
  | "lost"
  | "returned"

export interface TaskRow {
  key: TaskKey
  index: number
  state: StoredTaskState
  attempt: number
  failures: number
  losses: number
  claim: ClaimNumber | null
  /** Attempts made before its job was last retried. */
  attemptsBefore: number
  /** How it ended before that, until an attempt of this round ends: what it left then is still to be read. */
  retriedFrom: "completed" | "failed" | "cancelled" | null
  /** Of the attempt that ran last, as everything a row shows of its runs; the job keeps when its first task started. */
  startedAt: Instant | null
  completedAt: Instant | null
}

export interface TaskResultRow {
  claim: ClaimNumber
  output: string
  error: string | null
  failureKind: FailureKind | null
  exitCode: number | null
  result: string | null
  resultDigest: string | null
  resultBytes: number | null
  quality: number | null
  warnings: string[]
  runtimeMs: number | null
  /** The signal that ended the program, null when none did. */
  signal: string | null
  /** The last progress line as its own JSON text, null without one. */
  progress: string | null
}

export type TaskWithResult = TaskRow & { end: TaskResultRow | null }
/** `budgetMs`: what the live or last attempt was given, where that was less than the job's timeout. */
export type TaskWithAttempt = TaskWithResult & { budgetMs: number | null }

export interface LiveAttemptRow {
  claim: ClaimNumber
  task: TaskKey
  number: number
  node: NodeId
  /** Its own while it lives. */
  gpus: string[]
  state: "offered" | "accepted" | "running"
  grantedAt: Instant
  acceptedAt: Instant | null
  startedAt: Instant | null
  /** Recorded time without contact: never billed. */
  lostContactMs: number
  /** Contact is lost since then. */
  contactLostAt: Instant | null
  /** An absence of this process extended the claim to then; null once its node was heard. */
  extendedUntil: Instant | null
}

// ── tasks ───────────────────────────────────────────────────────────────────────────────────────────────────────────

/** Inserts the queued tasks `from` … `upto` − 1 of a job. A slice that was inserted before is a bug: `advancePlanning` guards it. */
export async function insertTasks(tx: Tx, job: number, from: number, upto: number): Promise<void> {
  for (let index = from; index < upto; index++) {
    await tx.run("INSERT INTO tasks (id, state) VALUES (?, 'queued')", taskKey(job, index))
  }
}

export interface WaitingTaskRow {
  key: TaskKey
  state: "queued" | "lost"
  attempt: number
  losses: number
  claim: number | null
}

/**
 * The next tasks of a job that may be granted: `lost` ones first, which have waited longest and have an old attempt to end,
 * then the others in index order.
 */
export async function waitingTasks(view: View, job: number, limit: number): Promise<WaitingTaskRow[]> {
  const lost = await waitingTasksIn(view, job, "lost", limit)
  return [...lost, ...(await waitingTasksIn(view, job, "queued", limit - lost.length))]
}

/** The state is written out: only then a partial index serves, and a task is found as fast among 100,000 as among ten. */
async function waitingTasksIn(
  view: View,
  job: number,
  state: "queued" | "lost",
  limit: number,
): Promise<WaitingTaskRow[]> {
  if (limit <= 0) return []
  return view.all(
    `SELECT id AS key, state, attempt, losses, claim FROM tasks
     WHERE state = '${state}' AND id >= ? AND id < ? ORDER BY id LIMIT ?`,
    taskKey(job, 0),
    taskKey(job + 1, 0),
    limit,
  )
}

/** Moves a task between states, if it is where it should be and under the claim it should be. */
export async function moveTask(
  tx: Tx,
  key: TaskKey,
  from: readonly StoredTaskState[],
  to: StoredTaskState,
): Promise<boolean> {
  const { changes } = await tx.run(
    `UPDATE tasks SET state = ? WHERE id = ? AND state IN (${from.map(() => "?").join(", ")})`,
    to,
    key,
    ...from,
  )
  return changes === 1
}

export async function grantTask(tx: Tx, key: TaskKey, attempt: number, claim: ClaimNumber): Promise<boolean> {
  const { changes } = await tx.run(
    "UPDATE tasks SET state = 'granted', attempt = ?, claim = ? WHERE id = ? AND state IN ('queued', 'lost')",
    attempt,
    claim,
    key,
  )
  return changes === 1
}

/** Back to the queue without a loss: the attempt never started. The attempt's number is taken back. */
export async function requeueUnstarted(tx: Tx, key: TaskKey, claim: ClaimNumber): Promise<boolean> {
  const { changes } = await tx.run(
    "UPDATE tasks SET state = 'queued', attempt = attempt - 1 WHERE id = ? AND claim = ? AND state IN ('granted', 'running', 'lost')",
    key,
    claim,
  )
  return changes === 1
}

export async function startTask(tx: Tx, key: TaskKey, claim: ClaimNumber, at: Instant): Promise<boolean> {
  const { changes } = await tx.run(
    "UPDATE tasks SET state = 'running', started_at = ? WHERE id = ? AND claim = ? AND state = 'granted'",
    at,
    key,
    claim,
  )
  return changes === 1
}

/**
 * Ends one attempt's hold on its task: final, or back to the queue for another try. `started_at` is that of the attempt that
 * ran last, whether its start was stored before or comes with its end; an attempt that never ran (null) leaves it as it is.
 */
export async function endTask(
  tx: Tx,
  key: TaskKey,
  claim: ClaimNumber,
  end: { state: "completed" | "failed" | "queued"; failed: boolean; startedAt: Instant | null; at: Instant },
): Promise<boolean> {
  const { changes } = await tx.run(
    `UPDATE tasks SET state = ?, failures = failures + ?, started_at = coalesce(?, started_at), completed_at = ?,
       retried_from = NULL
     WHERE id = ? AND claim = ? AND state IN ('granted', 'running', 'lost')`,
    end.state,
    end.failed ? 1 : 0,
    end.startedAt,
    end.state === "queued" ? null : end.at,
    key,
    claim,
  )
  return changes === 1
}

/** A task that waits is never to run again: it fails without a further attempt. The caller has ended that of a lost one. */
export async function failWaitingTask(tx: Tx, key: TaskKey, at: Instant): Promise<boolean> {
  const { changes } = await tx.run(
    "UPDATE tasks SET state = 'failed', completed_at = ?, retried_from = NULL WHERE id = ? AND state IN ('queued', 'lost')",
    at,
    key,
  )
  return changes === 1
}

export async function countLoss(tx: Tx, key: TaskKey): Promise<void> {
  await tx.run("UPDATE tasks SET losses = losses + 1 WHERE id = ?", key)
}

/** Cancels up to `limit` tasks of a job that are not final. Returns how many it cancelled: 0 when none is left. */
export async function cancelTasks(tx: Tx, job: number, limit: number, at: Instant): Promise<number> {
  const { changes } = await tx.run(
    `UPDATE tasks SET state = 'cancelled', completed_at = ? WHERE id IN (
       SELECT id FROM tasks WHERE id >= ? AND id < ? AND state IN ('queued', 'granted', 'running', 'lost') LIMIT ?)`,
    at,
    taskKey(job, 0),
    taskKey(job + 1, 0),
    limit,
  )
  return changes
}

export async function taskByKey(view: View, key: TaskKey): Promise<TaskRow | null> {
  const row = await view.get<RawTask>("SELECT * FROM tasks WHERE id = ?", key)
  return row ? taskFrom(row) : null
}

/** These tasks with what their last attempts left, by key. Keys without a row are left out. */
export async function tasksByKeys(view: View, keys: readonly TaskKey[]): Promise<TaskWithAttempt[]> {
  const rows = await view.all<RawTask & RawResult & { budget_ms: number | null }>(
    `SELECT ${TASK_WITH_RESULT}, a.budget_ms FROM tasks t LEFT JOIN task_results r ON r.task = t.id
     LEFT JOIN attempts a ON a.claim = t.claim
     WHERE t.id IN (${keys.map(() => "?").join(", ")}) ORDER BY t.id`,
    ...keys,
  )
  return rows.map((row) => ({ ...withResult(row), budgetMs: row.budget_ms }))
}

export async function countTasks(view: View, job: number, states: readonly StoredTaskState[]): Promise<number> {
  const row = await view.get<{ n: number }>(
    `SELECT count(*) AS n FROM tasks WHERE id >= ? AND id < ? AND state IN (${states.map(() => "?").join(", ")})`,
    taskKey(job, 0),
    taskKey(job + 1, 0),
    ...states,
  )
  return row?.n ?? 0
}

/** Tasks of a job from `fromIndex` on with their results, in index order: aggregation reads slices of them. */
export async function taskSlice(view: View, job: number, fromIndex: number, limit: number): Promise<TaskWithResult[]> {
  const rows = await view.all<RawTask & RawResult>(
    `SELECT ${TASK_WITH_RESULT} FROM tasks t LEFT JOIN task_results r ON r.task = t.id
     WHERE t.id >= ? AND t.id < ? ORDER BY t.id LIMIT ?`,
    taskKey(job, Math.min(fromIndex, TASKS_PER_JOB - 1)),
    taskKey(job + 1, 0),
    limit,
  )
  return rows.map(withResult)
}

const TASK_WITH_RESULT = `t.*, r.claim AS result_claim, r.output, r.error, r.failure_kind, r.exit_code, r.result,
  r.result_digest, r.result_bytes, r.quality, r.warnings, r.runtime_ms, r.signal, r.progress`

const withResult = (row: RawTask & RawResult): TaskWithResult => ({
  ...taskFrom(row),
  end: row.result_claim === null ? null : resultFrom(row),
})

/** The lowest failed index of a job and its error, for the job's own error line. */
export async function firstFailure(view: View, job: number): Promise<{ index: number; error: string | null } | null> {
  const row = await view.get<{ id: number; error: string | null }>(
    `SELECT t.id, r.error FROM tasks t LEFT JOIN task_results r ON r.task = t.id
     WHERE t.id >= ? AND t.id < ? AND t.state = 'failed' ORDER BY t.id LIMIT 1`,
    taskKey(job, 0),
    taskKey(job + 1, 0),
  )
  return row ? { index: indexOfTask(row.id), error: row.error } : null
}

/** Indexes of tasks whose quality is below 0.5, lowest first. */
export async function suspectIndexes(view: View, job: number, limit: number): Promise<number[]> {
  const rows = await view.all<{ id: number }>(
    // Of a task that runs again the earlier result is still there: it counts no more.
    `SELECT r.task AS id FROM task_results r JOIN tasks t ON t.id = r.task
     WHERE r.task >= ? AND r.task < ? AND r.quality < 0.5 AND t.state = 'completed' ORDER BY r.task LIMIT ?`,
    taskKey(job, 0),
    taskKey(job + 1, 0),
    limit,
  )
  return rows.map(({ id }) => indexOfTask(id))
}

// ── results ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** What an attempt left, in place of what an earlier one did. */
export async function putTaskResult(
  tx: Tx,
  key: TaskKey,
  end: Omit<TaskResultRow, "signal" | "progress"> & Partial<Pick<TaskResultRow, "signal" | "progress">>,
): Promise<void> {
  await tx.run(
    `INSERT INTO task_results (task, claim, output, error, failure_kind, exit_code, result, result_digest, result_bytes,
       quality, warnings, runtime_ms, signal, progress)
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
     ON CONFLICT (task) DO UPDATE SET claim = excluded.claim, output = excluded.output, error = excluded.error,
       failure_kind = excluded.failure_kind, exit_code = excluded.exit_code, result = excluded.result,
       result_digest = excluded.result_digest, result_bytes = excluded.result_bytes, quality = excluded.quality,
       warnings = excluded.warnings, runtime_ms = excluded.runtime_ms, signal = excluded.signal,
       progress = excluded.progress`,
    key,
    end.claim,
    end.output,
    end.error,
    end.failureKind,
    end.exitCode,
    end.result,
    end.resultDigest,
    end.resultBytes,
    end.quality,
    JSON.stringify(end.warnings),
    end.runtimeMs,
    end.signal ?? null,
    end.progress ?? null,
  )
}

// ── attempts ────────────────────────────────────────────────────────────────────────────────────────────────────────

export async function insertAttempt(
  tx: Tx,
  attempt: {
    claim: ClaimNumber
    task: TaskKey
    number: number
    /** Of its job. */
    round: number
    node: NodeId
    gpus?: readonly string[]
    /** The time that the hold buys, where that is less than the job's timeout. */
    budgetMs: number | null
    at: Instant
  },
): Promise<void> {
  await tx.run(
    `INSERT INTO attempts (claim, task, number, round, node, gpus, state, budget_ms, granted_at)
     VALUES (?, ?, ?, ?, ?, ?, 'offered', ?, ?)`,
    attempt.claim,
    attempt.task,
    attempt.number,
    attempt.round,
    attempt.node,
    JSON.stringify(attempt.gpus ?? []),
    attempt.budgetMs,
    attempt.at,
  )
}

export interface AttemptRow extends Omit<LiveAttemptRow, "state"> {
  state: StoredAttemptState
  itemDigest: string | null
  endedAt: Instant | null
}

export async function attemptByClaim(view: View, claim: number): Promise<AttemptRow | null> {
  const row = await view.get<RawAttempt>("SELECT * FROM attempts WHERE claim = ?", claim)
  return row ? attemptFrom(row) : null
}

/** The node of the task's last attempt, if that failed after `since`. */
export async function lastFailedOn(view: View, task: TaskKey, since: Instant): Promise<NodeId | null> {
  const row = await view.get<{ node: string; state: string; ended_at: number | null }>(
    "SELECT node, state, ended_at FROM attempts WHERE task = ? ORDER BY claim DESC LIMIT 1",
    task,
  )
  return row?.state === "failed" && (row.ended_at ?? 0) > since ? nodeId(row.node) : null
}

/** The live attempts of all nodes, or of one. */
export async function liveAttempts(view: View, node: NodeId | null): Promise<LiveAttemptRow[]> {
  const rows = await view.all<RawAttempt>(
    `SELECT * FROM attempts WHERE state IN ('offered', 'accepted', 'running') ${node === null ? "" : "AND node = ?"} ORDER BY node, claim`,
    ...(node === null ? [] : [node]),
  )
  return rows.map((row) => attemptFrom(row) as LiveAttemptRow)
}

/** The live attempts of one job. Bounded by what the fleet can hold. */
export async function liveAttemptsOfJob(view: View, job: number): Promise<LiveAttemptRow[]> {
  const rows = await view.all<RawAttempt>(
    `SELECT * FROM attempts WHERE task >= ? AND task < ? AND state IN ('offered', 'accepted', 'running') ORDER BY claim`,
    taskKey(job, 0),
    taskKey(job + 1, 0),
  )
  return rows.map((row) => attemptFrom(row) as LiveAttemptRow)
}

/** → `running`. An accept that was not heard counts as said. */
export async function startAttempt(tx: Tx, claim: ClaimNumber, node: NodeId, at: Instant): Promise<boolean> {
  const { changes } = await tx.run(
    `UPDATE attempts SET state = 'running', accepted_at = coalesce(accepted_at, ?), started_at = ?
     WHERE claim = ? AND node = ? AND state IN ('offered', 'accepted')`,
    at,
    at,
    claim,
    node,
  )
  return changes === 1
}

/** Ends a live attempt of this node. False when its number is spent: nothing may change by it. */
export async function endAttempt(
  tx: Tx,
  claim: ClaimNumber,
  end: {
    state: "completed" | "failed" | "cancelled" | "lost" | "returned"
    failureKind: FailureKind | null
    runtimeMs: number | null
    itemDigest: string | null
    at: Instant
  },
): Promise<boolean> {
  const { changes } = await tx.run(
    `UPDATE attempts SET state = ?, failure_kind = ?, runtime_ms = ?, item_digest = ?, ended_at = ?
     WHERE claim = ? AND state IN ('offered', 'accepted', 'running')`,
    end.state,
    end.failureKind,
    end.runtimeMs,
    end.itemDigest,
    end.at,
    claim,
  )
  return changes === 1
}

interface RawTask {
  id: number
  state: StoredTaskState
  attempt: number
  failures: number
  losses: number
  claim: number | null
  attempts_before: number
  retried_from: "completed" | "failed" | "cancelled" | null
  started_at: number | null
  completed_at: number | null
}

interface RawResult {
  result_claim: number | null
  output: string
  error: string | null
  failure_kind: FailureKind | null
  exit_code: number | null
  result: string | null
  result_digest: string | null
  result_bytes: number | null
  quality: number | null
  warnings: string
  runtime_ms: number | null
  signal: string | null
  progress: string | null
}

interface RawAttempt {
  claim: number
  task: number
  number: number
  node: string
  gpus: string
  state: StoredAttemptState
  granted_at: number
  accepted_at: number | null
  started_at: number | null
  ended_at: number | null
  lost_contact_ms: number
  contact_lost_at: number | null
  extended_until: number | null
  runtime_ms: number | null
  failure_kind: FailureKind | null
  item_digest: string | null
}

function taskFrom(row: RawTask): TaskRow {
  return {
    key: row.id,
    index: indexOfTask(row.id),
    state: row.state,
    attempt: row.attempt,
    failures: row.failures,
    losses: row.losses,
    claim: row.claim === null ? null : claimNumber(row.claim),
    attemptsBefore: row.attempts_before,
    retriedFrom: row.retried_from,
    startedAt: row.started_at,
    completedAt: row.completed_at,
  }
}

function resultFrom(row: RawResult): TaskResultRow {
  return {
    claim: claimNumber(row.result_claim ?? 0),
    output: row.output,
    error: row.error,
    failureKind: row.failure_kind,
    exitCode: row.exit_code,
    result: row.result,
    resultDigest: row.result_digest,
    resultBytes: row.result_bytes,
    quality: row.quality,
    warnings: JSON.parse(row.warnings) as string[],
    runtimeMs: row.runtime_ms,
    signal: row.signal,
    progress: row.progress,
  }
}

function attemptFrom(row: RawAttempt): AttemptRow {
  return {
    claim: claimNumber(row.claim),
    task: row.task,
    number: row.number,
    node: nodeId(row.node),
    gpus: JSON.parse(row.gpus) as string[],
    state: row.state,
    grantedAt: row.granted_at,
    acceptedAt: row.accepted_at,
    startedAt: row.started_at,
    endedAt: row.ended_at,
    lostContactMs: row.lost_contact_ms,
    contactLostAt: row.contact_lost_at,
    extendedUntil: row.extended_until,
    itemDigest: row.item_digest,
  }
}
