import type { Instant } from "../../protocol/base/clock.ts"
import type { Tx, View } from "./store.ts"
import { taskKey, type TaskKey } from "./tasks.ts"

// Forgetting a job, part by part: its rows may be many and large. What it cost (holds, charges, entries) and what its tasks
// uploaded (artifacts, with a retention of their own) stay.

/**
 * Jobs that ended at or before then, the longest ended first. Those that something still works on are left out: their results
 * are being merged, or a job that waits for them has not been told yet.
 */
export async function expiredJobs(view: View, endedUpto: Instant, limit: number): Promise<number[]> {
  const rows = await view.all<{ seq: number }>(
    `SELECT seq FROM jobs WHERE completed_at <= ?
       AND seq NOT IN (SELECT seq FROM jobs WHERE outcome IS NULL)
       AND NOT EXISTS (SELECT 1 FROM job_dependencies WHERE upstream = jobs.seq AND ended IS NULL)
     ORDER BY completed_at LIMIT ?`,
    endedUpto,
    limit,
  )
  return rows.map(({ seq }) => seq)
}

/** Bytes of the job's own row. */
export async function weightOfJob(view: View, seq: number): Promise<number> {
  const row = await view.get<{ bytes: number }>(
    `SELECT octet_length(request) + octet_length(submission) + coalesce(octet_length(outcome), 0) AS bytes
     FROM jobs WHERE seq = ?`,
    seq,
  )
  return row?.bytes ?? 0
}

/** Deletes the row of a job whose tasks, attempts and events are gone; its tags and dependencies go with it. */
export async function deleteJob(tx: Tx, seq: number): Promise<void> {
  await tx.run("DELETE FROM jobs WHERE seq = ?", seq)
}

/** Deletes up to `most` attempts of a job; gives how many. */
export async function deleteAttempts(tx: Tx, job: number, most: number): Promise<number> {
  const { changes } = await tx.run(
    "DELETE FROM attempts WHERE claim IN (SELECT claim FROM attempts WHERE task >= ? AND task < ? LIMIT ?)",
    taskKey(job, 0),
    taskKey(job + 1, 0),
    most,
  )
  return changes
}

/** Deletes up to `most` events of a job, the oldest first; gives how many. */
export async function deleteEvents(tx: Tx, job: number, most: number): Promise<number> {
  const { changes } = await tx.run(
    "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE job = ? ORDER BY id LIMIT ?)",
    job,
    most,
  )
  return changes
}

export interface TaskWeight {
  key: TaskKey
  /** Of what it left in rows. */
  bytes: number
}

/** Up to `most` tasks of a job, each with what deleting it costs. */
export async function tasksToDelete(view: View, job: number, most: number): Promise<TaskWeight[]> {
  return view.all(
    `SELECT t.id AS key, coalesce(octet_length(r.result), 0) + coalesce(octet_length(r.output), 0) AS bytes
     FROM tasks t LEFT JOIN task_results r ON r.task = t.id
     WHERE t.id >= ? AND t.id < ? ORDER BY t.id LIMIT ?`,
    taskKey(job, 0),
    taskKey(job + 1, 0),
    most,
  )
}

/** Which tasks of `from` … `upto` left a result as a blob. */
export async function tasksWithBlobs(view: View, from: TaskKey, upto: TaskKey): Promise<TaskKey[]> {
  const rows = await view.all<{ task: number }>(
    "SELECT task FROM task_results WHERE result_digest IS NOT NULL AND task BETWEEN ? AND ?",
    from,
    upto,
  )
  return rows.map(({ task }) => task)
}

/** Deletes the tasks `from` … `upto`; what they left in rows goes with them. */
export async function deleteTasks(tx: Tx, from: TaskKey, upto: TaskKey): Promise<void> {
  await tx.run("DELETE FROM tasks WHERE id BETWEEN ? AND ?", from, upto)
}
