import type { Instant } from "../../protocol/base/clock.ts"
import {
  artifactId,
  claimNumber,
  type ArtifactId,
  type ClaimNumber,
  type JobId,
  type TaskId,
} from "../../protocol/domain/ids.ts"
import type { FailureKind } from "../../protocol/domain/statuses.ts"
import type { View } from "./store.ts"
import { indexOfTask, taskKey, type StoredTaskState, type TaskKey } from "./tasks.ts"

// What pages, outputs and streams read of tasks; nothing here changes anything.

/** A page of the indexes of a job's tasks in these states, lowest first. Thin, however far the offset. */
export async function indexesInStates(
  view: View,
  job: number,
  states: readonly StoredTaskState[],
  limit: number,
  offset: number,
): Promise<number[]> {
  const rows = await view.all<{ id: number }>(
    `SELECT id FROM tasks WHERE id >= ? + 0 AND id < ? + 0 AND state IN (${states.map(() => "?").join(", ")})
     ORDER BY id LIMIT ? + 0 OFFSET ? + 0`,
    taskKey(job, 0),
    taskKey(job + 1, 0),
    ...states,
    limit,
    offset,
  )
  return rows.map(({ id }) => indexOfTask(id))
}

export interface TaskOutput {
  index: number
  state: StoredTaskState
  claim: ClaimNumber | null
  output: string
  error: string | null
}

/** What tasks from `fromIndex` on printed last, in index order. */
export async function taskOutputs(view: View, job: number, fromIndex: number, limit: number): Promise<TaskOutput[]> {
  const rows = await view.all<{
    id: number
    state: StoredTaskState
    claim: number | null
    output: string | null
    error: string | null
  }>(
    `SELECT t.id, t.state, t.claim, r.output, r.error FROM tasks t LEFT JOIN task_results r ON r.task = t.id
     WHERE t.id >= ? + 0 AND t.id < ? + 0 ORDER BY t.id LIMIT ? + 0`,
    taskKey(job, fromIndex),
    taskKey(job + 1, 0),
    limit,
  )
  return rows.map(({ id, state, claim, output, error }) => ({
    index: indexOfTask(id),
    state,
    claim: claim === null ? null : claimNumber(claim),
    output: output ?? "",
    error,
  }))
}

/** Why the lowest failed task of a job failed; null when none did. */
export async function firstFailureKind(view: View, job: number): Promise<FailureKind | null> {
  const row = await view.get<{ failure_kind: FailureKind | null }>(
    `SELECT r.failure_kind FROM tasks t LEFT JOIN task_results r ON r.task = t.id
     WHERE t.id >= ? + 0 AND t.id < ? + 0 AND t.state = 'failed' ORDER BY t.id LIMIT 1`,
    taskKey(job, 0),
    taskKey(job + 1, 0),
  )
  return row?.failure_kind ?? null
}

/**
 * The shortest time that a live attempt of the job was given because its hold bought no more, and in a job of one task the
 * last attempt as well; null where every one has the whole timeout.
 */
export async function shortestBudgetMs(view: View, job: number, taskCount: number): Promise<number | null> {
  const row =
    taskCount === 1
      ? await view.get<{ ms: number | null }>(
          `SELECT a.budget_ms AS ms FROM tasks t JOIN attempts a ON a.claim = t.claim
           WHERE t.id = ? + 0 AND t.state <> 'queued'`,
          taskKey(job, 0),
        )
      : await view.get<{ ms: number | null }>(
          `SELECT min(budget_ms) AS ms FROM attempts
           WHERE task >= ? AND task < ? AND state IN ('offered', 'accepted', 'running')`,
          taskKey(job, 0),
          taskKey(job + 1, 0),
        )
  return row?.ms ?? null
}

/** A page of the tasks that left something to read: those that ended, and those that run again and had; lowest first. */
export async function indexesWithResults(view: View, job: number, limit: number, offset: number): Promise<number[]> {
  const rows = await view.all<{ id: number }>(
    `SELECT id FROM tasks WHERE id >= ? AND id < ?
       AND (state IN ('completed', 'failed', 'cancelled') OR retried_from IN ('completed', 'failed'))
     ORDER BY id LIMIT ? OFFSET ?`,
    taskKey(job, 0),
    taskKey(job + 1, 0),
    limit,
    offset,
  )
  return rows.map(({ id }) => indexOfTask(id))
}

/** How many tasks run again and still show what they left before. */
export async function countRetained(view: View, job: number): Promise<number> {
  const row = await view.get<{ tasks: number }>(
    `SELECT count(*) AS tasks FROM tasks WHERE retried_from IS NOT NULL AND id >= ? AND id < ?
       AND retried_from <> 'cancelled' AND state IN ('queued', 'granted', 'running', 'lost')`,
    taskKey(job, 0),
    taskKey(job + 1, 0),
  )
  return row?.tasks ?? 0
}

/** Did any of the job's first thousand ended tasks leave a result, or print anything? Further ones are not looked at. */
export async function leftBehind(view: View, job: number): Promise<{ results: boolean; outputs: boolean }> {
  const range = [taskKey(job, 0), taskKey(job + 1, 0)]
  // Each ends at the first one it finds.
  const row = await view.get<{ results: number; outputs: number }>(
    `SELECT
       EXISTS (SELECT 1 FROM (
         SELECT result, result_digest FROM task_results WHERE task >= ? + 0 AND task < ? + 0 ORDER BY task LIMIT 1000
       ) AS first WHERE result IS NOT NULL OR result_digest IS NOT NULL) AS results,
       EXISTS (SELECT 1 FROM (
         SELECT output FROM task_results WHERE task >= ? + 0 AND task < ? + 0 ORDER BY task LIMIT 1000
       ) AS first WHERE output <> '') AS outputs`,
    ...range,
    ...range,
  )
  return { results: row?.results === 1, outputs: row?.outputs === 1 }
}

/** `outputs` of `leftBehind` alone. */
export async function leftOutput(view: View, job: number): Promise<boolean> {
  const row = await view.get<{ outputs: number }>(
    `SELECT EXISTS (SELECT 1 FROM (
       SELECT output FROM task_results WHERE task >= ? + 0 AND task < ? + 0 ORDER BY task LIMIT 1000
     ) AS first WHERE output <> '') AS outputs`,
    taskKey(job, 0),
    taskKey(job + 1, 0),
  )
  return row?.outputs === 1
}

/** How many of the tasks `from` … `upto` − 1 completed with a result, and how many ended ones printed anything. */
export async function countLeftBehind(
  view: View,
  job: number,
  from: number,
  upto: number,
): Promise<{ results: number; outputs: number }> {
  const row = await view.get<{ results: number | null; outputs: number | null }>(
    `SELECT sum(t.state = 'completed' AND (r.result IS NOT NULL OR r.result_digest IS NOT NULL)) AS results,
       sum(t.state IN ('completed', 'failed', 'cancelled') AND r.output <> '') AS outputs
     FROM tasks t JOIN task_results r ON r.task = t.id WHERE t.id >= ? AND t.id < ?`,
    taskKey(job, from),
    taskKey(job, upto),
  )
  return { results: row?.results ?? 0, outputs: row?.outputs ?? 0 }
}

export interface TaskArtifact {
  id: ArtifactId
  task: TaskId
  name: string | null
  filename: string
  digest: string | null
}

/** What these tasks made and is still there, oldest first. */
export async function artifactsOfTasks(view: View, tasks: readonly TaskId[], at: Instant): Promise<TaskArtifact[]> {
  const rows = await view.all<{
    id: string
    task: string
    name: string | null
    filename: string
    digest: string | null
  }>(
    `SELECT id, task, name, filename, digest FROM artifacts
     WHERE task IN (${tasks.map(() => "?").join(", ")}) AND expires_at > ? ORDER BY task, seq`,
    ...tasks,
    at,
  )
  return rows.map((row) => ({ ...row, id: artifactId(row.id), task: row.task as TaskId }))
}

/** The ids of a job's artifacts that are still there, oldest first. */
export async function artifactIdsOfJob(view: View, job: JobId, at: Instant, limit: number): Promise<ArtifactId[]> {
  const rows = await view.all<{ id: string }>(
    "SELECT id FROM artifacts WHERE job = ? || '' AND expires_at > ? + 0 ORDER BY seq LIMIT ? + 0",
    job,
    at,
    limit,
  )
  return rows.map(({ id }) => artifactId(id))
}

/** The key of every index of one job. */
export const keysOf = (job: number, indexes: readonly number[]): TaskKey[] =>
  indexes.map((index) => taskKey(job, index))
