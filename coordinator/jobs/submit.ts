import { setImmediate as turn } from "node:timers/promises"
import type { Clock, Instant } from "../../protocol/base/clock.ts"
import type { Random } from "../../protocol/base/random.ts"
import type { SubmissionWarning } from "../../protocol/api/jobs.ts"
import { ComputalotError, invalidField } from "../../protocol/domain/errors.ts"
import type { Capacity, Requirements } from "../../protocol/domain/requirements.ts"
import {
  newHoldId,
  newJobId,
  newQuoteId,
  type AccountId,
  type JobId,
  type QuoteId,
  type UserId,
} from "../../protocol/domain/ids.ts"
import { lesser, usd, type MicroUsd } from "../../protocol/domain/money.ts"
import { estimateJob, type JobEstimate, type PricedWork, type Prices } from "../billing/pricing.ts"
import { dedicatedRate, machineAs, machineRate } from "../billing/dedicated.ts"
import { placeHold } from "../billing/holds.ts"
import { quoteShortfall, type Quote } from "../billing/quotes.ts"
import { insufficientFunds, type Shortfall } from "../billing/shortfall.ts"
import { appendEvent } from "../events/event-log.ts"
import { slots } from "../fleet/fit.ts"
import { requireActiveRevision } from "../projects/revisions.ts"
import { insertJob, jobBySeq, type JobRow } from "../store/jobs.ts"
import { readAvailable } from "../store/ledger.ts"
import { insertReservation, type ReservationRow } from "../store/reservations.ts"
import type { Store, Tx } from "../store/store.ts"
import { dependOn, requireUpstreams } from "./dependencies.ts"
import { literalAddressProblem, PUBLIC_ONLY, type Reach } from "../webhooks/callback-url.ts"
import { expandSlice, isOneSlice, writeTasks } from "./expand.ts"
import { checkInputs } from "./inputs.ts"
import { jobFacts, type JobBilling, type JobFacts } from "./job-facts.ts"
import { firstOversizedTask, payloadTooLarge, planTasks, type Plan } from "./plan/plan.ts"
import { isEnded } from "./job-state.ts"
import { parseSubmission } from "./submission/parse-submission.ts"
import { maxCost, type Submission } from "./submission/submission.ts"

export interface SubmitParts {
  store: Store
  clock: Clock
  random: Random
  prices: Prices
  quoteTtlMs: number
  jobRetentionMs: number
  /** Writes the tasks that are not written yet and makes the job grantable, after the answer. */
  plan: (job: JobRow) => void
  /** Where `callback_url` may point besides public addresses; nowhere when left out. */
  reach?: Reach
  /** Holds capacity for a job that is about to be made. Refuses with `no_capacity` when so much is not free now. */
  reserve: (wanted: CapacityWanted) => HeldCapacity
  /** What the connected machines lend that may run project work: one of them is the price of a dedicated job. None when left out. */
  workers?: () => readonly Capacity[]
}

/** What a guaranteed reservation demands (V-002). */
export interface CapacityWanted {
  account: AccountId
  project: string
  requirements: Requirements
  /** Tasks side by side. */
  parallelism: number
  /** On machines that nobody else uses. */
  dedicated: boolean
}

/** Nobody else gets it meanwhile. It is free again when this is disposed, unless the job was made and keeps it. */
export interface HeldCapacity extends Disposable {
  keep(job: JobFacts, expiresAt: Instant): void
}

export interface SubmitRequest {
  account: AccountId
  user: UserId | null
  /** As parsed, and as it came. */
  body: unknown
  bodyText: string
  /** The quote that this very request was given before. */
  earlierQuote?: QuoteId | null
  /** Runs in the write that makes the job. */
  also?: (tx: Tx, submitted: SubmittedJob) => Promise<void>
}

export interface SubmittedJob {
  job: JobRow
  warnings: SubmissionWarning[]
}

/**
 * Takes a job in: one write makes the job and its hold, or neither (B-015). Refuses with what is wrong by field (422), with
 * `not_found` or `no_revision` for its project (GAP-21), with `not_found` for an artifact that its tasks are to be given, with
 * `no_capacity` when what it wants guaranteed is not free or `conflict` when it would wait for other jobs first (409), and with a stored quote when the account is short (402); nothing
 * is created then, so the same request may be sent again. The tasks of a large job are written afterwards, slice by slice.
 */
export async function submitJob(parts: SubmitParts, request: SubmitRequest): Promise<SubmittedJob> {
  return await admitJob(parts, await prepareJob(parts, request.body, request.account), request)
}

/** A job that could be admitted: checked, planned and priced. */
export interface PreparedJob {
  submission: Submission
  warnings: SubmissionWarning[]
  plan: Plan
  estimate: JobEstimate
}

/** The half of `submitJob` that looks at the request and what it names. Refuses with 422 or 404 and writes nothing. */
export async function prepareJob(parts: SubmitParts, body: unknown, account: AccountId): Promise<PreparedJob> {
  const { submission, warnings } = parseSubmission(body)
  refuseUnreachable(submission.callbackUrl, parts.reach)
  const plan = planTasks(submission)
  await refuseLargePayloads(plan)
  const dependsOn = submission.dependsOn ?? []
  await checkInputs(parts, submission, plan, { account, dependsOn, at: parts.clock.now() })
  const whole = estimateJob({ ...pricedWork(submission, plan), ...wholeMachine(parts, submission, plan) }, parts.prices)
  const estimate = cappedAt(maxCost(submission), whole)
  if (estimate.hold < whole.hold) warnings.push(mayNotSuffice(whole))
  return { submission, warnings, plan, estimate }
}

/** The other half: jobs are admitted in the order of the calls. */
export async function admitJob(
  parts: SubmitParts,
  { submission, warnings, plan, estimate }: PreparedJob,
  request: Omit<SubmitRequest, "body">,
): Promise<SubmittedJob> {
  const at = parts.clock.now()
  const expiredUpto = at - parts.jobRetentionMs
  using capacity = await heldCapacity(parts, request.account, submission)
  const ids = { job: newJobId(parts.random, at), hold: newHoldId(parts.random), quote: newQuoteId(parts.random) }
  const reserved = reservationFrom(submission, at)
  const outcome = await parts.store.write(async (tx) => {
    const { project, revision } = await requireActiveRevision(tx, request.account, submission.project)
    const dependencies = await requireUpstreams(tx, request.account, submission.dependsOn ?? [], expiredUpto)
    const pending = dependencies.find(({ status }) => !isEnded(status))
    if (reserved && pending) throw guaranteedTooEarly(pending.id)
    const available = await readAvailable(tx, request.account)
    const placed = await placeHold(tx, {
      id: ids.hold,
      account: request.account,
      job: ids.job,
      round: 1,
      amount: estimate.hold,
      at,
    })
    if (!placed.placed) {
      const description = `Submit of a ${submission.work.type} job of ${plan.count} tasks`
      const wanted = {
        id: ids.quote,
        account: request.account,
        amount: placed.shortfall.missing,
        description,
        at,
        expiresAt: at + parts.quoteTtlMs,
      }
      return short(placed.shortfall, await quoteShortfall(tx, wanted, request.earlierQuote ?? null))
    }
    // What waits for nothing and is written in one go needs no moment as planning: most jobs.
    const isWhole = dependencies.length === 0 && isOneSlice(plan.count)
    const seq = await insertJob(tx, {
      id: ids.job,
      account: request.account,
      userId: request.user,
      project: project.name,
      revision: revision.id,
      contentHash: revision.contentHash,
      type: submission.work.type,
      priority: submission.priority,
      request: request.bodyText,
      submission: JSON.stringify(submission),
      tags: submission.tags,
      clientRef: submission.clientRef,
      taskCount: plan.count,
      hold: ids.hold,
      reserveMicro: estimate.taskReserve,
      billing: JSON.stringify(billingOf(estimate, available)),
      createdAt: at,
      queuedAt: isWhole ? at : null,
    })
    if (reserved) await insertReservation(tx, { ...reserved, job: seq })
    await appendEvent(tx, {
      job: seq,
      type: "job.planning",
      message: `submitted with ${plan.count} ${plan.count === 1 ? "task" : "tasks"}`,
      data: { to: "planning", tasks: plan.count },
      at,
    })
    if (isWhole) await writeTasks(tx, seq, plan.count, at)
    const broken = await dependOn(tx, seq, dependencies, at)
    if (!broken && !isWhole && isOneSlice(plan.count))
      await expandSlice(tx, { seq, taskCount: plan.count, from: 0, upto: plan.count }, at)
    const job = await jobBySeq(tx, seq)
    if (!job) throw new Error("an inserted job is found")
    const submitted = { job, warnings }
    await request.also?.(tx, submitted)
    return { kind: "submitted", submitted } as const
  })
  if (outcome.kind === "short") throw insufficientFunds(outcome.shortfall, outcome.quote, at)
  if (reserved) capacity?.keep(jobFacts(outcome.submitted.job), reserved.expiresAt)
  parts.plan(outcome.submitted.job)
  return outcome.submitted
}

/** A private address that the URL spells out is refused at once; names are checked at every call (rulings, Webhooks). */
function refuseUnreachable(callbackUrl: string | undefined, reach: Reach = PUBLIC_ONLY): void {
  const problem = callbackUrl === undefined ? null : literalAddressProblem(callbackUrl, reach)
  if (problem !== null) throw invalidField("callback_url", problem)
}

/** Null where nothing is guaranteed. Who names a project that is not there is told so before anything is held for it. */
async function heldCapacity(
  parts: SubmitParts,
  account: AccountId,
  { project, requirements, reservation, placementPolicy }: Submission,
): Promise<HeldCapacity | null> {
  if (reservation.mode !== "guaranteed") return null
  await parts.store.read((view) => requireActiveRevision(view, account, project))
  const { parallelism } = reservation
  return parts.reserve({ account, project, requirements, parallelism, dedicated: placementPolicy === "dedicated" })
}

function reservationFrom({ reservation }: Submission, at: Instant): Omit<ReservationRow, "job" | "endedAt"> | null {
  if (reservation.mode !== "guaranteed") return null
  const { parallelism, guaranteedForSeconds } = reservation
  return { parallelism, admittedAt: at, expiresAt: at + guaranteedForSeconds * 1000 }
}

/** Seats that stand idle until another job has ended may be the very room which that one waits for. */
function guaranteedTooEarly(upstream: JobId): ComputalotError {
  return new ComputalotError("conflict", `nothing can be guaranteed to a job that waits: ${upstream} has not ended`, {
    recommendedAction:
      "Nothing was created. Send it again when all that it depends on completed, or leave reservation out: a best_effort job " +
      "waits for both.",
    details: { depends_on: upstream },
  })
}

const short = (shortfall: Shortfall, quote: Quote) => ({ kind: "short", shortfall, quote }) as const

/** Tasks checked before others get a turn. */
const CHECKED_AT_ONCE = 5_000

async function refuseLargePayloads(plan: Plan): Promise<void> {
  for (let from = 0; from < plan.count; from += CHECKED_AT_ONCE) {
    if (from > 0) await turn()
    const index = firstOversizedTask(plan, from, from + CHECKED_AT_ONCE)
    if (index !== null) throw payloadTooLarge(plan, index)
  }
}

/**
 * Whoever has a machine alone pays for all of it (GAP-65): for the smallest that would do at this moment, divided among the tasks
 * that run side by side on it. Where no connected machine does, one as large as a single task is taken; the price of the submission
 * stands (B-021), whatever machine it gets.
 */
function wholeMachine(
  { workers, prices }: SubmitParts,
  { placementPolicy, requirements }: Submission,
  { count }: Plan,
): Pick<PricedWork, "machine"> {
  if (placementPolicy !== "dedicated") return {}
  const [smallest] = (workers?.() ?? [])
    .filter((capacity) => slots(capacity, requirements) > 0)
    .map((capacity) => ({ capacity, whole: machineRate(capacity, prices).numerator }))
    .toSorted((a, b) => (a.whole < b.whole ? -1 : a.whole > b.whole ? 1 : 0))
  if (!smallest) return {}
  const { capacity } = smallest
  const tasks = Math.min(slots(capacity, requirements), count)
  return { machine: { rate: dedicatedRate({ capacity, tasks }, prices), like: machineAs(capacity) } }
}

function pricedWork(submission: Submission, plan: Plan): PricedWork {
  const { requirements, timeoutSeconds, runtimeHintSeconds, maxRetries, reliabilityMode } = submission
  return { requirements, timeoutSeconds, runtimeHintSeconds, maxRetries, reliabilityMode, tasks: plan.count }
}

/** The hold never exceeds what the client allows (rulings, Holds). */
function cappedAt(most: MicroUsd | null, estimate: JobEstimate): JobEstimate {
  return most === null ? estimate : { ...estimate, hold: lesser(estimate.hold, most) }
}

const mayNotSuffice = ({ hold }: JobEstimate): SubmissionWarning => ({
  field: "max_cost_usd",
  message: `is less than the $${usd(hold)} that the job may cost: when it is spent, tasks that have not started fail with budget_spent`,
})

function billingOf(estimate: JobEstimate, available: bigint): JobBilling {
  return {
    rateNumerator: String(estimate.rate.numerator),
    resourceClass: estimate.resourceClass,
    runtimeClass: estimate.runtimeClass,
    estimate: String(estimate.hold),
    available: String(available),
  }
}
