import type { Clock, Instant } from "../../protocol/base/clock.ts"
import type { JobId } from "../../protocol/domain/ids.ts"
import { appendEvent } from "../events/event-log.ts"
import { openDependencies } from "../store/dependencies.ts"
import { advancePlanning, type JobRow } from "../store/jobs.ts"
import type { Store, Tx } from "../store/store.ts"
import { insertTasks } from "../store/tasks.ts"
import { waitsFor } from "./text.ts"

/** Tasks in one slice: well under 20 ms of the writing thread, so that other requests go between (architecture §4). */
const SLICE_TASKS = 1000

/**
 * Writes the tasks of a planned job, slice by slice, from where an earlier run stopped; with the last slice it is queued. Ends
 * quietly when the job ends meanwhile.
 */
export async function expandJob(
  parts: { store: Store; clock: Clock },
  job: Pick<JobRow, "seq" | "plannedUpto" | "taskCount">,
  signal: AbortSignal,
): Promise<"queued" | "over"> {
  for (let from = job.plannedUpto; from < job.taskCount;) {
    signal.throwIfAborted()
    const slice = { seq: job.seq, taskCount: job.taskCount, from, upto: Math.min(from + SLICE_TASKS, job.taskCount) }
    const at = parts.clock.now()
    if (!(await parts.store.write((tx) => expandSlice(tx, slice, at)))) return "over"
    from = slice.upto
  }
  return "queued"
}

/** Small enough to be written together with the job: it is queued at once, and one commit is saved. */
export const isOneSlice = (taskCount: number): boolean => taskCount <= SLICE_TASKS

/** Writes the tasks `from` … `upto` − 1; false when the job is not planning any more, or another run wrote them. */
export async function expandSlice(
  tx: Tx,
  { seq, taskCount, from, upto }: { seq: number; taskCount: number; from: number; upto: number },
  at: Instant,
): Promise<boolean> {
  if (!(await advancePlanning(tx, seq, from, upto, at))) return false
  await insertTasks(tx, seq, from, upto)
  if (upto === taskCount)
    await tellQueued(
      tx,
      seq,
      taskCount,
      (await openDependencies(tx, seq)).map(({ id }) => id),
      at,
    )
  return true
}

/** Writes all tasks of a job that was inserted as queued and waits for no other job. */
export async function writeTasks(tx: Tx, seq: number, taskCount: number, at: Instant): Promise<void> {
  await insertTasks(tx, seq, 0, taskCount)
  await tellQueued(tx, seq, taskCount, [], at)
}

async function tellQueued(
  tx: Tx,
  seq: number,
  taskCount: number,
  blockedBy: readonly JobId[],
  at: Instant,
): Promise<void> {
  const waits = taskCount === 1 ? "its task waits for a machine" : `its ${taskCount} tasks wait for machines`
  await appendEvent(tx, {
    job: seq,
    type: "job.queued",
    message: blockedBy.length === 0 ? waits : waitsFor(blockedBy),
    data: { from: "planning", to: "queued", ...(blockedBy.length > 0 && { blocked_by: blockedBy }) },
    at,
  })
}
