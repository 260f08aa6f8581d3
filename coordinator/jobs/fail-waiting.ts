import type { Clock, Instant } from "../../protocol/base/clock.ts"
import { claimNumber, type ClaimNumber } from "../../protocol/domain/ids.ts"
import type { FailureKind } from "../../protocol/domain/statuses.ts"
import { appendEvent } from "../events/event-log.ts"
import { addToJob, jobCounts, markJobFinishing } from "../store/jobs.ts"
import type { Store, Tx } from "../store/store.ts"
import {
  endAttempt,
  failWaitingTask,
  indexOfTask,
  putTaskResult,
  waitingTasks,
  type WaitingTaskRow,
} from "../store/tasks.ts"
import { taskError } from "./text.ts"

/** Tasks in one slice. */
const SLICE_TASKS = 200

interface Failure {
  kind: FailureKind
  message: string
  /** Stands as the tasks' output (J-033). */
  preflight: string
}

export interface FailedWaiting {
  /** All tasks of the job are final now. */
  isOver: boolean
  /** Of attempts that were given up: their nodes are to be told. */
  spent: ClaimNumber[]
}

/**
 * Fails the tasks of a job that wait and can never run: their set-up failed, or the hold is spent (rulings). No retry, nothing
 * billed; running ones finish. A task that waits because its node is lost fails too: nothing would ever run it again.
 */
export async function failWaitingTasks(
  parts: { store: Store; clock: Clock },
  job: number,
  failure: Failure,
  signal: AbortSignal,
): Promise<FailedWaiting> {
  const spent: ClaimNumber[] = []
  for (;;) {
    signal.throwIfAborted()
    const at = parts.clock.now()
    const slice = await parts.store.write(async (tx) => {
      const counts = await jobCounts(tx, job)
      if (!counts || (counts.status !== "queued" && counts.status !== "running")) return NOTHING
      const waiting = await waitingTasks(tx, job, SLICE_TASKS)
      const lost = waiting.filter(({ state }) => state === "lost")
      for (const task of waiting) await failTask(tx, job, task, failure, at)
      if (waiting.length > 0) {
        await addToJob(tx, job, {
          queued: lost.length - waiting.length,
          running: -lost.length,
          failed: waiting.length,
        })
      }
      return { failed: waiting.length, spent: lost.map(oldClaim), isOver: await markJobFinishing(tx, job) }
    })
    spent.push(...slice.spent)
    if (slice.failed < SLICE_TASKS) return { isOver: slice.isOver, spent }
  }
}

const NOTHING = { failed: 0, spent: [], isOver: false }

const oldClaim = ({ claim }: WaitingTaskRow): ClaimNumber => claimNumber(claim ?? 0)

/** Fails one waiting task without an attempt; the caller counts it. A lost one's old number is spent by it. */
export async function failTask(
  tx: Tx,
  job: number,
  task: WaitingTaskRow,
  { kind, message, preflight }: Failure,
  at: Instant,
): Promise<void> {
  if (task.state === "lost") {
    const end = { state: "lost", failureKind: "node_lost", runtimeMs: null, itemDigest: null, at } as const
    await endAttempt(tx, oldClaim(task), end)
  }
  await failWaitingTask(tx, task.key, at)
  await putTaskResult(tx, task.key, {
    claim: oldClaim(task),
    output: preflight,
    error: taskError({ kind, exitCode: null, message, tail: preflight }),
    failureKind: kind,
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
    message,
    data: { from: task.state === "lost" ? "running" : "queued", to: "failed", failure_kind: kind },
    at,
  })
}
