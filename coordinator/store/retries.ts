import type { Instant } from "../../protocol/base/clock.ts"
import type { HoldId } from "../../protocol/domain/ids.ts"
import type { Tx, View } from "./store.ts"
import { indexOfTask, taskKey, type StoredTaskState } from "./tasks.ts"

// A job that has ended, opened again for some of its tasks (rulings, Retry of a finished job).

/** Which tasks run again. Indexes are sorted, and each stands once. */
export type RetrySelection =
  | { filter: "failed" }
  /** Completed ones whose quality is below 0.5. */
  | { filter: "low_quality" }
  | { filter: "indexes"; indexes: number[] }

export interface SelectedTask {
  index: number
  /** Null: it has no row, because its job ended while it was planned; it reads as cancelled. */
  state: StoredTaskState | null
}

/** The next selected tasks from `from` on, in index order; fewer than `limit` when there are no more. */
export async function selectedTasks(
  view: View,
  job: number,
  selection: RetrySelection,
  from: number,
  limit: number,
): Promise<SelectedTask[]> {
  if (selection.filter === "indexes") return await namedTasks(view, job, selection.indexes, from, limit)
  const sql =
    selection.filter === "failed"
      ? "SELECT id, state FROM tasks WHERE state = 'failed' AND id >= ? AND id < ? ORDER BY id LIMIT ?"
      : `SELECT t.id, t.state FROM task_results r JOIN tasks t ON t.id = r.task
         WHERE r.quality < 0.5 AND r.task >= ? AND r.task < ? AND t.state = 'completed' ORDER BY r.task LIMIT ?`
  const rows = await view.all<{ id: number; state: StoredTaskState }>(
    sql,
    taskKey(job, from),
    taskKey(job + 1, 0),
    limit,
  )
  return rows.map(({ id, state }) => ({ index: indexOfTask(id), state }))
}

async function namedTasks(
  view: View,
  job: number,
  indexes: readonly number[],
  from: number,
  limit: number,
): Promise<SelectedTask[]> {
  const first = firstAtLeast(indexes, from)
  const named = indexes.slice(first, first + limit)
  const rows = await view.all<{ id: number; state: StoredTaskState }>(
    `SELECT id, state FROM tasks WHERE id IN (${named.map(() => "?").join(", ")})`,
    ...named.map((index) => taskKey(job, index)),
  )
  const states = new Map(rows.map(({ id, state }) => [indexOfTask(id), state]))
  return named.map((index) => ({ index, state: states.get(index) ?? null }))
}

function firstAtLeast(sorted: readonly number[], least: number): number {
  let low = 0
  let high = sorted.length
  while (low < high) {
    const middle = (low + high) >> 1
    if ((sorted[middle] ?? 0) < least) low = middle + 1
    else high = middle
  }
  return low
}

/** Of the selected tasks, how many had ended in each way. */
export interface SelectedCounts {
  completed: number
  failed: number
  cancelled: number
}

/**
 * Opens the next round: the job is queued again and its sums count the selected tasks as waiting; their rows follow in slices
 * (`retrying`). False when it is in another round, or has not wholly ended: then nothing changes.
 */
export async function openRound(
  tx: Tx,
  seq: number,
  next: {
    /** The round that has ended. */
    round: number
    hold: HoldId
    billing: string
    selection: RetrySelection
    counts: SelectedCounts
    at: Instant
  },
): Promise<boolean> {
  const { completed, failed, cancelled } = next.counts
  const { changes } = await tx.run(
    `UPDATE jobs SET status = 'queued', round = round + 1, hold = ?, billing = ?, retrying = ?, retried_upto = 0,
       queued = ?, granted = 0, running = 0, completed = completed - ?, failed = failed - ?, cancelled = cancelled - ?,
       failed_before = failed - ?, error = NULL, outcome = NULL, queued_at = ?, started_at = NULL, completed_at = NULL
     WHERE seq = ? AND round = ? AND status IN ('completed', 'partial', 'failed', 'cancelled') AND outcome IS NOT NULL`,
    next.hold,
    next.billing,
    JSON.stringify(next.selection),
    completed + failed + cancelled,
    completed,
    failed,
    cancelled,
    failed,
    next.at,
    seq,
    next.round,
  )
  return changes === 1
}

export interface PendingRetry {
  selection: RetrySelection
  /** Selected tasks below this index are put back. */
  upto: number
  /** Tasks from here on have no rows: the job ended while it was planned. */
  plannedUpto: number
  taskCount: number
  /** The job ended again before all were put back. */
  isOver: boolean
}

/** What is still to be put back; null when nothing is. */
export async function pendingRetry(view: View, seq: number): Promise<PendingRetry | null> {
  const row = await view.get<{
    retrying: string | null
    retried_upto: number
    planned_upto: number
    task_count: number
    completed_at: number | null
  }>("SELECT retrying, retried_upto, planned_upto, task_count, completed_at FROM jobs WHERE seq = ?", seq)
  if (!row || row.retrying === null) return null
  return {
    selection: JSON.parse(row.retrying) as RetrySelection,
    upto: row.retried_upto,
    plannedUpto: row.planned_upto,
    taskCount: row.task_count,
    isOver: row.completed_at !== null,
  }
}

/** Tasks that never got a row, because their job ended while it was planned, get one: they were cancelled. */
export async function insertCancelledTasks(
  tx: Tx,
  seq: number,
  from: number,
  upto: number,
  at: Instant,
): Promise<void> {
  for (let index = from; index < upto; index++) {
    await tx.run("INSERT INTO tasks (id, state, completed_at) VALUES (?, 'cancelled', ?)", taskKey(seq, index), at)
  }
  await tx.run("UPDATE jobs SET planned_upto = ? WHERE seq = ?", upto, seq)
}

/** Puts one task that has ended back into the queue, with fresh retries; gives the quality that its result had. */
export async function putBack(tx: Tx, key: number): Promise<number | null> {
  await tx.run(
    `UPDATE tasks SET retried_from = coalesce(retried_from, state), state = 'queued', attempts_before = attempt,
       failures = 0, losses = 0, completed_at = NULL
     WHERE id = ? AND state IN ('completed', 'failed', 'cancelled')`,
    key,
  )
  const row = await tx.get<{ quality: number | null }>("SELECT quality FROM task_results WHERE task = ?", key)
  return row?.quality ?? null
}

/** A slice is done: tasks below `upto` are put back, all of them when it is null. Their qualities count no more. */
export async function advanceRetry(
  tx: Tx,
  seq: number,
  slice: { upto: number | null; suspect: number; qualitySum: number },
): Promise<void> {
  await tx.run(
    `UPDATE jobs SET retried_upto = coalesce(?, 0), retrying = CASE WHEN ? IS NULL THEN NULL ELSE retrying END,
       suspect = suspect - ?, quality_sum = CASE WHEN completed = 0 THEN 0 ELSE quality_sum - ? END
     WHERE seq = ?`,
    slice.upto,
    slice.upto,
    slice.suspect,
    slice.qualitySum,
    seq,
  )
}
