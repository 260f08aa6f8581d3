import { ERROR_TAIL_CHARACTERS } from "../../protocol/domain/runner.ts"
import type { FailureKind, ReliabilityMode } from "../../protocol/domain/statuses.ts"
import { lastCharacters } from "../../protocol/domain/text.ts"

export interface FailedRun {
  kind: FailureKind
  /** Null when the program ended by a signal or never ran. */
  exitCode: number | null
  /** The platform's sentence: which limit, which signal, what could not be prepared. */
  message: string | null
  /** The tail of standard error if there is any, else of the output (C-20). */
  tail: string
}

/**
 * A failed task's `error`, at most 1000 characters in all: `exit_code_<n>: ` or the kind and the platform's sentence, then as
 * much of the end of what the program printed as fits (J-035, J-046, rulings).
 */
export function taskError(run: FailedRun): string {
  const head =
    run.kind === "exit_code" && run.exitCode !== null
      ? `exit_code_${run.exitCode}`
      : lastCharacters(run.message === null ? run.kind : `${run.kind}: ${run.message}`, ERROR_TAIL_CHARACTERS)
  const tail = run.tail.trim() === "" ? "" : run.tail.trimEnd()
  const room = ERROR_TAIL_CHARACTERS - head.length - SEPARATOR.length
  return tail === "" || room <= 0 ? head : head + SEPARATOR + lastCharacters(tail, room)
}

const SEPARATOR = ": "

/** A job's `error`: the task's own when there is one task, else how many failed and the lowest failed one's (rulings). */
export function jobError(failedTasks: number, totalTasks: number, firstError: string): string {
  return totalTasks === 1 ? firstError : `${failedTasks} of ${totalTasks} tasks failed; first: ${firstError}`
}

/** `error` in a list row (J-028): one line of at most 120 characters, its beginning and its end where it is longer. */
export function errorSnippet(error: string | null): string | null {
  if (error === null) return null
  const line = error.replaceAll(/\s+/g, " ").trim()
  if (line.length <= LONGEST_SNIPPET) return line
  const start = line.slice(0, SNIPPET_START)
  const startWhole = start.isWellFormed() ? start : start.slice(0, -1)
  return `${startWhole}…${lastCharacters(line, LONGEST_SNIPPET - SNIPPET_START - 1)}`
}

const LONGEST_SNIPPET = 120
/** Enough for `<n> of <m> tasks failed; first: exit_code_<n>`. The end of a traceback says most, so it gets the rest. */
const SNIPPET_START = 50

/** What its owner can do about a failure of this kind. */
export function recommendedAction(kind: FailureKind): string {
  return ACTIONS[kind]
}

const ACTIONS: Record<FailureKind, string> = {
  exit_code:
    "Read the task's output; correct the program and submit again, or set max_retries if the failure is chance.",
  signal: "The program was killed by a signal, most often a crash of native code. Read the task's output.",
  timeout: "Raise timeout_s, or give each task less to do.",
  oom: "Raise requirements.memory_mb, or give each task less to do.",
  disk_full: "Raise requirements.storage_gb, or write less to the working and scratch directories.",
  cancelled: "Submit again if the work is still wanted.",
  node_lost: "The machines that ran this task went away five times. Submit again; checkpoints shorten the repetition.",
  setup_failed: "Read the project's status/details; correct the Dockerfile or manifest and push again.",
  preparation_failed: "Check that the runner_command's program and the files it names exist in the image.",
  artifact_unavailable: "Upload the artifact again, or submit within its retention time.",
  shared_unresolved: "Check that the shared value exists before this job runs.",
  sandbox_error: "The sandbox could not run this task on several machines. Submit again; send feedback if it repeats.",
  quarantined: "This task stopped several machines and is not run again. Check what it does to memory and processes.",
  budget_spent: "Retry the job: what failed then runs under a new hold. Or submit it again with a higher max_cost_usd.",
}

/** `waits for job_… to complete`, or how many. */
export function waitsFor(blockedBy: readonly string[]): string {
  return `waits for ${blockedBy.length === 1 ? (blockedBy[0] ?? "") : `${blockedBy.length} jobs`} to complete`
}

/** What the owner of a job that another one's end cancelled can do (C-02). */
export function actionAfterDependency(broken: { id: string; ended: string; reliability: ReliabilityMode }): string {
  const { id, ended, reliability } = broken
  const how = `${ended} (its reliability_mode is ${reliability})`
  const read = ended === "cancelled" ? "" : ` Read the error and results of ${id}.`
  return `Only a job that ends completed lets others go on, and ${id} ended ${how}.${read} Submit what it did again, then this job with the new id in depends_on.`
}

export interface FailureFacts {
  kind: FailureKind
  exitCode: number | null
  signal: string | null
  /** Both as seen inside the sandbox, never a path of the machine (C-21). */
  command: string[]
  cwd: string | null
  combinedOutput: string
  /** What the program had written to its result file, as JSON text; null where it wrote nothing readable. */
  partialResultText: string | null
}

/** What a failed task shows as `result` (J-036, rulings), as JSON text. */
export function failureRecordText(failure: FailureFacts): string {
  const record = JSON.stringify({
    failure_kind: failure.kind,
    exit_code: failure.exitCode,
    signal: failure.signal,
    command: failure.command,
    cwd: failure.cwd,
    combined_output: failure.combinedOutput,
  })
  return `${record.slice(0, -1)},"partial_result":${failure.partialResultText ?? "null"}}`
}
