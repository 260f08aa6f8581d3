import type { z } from "zod"
import { timestampText } from "../../../protocol/api/common.ts"
import type {
  checkpointSummary as checkpointSummaryOnWire,
  jobListRow,
  jobObject,
  SubmissionWarning,
} from "../../../protocol/api/jobs.ts"
import { present } from "../../../protocol/base/assert.ts"
import { JsonText } from "../../../protocol/base/json-text.ts"
import { taskId } from "../../../protocol/domain/ids.ts"
import { usd } from "../../../protocol/domain/money.ts"
import type { Requirements } from "../../../protocol/domain/requirements.ts"
import type { FailureKind } from "../../../protocol/domain/statuses.ts"
import type { HeldAttempt } from "../../fleet/members.ts"
import { checkpointTotals } from "../../store/checkpoints.ts"
import { brokenDependency } from "../../store/dependencies.ts"
import { findHold, textsAndHold, type HoldRow } from "../../store/holds.ts"
import { type JobHead, type JobRow } from "../../store/jobs.ts"
import type { View } from "../../store/store.ts"
import { firstFailureKind, leftBehind, shortestBudgetMs } from "../../store/task-reads.ts"
import { indexOfTask, suspectIndexes } from "../../store/tasks.ts"
import { dependencyNamed } from "../dependencies.ts"
import type { JobBilling } from "../job-facts.ts"
import { endedProgress, isEnded, jobStatus } from "../job-state.ts"
import { checkpointText } from "../resume.ts"
import type { Submission } from "../submission/submission.ts"
import { actionAfterDependency, errorSnippet, recommendedAction } from "../text.ts"
import type { Aggregates } from "./aggregates.ts"
import { firstTaskOutputs, JOB_OUTPUT_LIMITS, jobOutput } from "./output.ts"
import { isUntouched, taskCounts, type QueueReason, type ReadJob, type ReadParts } from "./read-job.ts"
import { jsonOrNull, liveAttempt, percentOf } from "./task-row.ts"

type JobOnWire = z.output<typeof jobObject>
export type JobListRow = z.output<typeof jobListRow>

/** `suspect_task_ids` names no more than these; `suspect_count` counts all. */
const MOST_SUSPECTS = 1_000

/** A job in full (J-030). Its aggregate stands in `summary` once it has ended; while it runs /results has it. */
export async function jobOnWire(parts: ReadParts & { aggregates: Aggregates }, job: ReadJob): Promise<JobOnWire> {
  return await shownJob(parts, job, await parts.store.read((view) => jobDetails(view, job)))
}

/** The same out of what was read. */
export async function shownJob(
  parts: ReadParts & { aggregates: Aggregates },
  job: ReadJob,
  details: JobDetails,
): Promise<JobOnWire> {
  const stored = await storedFields(parts, job, details)
  return { ...stored, ...(await liveFields(parts, job, details.firstOutputs)) }
}

/** What is stored of a job beside its head, as far as its object shows it. */
export async function jobDetails(view: View, { head, submission }: ReadJob) {
  const untouched = isUntouched(head)
  return {
    ...present(await textsAndHold(view, head), "a job's texts"),
    ...(await countedFacts(view, head)),
    failureKind: head.failed > 0 ? await firstFailureKind(view, head.seq) : null,
    budgetMs: untouched ? null : await shortestBudgetMs(view, head.seq, head.taskCount),
    checkpoints: submission.checkpointing?.enabled ? await checkpointTotals(view, head.seq) : null,
    broken: await brokenBy(view, head),
    firstOutputs: untouched ? [] : await firstTaskOutputs(view, head),
  }
}

export type JobDetails = Awaited<ReturnType<typeof jobDetails>>

/** What of the object stays as it is until something stored of the job changes. */
export async function storedFields(
  parts: { aggregates: Aggregates },
  job: ReadJob,
  details: JobDetails,
): Promise<Omit<JobOnWire, keyof LiveFields>> {
  const { head } = job
  const aggregate = isEnded(head.status) ? await parts.aggregates.of(head, details.outcome) : null
  return {
    ...commonFields(head, job.submission),
    request: new JsonText(details.request),
    error: head.error,
    recommended_action: details.broken ? actionAfterDependency(details.broken) : actionFor(head, details.failureKind),
    summary: summaryOnWire(job, details, aggregate),
    ...(details.budgetMs !== null && { effective_timeout_s: details.budgetMs / 1000 }),
    ...(details.checkpoints && { checkpoint_summary: checkpointSummary(head, details.checkpoints) }),
  }
}

type LiveFields = Pick<JobOnWire, "progress" | "queue_reason" | "output" | "feedback_summary">

/** What of the object also tells what its attempts and the fleet do now. `firstOutputs` as for `jobOutput`. */
export async function liveFields(
  parts: ReadParts,
  job: ReadJob,
  firstOutputs: JobDetails["firstOutputs"],
): Promise<LiveFields> {
  const { output } = await jobOutput(parts, job, JOB_OUTPUT_LIMITS, firstOutputs)
  const live = [...parts.members.ofJob(job.head.seq)]
  return {
    progress: progressOf(job.head, live),
    queue_reason: queueReasonOf(parts, job, live),
    output,
    feedback_summary: feedbackOf(live),
  }
}

const NOTHING_LIVE = { queue_reason: null, feedback_summary: null }

/** The answer to a submission, from its row alone: it is stored in the write that makes the job (GAP-69). */
export function newJobOnWire(row: JobRow, warnings: SubmissionWarning[]): JobOnWire {
  const submission = JSON.parse(row.submission) as Submission
  const { estimate } = billingOf(row)
  // Over already where a job that it depends on had failed.
  const isOver = isEnded(row.status)
  const status = isOver ? ("released" as const) : ("active" as const)
  const hold = { id: row.hold, amount: BigInt(estimate), status }
  return {
    ...commonFields(row, submission),
    ...NOTHING_LIVE,
    progress: progressOf(row, []),
    request: new JsonText(row.request),
    output: "",
    error: row.error,
    recommended_action: isOver ? actionFor(row, null) : null,
    summary: summaryOnWire({ head: row, submission, blockedBy: [] }, { hold, suspects: [], left: null }, null),
    warnings,
  }
}

/**
 * The answer to a retry, from what its own write reads: it is stored there (GAP-69). `before`: the job as it was shown before;
 * what its tasks printed is still to be read.
 */
export function retriedJobOnWire(before: JobOnWire, row: JobRow, facts: SummaryFacts): JobOnWire {
  const submission = JSON.parse(row.submission) as Submission
  return {
    ...commonFields(row, submission),
    ...NOTHING_LIVE,
    progress: progressOf(row, []),
    request: new JsonText(row.request),
    output: before.output,
    error: null,
    recommended_action: null,
    summary: summaryOnWire({ head: row, submission, blockedBy: [] }, facts, null),
    ...(before.checkpoint_summary && { checkpoint_summary: before.checkpoint_summary }),
  }
}

/** A row of GET /jobs (J-028). */
export function jobListRowOnWire(
  parts: ReadParts,
  job: ReadJob,
  live: readonly HeldAttempt[],
  hasOutput: boolean,
): JobListRow {
  const { head, submission } = job
  return {
    ...commonFields(head, submission),
    progress: progressOf(head, live),
    queue_reason: queueReasonOf(parts, job, live),
    has_error: head.error !== null,
    has_output: hasOutput || live.some(({ outputTail }) => outputTail !== null && outputTail !== ""),
    error_snippet: errorSnippet(head.error),
  }
}

interface SummaryFacts {
  hold: Pick<HoldRow, "id" | "amount" | "status"> | null
  suspects: number[]
  /** Null where nobody looked. */
  left: { results: boolean; outputs: boolean } | null
}

export async function summaryFacts(view: View, head: JobHead): Promise<SummaryFacts> {
  return { hold: await findHold(view, head.hold), ...(await countedFacts(view, head)) }
}

/** What is counted over a job's tasks, as `summary` shows it. */
export async function countedFacts(view: View, head: JobHead): Promise<Omit<SummaryFacts, "hold">> {
  return {
    suspects: head.suspect > 0 ? await suspectIndexes(view, head.seq, MOST_SUSPECTS) : [],
    left: isUntouched(head) ? { results: false, outputs: false } : await leftBehind(view, head.seq),
  }
}

/** `summary`: money, quality, counts, and what the results add up to where that is known (RS-004, Q-005). */
export function summaryOnWire(
  { head, submission }: ReadJob,
  { hold, suspects, left }: SummaryFacts,
  aggregate: ReadonlyMap<string, string> | null,
): JobOnWire["summary"] {
  const billing = billingOf(head)
  const estimate = usd(BigInt(billing.estimate))
  return {
    billing_estimate: {
      resource_class: billing.resourceClass,
      runtime_class: billing.runtimeClass,
      reliability_mode: submission.reliabilityMode,
      estimated_hold_usd: estimate,
    },
    billing_admission: {
      admitted: true,
      available_usd: usd(BigInt(billing.available)),
      required_usd: estimate,
      shortfall_usd: 0,
    },
    ...(hold && { billing_hold: { id: hold.id, amount_usd: usd(hold.amount), status: hold.status } }),
    quality: {
      mean_quality: head.completed > 0 ? head.qualitySum / head.completed : null,
      suspect_count: head.suspect,
      suspect_task_ids: suspects.map((index) => taskId(head.id, index)),
    },
    task_outcome_counts: taskCounts(head),
    ...(left && { result_persisted: left.results, output_persisted: left.outputs }),
    ...(aggregate && jsonMembers(aggregate)),
  }
}

function jsonMembers(texts: ReadonlyMap<string, string>): Record<string, JsonText> {
  return Object.fromEntries([...texts].map(([name, text]) => [name, new JsonText(text)]))
}

function commonFields(
  head: JobHead,
  submission: Submission,
): Omit<JobListRow, "progress" | "queue_reason" | "has_error" | "has_output" | "error_snippet"> {
  const { requirements: need, reservation } = submission
  return {
    id: head.id,
    status: jobStatus(head.status),
    type: head.type,
    project: head.project,
    project_content_hash: head.contentHash,
    user_id: head.account,
    client_ref: head.clientRef,
    tags: head.tags,
    meta: submission.meta,
    variant: submission.variant,
    payload: submission.payload,
    priority: head.priority,
    reliability_mode: submission.reliabilityMode,
    execution_policy: submission.executionPolicy,
    placement_policy: submission.placementPolicy,
    timeout_s: submission.timeoutSeconds,
    runtime_hint_s: submission.runtimeHintSeconds,
    max_cost_usd: submission.maxCostUsd ?? null,
    max_retries: submission.maxRetries,
    depends_on: submission.dependsOn ?? [],
    callback_url: submission.callbackUrl ?? null,
    requirements: requirementsOnWire(need),
    reservation: {
      mode: reservation.mode,
      ...(reservation.parallelism !== undefined && { parallelism: reservation.parallelism }),
      ...(reservation.guaranteedForSeconds !== undefined && { guaranteed_for_s: reservation.guaranteedForSeconds }),
      ...(reservation.maxWaitSeconds !== undefined && { max_wait_s: reservation.maxWaitSeconds }),
    },
    checkpointing: checkpointingOnWire(submission),
    task_counts: taskCounts(head),
    created_at: timestampText(head.createdAt),
    started_at: timestampText(head.startedAt),
    completed_at: timestampText(head.completedAt),
  }
}

export function requirementsOnWire(need: Requirements): JobOnWire["requirements"] {
  return {
    cpu: need.cpu,
    memory_mb: need.memoryMb,
    storage_gb: need.storageGb,
    gpu_count: need.gpuCount,
    ...(need.gpuMemoryMb !== undefined && { gpu_memory_mb: need.gpuMemoryMb }),
    profile: need.profile,
  }
}

/** CK-007, GAP-26: whether checkpoints come, and the last one. */
function checkpointSummary(
  { id }: JobHead,
  { tasks, durableTasks, latest }: Awaited<ReturnType<typeof checkpointTotals>>,
): z.output<typeof checkpointSummaryOnWire> {
  return {
    tasks_with_checkpoint: tasks,
    tasks_with_durable_checkpoint: durableTasks,
    latest: latest && {
      task_id: taskId(id, indexOfTask(latest.task)),
      checkpoint: new JsonText(checkpointText(latest)),
      created_at: timestampText(latest.at),
    },
  }
}

function checkpointingOnWire({ checkpointing }: Submission): JobOnWire["checkpointing"] {
  if (!checkpointing) return null
  const { enabled, resumeFromLatest, payloadKey } = checkpointing
  return { enabled, resume_from_latest: resumeFromLatest, ...(payloadKey !== undefined && { payload_key: payloadKey }) }
}

/** The mean over all tasks of what each has told, a completed one being done; null where nothing tells (rulings, Progress). */
function progressOf(head: JobHead, live: readonly HeldAttempt[]): number | null {
  if (isEnded(head.status)) return endedProgress(head.status, head)
  const told = live.map(({ progress }) => percentOf(progress)).filter((one) => one !== null)
  if (head.completed === 0 && told.length === 0) return null
  const sum = told.reduce((total, percent) => total + percent, head.completed * 100)
  return Math.round((sum / head.taskCount) * 100) / 100
}

/** Shown while the job waits; and outside of that only where no machine that runs its tasks can be reached (rulings). */
function queueReasonOf(parts: ReadParts, job: ReadJob, live: readonly HeldAttempt[]): QueueReason | null {
  const { head } = job
  if (head.status === "queued") return parts.queueReasons.job(job)
  if (head.status !== "running" || head.running === 0) return null
  const contacts = live
    .filter(({ state }) => state === "running")
    .map(({ claim }) => liveAttempt(parts, claim)?.contact)
  const reached = contacts.some((contact) => contact === "connected" || contact === "suspect")
  return reached || live.some(({ state }) => state !== "running") ? null : parts.queueReasons.contactLost(job)
}

/** What the task that spoke last said. */
function feedbackOf(live: readonly HeldAttempt[]): JobOnWire["feedback_summary"] {
  const last = live
    .filter(({ feedbackAt }) => feedbackAt !== null)
    .reduce<HeldAttempt | null>(
      (best, one) => (best && (best.feedbackAt ?? 0) >= (one.feedbackAt ?? 0) ? best : one),
      null,
    )
  if (!last) return null
  return {
    latest_progress: jsonOrNull(last.progress),
    live_feedback:
      last.outputTail === null ? null : { output_tail: last.outputTail, updated_at: timestampText(last.feedbackAt) },
  }
}

/** The job whose end cancelled this one, where its error says so. */
async function brokenBy(view: View, head: JobHead): Promise<Parameters<typeof actionAfterDependency>[0] | null> {
  const named = head.status === "cancelled" ? dependencyNamed(head.error) : null
  if (named === null) return null
  const broken = await brokenDependency(view, head.seq, named)
  if (!broken) return null
  const { reliabilityMode } = JSON.parse(broken.submission) as Submission
  return { id: named, ended: broken.ended, reliability: reliabilityMode }
}

function actionFor(head: JobHead, kind: FailureKind | null): string | null {
  if (head.status === "cancelled") return recommendedAction("cancelled")
  if (kind !== null) return recommendedAction(kind)
  if (isEnded(head.status) && head.cancelled > 0)
    return "Retry the job with the indexes of the tasks that were cancelled."
  if (head.status !== "partial") return null
  return "Some results are suspect: read result_warnings of the tasks that summary.quality names."
}

function billingOf(head: JobHead): JobBilling {
  return JSON.parse(head.billing) as JobBilling
}
