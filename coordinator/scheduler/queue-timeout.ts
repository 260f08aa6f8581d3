import type { Clock, Instant } from "../../protocol/base/clock.ts"
import type { JobFacts, KnownJobs } from "../jobs/job-facts.ts"
import {
  capacityPeriods,
  dropCapacityPeriods,
  putCapacityPeriod,
  type CapacityPeriod,
} from "../store/capacity-periods.ts"
import type { Store } from "../store/store.ts"
import { jobsInQueue } from "../store/stuck-jobs.ts"

/**
 * Cancels jobs of which no task started within max(2 × timeout, 30 minutes), or what the deployment sets (L-006). Only time
 * with live capacity counts, restarts of the coordinator included: an outage of the fleet cancels nothing (GAP-63).
 */
export interface QueueTimeout {
  /** Reads what an earlier start saw. Once, before the first look. */
  load(): Promise<void>
  /** Called every `intervalMs`. */
  look(): Promise<void>
}

export interface QueueTimeoutParts {
  store: Store
  clock: Clock
  known: Pick<KnownJobs, "get">
  /** Null: max(2 × timeout, 30 min) of each job. */
  queueTimeoutMs: number | null
  intervalMs: number
  /** Is there a live worker that is not draining? */
  hasCapacity: () => boolean
  /** Cancels the job if nothing of it was handed to a node by then. */
  cancel: (job: number, reason: string) => Promise<void>
}

/** Jobs read at once: other requests go between. */
const PAGE_JOBS = 500

export function createQueueTimeout(parts: QueueTimeoutParts): QueueTimeout {
  const { store, clock } = parts
  let periods: CapacityPeriod[] = []
  /** The last period is still going on. */
  let isOpen = false

  async function watchCapacity(now: Instant): Promise<void> {
    const goesOn = isOpen
    isOpen = parts.hasCapacity()
    if (!isOpen) return
    const last = periods.at(-1)
    // A gap of looks (this process was stopped) or a step of the wall clock is no time in which anybody waited for a machine.
    const follows = last && now >= last.until && now - last.until <= 2 * parts.intervalMs
    const period = goesOn && follows ? { since: last.since, until: now } : { since: now, until: now }
    periods = [...periods.filter(({ since }) => since !== period.since), period]
    await store.write((tx) => putCapacityPeriod(tx, period))
  }

  function limitOf(job: JobFacts): number {
    return parts.queueTimeoutMs ?? Math.max(2 * job.timeoutSeconds * 1000, LEAST_TIMEOUT_MS)
  }

  return {
    async load() {
      await store.write((tx) => dropCapacityPeriods(tx, clock.now() - REMEMBERED_MS))
      periods = await store.read(capacityPeriods)
    },
    async look() {
      const now = clock.now()
      await watchCapacity(now)
      if (!isOpen) return
      const queuedBefore = now - (parts.queueTimeoutMs ?? LEAST_TIMEOUT_MS)
      for (let after = 0; ;) {
        const from = after
        const page = await store.read((view) => jobsInQueue(view, queuedBefore, from, PAGE_JOBS))
        for (const { seq, queuedAt } of page) {
          const job = parts.known.get(seq)
          if (!job || waitedMs(periods, queuedAt, now) < limitOf(job)) continue
          await parts.cancel(seq, `no machine started it within ${inWords(limitOf(job))} of waiting in the queue`)
        }
        const last = page.at(-1)
        if (!last || page.length < PAGE_JOBS) return
        after = last.seq
      }
    },
  }
}

/** How much of the time since `from` had live capacity. Pure. */
export function waitedMs(periods: readonly CapacityPeriod[], from: Instant, now: Instant): number {
  return periods.reduce((sum, { since, until }) => sum + Math.max(0, Math.min(until, now) - Math.max(since, from)), 0)
}

function inWords(ms: number): string {
  const seconds = Math.round(ms / 1000)
  return seconds % 60 === 0 ? `${seconds / 60} minutes` : `${seconds} seconds`
}

const LEAST_TIMEOUT_MS = 30 * 60_000
/** No job waits for longer than a year to any purpose. */
const REMEMBERED_MS = 365 * 86_400_000
