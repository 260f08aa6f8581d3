import { present } from "../../protocol/base/assert.ts"
import type { Clock, Instant } from "../../protocol/base/clock.ts"
import { ComputalotError, notFound } from "../../protocol/domain/errors.ts"
import type { AccountId, ClaimNumber, JobId } from "../../protocol/domain/ids.ts"
import { chargeAttempts, type Charge } from "../billing/holds.ts"
import { billedMilliseconds, costOf, withoutContactMs } from "../billing/pricing.ts"
import { appendEvent } from "../events/event-log.ts"
import { dropOpenDependencies } from "../store/dependencies.ts"
import { endJobEarly, jobById, jobCounts, jobHeadBySeq, type JobHead } from "../store/jobs.ts"
import type { Store, Tx } from "../store/store.ts"
import { cancelTasks, endAttempt, indexOfTask, liveAttemptsOfJob, type LiveAttemptRow } from "../store/tasks.ts"
import { recordJobEnd } from "./job-end.ts"
import { jobFacts, rateOfJob, type JobFacts } from "./job-facts.ts"
import { isEnded } from "./job-state.ts"
import { putBackSlice } from "./retry-slices.ts"

export interface EndEarlyParts {
  store: Store
  clock: Clock
  /** What a running attempt says it has run so far, in ms; null when it has not said. */
  runningMs: (claim: ClaimNumber) => number | null
}

export interface EarlyEnd {
  job: JobHead
  /** Spent by it: their nodes are to be told. */
  spent: ClaimNumber[]
}

/**
 * Ends a job before its tasks have ended: one write {job terminal, running attempts charged and spent, hold settled, event}.
 * Task rows follow in slices (`sweepTasks`) and read as cancelled meanwhile. Null when the job is terminal already.
 */
export async function endEarly(
  parts: EndEarlyParts,
  seq: number,
  end: { status: "cancelled" | "failed"; error: string },
): Promise<EarlyEnd | null> {
  const at = parts.clock.now()
  return await parts.store.write((tx) => endEarlyIn(tx, parts, seq, end, at))
}

/** Cancels a job of which nothing was handed to a node; null when something was, or when it is over. */
export async function cancelWaiting(parts: EndEarlyParts, seq: number, reason: string): Promise<EarlyEnd | null> {
  const at = parts.clock.now()
  return await parts.store.write(async (tx) => {
    const counts = await jobCounts(tx, seq)
    if (counts?.status !== "queued" || counts.granted > 0) return null
    return await endEarlyIn(tx, parts, seq, { status: "cancelled", error: reason }, at)
  })
}

/** The same inside another write. */
export async function endEarlyIn(
  tx: Tx,
  parts: Pick<EndEarlyParts, "runningMs">,
  seq: number,
  end: { status: "cancelled" | "failed"; error: string },
  at: Instant,
): Promise<EarlyEnd | null> {
  if (!(await endJobEarly(tx, seq, { ...end, at }))) return null
  await dropOpenDependencies(tx, seq)
  const job = present(await jobHeadBySeq(tx, seq), "an ended job")
  const live = await liveAttemptsOfJob(tx, seq)
  const facts = live.length > 0 ? jobFacts(job) : null
  const charges: Charge[] = []
  for (const attempt of live) {
    const ranMs = attempt.state === "offered" ? null : parts.runningMs(attempt.claim)
    if (facts && ranMs !== null) charges.push(chargeOf(facts, attempt, ranMs, at))
    if (attempt.state === "running") {
      await appendEvent(tx, {
        job: seq,
        type: "task.cancelled",
        taskIndex: indexOfTask(attempt.task),
        message: "the task was stopped: its job has ended",
        data: { from: "running", to: "cancelled", attempt: attempt.number },
        at,
      })
    }
    await endAttempt(tx, attempt.claim, {
      state: "cancelled",
      failureKind: "cancelled",
      runtimeMs: ranMs,
      itemDigest: null,
      at,
    })
  }
  await chargeAttempts(tx, charges)
  await recordJobEnd(tx, job, { ...end, message: end.error, at })
  return { job, spent: live.map(({ claim }) => claim) }
}

/** Seconds reported before the write that ends it are billed, and no more (rulings, Holds). */
function chargeOf(job: JobFacts, attempt: LiveAttemptRow, ranMs: number, at: Instant): Charge {
  const milliseconds = billedMilliseconds({
    measuredMs: ranMs,
    acceptedAtMs: attempt.acceptedAt ?? attempt.grantedAt,
    reportedAtMs: at,
    lostContactMs: withoutContactMs(attempt, at),
  })
  return { claim: attempt.claim, hold: job.hold, amount: costOf(rateOfJob(job), milliseconds), milliseconds, at }
}

/** GAP-31: cancelled already: the same answer again, and `isNews` false; otherwise terminal: 409. */
export async function cancelJob(
  parts: EndEarlyParts,
  id: JobId,
  account: AccountId | null,
  reason: string,
): Promise<EarlyEnd & { isNews: boolean }> {
  const job = await parts.store.read((view) => jobById(view, id, account))
  if (!job) throw notFound(`the job ${id}`)
  const ended = await endEarly(parts, job.seq, { status: "cancelled", error: reason })
  if (ended) return { ...ended, isNews: true }
  const now = await parts.store.read((view) => jobHeadBySeq(view, job.seq))
  if (now?.status === "cancelled") return { job: now, spent: [], isNews: false }
  throw new ComputalotError("conflict", `the job has ended already: it is ${now?.status ?? "gone"}`, {
    recommendedAction: "Read its results; a job that has ended cannot be cancelled.",
    details: { status: now?.status },
  })
}

/** Tasks in one slice of a cancel. */
const SLICE_TASKS = 1000

/**
 * Cancels the task rows of an ended job, slice by slice; first those of a retry that it overtook become what the job's sums say.
 * A second call goes on where an earlier one stopped. A job that runs again is left alone.
 */
export async function sweepTasks(
  parts: { store: Store; clock: Clock },
  seq: number,
  signal: AbortSignal,
): Promise<void> {
  for (;;) {
    signal.throwIfAborted()
    const at = parts.clock.now()
    const slice = await parts.store.write(async (tx) => {
      const job = await jobCounts(tx, seq)
      if (!job || !isEnded(job.status)) return "done"
      if ((await putBackSlice(tx, seq, at)) === "more") return "more"
      return (await cancelTasks(tx, seq, SLICE_TASKS, at)) < SLICE_TASKS ? "done" : "more"
    })
    if (slice === "done") return
  }
}
