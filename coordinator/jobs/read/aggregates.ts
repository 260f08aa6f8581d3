import { assert } from "../../../protocol/base/assert.ts"
import { splitJsonObject } from "../../../protocol/base/json-text.ts"
import { jobOutcome, type JobHead } from "../../store/jobs.ts"
import { aggregateJob } from "../finish.ts"
import type { ReadParts } from "./read-job.ts"

/** What jobs' results add up to, as JSON texts by their names in `summary`; also while they run (RS-007). */
export interface Aggregates {
  /** `outcome`: the stored aggregate, where it was read beside `job`. */
  of(job: JobHead, outcome?: string | null): Promise<ReadonlyMap<string, string>>
}

/** Jobs that run, whose last aggregate is kept: the same number of ended tasks has the same one. */
const MOST_KEPT = 32
/** Only aggregates up to this many characters are kept. */
const LARGEST_KEPT = 256 * 1024
/** An aggregate that took longer than this may be answered again for ten times as long: pollers must not fill the thread. */
const LONG_MS = 50

interface Kept {
  /** Tasks that had ended; after a retry of the job others than before. */
  ended: number
  round: number
  text: Promise<string>
  tookMs: number
  madeAtMs: number
}

export function createAggregates(parts: Pick<ReadParts, "store" | "files" | "clock">): Aggregates {
  const kept = new Map<number, Kept>()

  /** Made once for all who ask at the same time. */
  function made(job: JobHead): Promise<string> {
    const ended = job.completed + job.failed + job.cancelled
    const known = kept.get(job.seq)
    if (known?.round === job.round && isGood(known, ended)) return known.text
    const startedAtMs = parts.clock.monotonicMs()
    const entry: Kept = {
      ended,
      round: job.round,
      text: aggregateJob(parts, job),
      tookMs: 0,
      madeAtMs: Number.POSITIVE_INFINITY,
    }
    kept.delete(job.seq)
    kept.set(job.seq, entry)
    for (const [oldest] of kept) {
      if (kept.size <= MOST_KEPT) break
      kept.delete(oldest)
    }
    entry.text.then(
      (text) => {
        entry.madeAtMs = parts.clock.monotonicMs()
        entry.tookMs = entry.madeAtMs - startedAtMs
        if (text.length > LARGEST_KEPT && kept.get(job.seq) === entry) kept.delete(job.seq)
      },
      () => kept.delete(job.seq),
    )
    return entry.text
  }

  const read = (job: JobHead): Promise<string | null> => parts.store.read((view) => jobOutcome(view, job.seq))

  function isGood(known: Kept, ended: number): boolean {
    if (known.ended === ended || known.madeAtMs === Number.POSITIVE_INFINITY) return known.ended === ended
    return known.tookMs > LONG_MS && parts.clock.monotonicMs() - known.madeAtMs < 10 * known.tookMs
  }

  return {
    async of(job, outcome) {
      const stored = job.completedAt === null ? null : outcome === undefined ? await read(job) : outcome
      const texts = splitJsonObject(stored ?? (await made(job)))
      assert(texts, "an aggregate is an object")
      return texts
    },
  }
}
