import type { PeerId } from "../../protocol/domain/ids.ts"
import { createOffersState, judgeOffers, type Offers } from "../../protocol/gossip/offer.ts"
import { OFFERS_TOPIC } from "../../protocol/gossip/topics.ts"
import { accept } from "../../protocol/gossip/verdict.ts"
import type { Mesh } from "../../protocol/mesh/mesh.ts"

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
