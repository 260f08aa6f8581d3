import { setImmediate as turn } from "node:timers/promises"
import { joinJsonObject, splitJsonArray, splitJsonObject, stringifyJson } from "../../protocol/base/json-text.ts"
import { outcomePath } from "../../protocol/domain/shared-state.ts"
import type { TerminalJobStatus } from "../../protocol/domain/statuses.ts"
import type { ObjectFiles } from "../artifacts/object-files.ts"
import type { JobHead } from "../store/jobs.ts"
import type { Store } from "../store/store.ts"
import { taskKey, tasksByKeys, taskSlice } from "../store/tasks.ts"
import { outcomeOfTask } from "./task-outcome.ts"

/** A job that has ended, or is about to, and what it came to. */
export interface EndedJob {
  head: Pick<JobHead, "seq" | "taskCount" | "completed" | "failed" | "suspect" | "qualitySum">
  status: TerminalJobStatus
  /** The aggregate, as JSON text. */
  outcome: string
}

/** A value as JSON text, just as the program wrote it; or why there is none, in words that follow the path. */
export type OutcomeValue = { text: string } | { problem: string }

interface OutcomeParts {
  store: Pick<Store, "read">
  files: Pick<ObjectFiles, "read">
}

/**
 * What stands at a path of a job's outcome (GAP-56): `{results: [what task i wrote], summary, aggregate_result, status}`. A task
 * that did not complete has nothing at its place. `largestBytes` bounds a list of results that is asked for as a whole.
 */
export async function outcomeValue(
  parts: OutcomeParts,
  job: EndedJob,
  path: string,
  largestBytes: number,
): Promise<OutcomeValue> {
  const [root, ...steps] = outcomePath(path) ?? []
  switch (root) {
    case "status":
      return found(textAt(JSON.stringify(job.status), steps))
    case "aggregate_result":
      return found(textAt(splitJsonObject(job.outcome)?.get("aggregate_result"), steps))
    case "summary":
      return found(textAt(summaryText(job), steps))
    case "results": {
      const [index, ...inside] = steps
      if (index === undefined) return await allResults(parts, job, largestBytes)
      return /^\d{1,7}$/.test(index) ? await inResult(parts, job, Number(index), inside) : NOTHING
    }
    case undefined:
    default:
      return NOTHING
  }
}

const NOTHING: OutcomeValue = { problem: "leads to nothing" }

const found = (text: string | undefined): OutcomeValue => (text === undefined ? NOTHING : { text })

/** What the job's `summary` says of its results; money is no part of it. */
function summaryText({ head, outcome }: EndedJob): string {
  const members = splitJsonObject(outcome) ?? new Map<string, string>()
  const { taskCount: total, completed, failed, suspect, qualitySum } = head
  const quality = { mean_quality: completed > 0 ? qualitySum / completed : null, suspect_count: suspect }
  const counts = { total, queued: 0, running: 0, completed, failed, cancelled: total - completed - failed }
  members.set("quality", stringifyJson(quality))
  members.set("task_outcome_counts", stringifyJson(counts))
  return joinJsonObject(members)
}

/** A result may be wrapped: `results.0.score` and `results.0.result.score` name the same, whichever of them is there. */
async function inResult(parts: OutcomeParts, job: EndedJob, index: number, steps: string[]): Promise<OutcomeValue> {
  const [task] =
    index < job.head.taskCount
      ? await parts.store.read((view) => tasksByKeys(view, [taskKey(job.head.seq, index)]))
      : []
  const outcome = task ? await outcomeOfTask(parts.files, task) : null
  if (outcome?.status !== "completed") return { problem: "leads to a task that did not complete" }
  const ways = [steps, ["result", ...steps], ...(steps[0] === "result" ? [steps.slice(1)] : [])]
  const whole = outcome.resultText ?? "null"
  for (const way of ways) {
    const text = textAt(whole, way)
    if (text !== undefined) return { text }
  }
  return NOTHING
}

async function allResults(parts: OutcomeParts, { head }: EndedJob, largestBytes: number): Promise<OutcomeValue> {
  const texts: string[] = []
  let bytes = 2
  for (let from = 0; from < head.taskCount; from += TASKS_AT_ONCE) {
    const start = from
    const slice = await parts.store.read((view) => taskSlice(view, head.seq, start, TASKS_AT_ONCE))
    for (const task of slice) {
      const text = (await outcomeOfTask(parts.files, task))?.resultText ?? "null"
      bytes += Buffer.byteLength(text) + 1
      if (bytes > largestBytes) return { problem: `takes more than ${largestBytes} bytes` }
      texts.push(text)
    }
    await turn()
  }
  return { text: `[${texts.join(",")}]` }
}

const TASKS_AT_ONCE = 500

/** The JSON text that lies below valid JSON text; undefined where nothing does. */
function textAt(text: string | undefined, steps: readonly string[]): string | undefined {
  let at = text
  for (const step of steps) {
    if (at === undefined) return undefined
    const list = splitJsonArray(at)
    if (list === null) at = splitJsonObject(at)?.get(step)
    else at = /^\d{1,9}$/.test(step) ? list[Number(step)] : undefined
  }
  return at
}
