import type { Clock } from "../../protocol/base/clock.ts"
import { every } from "../../protocol/base/clock.ts"
import { sha256Hex } from "../../protocol/base/digest.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import type { Log } from "../../protocol/base/log.ts"
import { revisionId } from "../../protocol/domain/ids.ts"
import { ISOLATIONS } from "../../protocol/domain/statuses.ts"
import { encodeOffers, type OfferedBucket } from "../../protocol/gossip/offer.ts"
import { OFFERS_TOPIC } from "../../protocol/gossip/topics.ts"
import type { Mesh } from "../../protocol/mesh/mesh.ts"
import type { PlacementPolicy } from "../fleet/fit.ts"
import type { KnownJobs } from "../jobs/job-facts.ts"
import type { ReadyQueue } from "./ready-queue.ts"

/** Announces demand by gossip, as a hint: nodes that could serve it fetch its image early (architecture §5.2). */
export interface OffersPublisher extends Disposable {
  /** Demand changed: said soon, at most every half second. */
  wake(): void
}

export interface OffersParts {
  mesh: Pick<Mesh, "publish">
  clock: Clock
  log: Log
  queue: ReadyQueue
  known: KnownJobs
  policy: PlacementPolicy
  epoch: number
  revocationVersion: () => number
}

const REPEAT_MS = 5_000
const SHORTEST_GAP_MS = 500

export function createOffers(parts: OffersParts): OffersPublisher {
  const { clock, log } = parts
  let seq = 0
  let changed = false
  let lastSaid = ""
  const repeating = every(clock, REPEAT_MS, () => say(true))
  const soon = every(clock, SHORTEST_GAP_MS, () => {
    if (changed) say(false)
  })

  function say(repeat: boolean): void {
    changed = false
    const buckets = demand()
    const content = JSON.stringify(buckets.map(({ bucket }) => bucket))
    // Counts change with every task; only new or vanished demand is news. An idle fleet is told once that it is idle.
    if (content === lastSaid && (!repeat || buckets.length === 0)) return
    lastSaid = content
    seq += 1
    const data = encodeOffers({
      epoch: parts.epoch,
      seq,
      issuedAt: clock.now(),
      revocationVersion: parts.revocationVersion(),
      buckets,
    })
    parts.mesh.publish(OFFERS_TOPIC, data).catch((error: unknown) => {
      log.warn("offers were not published", { error: errorText(error) })
    })
  }

  function demand(): OfferedBucket[] {
    const buckets: { bucket: OfferedBucket; since: number }[] = []
    for (const [kind, { sample, tasks }] of parts.queue.demand()) {
      const job = parts.known.get(sample.seq)
      if (!job) continue
      buckets.push({
        since: sample.readySince,
        bucket: {
          // Opaque, and short whatever the requirements are.
          bucket: sha256Hex(kind).slice(0, 16),
          requirements: job.requirements,
          policy: {
            role: "worker",
            isolations: ISOLATIONS.filter((isolation) => isolation !== "none" || parts.policy.allowUnsandboxed),
            placement: "shared",
          },
          revision: revisionId(job.revision),
          count: tasks,
        },
      })
    }
    return buckets.toSorted((a, b) => a.since - b.since).map(({ bucket }) => bucket)
  }

  return {
    wake() {
      changed = true
    },
    [Symbol.dispose]() {
      repeating[Symbol.dispose]()
      soon[Symbol.dispose]()
    },
  }
}
