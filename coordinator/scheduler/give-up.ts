import type { Instant } from "../../protocol/base/clock.ts"
import type { ClaimNumber, NodeId } from "../../protocol/domain/ids.ts"
import { appendEvent } from "../events/event-log.ts"
import type { HeldAttempt } from "../fleet/members.ts"
import { MOST_LOSSES } from "../jobs/task-state.ts"
import {
  storeContactLost,
  storeContactReturned,
  storeDeath,
  storeDisproved,
  takeLossBack,
} from "../store/attempt-contact.ts"
import { addToJob, jobCounts, type JobCounts } from "../store/jobs.ts"
import type { Tx } from "../store/store.ts"
import {
  attemptByClaim,
  endAttempt,
  indexOfTask,
  jobOfTask,
  moveTask,
  requeueUnstarted,
  taskByKey,
} from "../store/tasks.ts"

/** What of an attempt matters here; `died`: its agent came back without it. */
export type LostAttempt = Pick<HeldAttempt, "claim" | "task" | "job" | "index" | "number"> & { died?: boolean }

/** Contact with the node of these attempts is lost: clients are told, and nothing else changes yet (architecture §5.5). */
export async function recordContactLost(
  tx: Tx,
  attempts: readonly LostAttempt[],
  since: Instant,
  at: Instant,
): Promise<void> {
  for (const attempt of attempts) {
    if (!(await storeContactLost(tx, attempt.claim, since))) continue
    await appendEvent(tx, {
      job: attempt.job,
      type: "task.contact_lost",
      taskIndex: attempt.index,
      message: "contact with the machine that runs this task is lost; it may run elsewhere if it does not return",
      data: { attempt: attempt.number },
      at,
    })
  }
}

/**
 * Waiting is over: these tasks may be granted again. Their numbers stay live until a grant spends them. Answers which were
 * marked; the others ended meanwhile.
 */
export async function markClaimable(tx: Tx, attempts: readonly LostAttempt[], at: Instant): Promise<Set<ClaimNumber>> {
  const marked = new Set<ClaimNumber>()
  for (const attempt of attempts) {
    const task = await taskByKey(tx, attempt.task)
    if (task?.claim !== attempt.claim) continue
    const isLive = (await attemptByClaim(tx, attempt.claim))?.endedAt === null
    if (!isLive && !isUnderWay(await jobCounts(tx, attempt.job))) continue
    if (task.state === "lost") marked.add(attempt.claim)
    if (task.state !== "granted" && task.state !== "running") continue
    await recordContactLost(tx, [attempt], at, at)
    if (attempt.died === true) await storeDeath(tx, attempt.claim)
    await moveTask(tx, attempt.task, [task.state], "lost")
    if (task.state === "granted") await addToJob(tx, attempt.job, { granted: -1, running: 1 })
    marked.add(attempt.claim)
  }
  return marked
}

const isUnderWay = (job: JobCounts | null): boolean => job?.status === "queued" || job?.status === "running"

/**
 * Contact returned before another grant spent the number: the attempt goes on, and the time without contact is not billed.
 *
 * @param silentMs from last contact until now
 */
export async function recordContactReturned(
  tx: Tx,
  attempt: HeldAttempt,
  silentMs: number,
  at: Instant,
): Promise<void> {
  if (!(await storeContactReturned(tx, attempt.claim, silentMs))) return
  const task = await taskByKey(tx, attempt.task)
  if (task?.claim === attempt.claim && task.state === "lost") {
    const row = await attemptByClaim(tx, attempt.claim)
    const back = row?.startedAt === null || row?.startedAt === undefined ? "granted" : "running"
    await moveTask(tx, attempt.task, ["lost"], back)
    if (back === "granted") await addToJob(tx, attempt.job, { granted: 1, running: -1 })
  }
  await appendEvent(tx, {
    job: attempt.job,
    type: "task.contact_restored",
    taskIndex: attempt.index,
    message: "contact with the machine that runs this task returned",
    data: { attempt: attempt.number },
    at,
  })
}

/**
 * The node shows attempts that were counted as lost: they were alive, so the losses are taken back (rulings, Losses). At most
 * as many for each task as end it, so that no node can keep a task from ending. Answers how many were.
 */
export async function disproveLosses(tx: Tx, node: NodeId, claims: readonly number[]): Promise<number> {
  let disproved = 0
  for (const claim of claims) {
    const shown = await storeDisproved(tx, node, claim, MOST_LOSSES)
    if (!shown || !(await takeLossBack(tx, shown.task))) continue
    await addToJob(tx, jobOfTask(shown.task), { losses: -1 })
    disproved += 1
  }
  return disproved
}

export interface ReturnedClaim {
  claim: ClaimNumber
  job: number
  /** Its task waits again. */
  requeued: boolean
}

/** Attempts that never started go back to the queue, and the task's attempt count with them: no loss. */
export async function returnAttempt(tx: Tx, claims: readonly ClaimNumber[], at: Instant): Promise<ReturnedClaim[]> {
  const returned: ReturnedClaim[] = []
  for (const claim of claims) {
    const attempt = await attemptByClaim(tx, claim)
    if (!attempt || attempt.endedAt !== null) continue
    const task = await taskByKey(tx, attempt.task)
    await endAttempt(tx, claim, { state: "returned", failureKind: null, runtimeMs: null, itemDigest: null, at })
    const job = jobOfTask(attempt.task)
    const requeued = task?.claim === claim && (await requeueUnstarted(tx, attempt.task, claim))
    if (task && requeued) {
      await addToJob(tx, job, {
        queued: 1,
        attempts: -1,
        ...(task.state === "granted" ? { granted: -1 } : { running: -1 }),
      })
      if (task.state !== "granted") {
        await appendEvent(tx, {
          job,
          type: "task.retried",
          taskIndex: indexOfTask(attempt.task),
          message: "the machine gave this task back; it waits for another",
          data: { attempt: attempt.number },
          at,
        })
      }
    }
    returned.push({ claim, job, requeued })
  }
  return returned
}
