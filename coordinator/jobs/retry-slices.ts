import type { Clock, Instant } from "../../protocol/base/clock.ts"
import { assert } from "../../protocol/base/assert.ts"
import { appendEvent } from "../events/event-log.ts"
import { advanceRetry, insertCancelledTasks, pendingRetry, putBack, selectedTasks } from "../store/retries.ts"
import type { Store, Tx } from "../store/store.ts"
import { taskKey } from "../store/tasks.ts"
import { forgetRemains, keepRemains } from "./checkpoints.ts"
import { isSuspect } from "./quality.ts"
import { nextTask, type TaskFacts } from "./task-state.ts"

/** Tasks in one slice: some 10 ms of the writing thread, so that other requests go between (architecture §4). */
export const SLICE_TASKS = 500

/** Puts the selected tasks of a retried job back, slice by slice, from where an earlier run stopped. */
export async function putBackTasks(
  parts: { store: Store; clock: Clock },
  seq: number,
  signal: AbortSignal,
): Promise<void> {
  for (;;) {
    signal.throwIfAborted()
    const at = parts.clock.now()
    if ((await parts.store.write((tx) => putBackSlice(tx, seq, at))) === "done") return
  }
}

/**
 * One slice: those that the job lost sight of while it was planned get their rows first. In a job that has ended again
 * meanwhile they only become what its sums say already, and its sweep cancels them: nothing is told of it.
 */
export async function putBackSlice(tx: Tx, seq: number, at: Instant): Promise<"more" | "done"> {
  const pending = await pendingRetry(tx, seq)
  if (!pending) return "done"
  const { selection, plannedUpto, taskCount } = pending
  if (plannedUpto < taskCount) {
    await insertCancelledTasks(tx, seq, plannedUpto, Math.min(plannedUpto + SLICE_TASKS, taskCount), at)
    return "more"
  }
  const tasks = await selectedTasks(tx, seq, selection, pending.upto, SLICE_TASKS)
  let suspect = 0
  let qualitySum = 0
  for (const { index, state } of tasks) {
    const before = endedStatus(state)
    assert(nextTask({ ...ENDED, status: before }, { event: "retried" }).outcome === "moved", "a task that ended")
    const key = taskKey(seq, index)
    const quality = await putBack(tx, key)
    // One that had come to its end begins anew; another goes on from what it left.
    if (before === "completed") await forgetRemains(tx, key)
    else await keepRemains(tx, key)
    if (before === "completed" && quality !== null) {
      qualitySum += quality
      if (isSuspect(quality)) suspect += 1
    }
    if (!pending.isOver) {
      await appendEvent(tx, {
        job: seq,
        type: "task.retried",
        taskIndex: index,
        message: "the task runs again by a retry of its job",
        data: { from: before, to: "queued" },
        at,
      })
    }
  }
  const last = tasks.at(-1)
  const isLast = tasks.length < SLICE_TASKS || last === undefined
  await advanceRetry(tx, seq, { upto: isLast ? null : last.index + 1, suspect, qualitySum })
  return isLast ? "done" : "more"
}

const ENDED: Omit<TaskFacts, "status"> = { failures: 0, losses: 0, lossPending: false }

function endedStatus(state: string | null): "completed" | "failed" | "cancelled" {
  assert(state === "completed" || state === "failed" || state === "cancelled", "a job that ended has tasks that ended")
  return state
}
