/** What a client sees of a job (L-001). The last four are terminal. */
export const JOB_STATUSES = ["planning", "queued", "running", "completed", "partial", "failed", "cancelled"] as const
export type JobStatus = (typeof JOB_STATUSES)[number]
export const TERMINAL_JOB_STATUSES = ["completed", "partial", "failed", "cancelled"] as const
export type TerminalJobStatus = (typeof TERMINAL_JOB_STATUSES)[number]

export function isTerminal(status: JobStatus): status is TerminalJobStatus {
  return (TERMINAL_JOB_STATUSES as readonly string[]).includes(status)
}

/** What a client sees of a task (rulings, Jobs). */
export const TASK_STATUSES = ["queued", "running", "completed", "failed", "cancelled"] as const
export type TaskStatus = (typeof TASK_STATUSES)[number]

/** Why an attempt failed: a closed list (rulings, Projects). */
export const FAILURE_KINDS = [
  "exit_code",
  "signal",
  "timeout",
  "oom",
  "disk_full",
  "cancelled",
  "node_lost",
  "setup_failed",
  "preparation_failed",
  "artifact_unavailable",
  "shared_unresolved",
  "sandbox_error",
  "quarantined",
  "budget_spent",
] as const
export type FailureKind = (typeof FAILURE_KINDS)[number]

/** Kinds that the program itself caused: only these attempts are billed and use up a retry (rulings, Holds). */
const PROGRAM_FAILURES: ReadonlySet<FailureKind> = new Set(["exit_code", "signal", "timeout", "oom", "disk_full"])
export const isProgramFailure = (kind: FailureKind): boolean => PROGRAM_FAILURES.has(kind)

export const JOB_TYPES = ["structured_runner", "sweep", "map_reduce", "benchmark"] as const
export type JobType = (typeof JOB_TYPES)[number]
export const PRIORITIES = ["high", "normal", "low"] as const
export type Priority = (typeof PRIORITIES)[number]
export const RELIABILITY_MODES = ["best_effort", "strict_complete"] as const
export type ReliabilityMode = (typeof RELIABILITY_MODES)[number]
/** F-002. */
export const FEEDBACK_TYPES = ["bug", "feature_request", "provisioning", "job_type_request"] as const
export type FeedbackType = (typeof FEEDBACK_TYPES)[number]
export const ROLES = ["viewer", "member", "admin"] as const
export type Role = (typeof ROLES)[number]
export const NODE_ROLES = ["worker", "builder", "sealed"] as const
export type NodeRole = (typeof NODE_ROLES)[number]
/** How far a task is kept from its machine, as the node can honestly name it, best first. */
export const ISOLATIONS = ["gvisor", "namespaces", "none"] as const
export type Isolation = (typeof ISOLATIONS)[number]
/** What a node can hold a task to. */
export const ENFORCEABLE = ["memory", "cpu", "pids", "disk", "network", "time"] as const
export type Enforceable = (typeof ENFORCEABLE)[number]
