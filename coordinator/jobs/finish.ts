import { setImmediate as turn } from "node:timers/promises"
import type { Clock } from "../../protocol/base/clock.ts"
import { stringifyJson } from "../../protocol/base/json-text.ts"
import type { ObjectFiles } from "../artifacts/object-files.ts"
import { endFinishedJob, jobBySeq, storeOutcome, type JobHead } from "../store/jobs.ts"
import type { Store } from "../store/store.ts"
import { firstFailure, taskSlice } from "../store/tasks.ts"
import { aggregateOnWire, createFold } from "./aggregate/fold.ts"
import { recordJobEnd } from "./job-end.ts"
import { isEnded, outcomeOf } from "./job-state.ts"
import { planTasks } from "./plan/plan.ts"
import { preparePublication, publishState } from "./publish-state.ts"
import type { Submission } from "./submission/submission.ts"
import { outcomeOfTask } from "./task-outcome.ts"
import { jobError } from "./text.ts"

export interface FinishParts {
  store: Store
  files: ObjectFiles
  clock: Clock
}

/** Tasks read at a time while results are merged: other requests go between. */
const SLICE_TASKS = 500

/**
 * Merges the results of a job whose tasks are all final, off the write path, and makes its last write: status, aggregate,
 * settlement, event. For jobs that were ended early it adds the aggregate only. Twice gives the same.
 */
export async function finishJob(parts: FinishParts, seq: number, signal: AbortSignal): Promise<void> {
  const job = await parts.store.read((view) => jobBySeq(view, seq))
  // One that runs again has nothing to be merged yet.
  if (!job || (job.status !== "finishing" && (job.outcome !== null || !isEnded(job.status)))) return
  const outcome = await aggregateJob(parts, job, signal)
  if (job.status !== "finishing") return await parts.store.write((tx) => storeOutcome(tx, seq, outcome))

  const failure = await parts.store.read((view) => firstFailure(view, seq))
  const submission = JSON.parse(job.submission) as Submission
  const status = outcomeOf(
    { completed: job.completed, failed: job.failed, cancelled: job.cancelled },
    submission.reliabilityMode,
    job.suspect > 0,
  )
  const error = errorOf(job, failure?.error ?? "the task failed")
  const publication = await preparePublication(parts, job, { submission, status, outcome })
  const at = parts.clock.now()
  await parts.store.write(async (tx) => {
    if (!(await endFinishedJob(tx, seq, { status, error, outcome, at }))) return
    await publishState(tx, job, publication, at)
    const message = error ?? (job.taskCount === 1 ? "its task completed" : `all ${job.taskCount} tasks completed`)
    await recordJobEnd(tx, job, { status, from: "running", message, error, at })
  })
}

function errorOf({ failed, cancelled, taskCount }: JobHead, firstError: string): string | null {
  if (failed > 0) return jobError(failed, taskCount, firstError)
  // Cancelled before a retry that left them out.
  return cancelled > 0 ? `${cancelled} of ${taskCount} tasks were cancelled` : null
}

/** What the job's tasks add up to so far, as JSON text for `summary`. In a job that has ended every task has. */
export async function aggregateJob(
  parts: Pick<FinishParts, "store" | "files">,
  job: Pick<JobHead, "seq" | "status" | "submission" | "taskCount">,
  signal?: AbortSignal,
): Promise<string> {
  const hasEnded = isEnded(job.status)
  const submission = JSON.parse(job.submission) as Submission
  const fold = createFold(submission, planTasks(submission))
  for (let from = 0; from < job.taskCount;) {
    signal?.throwIfAborted()
    const start = from
    const slice = await parts.store.read((view) => taskSlice(view, job.seq, start, SLICE_TASKS))
    for (const task of slice) {
      const outcome = await outcomeOfTask(parts.files, task)
      if (outcome) fold.add(outcome)
      else if (hasEnded) fold.add({ index: task.index, status: "cancelled", resultText: null })
    }
    from += slice.length
    if (slice.length < SLICE_TASKS) {
      // A job that ended while it was planned has tasks without rows.
      for (; hasEnded && from < job.taskCount; from++) fold.add({ index: from, status: "cancelled", resultText: null })
      break
    }
    await turn()
  }
  return stringifyJson(aggregateOnWire(fold.finish()))
}
