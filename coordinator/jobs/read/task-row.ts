import type { z } from "zod"
import { timestampText } from "../../../protocol/api/common.ts"
import type { taskRow } from "../../../protocol/api/jobs.ts"
import { unreachable } from "../../../protocol/base/assert.ts"
import type { Clock } from "../../../protocol/base/clock.ts"
import { JsonText } from "../../../protocol/base/json-text.ts"
import { taskId } from "../../../protocol/domain/ids.ts"
import { OUTPUT_TAIL_BYTES } from "../../../protocol/domain/runner.ts"
import type { TaskStatus } from "../../../protocol/domain/statuses.ts"
import { lastBytes } from "../../../protocol/domain/text.ts"
import type { Contact } from "../../fleet/liveness.ts"
import type { HeldAttempt, Members } from "../../fleet/members.ts"
import type { CheckpointRow } from "../../store/checkpoints.ts"
import type { TaskArtifact } from "../../store/task-reads.ts"
import type { StoredTaskState, TaskResultRow, TaskWithAttempt, TaskWithResult } from "../../store/tasks.ts"
import { objectIn } from "../checkpoints.ts"
import { resumeKeyOf } from "../job-facts.ts"
import { isEnded } from "../job-state.ts"
import { checkpointText, remainsOf, resumeStateText } from "../resume.ts"
import { failureRecordText } from "../text.ts"
import type { QueueReason, ReadJob } from "./read-job.ts"

export type TaskOnWire = z.output<typeof taskRow>

interface TaskRowFacts {
  job: ReadJob
  index: number
  /** Where its command ran inside the sandbox; what failed shows it. */
  cwd: string | null
  /** Null: planning has not written it, or the job ended before. */
  row: TaskWithAttempt | null
  payloadText: string
  artifacts: readonly TaskArtifact[]
  /** What it left to go on from, latest first, and its last stored progress line. */
  checkpoints: readonly CheckpointRow[]
  progress: string | null
  /** The attempt in memory, while one runs. */
  live: LiveAttempt | null
  /** Why it would wait, when it does. */
  waits: () => QueueReason
  contactLost: () => QueueReason
}

interface LiveAttempt {
  attempt: HeldAttempt
  contact: Contact
  /** Since the last heartbeat that named it. */
  silentMs: number
  runsMs: number | null
}

/** The attempt of this claim number in memory, where it may be live. */
export function liveAttempt(parts: { clock: Clock; members: Members }, claim: number | null): LiveAttempt | null {
  const attempt = claim === null ? undefined : parts.members.attempt(claim)
  if (!attempt) return null
  const member = parts.members.byNode(attempt.node)
  return {
    attempt,
    contact: member ? parts.members.contact(member) : "offline",
    silentMs: Math.max(0, parts.clock.monotonicMs() - attempt.heardAtMs),
    runsMs:
      attempt.runningMs ?? (attempt.startedAt === null ? null : Math.max(0, parts.clock.now() - attempt.startedAt)),
  }
}

/** What the client sees of a stored state (rulings, Jobs): handing ahead and lost contact are ours to know. */
export function taskStatus(state: StoredTaskState | null, jobHasEnded: boolean): TaskStatus {
  switch (state) {
    case "completed":
    case "failed":
    case "cancelled":
      return state
    case "running":
    case "lost":
      return jobHasEnded ? "cancelled" : "running"
    case "queued":
    case "granted":
    case null:
      return jobHasEnded ? "cancelled" : "queued"
    default:
      return unreachable(state)
  }
}

/** One row of GET /jobs/:id/tasks. Built from these fields and no others: nothing of a machine gets in. */
export function taskOnWire(facts: TaskRowFacts): TaskOnWire {
  const { job, index, row } = facts
  const status = taskStatus(row?.state ?? null, isEnded(job.head.status))
  const live = status === "running" ? facts.live : null
  const end = row?.end ?? null
  // What an earlier round left is shown until an attempt of this one ends.
  const seen = row?.retriedFrom ?? status
  const { output, error } = shownDiagnostics(status, end, live?.attempt.outputTail ?? null)
  const isFinal = status === "completed" || status === "failed" || status === "cancelled"
  const progress = live?.attempt.progress ?? (isFinal ? (end?.progress ?? null) : null)
  const outOfReach = status === "running" && (row?.state === "lost" || !live || isOutOfReach(live.contact))
  return {
    task_id: taskId(job.head.id, index),
    index,
    attempt: shownAttempt(row, status),
    max_attempts: 1 + job.submission.maxRetries + (row?.attemptsBefore ?? 0),
    effective_timeout_s:
      status === "queued" || !row || row.claim === null
        ? null
        : row.budgetMs === null
          ? job.submission.timeoutSeconds
          : row.budgetMs / 1000,
    status,
    payload: new JsonText(facts.payloadText),
    ...shownResult(facts, seen, end),
    result_quality: seen === "completed" ? (end?.quality ?? null) : null,
    result_warnings: seen === "completed" ? (end?.warnings ?? []) : [],
    artifact_ids: facts.artifacts.map(({ id }) => id),
    artifacts: Object.fromEntries(facts.artifacts.flatMap(({ name, id }) => (name === null ? [] : [[name, id]]))),
    output,
    output_present: output !== "",
    error: status === "completed" ? null : error,
    failure_kind: status === "failed" ? (end?.failureKind ?? null) : status === "cancelled" ? "cancelled" : null,
    live_feedback:
      live?.attempt.outputTail == null
        ? null
        : { output_tail: cut(live.attempt.outputTail), updated_at: timestampText(live.attempt.feedbackAt) },
    latest_progress: jsonOrNull(progress),
    ...checkpointFields(facts, live),
    runtime_s: runtimeSeconds(row, status, live),
    stale_for_s: live ? seconds(live.silentMs) : null,
    health_status: isFinal ? "terminal" : status === "queued" ? null : outOfReach ? "unknown" : healthOf(live),
    queue_reason: status === "queued" ? facts.waits() : outOfReach ? facts.contactLost() : null,
    project_content_hash: job.head.contentHash,
    started_at: status === "queued" ? null : timestampText(row?.startedAt ?? null),
    completed_at: isFinal ? timestampText(row?.completedAt ?? job.head.completedAt) : null,
  }
}

/**
 * Output and error as the client sees them: a new attempt shows its own as soon as it prints something, and until then what
 * the one before left (J-032, J-037, L-011).
 */
export function shownDiagnostics(
  status: TaskStatus,
  end: Pick<TaskResultRow, "output" | "error"> | null,
  liveTail: string | null,
): { output: string; error: string | null } {
  if (status === "running" && liveTail !== null && liveTail !== "") return { output: cut(liveTail), error: null }
  return { output: end?.output ?? "", error: end?.error ?? null }
}

/** `percent` is 0 to 100; `progress` may also be a fraction up to 1 (GAP-46). Null when the line tells neither. */
export function percentOf(progressText: string | null): number | null {
  const line = parsed(progressText)
  if (typeof line !== "object" || line === null) return null
  const { percent, progress } = line as { percent?: unknown; progress?: unknown }
  const told =
    typeof percent === "number" ? percent : typeof progress === "number" ? progress * (progress <= 1 ? 100 : 1) : null
  return told === null ? null : Math.min(100, Math.max(0, told))
}

/** A node's words, embedded only when they are JSON: a reply never breaks by them. */
export function jsonOrNull(text: string | null): JsonText | null {
  return text === null || parsed(text) === undefined ? null : new JsonText(text)
}

function parsed(text: string | null): unknown {
  try {
    return text === null ? undefined : JSON.parse(text)
  } catch {
    return undefined
  }
}

type ShownResult = Pick<TaskOnWire, "result" | "result_present" | "result_artifact_id">

function shownResult(facts: TaskRowFacts, status: TaskStatus, end: TaskResultRow | null): ShownResult {
  if (!end || (status !== "completed" && status !== "failed")) return { result: null, result_present: false }
  if (status === "failed") {
    const record = failureRecordText({
      kind: end.failureKind ?? "sandbox_error",
      exitCode: end.exitCode,
      signal: end.signal,
      command: facts.job.submission.command,
      cwd: facts.cwd,
      combinedOutput: end.output,
      partialResultText: end.result,
    })
    return { result: new JsonText(record), result_present: false }
  }
  if (end.resultDigest === null) {
    return { result: end.result === null ? null : new JsonText(end.result), result_present: end.result !== null }
  }
  const spilled = facts.artifacts.findLast(({ digest, name }) => name === null && digest === end.resultDigest)
  if (!spilled) return { result: { result_spilled: true }, result_present: true }
  const { id, filename } = spilled
  return {
    result: { result_spilled: true, result_artifact_id: id, result_filename: filename },
    result_present: true,
    result_artifact_id: id,
  }
}

/** CK-007: the latest checkpoint, and what a next attempt would get; null where there is none, or it would get nothing. */
function checkpointFields(
  { job, checkpoints, progress }: TaskRowFacts,
  live: LiveAttempt | null,
): Pick<TaskOnWire, "checkpoint" | "resume_state"> {
  const latest = checkpoints[0]
  if (!job.submission.checkpointing?.enabled) return { checkpoint: null, resume_state: null }
  const said = live?.attempt.progress ?? null
  const told = said !== null && objectIn(said) !== null ? said : progress
  const resume = resumeKeyOf(job.submission) === null ? null : resumeStateText(remainsOf(checkpoints, told))
  return { checkpoint: latest ? new JsonText(checkpointText(latest)) : null, resume_state: jsonOrNull(resume) }
}

/** 0 before the first start; an attempt that was granted and has not started does not count yet. */
function shownAttempt(row: TaskWithResult | null, status: TaskStatus): number {
  if (!row || (status === "cancelled" && row.startedAt === null)) return 0
  return row.state === "granted" ? row.attempt - 1 : row.attempt
}

function runtimeSeconds(row: TaskWithResult | null, status: TaskStatus, live: LiveAttempt | null): number | null {
  if (status === "running") return live?.runsMs == null ? null : seconds(live.runsMs)
  if (status === "queued" || !row) return null
  // A cancelled task that waited for another try shows the run it had; one that was stopped leaves no end.
  if (status !== "cancelled" || row.end?.claim === row.claim)
    return row.end?.runtimeMs == null ? null : seconds(row.end.runtimeMs)
  return row.startedAt === null || row.completedAt === null ? null : seconds(row.completedAt - row.startedAt)
}

const isOutOfReach = (contact: Contact): boolean => contact === "lost_contact" || contact === "offline"
const healthOf = (live: LiveAttempt | null): "healthy" | "stale" =>
  live?.contact === "connected" ? "healthy" : "stale"
const seconds = (ms: number): number => Math.round(ms) / 1000
const cut = (text: string): string => lastBytes(text, OUTPUT_TAIL_BYTES)
