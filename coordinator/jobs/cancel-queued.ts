import type { AccountId } from "../../protocol/domain/ids.ts"
import { countQueued, queuedJobs } from "../store/queued-jobs.ts"
import { endEarlyIn, type EarlyEnd, type EndEarlyParts } from "./end-early.ts"

/**
 * Cancels the jobs of a project that are planning or queued now, with this reason (P-028); one that starts meanwhile runs on.
 * In slices, the newest first: a job goes before those it depends on, and so with the reason that was given. `ended` hears of
 * each when that is durable.
 */
export async function cancelQueued(
  parts: EndEarlyParts,
  { reason, ...wanted }: { account: AccountId; project: string; tag: string | null; reason: string },
  ended: (one: EarlyEnd) => void,
): Promise<{ queuedBefore: number; cancelledJobs: number }> {
  const { count, newest } = await parts.store.read((view) => countQueued(view, wanted))
  let cancelledJobs = 0
  for (let below = newest + 1; ;) {
    const before = below
    const at = parts.clock.now()
    const slice = await parts.store.write(async (tx) => {
      const seqs = await queuedJobs(tx, wanted, before, JOBS_AT_ONCE)
      const ends: EarlyEnd[] = []
      for (const seq of seqs) {
        const end = await endEarlyIn(tx, parts, seq, { status: "cancelled", error: reason }, at)
        if (end) ends.push(end)
      }
      return { seqs, ends }
    })
    for (const end of slice.ends) ended(end)
    cancelledJobs += slice.ends.length
    const oldest = slice.seqs.at(-1)
    if (oldest === undefined || slice.seqs.length < JOBS_AT_ONCE) return { queuedBefore: count, cancelledJobs }
    below = oldest
  }
}

/** Some 100 µs each. */
const JOBS_AT_ONCE = 50
