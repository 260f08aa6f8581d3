import type { Clock } from "../../protocol/base/clock.ts"

/** Nodes on which all that waits of a job failed a moment ago: others are asked at once, and these again in a moment. */
export interface AvoidedNodes {
  /** From now on, and no others of the job. */
  avoid(job: number, nodes: ReadonlySet<string>): void
  of(job: number): ReadonlySet<string> | undefined
}

/** `wake`: a job may be placed on its nodes again. */
export function createAvoidedNodes(clock: Clock, wake: () => void): AvoidedNodes {
  const avoided = new Map<number, ReadonlySet<string>>()
  return {
    avoid(job, nodes) {
      avoided.set(job, nodes)
      // A timer may fire a little early: it says itself that the time is over, or the look that it asks for would find it is not.
      clock.after(AVOIDED_MS, () => {
        if (avoided.get(job) === nodes) avoided.delete(job)
        wake()
      })
    },
    of: (job) => avoided.get(job),
  }
}

/** How often a node that is avoided is looked at again. */
const AVOIDED_MS = 2_000
