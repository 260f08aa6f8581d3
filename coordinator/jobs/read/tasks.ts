import { setImmediate as turn } from "node:timers/promises"
import { revisionId, taskId } from "../../../protocol/domain/ids.ts"
import type { TaskStatus } from "../../../protocol/domain/statuses.ts"
import { workingDirectory } from "../../projects/revisions.ts"
import type { JobHead } from "../../store/jobs.ts"
import type { View } from "../../store/store.ts"
import { artifactsOfTasks, countRetained, indexesInStates, indexesWithResults, keysOf } from "../../store/task-reads.ts"
import { checkpointsOfTasks, progressOfTasks } from "../../store/checkpoints.ts"
import { taskKey, tasksByKeys, type StoredTaskState, type TaskKey, type TaskWithAttempt } from "../../store/tasks.ts"
import { isEnded } from "../job-state.ts"
import { taskCounts, type QueueReason, type QueueReasons, type ReadJob, type ReadParts } from "./read-job.ts"
import { liveAttempt, taskOnWire, type TaskOnWire } from "./task-row.ts"

/** Rows held in memory at once: one may carry a result of 256 KiB and a payload of 1 MiB. */
const SLICE_TASKS = 50

interface IndexPage {
  indexes: number[]
  total: number
}

/** A page of the indexes of the tasks that read as one of `statuses`; null means all. */
export async function pageOfIndexes(
  parts: ReadParts,
  { head }: ReadJob,
  statuses: readonly TaskStatus[] | null,
  page: { limit: number; offset: number },
): Promise<IndexPage> {
  const counts = taskCounts(head)
  const wanted = statuses && (isEnded(head.status) ? statuses.filter(isFinal) : statuses)
  // Indexes are dense; in a job that has ended all statuses of ended tasks together are all tasks.
  if (!wanted || (isEnded(head.status) && wanted.length === FINAL.length)) {
    return { indexes: range(page.offset, Math.min(page.offset + page.limit, head.taskCount)), total: head.taskCount }
  }
  const total = wanted.reduce((sum, status) => sum + counts[status], 0)
  return { indexes: await parts.store.read((view) => matching(view, head, wanted, page)), total }
}

/**
 * A page of the tasks whose results are to be read: those that ended, and after a retry of the job also those that run again,
 * until their new attempt ends (rulings, Results, Retry of a finished job).
 */
export async function pageOfResults(
  parts: ReadParts,
  job: ReadJob,
  page: { limit: number; offset: number },
): Promise<IndexPage> {
  const { head } = job
  if (isEnded(head.status) || head.round === 1) return await pageOfIndexes(parts, job, FINAL, page)
  const { completed, failed, cancelled } = taskCounts(head)
  return await parts.store.read(async (view) => ({
    indexes: await indexesWithResults(view, head.seq, page.limit, page.offset),
    total: completed + failed + cancelled + (await countRetained(view, head.seq)),
  }))
}

/** The statuses of tasks that have ended. */
const FINAL: readonly TaskStatus[] = ["completed", "failed", "cancelled"]

/** The rows of these tasks in order, read in slices, each as it is when its slice is read. */
export async function* taskRows(
  parts: ReadParts,
  job: ReadJob,
  indexes: readonly number[],
): AsyncGenerator<TaskOnWire, void, undefined> {
  const plan = await parts.plans.of(job.head.seq)
  for (let from = 0; from < indexes.length; from += SLICE_TASKS) {
    if (from > 0) await turn()
    const slice = indexes.slice(from, from + SLICE_TASKS)
    const at = parts.clock.now()
    const ids = slice.map((index) => taskId(job.head.id, index))
    const keys = keysOf(job.head.seq, slice)
    const asked = job.submission.checkpointing?.enabled ? keys : []
    const { rows, cwd, artifacts, checkpoints, progress } = await parts.store.read(async (view) => ({
      ...(await rowsAndPlace(view, job.head, keys)),
      artifacts: Map.groupBy(await artifactsOfTasks(view, ids, at), ({ task }) => task),
      checkpoints: Map.groupBy(asked.length > 0 ? await checkpointsOfTasks(view, asked) : [], ({ task }) => task),
      progress: asked.length > 0 ? await progressOfTasks(view, asked) : new Map<TaskKey, string>(),
    }))
    const reasons = onceEach(parts.queueReasons, job)
    for (const index of slice) {
      const row = rows.get(index) ?? null
      yield taskOnWire({
        job,
        index,
        cwd,
        row,
        payloadText: plan.payloadText(index),
        artifacts: artifacts.get(taskId(job.head.id, index)) ?? [],
        checkpoints: checkpoints.get(taskKey(job.head.seq, index)) ?? [],
        progress: progress.get(taskKey(job.head.seq, index)) ?? null,
        live: liveAttempt(parts, row?.claim ?? null),
        ...reasons,
      })
    }
  }
}

async function rowsAndPlace(
  view: View,
  head: JobHead,
  keys: readonly TaskKey[],
): Promise<{ rows: Map<number, TaskWithAttempt>; cwd: string | null }> {
  const rows = await tasksByKeys(view, keys)
  const hasFailed = rows.some(({ state, retriedFrom }) => state === "failed" || retriedFrom === "failed")
  const cwd = hasFailed ? await workingDirectory(view, revisionId(head.revision)) : null
  return { rows: new Map(rows.map((row) => [row.index, row])), cwd }
}

/** All waiting tasks of a job wait for the same: asked for once in a slice, and only where one waits. */
function onceEach(reasons: QueueReasons, job: ReadJob): { waits: () => QueueReason; contactLost: () => QueueReason } {
  let waits: QueueReason | null = null
  let contactLost: QueueReason | null = null
  return {
    waits: () => (waits ??= reasons.job(job)),
    contactLost: () => (contactLost ??= reasons.contactLost(job)),
  }
}

/** Rows that match, then the tasks behind them that have no row yet, or never got one. */
async function matching(
  view: View,
  head: JobHead,
  statuses: readonly TaskStatus[],
  page: { limit: number; offset: number },
): Promise<number[]> {
  const states = statuses.flatMap((status) => statesOf(status, isEnded(head.status)))
  const found = await indexesInStates(view, head.seq, states, page.limit, page.offset)
  const unwritten = statuses.includes(isEnded(head.status) ? "cancelled" : "queued")
  if (!unwritten || head.plannedUpto === head.taskCount || found.length === page.limit) return found
  const written = taskCounts(head)
  const before = statuses.reduce((sum, status) => sum + written[status], 0) - (head.taskCount - head.plannedUpto)
  const first = head.plannedUpto + Math.max(0, page.offset + found.length - before)
  return [...found, ...range(first, Math.min(first + page.limit - found.length, head.taskCount))]
}

function statesOf(status: TaskStatus, jobHasEnded: boolean): StoredTaskState[] {
  switch (status) {
    case "queued":
      return jobHasEnded ? [] : ["queued", "granted"]
    case "running":
      return jobHasEnded ? [] : ["running", "lost"]
    case "cancelled":
      return jobHasEnded ? ["cancelled", "queued", "granted", "running", "lost"] : ["cancelled"]
    case "completed":
    case "failed":
      return [status]
  }
}

const isFinal = (status: TaskStatus): boolean => FINAL.includes(status)
const range = (from: number, upto: number): number[] =>
  Array.from({ length: Math.max(0, upto - from) }, (_, at) => from + at)
