import type { Clock } from "../../protocol/base/clock.ts"
import { appendEvent } from "../events/event-log.ts"
import { advancePlanning, type JobRow } from "../store/jobs.ts"
import type { Store } from "../store/store.ts"
import { insertTasks } from "../store/tasks.ts"

/** Tasks in one slice: well under 20 ms of the writing thread, so that other requests go between (architecture §4). */
const SLICE_TASKS = 1000

/**
 * Writes the tasks of a planned job, slice by slice, from where an earlier run stopped. `inserted` is called after each slice
 * that made tasks grantable, that is once the job is queued. Ends quietly when the job ends meanwhile.
 */
export async function expandJob(
  parts: { store: Store; clock: Clock },
  job: Pick<JobRow, "seq" | "plannedUpto" | "taskCount">,
  signal: AbortSignal,
): Promise<"queued" | "over"> {
  for (let from = job.plannedUpto; from < job.taskCount; ) {
    signal.throwIfAborted()
    const start = from
    const upto = Math.min(from + SLICE_TASKS, job.taskCount)
    const at = parts.clock.now()
    const goesOn = await parts.store.write(async (tx) => {
      if (!(await advancePlanning(tx, job.seq, start, upto, at))) return false
      await insertTasks(tx, job.seq, start, upto)
      if (upto === job.taskCount) {
        await appendEvent(tx, {
          job: job.seq,
          type: "job.queued",
          message: upto === 1 ? "its task waits for a machine" : `its ${upto} tasks wait for machines`,
          data: { from: "planning", to: "queued" },
          at,
        })
      }
      return true
    })
    if (!goesOn) return "over"
    from = upto
  }
  return "queued"
}
