/** How long tasks of a job take, from the ends seen so far: decides whether some are handed ahead of free slots. */
export interface Pace {
  took(job: number, runtimeMs: number): void
  /** Typical milliseconds of one task; null before the first end. */
  of(job: number): number | null
  forget(job: number): void
}

/** Weight of the newest end: half of what is remembered comes from the last seven. */
const NEWEST = 0.1

export function createPace(): Pace {
  const paces = new Map<number, number>()
  return {
    took(job, runtimeMs) {
      const before = paces.get(job)
      paces.set(job, before === undefined ? runtimeMs : before + NEWEST * (runtimeMs - before))
    },
    of: (job) => paces.get(job) ?? null,
    forget: (job) => void paces.delete(job),
  }
}

/**
 * Tasks of this pace a node may hold beyond its slots: only short ones (below five seconds), at most two seconds of work for
 * each slot (architecture §5.4), at most the node's credit.
 */
export function aheadOf(paceMs: number | null, slots: number, credit: number): number {
  if (paceMs === null || paceMs >= SHORT_TASK_MS) return 0
  return Math.min(credit, Math.floor((slots * AHEAD_MS) / Math.max(paceMs, 1)))
}

const SHORT_TASK_MS = 5_000
const AHEAD_MS = 2_000
