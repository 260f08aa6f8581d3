import type { JobHead } from "../../store/jobs.ts"
import type { View } from "../../store/store.ts"
import { taskOutputs, type TaskOutput } from "../../store/task-reads.ts"
import { isEnded } from "../job-state.ts"
import type { ReadJob, ReadParts } from "./read-job.ts"
import { liveAttempt, shownDiagnostics, taskStatus } from "./task-row.ts"

interface OutputLimits {
  /** Tasks looked at, lowest index first. */
  tasks: number
  /** Characters of all tasks together. */
  characters: number
}

/** GET /jobs/:id/output: a job of 100,000 tasks that print 10 KB each has a gigabyte; the rows of /tasks have all of it. */
export const OUTPUT_LIMITS: OutputLimits = { tasks: 100_000, characters: 16 * 1024 * 1024 }
/** `output` of the job object, which clients poll: no more than the first page of /tasks. */
export const JOB_OUTPUT_LIMITS: OutputLimits = { tasks: 1_000, characters: 1024 * 1024 }

const SLICE_TASKS = 500

/**
 * What a job's tasks printed, joined in index order, each with its own cap; and its error, else that of the first task that
 * has one (J-031, J-032). Where a limit cuts, the last line says so and where the rest is. `firstSlice`: what `firstTaskOutputs`
 * has read already.
 */
export async function jobOutput(
  parts: ReadParts,
  { head }: ReadJob,
  limits: OutputLimits,
  firstSlice: TaskOutput[] | null = null,
): Promise<{ output: string; error: string | null }> {
  const texts: string[] = []
  let characters = 0
  let error = head.error
  for (let from = 0; from < Math.min(head.taskCount, limits.tasks);) {
    const first = from
    const known = first === 0 ? firstSlice : null
    const slice = known ?? (await parts.store.read((view) => taskOutputs(view, head.seq, first, SLICE_TASKS)))
    for (const task of slice.slice(0, limits.tasks - from)) {
      const status = taskStatus(task.state, isEnded(head.status))
      const shown = shownDiagnostics(status, task, liveAttempt(parts, task.claim)?.attempt.outputTail ?? null)
      if (status !== "completed") error ??= shown.error
      if (shown.output === "") continue
      if (characters + shown.output.length > limits.characters)
        return { output: cutBefore(texts, task.index, head), error }
      characters += shown.output.length + 1
      texts.push(shown.output)
    }
    from += slice.length
    if (slice.length < SLICE_TASKS) return { output: joined(texts), error }
  }
  return { output: head.taskCount > limits.tasks ? cutBefore(texts, limits.tasks, head) : joined(texts), error }
}

/** For `jobOutput`, where more is read of the job in the same snapshot. */
export function firstTaskOutputs(view: View, { seq }: JobHead): Promise<TaskOutput[]> {
  return taskOutputs(view, seq, 0, SLICE_TASKS)
}

/** One task's text stays exactly as it was printed; between the texts of several a line always ends. */
const joined = (texts: readonly string[]): string =>
  texts.map((text, at) => (at === texts.length - 1 ? text : withLineEnd(text))).join("")

const withLineEnd = (text: string): string => (text.endsWith("\n") ? text : `${text}\n`)

function cutBefore(texts: readonly string[], index: number, head: ReadJob["head"]): string {
  return `${texts.map(withLineEnd).join("")}[cut: the output of tasks ${index} to ${head.taskCount - 1} is left out; read it at /api/v1/jobs/${head.id}/tasks]\n`
}
