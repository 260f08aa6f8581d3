import type { Instant } from "../../protocol/base/clock.ts"
import { claimNumber, type ClaimNumber, type NodeId } from "../../protocol/domain/ids.ts"
import type { FailureKind } from "../../protocol/domain/statuses.ts"
import { appendEvent } from "../events/event-log.ts"
import { nextTask } from "../jobs/task-state.ts"
import { taskError } from "../jobs/text.ts"
import { findHold } from "../store/holds.ts"
import { addToJob, jobCounts, markJobFinishing, type JobCounts } from "../store/jobs.ts"
import { nextClaimNumbers } from "../store/meta.ts"
import type { Tx } from "../store/store.ts"
import {
  countLoss,
  endAttempt,
  failLostTask,
  grantTask,
  indexOfTask,
  insertAttempt,
  putTaskResult,
  waitingTasks,
  type TaskKey,
} from "../store/tasks.ts"

/** A free place for one task of a job, found in memory. */
export interface Place {
  job: number
  node: NodeId
  gpus: readonly string[]
}

export interface GrantedTaskRow extends Place {
  claim: ClaimNumber
  task: TaskKey
  index: number
  /** 1 for the first run. */
  number: number
  reserveMicro: bigint
  /** What is left of the hold, when it is less than the reserve: the task gets the time that buys. */
  budgetMicro: bigint | null
}

export interface GrantOutcome {
  granted: GrantedTaskRow[]
  /** Spent by this write: their tasks were granted again, or failed. */
  spent: ClaimNumber[]
  /** Jobs that got fewer tasks than places, and why. */
  short: Map<number, "nothing_waits" | "budget" | "over">
  /** All of their tasks are final now. */
  finishing: number[]
  /** Jobs whose rows changed. */
  changed: number[]
}

/**
 * Grants waiting tasks to places: one write, a conditional UPDATE for each task and its job, so that memory may be wrong and
 * no task is ever granted twice (architecture §4, §5.4). Places that find no task are simply left over.
 */
export async function grantTasks(tx: Tx, places: readonly Place[], at: Instant): Promise<GrantOutcome> {
  const outcome: GrantOutcome = { granted: [], spent: [], short: new Map(), finishing: [], changed: [] }
  let next: number = await nextClaimNumbers(tx, places.length, at * 1000)
  for (const [job, its] of Map.groupBy(places, ({ job }) => job)) {
    const counts = await jobCounts(tx, job)
    if (!counts || (counts.status !== "queued" && counts.status !== "running")) {
      outcome.short.set(job, "over")
      continue
    }
    const budget = await budgetOf(tx, counts, its.length)
    const waiting = await waitingTasks(tx, job, budget.tasks)
    if (waiting.length < its.length) outcome.short.set(job, budget.tasks < its.length ? "budget" : "nothing_waits")
    let granted = 0
    let wereLost = 0
    let failed = 0
    for (const [i, task] of waiting.entries()) {
      const place = its[i]
      if (!place) break
      if (task.state === "lost") {
        wereLost += 1
        const old = claimNumber(task.claim ?? 0)
        await endAttempt(tx, old, { state: "lost", failureKind: "node_lost", runtimeMs: null, itemDigest: null, at })
        await countLoss(tx, task.key)
        outcome.spent.push(old)
        await appendEvent(tx, {
          job,
          type: "task.lost",
          taskIndex: indexOfTask(task.key),
          message: "contact with the machine that ran this task was lost; the task runs again elsewhere",
          data: { attempt: task.attempt, losses: task.losses + 1 },
          at,
        })
        const kind = tooManyLosses(task.losses)
        if (kind) {
          await failTask(tx, task.key, old, kind, at)
          failed += 1
          continue
        }
      }
      const claim = claimNumber(next++)
      await insertAttempt(tx, { claim, task: task.key, number: task.attempt + 1, node: place.node, at })
      if (!(await grantTask(tx, task.key, task.attempt + 1, claim))) throw new Error("a waiting task can be granted")
      granted += 1
      outcome.granted.push({
        ...place,
        claim,
        task: task.key,
        index: indexOfTask(task.key),
        number: task.attempt + 1,
        reserveMicro: counts.reserveMicro,
        budgetMicro: budget.remainder,
      })
    }
    if (granted + failed === 0) continue
    outcome.changed.push(job)
    await addToJob(tx, job, {
      queued: -(granted + failed - wereLost),
      running: -wereLost,
      granted,
      failed,
      attempts: granted,
      losses: wereLost,
    })
    if (failed > 0 && (await markJobFinishing(tx, job))) outcome.finishing.push(job)
  }
  return outcome
}

/**
 * How many more tasks of the job may start: hold − charged − reserves of those running must cover each one's reserve. With
 * nothing running one task may start on what is left, for as long as that buys (rulings, Holds).
 */
async function budgetOf(
  tx: Tx,
  counts: JobCounts,
  wanted: number,
): Promise<{ tasks: number; remainder: bigint | null }> {
  if (counts.reserveMicro === 0n) return { tasks: wanted, remainder: null }
  const hold = await findHold(tx, counts.hold)
  if (!hold || hold.status !== "active") return { tasks: 0, remainder: null }
  const live = BigInt(counts.granted + counts.running)
  const left = hold.amount - hold.charged
  const covered = left / counts.reserveMicro - live
  if (covered > 0n) return { tasks: covered < BigInt(wanted) ? Number(covered) : wanted, remainder: null }
  if (live === 0n && left > 0n) return { tasks: 1, remainder: left }
  return { tasks: 0, remainder: null }
}

function tooManyLosses(losses: number): FailureKind | null {
  const step = nextTask({ status: "queued", failures: 0, losses, lossPending: true }, { event: "granted", quarantine: false })
  return step.outcome === "moved" ? step.failureKind : null
}

async function failTask(tx: Tx, key: TaskKey, claim: ClaimNumber, kind: FailureKind, at: Instant): Promise<void> {
  const message = "the machines that ran this task were lost five times"
  await failLostTask(tx, key, at)
  await putTaskResult(tx, key, {
    claim,
    output: "",
    error: taskError({ kind, exitCode: null, message, tail: "" }),
    failureKind: kind,
    exitCode: null,
    result: null,
    resultDigest: null,
    resultBytes: null,
    quality: null,
    warnings: [],
    runtimeMs: null,
  })
}
