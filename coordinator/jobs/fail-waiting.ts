import type { Clock } from "../../protocol/base/clock.ts"
import { claimNumber } from "../../protocol/domain/ids.ts"
import type { FailureKind } from "../../protocol/domain/statuses.ts"
import { appendEvent } from "../events/event-log.ts"
import { addToJob, jobCounts, markJobFinishing } from "../store/jobs.ts"
import type { Store } from "../store/store.ts"
import { failWaitingTask, indexOfTask, putTaskResult, waitingTasks } from "../store/tasks.ts"
import { taskError } from "./text.ts"

/** Tasks in one slice. */
const SLICE_TASKS = 200

/**
 * Fails the tasks of a job that wait and can never run: their set-up failed, or the hold is spent (rulings). No retry, nothing
 * billed; running ones finish. `preflight` stands as their output (J-033). Answers whether all tasks are final now.
 */
export async function failWaitingTasks(
  parts: { store: Store; clock: Clock },
  job: number,
  failure: { kind: FailureKind; message: string; preflight: string },
  signal: AbortSignal,
): Promise<boolean> {
  for (;;) {
    signal.throwIfAborted()
    const at = parts.clock.now()
    const slice = await parts.store.write(async (tx) => {
      const counts = await jobCounts(tx, job)
      if (!counts || (counts.status !== "queued" && counts.status !== "running")) return { failed: 0, finishing: false }
      const waiting = (await waitingTasks(tx, job, SLICE_TASKS)).filter(({ state }) => state === "queued")
      for (const task of waiting) {
        await failWaitingTask(tx, task.key, at)
        await putTaskResult(tx, task.key, {
          claim: claimNumber(task.claim ?? 0),
          output: failure.preflight,
          error: taskError({ kind: failure.kind, exitCode: null, message: failure.message, tail: failure.preflight }),
          failureKind: failure.kind,
          exitCode: null,
          result: null,
          resultDigest: null,
          resultBytes: null,
          quality: null,
          warnings: [],
          runtimeMs: null,
        })
        await appendEvent(tx, {
          job,
          type: "task.failed",
          taskIndex: indexOfTask(task.key),
          message: failure.message,
          data: { from: "queued", to: "failed", failure_kind: failure.kind },
          at,
        })
      }
      if (waiting.length > 0) await addToJob(tx, job, { queued: -waiting.length, failed: waiting.length })
      return { failed: waiting.length, finishing: await markJobFinishing(tx, job) }
    })
    if (slice.failed < SLICE_TASKS) return slice.finishing
  }
}
