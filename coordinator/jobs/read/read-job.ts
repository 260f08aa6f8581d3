import type { z } from "zod"
import type { jobObject } from "../../../protocol/api/jobs.ts"
import type { Clock } from "../../../protocol/base/clock.ts"
import { notFound } from "../../../protocol/domain/errors.ts"
import type { AccountId, JobId } from "../../../protocol/domain/ids.ts"
import type { TaskStatus } from "../../../protocol/domain/statuses.ts"
import type { ObjectFiles } from "../../artifacts/object-files.ts"
import type { Members } from "../../fleet/members.ts"
import { openDependencies } from "../../store/dependencies.ts"
import { jobHeadById, jobHeadBySeq, type JobHead } from "../../store/jobs.ts"
import type { Store, View } from "../../store/store.ts"
import { isEnded } from "../job-state.ts"
import type { Plans } from "../plans.ts"
import { expiredUpto, type RetentionParts } from "../retention.ts"
import type { Submission } from "../submission/submission.ts"

/** What reading jobs needs: rows, and what memory knows of those that run. */
export interface ReadParts extends RetentionParts {
  store: Store
  files: ObjectFiles
  clock: Clock
  plans: Plans
  members: Members
  queueReasons: QueueReasons
}

export type QueueReason = NonNullable<z.output<typeof jobObject>["queue_reason"]>

/** Why work waits, from memory. The scheduler knows. */
export interface QueueReasons {
  /** Why the job's waiting tasks wait. */
  job(job: ReadJob): QueueReason
  /** For a task whose machine cannot be reached. */
  contactLost(job: ReadJob): QueueReason
}

/** A job as its readers hold it: its row and its submission. */
export interface ReadJob {
  head: JobHead
  submission: Submission
  /** What it waits for, while it waits. */
  blockedBy: JobId[]
}

/**
 * The job, if this account may see it; `account` null sees every job. Throws `not_found` (J-041, GAP-04), also from the moment
 * on at which the job expires (RS-014).
 */
export async function readJob(
  parts: RetentionParts & { store: Store },
  id: JobId,
  account: AccountId | null,
): Promise<ReadJob> {
  const found = await parts.store.read(async (view) => withWaits(view, await jobHeadById(view, id, account)))
  const endedAt = found?.head.completedAt ?? null
  if (!found || (endedAt !== null && endedAt <= expiredUpto(parts))) throw notFound(`the job ${id}`)
  return { ...found, submission: JSON.parse(found.head.submission) as Submission }
}

/** As `readJob`, for a job whose seq is known; null when it is gone. */
export async function readJobBySeq(store: Store, seq: number): Promise<ReadJob | null> {
  const [job = null] = await readJobsBySeq(store, [seq])
  return job
}

/** Those of these jobs that are there, in this order, as one snapshot has them. Submissions may be large: a few at once. */
export async function readJobsBySeq(store: Store, seqs: readonly number[]): Promise<ReadJob[]> {
  const found = await store.read(async (view) => {
    const jobs = []
    for (const seq of seqs) jobs.push(await withWaits(view, await jobHeadBySeq(view, seq)))
    return jobs.filter((job) => job !== null)
  })
  return found.map((job) => ({ ...job, submission: JSON.parse(job.head.submission) as Submission }))
}

async function withWaits(view: View, head: JobHead | null): Promise<Omit<ReadJob, "submission"> | null> {
  return head && { head, blockedBy: await blockedBy(view, head) }
}

/** The jobs that a queued one waits for, oldest first. */
export async function blockedBy(view: View, { seq, status }: JobHead): Promise<JobId[]> {
  return status === "queued" ? (await openDependencies(view, seq)).map(({ id }) => id) : []
}

/**
 * A job's tasks by what the client sees (rulings): granted ones are queued, lost ones run, rows that planning has not
 * written yet are queued, and in a job that has ended all that is not final is cancelled. Adds up to `taskCount` always.
 */
export function taskCounts(job: JobHead): Record<TaskStatus | "total", number> {
  const { completed, failed, taskCount: total } = job
  const done = { total, completed, failed }
  if (isEnded(job.status)) return { ...done, queued: 0, running: 0, cancelled: total - completed - failed }
  // A job that ended while it was planned and runs again counts such tasks among the others.
  const unplanned = job.status === "planning" ? total - job.plannedUpto : 0
  return { ...done, queued: job.queued + job.granted + unplanned, running: job.running, cancelled: job.cancelled }
}
