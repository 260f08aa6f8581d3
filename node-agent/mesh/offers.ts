import type { Clock } from "../../protocol/base/clock.ts"
import type { PeerId } from "../../protocol/domain/ids.ts"
import type { Capacity, Requirements } from "../../protocol/domain/requirements.ts"
import type { Isolation, NodeRole } from "../../protocol/domain/statuses.ts"
import { createOffersState, judgeOffers, type Offers } from "../../protocol/gossip/offer.ts"
import { OFFERS_TOPIC } from "../../protocol/gossip/topics.ts"
import { accept } from "../../protocol/gossip/verdict.ts"
import type { Mesh } from "../../protocol/mesh/mesh.ts"

/** What this node lends and how, as far as it decides which demand it could serve. */
export interface OfferedTo {
  roles: readonly NodeRole[]
  isolation: Isolation
  capacity: Capacity
  /** Is the revision's runtime ready here, or being made, or did making it fail? */
  knows: (revision: string) => boolean
}

/** Revisions worth making ready: of demand that would fit this node if it were idle, oldest first. Pure. */
export function worthPreparing(offers: Pick<Offers, "buckets">, node: OfferedTo): string[] {
  const revisions = new Set<string>()
  for (const { revision, policy, requirements } of offers.buckets) {
    if (!node.roles.includes(policy.role) || !policy.isolations.includes(node.isolation)) continue
    if (!node.knows(revision) && wouldFit(node.capacity, requirements)) revisions.add(revision)
  }
  return [...revisions]
}

function wouldFit(whole: Capacity, need: Requirements): boolean {
  const gpus = whole.gpus.filter(({ memoryMb }) => memoryMb >= (need.gpuMemoryMb ?? 0)).length
  return (
    need.cpu <= whole.cpu &&
    need.memoryMb <= whole.memoryMb &&
    need.storageGb <= whole.storageGb &&
    need.gpuCount <= gpus
  )
}

/**
 * Asks for what is worth preparing, a few at a time and each once a connection, so that a burst of demand does not push what
 * is warm out of the cache.
 */
export function createWants(parts: { clock: Pick<Clock, "monotonicMs">; ask: (revisions: string[]) => void }): {
  heard(revisions: readonly string[]): void
  /** A new connection: the coordinator has forgotten what was asked. */
  welcome(): void
} {
  const asked = new Set<string>()
  let askedAtMs = Number.NEGATIVE_INFINITY
  return {
    heard(revisions) {
      const nowMs = parts.clock.monotonicMs()
      if (nowMs - askedAtMs < ASK_INTERVAL_MS) return
      const wanted = revisions.filter((revision) => !asked.has(revision)).slice(0, ASKED_AT_ONCE)
      if (wanted.length === 0) return
      askedAtMs = nowMs
      for (const revision of wanted) asked.add(revision)
      parts.ask(wanted)
    },
    welcome() {
      asked.clear()
      askedAtMs = Number.NEGATIVE_INFINITY
    },
  }
}

/** Offers come again every five seconds: what was not asked now is asked then. */
const ASK_INTERVAL_MS = 2_000
const ASKED_AT_ONCE = 4

/** Hears what the coordinator has work for. Hints only: work comes over the control stream. */
export function hearOffers(parts: {
  mesh: Pick<Mesh, "subscribe">
  coordinator: PeerId
  /** Coordinator time. */
  now: () => number
  heard: (offers: Offers) => void
}): void {
  const state = createOffersState(parts.coordinator)
  parts.mesh.subscribe(OFFERS_TOPIC, (message) => {
    const judged = judgeOffers(state, message, parts.now())
    if (judged.verdict !== "accept") return judged
    parts.heard(judged.offers)
    return accept
  })
}
