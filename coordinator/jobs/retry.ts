import { setImmediate as turn } from "node:timers/promises"
import type { Clock, Instant } from "../../protocol/base/clock.ts"
import type { Random } from "../../protocol/base/random.ts"
import { ComputalotError, invalidField, invalidRequest, notFound } from "../../protocol/domain/errors.ts"
import {
  newHoldId,
  newQuoteId,
  revisionId,
  type AccountId,
  type JobId,
  type QuoteId,
} from "../../protocol/domain/ids.ts"
import { lesser, type MicroUsd } from "../../protocol/domain/money.ts"
import { placeHold, type Hold } from "../billing/holds.ts"
import { quoteShortfall, type Quote } from "../billing/quotes.ts"
import { insufficientFunds, type Shortfall } from "../billing/shortfall.ts"
import { appendEvent } from "../events/event-log.ts"
import { activeDependent } from "../store/dependencies.ts"
import { jobBySeq, jobHeadById, jobHeadBySeq, type JobHead, type JobRow } from "../store/jobs.ts"
import { readAvailable } from "../store/ledger.ts"
import { findRevision } from "../store/projects.ts"
import { openRound, selectedTasks, type RetrySelection, type SelectedCounts } from "../store/retries.ts"
import type { Store, Tx } from "../store/store.ts"
import { dependAgain } from "./dependencies.ts"
import type { JobBilling } from "./job-facts.ts"
import { isEnded, nextJobState } from "./job-state.ts"
import { putBackSlice, SLICE_TASKS } from "./retry-slices.ts"
import { maxCost, type Submission } from "./submission/submission.ts"

export interface RetryParts {
  store: Store
  clock: Clock
  random: Random
  quoteTtlMs: number
  jobRetentionMs: number
  /** Resolves once nothing of the job's end is being worked on any more: its rows swept, its results merged. */
  settled: (seq: number) => Promise<void>
  /** Puts back the tasks that are not put back yet and makes the job grantable, after the answer. */
  again: (job: JobRow) => void
}

export interface RetryRequest {
  id: JobId
  /** Null sees every account's jobs. */
  account: AccountId | null
  filter: RetrySelection["filter"]
  /** With the filter `indexes`, as they came. */
  indexes: readonly number[] | null
  /** The quote that this very request was given before. */
  earlierQuote?: QuoteId | null
  /** Runs in the write that opens the round. */
  also?: (tx: Tx, retried: RetriedJob) => Promise<void>
}

export interface RetriedJob {
  job: JobRow
  hold: Hold
}

/**
 * Runs tasks of a job that has ended again, inside the same job: one write opens its next round with a hold of its own, or
 * nothing (rulings, Retry of a finished job). The tasks of a large selection are put back afterwards, slice by slice; the
 * earlier results stay readable until the new attempts end. It waits for those it depends on as it did at first.
 *
 * Refuses: `not_found`; a selection that names no task (422); an account that is short (402, with a stored quote); with 409 a
 * job that has not ended, whose code is gone, that depends on one which did not complete, or on which one depends that has not
 * ended and counts on what it came to.
 */
export async function retryJob(parts: RetryParts, request: RetryRequest): Promise<RetriedJob> {
  const { store } = parts
  const read = (): Promise<JobHead | null> => store.read((view) => jobHeadById(view, request.id, request.account))
  const first = await read()
  if (!first) throw notFound(`the job ${request.id}`)
  refuseUnlessEnded(first)
  await parts.settled(first.seq)
  const head = await read()
  if (!head) throw notFound(`the job ${request.id}`)
  refuseUnlessEnded(head)

  const selection = selectionOf(request, head)
  const counts = await countSelected(store, head, selection)
  const selected = counts.completed + counts.failed + counts.cancelled
  if (selected === 0) throw nothingSelected(selection, head)
  const amount = roundHold(head, selected)
  const at = parts.clock.now()
  const ids = { hold: newHoldId(parts.random), quote: newQuoteId(parts.random) }
  const round = head.round + 1
  const expiredUpto = at - parts.jobRetentionMs
  const outcome = await store.write(async (tx) => {
    const now = await jobHeadBySeq(tx, head.seq)
    // The sweep may have begun with what it left: there is nothing whole to be run again.
    if (now?.completedAt != null && now.completedAt <= expiredUpto) return GONE
    if (!now || now.round !== head.round || nextJobState(now.status, "retried") === null) return CHANGED
    const revision = await findRevision(tx, revisionId(now.revision))
    if (!revision || revision.build === "cancelled") return { kind: "no_code" } as const
    const dependent = await activeDependent(tx, now.seq)
    if (dependent !== null) throw stillNeeded(now, dependent)
    const { dependsOn = [] } = JSON.parse(now.submission) as Submission
    const blockedBy = await dependAgain(tx, now.seq, dependsOn, expiredUpto)
    const available = await readAvailable(tx, now.account)
    const placed = await placeHold(tx, { id: ids.hold, account: now.account, job: now.id, round, amount, at })
    if (!placed.placed) {
      const wanted = {
        id: ids.quote,
        account: now.account,
        amount: placed.shortfall.missing,
        description: `Retry of ${selected} tasks of ${now.id}`,
        at,
        expiresAt: at + parts.quoteTtlMs,
      }
      return short(placed.shortfall, await quoteShortfall(tx, wanted, request.earlierQuote ?? null))
    }
    const billing = billingOf(now, amount, available)
    const next = { round: now.round, hold: ids.hold, billing, selection, counts, at }
    // The hold that was placed must go with it.
    if (!(await openRound(tx, now.seq, next))) throw stillEnding(now)
    await appendEvent(tx, {
      job: now.seq,
      type: "job.retried",
      message: `${selected} of ${now.taskCount} ${now.taskCount === 1 ? "task runs" : "tasks run"} again`,
      data: {
        from: now.status,
        to: "queued",
        round,
        filter: selection.filter,
        tasks: selected,
        ...(blockedBy.length > 0 && { blocked_by: blockedBy }),
      },
      at,
    })
    if (isOneSlice(selected, now)) await putBackAll(tx, now.seq, at)
    const job = await jobBySeq(tx, now.seq)
    if (!job) throw new Error("a job that was opened again is found")
    const retried = { job, hold: placed.hold }
    await request.also?.(tx, retried)
    return { kind: "retried", retried } as const
  })
  switch (outcome.kind) {
    case "gone":
      throw notFound(`the job ${request.id}`)
    case "changed":
      throw notEnded("it was retried a moment ago", "queued")
    case "no_code":
      throw codeGone(head)
    case "short":
      throw insufficientFunds(outcome.shortfall, outcome.quote, at)
    case "retried":
      parts.again(outcome.retried.job)
      return outcome.retried
  }
}

const GONE = { kind: "gone" } as const
const CHANGED = { kind: "changed" } as const
const short = (shortfall: Shortfall, quote: Quote) => ({ kind: "short", shortfall, quote }) as const

/** Small enough to be put back in the write that opens the round: the job is grantable at once. */
const isOneSlice = (selected: number, { plannedUpto, taskCount }: JobHead): boolean =>
  selected < SLICE_TASKS && taskCount - plannedUpto <= SLICE_TASKS

async function putBackAll(tx: Tx, seq: number, at: Instant): Promise<void> {
  while ((await putBackSlice(tx, seq, at)) === "more") continue
}

/** What the selected tasks may cost, at the rate of the submission and within its `max_cost_usd`, which holds for each round. */
function roundHold(head: JobHead, selected: number): MicroUsd {
  const submission = JSON.parse(head.submission) as Submission
  const attempts = submission.reliabilityMode === "strict_complete" ? 1 + submission.maxRetries : 1
  const estimate = head.reserveMicro * BigInt(selected) * BigInt(attempts)
  return lesser(estimate, maxCost(submission) ?? estimate)
}

function billingOf(head: JobHead, amount: MicroUsd, available: MicroUsd): string {
  const billing: JobBilling = JSON.parse(head.billing) as JobBilling
  return JSON.stringify({ ...billing, estimate: String(amount), available: String(available) })
}

function selectionOf({ filter, indexes }: RetryRequest, head: JobHead): RetrySelection {
  if (filter !== "indexes") {
    if (indexes !== null) throw invalidField("indexes", `has no effect with filter ${filter}: leave it out`)
    return { filter }
  }
  if (indexes === null || indexes.length === 0) {
    throw invalidField("indexes", "must be a list with the index of at least one task")
  }
  const wrong = indexes.flatMap((index, at) =>
    index < head.taskCount ? [] : [{ path: `indexes[${at}]`, problem: outOfRange(index, head) }],
  )
  if (wrong.length > 0) throw invalidRequest(wrong.slice(0, PROBLEMS_TOLD))
  return { filter, indexes: [...new Set(indexes)].toSorted((a, b) => a - b) }
}

const outOfRange = (index: number, { taskCount }: JobHead): string =>
  `is ${index}: the job's tasks have indexes from 0 to ${taskCount - 1}`
const PROBLEMS_TOLD = 20

/** Rows counted before others get a turn: a statement of a few milliseconds. */
const COUNTED_AT_ONCE = 2_000

/** A job that has ended does not change but by a retry, and that is looked for again in the write. */
async function countSelected(store: Store, head: JobHead, selection: RetrySelection): Promise<SelectedCounts> {
  const counts: SelectedCounts = { completed: 0, failed: 0, cancelled: 0 }
  for (let from = 0; ;) {
    const first = from
    const tasks = await store.read((view) => selectedTasks(view, head.seq, selection, first, COUNTED_AT_ONCE))
    for (const { state } of tasks) counts[state === "completed" || state === "failed" ? state : "cancelled"] += 1
    const last = tasks.at(-1)
    if (!last || tasks.length < COUNTED_AT_ONCE) return counts
    from = last.index + 1
    await turn()
  }
}

function refuseUnlessEnded(head: JobHead): void {
  if (!isEnded(head.status)) throw notEnded("it has not ended", head.status === "finishing" ? "running" : head.status)
}

function notEnded(why: string, status: string): ComputalotError {
  return new ComputalotError("conflict", `the job cannot be retried: ${why}`, {
    recommendedAction: "Wait until it is completed, partial, failed or cancelled; or cancel it first.",
    details: { status },
  })
}

function stillEnding({ status }: JobHead): ComputalotError {
  return new ComputalotError("conflict", "the job has ended and its results are still being put together", {
    recommendedAction: "Send the same request again in a moment.",
    details: { status },
    headers: { "retry-after": "1" },
  })
}

function stillNeeded({ status }: JobHead, dependent: JobId): ComputalotError {
  return new ComputalotError("conflict", `the job cannot be retried: ${dependent} depends on it and has not ended`, {
    recommendedAction: "Wait until the jobs that depend on it have ended, or cancel them; then send this again.",
    details: { status, dependent },
  })
}

function codeGone({ project, status }: JobHead): ComputalotError {
  return new ComputalotError("conflict", `the revision of ${project} that this job ran is not kept any more`, {
    recommendedAction: "A job keeps to one revision: submit it again to run the project as it is now.",
    details: { status },
  })
}

function nothingSelected(selection: RetrySelection, { failed, suspect, cancelled }: JobHead): ComputalotError {
  const { filter } = selection
  return invalidField(
    "filter",
    `${filter} selects no task: of this job ${failed} failed, ${suspect} completed with low quality and ${cancelled} were cancelled; cancelled ones are named by indexes`,
  )
}
