import type { Instant } from "../../protocol/base/clock.ts"
import type { ClaimNumber, NodeId } from "../../protocol/domain/ids.ts"
import { appendEvent } from "../events/event-log.ts"
import { addToJob, markJobRunning } from "../store/jobs.ts"
import type { Store } from "../store/store.ts"
import { attemptByClaim, indexOfTask, jobOfTask, startAttempt, startTask } from "../store/tasks.ts"

export interface Start {
  claim: ClaimNumber
  at: Instant
}

/**
 * The programs of these attempts run: task, job and log say so in one write. Numbers that are spent, or ended before the
 * write, change nothing. Returns the jobs whose rows changed.
 */
export async function recordStarts(store: Store, node: NodeId, starts: readonly Start[]): Promise<number[]> {
  return await store.write(async (tx) => {
    const started = new Map<number, number>()
    const firsts = new Map<number, Instant>()
    for (const { claim, at } of starts) {
      const attempt = await attemptByClaim(tx, claim)
      if (!attempt || !(await startAttempt(tx, claim, node, at))) continue
      if (!(await startTask(tx, attempt.task, claim, at))) continue
      const job = jobOfTask(attempt.task)
      if (!firsts.has(job)) {
        firsts.set(job, at)
        if (await markJobRunning(tx, job, at)) {
          await appendEvent(tx, {
            job,
            type: "job.running",
            message: "the first task runs",
            data: { from: "queued", to: "running" },
            at,
          })
        }
      }
      started.set(job, (started.get(job) ?? 0) + 1)
      await appendEvent(tx, {
        job,
        type: "task.started",
        taskIndex: indexOfTask(attempt.task),
        message: "the task runs",
        data: { from: "queued", to: "running", attempt: attempt.number },
        at,
      })
    }
    for (const [job, count] of started) await addToJob(tx, job, { granted: -count, running: count })
    return [...started.keys()]
  })
}
