import type { Instant } from "../../protocol/base/clock.ts"
import type { StoredJobStatus } from "./jobs.ts"
import type { Tx, View } from "./store.ts"
import { taskKey, type TaskKey } from "./tasks.ts"

// What the sweeps over jobs that are not over read of them, and how their sums are put right.

/** The statuses written out as in the index `jobs_active`: only then it serves, whatever has ended before. */
const IS_ACTIVE = "status IN ('planning', 'queued', 'running', 'finishing')"

export interface ActiveJob {
  seq: number
  status: StoredJobStatus
  taskCount: number
  granted: number
  running: number
  completed: number
  failed: number
  cancelled: number
}

/** A page of the jobs that are not over, thin, by seq. */
export async function activeJobs(view: View, afterSeq: number, limit: number): Promise<ActiveJob[]> {
  return view.all(
    `SELECT seq, status, task_count AS taskCount, granted, running, completed, failed, cancelled FROM jobs
     WHERE ${IS_ACTIVE} AND seq > ? ORDER BY seq LIMIT ?`,
    afterSeq,
    limit,
  )
}

/** A page of the jobs that have been queued since before then and of which nothing was handed to a node, by seq. */
export async function jobsInQueue(
  view: View,
  queuedBefore: Instant,
  afterSeq: number,
  limit: number,
): Promise<{ seq: number; queuedAt: Instant }[]> {
  return view.all(
    `SELECT seq, queued_at AS queuedAt FROM jobs
     WHERE ${IS_ACTIVE} AND status = 'queued' AND granted = 0 AND queued_at <= ? AND seq > ? ORDER BY seq LIMIT ?`,
    queuedBefore,
    afterSeq,
    limit,
  )
}

/** Makes the sums over the tasks of a job that is queued or running again from its rows. */
export async function recountJob(tx: Tx, seq: number): Promise<void> {
  const rows = await tx.all<{ state: string; tasks: number }>(
    "SELECT state, count(*) AS tasks FROM tasks WHERE id >= ? AND id < ? GROUP BY state",
    taskKey(seq, 0),
    taskKey(seq + 1, 0),
  )
  const of = (state: string): number => rows.find((row) => row.state === state)?.tasks ?? 0
  await tx.run(
    `UPDATE jobs SET queued = ?, granted = ?, running = ?, completed = ?, failed = ?, cancelled = ?
     WHERE seq = ? AND status IN ('queued', 'running')`,
    of("queued"),
    of("granted"),
    of("running") + of("lost"),
    of("completed"),
    of("failed"),
    of("cancelled"),
    seq,
  )
}

export interface TaskWithNode {
  key: TaskKey
  attempt: number
  claim: number | null
  /** Of the attempt behind the claim; null when there is none. */
  grantedAt: Instant | null
}

/** Tasks of a job that are with a node, as far as their rows say. */
export async function tasksWithNodes(view: View, job: number): Promise<TaskWithNode[]> {
  return view.all(
    `SELECT t.id AS key, t.attempt, t.claim, a.granted_at AS grantedAt FROM tasks t
     LEFT JOIN attempts a ON a.claim = t.claim
     WHERE t.id >= ? AND t.id < ? AND t.state IN ('granted', 'running')`,
    taskKey(job, 0),
    taskKey(job + 1, 0),
  )
}
