import type { z } from "zod"
import type { jobObject } from "../../../protocol/api/jobs.ts"
import type { Clock, Instant } from "../../../protocol/base/clock.ts"
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
  return (await readJobAnd(parts, id, account, async () => null)).job
}

/** As `readJob`, with what else is to be seen of it in the same snapshot: each turn may wait for a write beside it. */
export async function readJobAnd<Seen>(
  parts: RetentionParts & { store: Store },
  id: JobId,
  account: AccountId | null,
  look: (view: View, job: ReadJob) => Promise<Seen>,
): Promise<{ job: ReadJob; seen: Seen }> {
  const upto = expiredUpto(parts)
  const found = await parts.store.read(async (view) => {
    const head = await jobHeadById(view, id, account)
    if (head === null || !isVisible(head, account, upto)) return null
    const job = await withWaits(view, head)
    return { job, seen: await look(view, job) }
  })
  if (found === null) throw notFound(`the job ${id}`)
  return found
}

/** Does this account see the job, and has it not expired? `account` null sees every job. */
export function isVisible(head: JobHead, account: AccountId | null, upto: Instant): boolean {
  return (account === null || head.account === account) && (head.completedAt === null || head.completedAt > upto)
}

/** As `readJob`, for a job whose seq is known; null when it is gone. */
export async function readJobBySeq(store: Store, seq: number): Promise<ReadJob | null> {
  const [found] = await readJobsAnd(store, [seq], async () => null)
  return found?.job ?? null
}

/**
 * Those of these jobs that are there, in this order, and what else is to be seen of each, as one snapshot has them. Submissions
 * may be large: a few at once.
 */
export async function readJobsAnd<Seen>(
  store: Store,
  seqs: readonly number[],
  look: (view: View, job: ReadJob) => Promise<Seen>,
): Promise<{ job: ReadJob; seen: Seen }[]> {
  return await store.read(async (view) => {
    const found: { job: ReadJob; seen: Seen }[] = []
    for (const seq of seqs) {
      const head = await jobHeadBySeq(view, seq)
      if (head === null) continue
      const job = await withWaits(view, head)
      found.push({ job, seen: await look(view, job) })
    }
    return found
  })
}

async function withWaits(view: View, head: JobHead): Promise<ReadJob> {
  const submission = JSON.parse(head.submission) as Submission
  return { head, submission, blockedBy: submission.dependsOn === undefined ? [] : await blockedBy(view, head) }
}

/** The jobs that a queued one waits for, oldest first. */
export async function blockedBy(view: View, { seq, status }: JobHead): Promise<JobId[]> {
  return status === "queued" ? (await openDependencies(view, seq)).map(({ id }) => id) : []
}

/** Nothing of it was handed to a node or has ended, so that no task has left anything to look for: as most jobs that wait. */
export function isUntouched({ status, round, attempts, completed, failed, cancelled }: JobHead): boolean {
  const isWaiting = status === "planning" || status === "queued"
  return isWaiting && round === 1 && attempts + completed + failed + cancelled === 0
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
