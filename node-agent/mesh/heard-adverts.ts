import type { Clock } from "../../protocol/base/clock.ts"
import type { NodeId } from "../../protocol/domain/ids.ts"
import {
  ADVERT_LIFE_INTERVALS,
  createAdvertState,
  judgeAdvert,
  type NodeAdvert,
} from "../../protocol/gossip/node-advert.ts"
import { ADVERTS_TOPIC } from "../../protocol/gossip/topics.ts"
import { accept } from "../../protocol/gossip/verdict.ts"
import type { Mesh } from "../../protocol/mesh/mesh.ts"
import type { ContentHolder } from "./content-stream.ts"

/** Members as they describe themselves: whom to dial, and who has which revision warm. Soft state, bounded. */
export interface HeardAdverts {
  /** Where members can be dialled, each address ending in `/p2p/<peer>`. */
  addresses(): string[]
  holdersOf(revision: string): ContentHolder[]
}

export interface HearAdvertsParts {
  mesh: Pick<Mesh, "subscribe" | "peerId">
  coordinatorPublicKey: Uint8Array
  withoutCoordinator: () => boolean
  isRevoked: (node: NodeId) => boolean
  /** Coordinator time. */
  now: () => number
  clock: Clock
}

/** Beyond this the one heard longest ago is forgotten. */
const MOST_MEMBERS = 1_000
/** Asking more than a few for the same pieces helps nobody. */
const MOST_HOLDERS = 8

export function hearAdverts(parts: HearAdvertsParts): HeardAdverts {
  const { mesh, clock } = parts
  const state = createAdvertState(parts)
  const members = new Map<NodeId, { advert: NodeAdvert; holder: ContentHolder; staleAtMs: number }>()

  mesh.subscribe(ADVERTS_TOPIC, (message) => {
    const judged = judgeAdvert(state, message, parts.now())
    if (judged.verdict !== "accept") return judged
    const { advert } = judged
    if (message.from !== mesh.peerId) {
      members.delete(advert.nodeId)
      const holder = { peer: message.from, addresses: advert.addresses }
      members.set(advert.nodeId, {
        advert,
        holder,
        staleAtMs: clock.monotonicMs() + ADVERT_LIFE_INTERVALS * advert.intervalMs,
      })
      for (const oldest of members.keys()) {
        if (members.size <= MOST_MEMBERS) break
        members.delete(oldest)
      }
    }
    return accept
  })

  function fresh() {
    const nowMs = clock.monotonicMs()
    return [...members.values()].filter(({ advert, staleAtMs }) => staleAtMs > nowMs && !parts.isRevoked(advert.nodeId))
  }

  return {
    addresses: () => fresh().flatMap(({ holder }) => holder.addresses.slice(0, 1)),
    holdersOf: (revision) =>
      fresh()
        .filter(({ advert }) => advert.warm.some((warm) => warm === revision))
        .slice(0, MOST_HOLDERS)
        .map(({ holder }) => holder),
  }
}
