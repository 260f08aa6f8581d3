import { assert } from "../../protocol/base/assert.ts"
import {
  isTerminal,
  type JobStatus,
  type ReliabilityMode,
  type TerminalJobStatus,
} from "../../protocol/domain/statuses.ts"

/** As stored. `finishing`: all tasks have ended and their results are being merged; clients see `running`. */
export type JobState = JobStatus | "finishing"

export type JobEvent =
  /** All task rows exist. */
  | "planned"
  | "task_started"
  | "all_tasks_ended"
  /** The last write: result, settlement and one of the outcomes. */
  | "completed"
  | "partial"
  | "failed"
  | "cancelled"
  /** Its owner has some of its tasks run again, in a round of their own: the one way out of the last four. */
  | "retried"

/** Null: refused. Nothing but a retry leads back, and nothing else leads out of the last four (L-001, rulings). */
const NEXT: Record<JobState, Record<JobEvent, JobState | null>> = {
  planning: only({ planned: "queued", cancelled: "cancelled" }),
  // Tasks may all end without one having started: a set-up that fails, say.
  queued: only({ task_started: "running", all_tasks_ended: "finishing", cancelled: "cancelled" }),
  running: only({ task_started: "running", all_tasks_ended: "finishing", cancelled: "cancelled" }),
  // Until the last write the client sees `running` and may still cancel.
  finishing: only({ completed: "completed", partial: "partial", failed: "failed", cancelled: "cancelled" }),
  completed: only({ retried: "queued" }),
  partial: only({ retried: "queued" }),
  failed: only({ retried: "queued" }),
  cancelled: only({ retried: "queued" }),
}

/** The state after the event, or null when the job cannot take it. */
export function nextJobState(state: JobState, event: JobEvent): JobState | null {
  return NEXT[state][event]
}

/** What clients are shown. */
export function jobStatus(state: JobState): JobStatus {
  return state === "finishing" ? "running" : state
}

/** Is the job terminal, whatever its task rows still say? */
export function isEnded(state: JobState): state is TerminalJobStatus {
  return isTerminal(jobStatus(state))
}

/** Tasks by the way they ended. */
export interface EndedTasks {
  completed: number
  failed: number
  /** By the platform; a job cancelled as a whole is `cancelled`, whatever its tasks did (C-28). */
  cancelled: number
}

/** How a job whose tasks have all ended is called (L-002, L-003, GAP-24, Q-006). */
export function outcomeOf(
  tasks: EndedTasks,
  reliability: ReliabilityMode,
  anySuspect: boolean,
): Exclude<TerminalJobStatus, "cancelled"> {
  const missing = tasks.failed + tasks.cancelled
  assert(tasks.completed + missing > 0, "a job has at least one task")
  if (missing === 0) return anySuspect ? "partial" : "completed"
  if (tasks.completed === 0 || reliability === "strict_complete") return "failed"
  return "partial"
}

/** 0 to 100 of a job that has ended: the share of its tasks that completed; null where none did (rulings, Progress). */
export function endedProgress(
  status: TerminalJobStatus,
  { completed, taskCount }: { completed: number; taskCount: number },
): number | null {
  if (status === "completed") return 100
  return completed === 0 ? null : Math.round((completed / taskCount) * 10_000) / 100
}

function only(next: Partial<Record<JobEvent, JobState>>): Record<JobEvent, JobState | null> {
  const refused = {
    planned: null,
    task_started: null,
    all_tasks_ended: null,
    completed: null,
    partial: null,
    failed: null,
    cancelled: null,
  }
  return { ...refused, retried: null, ...next }
}
