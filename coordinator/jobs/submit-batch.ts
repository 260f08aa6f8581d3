import { setImmediate as turn } from "node:timers/promises"
import { assert } from "../../protocol/base/assert.ts"
import { notFound } from "../../protocol/domain/errors.ts"
import type { AccountId, JobId, UserId } from "../../protocol/domain/ids.ts"
import { jobById } from "../store/jobs.ts"
import type { Tx } from "../store/store.ts"
import { admitJob, prepareJob, type PreparedJob, type SubmitParts, type SubmittedJob } from "./submit.ts"

export interface BatchRequest {
  account: AccountId
  user: UserId | null
  elements: readonly BatchElement[]
}

export interface BatchElement {
  /** As parsed, and as it came. */
  body: unknown
  bodyText: string
  /** The job that an earlier, interrupted run of the same request made of it. */
  made: JobId | null
  /** Runs in the write that makes the job. */
  also: (tx: Tx, submitted: SubmittedJob) => Promise<void>
}

/** What became of an element: its job, or why there is none. */
export type BatchOutcome = { kind: "submitted"; submitted: SubmittedJob } | { kind: "refused"; error: unknown }

/**
 * Submits each element as if it had come alone, a write each, so that one that is refused leaves the others be (BT-002, BT-005).
 * They are admitted in their order: the money of an account goes to the first ones (rulings, Batch).
 */
export async function submitBatch(
  parts: SubmitParts,
  { account, user, elements }: BatchRequest,
): Promise<BatchOutcome[]> {
  const prepared: (PreparedJob | Refused)[] = []
  for (const [at, { body }] of elements.entries()) {
    if (at > 0 && at % PREPARED_AT_ONCE === 0) await turn()
    prepared.push(await prepareJob(parts, body, account).catch(refused))
  }

  const admit = async (at: number): Promise<BatchOutcome> => {
    const [element, job] = [elements[at], prepared[at]]
    assert(element && job, "every element was prepared")
    const { made, bodyText, also } = element
    if (made !== null) return await readBack(parts, made, account).catch(refused)
    if ("kind" in job) return job
    return await admitJob(parts, job, { account, user, bodyText, also }).then(submitted, refused)
  }
  const outcomes: BatchOutcome[] = []
  while (outcomes.length < elements.length) {
    const from = outcomes.length
    const slice = Array.from({ length: sideBySide(prepared, from) }, (_, n) => admit(from + n))
    outcomes.push(...(await Promise.all(slice)))
  }
  return outcomes
}

/** How many elements from `from` on may be admitted at once. What reserves capacity asks for that first: others would overtake it. */
function sideBySide(prepared: readonly (PreparedJob | Refused)[], from: number): number {
  const slice = prepared.slice(from, from + ADMITTED_AT_ONCE)
  const reserving = slice.findIndex((job) => !("kind" in job) && job.submission.reservation.mode === "guaranteed")
  if (reserving === -1) return slice.length
  return Math.max(1, reserving)
}

/** Elements looked at before other requests get a turn. */
const PREPARED_AT_ONCE = 20
/** Asked for in one turn, they share their commits; what others write comes between the slices. */
const ADMITTED_AT_ONCE = 50

type Refused = Extract<BatchOutcome, { kind: "refused" }>

const refused = (error: unknown): Refused => ({ kind: "refused", error })
const submitted = (job: SubmittedJob): BatchOutcome => ({ kind: "submitted", submitted: job })

async function readBack({ store }: SubmitParts, id: JobId, account: AccountId): Promise<BatchOutcome> {
  const job = await store.read((view) => jobById(view, id, account))
  if (!job) throw notFound(`the job ${id}`)
  return submitted({ job, warnings: [] })
}
