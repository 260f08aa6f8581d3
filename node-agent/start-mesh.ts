import type { Clock } from "../protocol/base/clock.ts"
import type { Log } from "../protocol/base/log.ts"
import type { Random } from "../protocol/base/random.ts"
import type { Digest, NodeId, PeerId } from "../protocol/domain/ids.ts"
import type { createMeshNode } from "../protocol/mesh/create-mesh-node.ts"
import type { Identity } from "../protocol/mesh/identity.ts"
import type { MeshNode } from "../protocol/mesh/mesh.ts"
import type { ToCoordinator } from "../protocol/wire/control.ts"
import type { Blobs } from "./cache/blobs.ts"
import type { NodeConfig } from "./config.ts"
import { createComplaints } from "./mesh/complaints.ts"
import { createFetchContent, type FetchContent } from "./mesh/fetch-content.ts"
import { hearAdverts, type HeardAdverts } from "./mesh/heard-adverts.ts"
import { createWants, hearOffers, worthPreparing, type OfferedTo } from "./mesh/offers.ts"
import { shareContent } from "./mesh/share-content.ts"

/** What the coordinator last told of the world. */
export interface World {
  /** From our clock to its. */
  offsetMs: number
  members: number
  peers: readonly string[]
  revoked: ReadonlySet<string>
  revocationVersion: number
}

/** The mesh, and what this node hears and shares there. */
export interface NodeMesh {
  mesh: MeshNode
  heard: HeardAdverts
  wants: ReturnType<typeof createWants>
  fetch: FetchContent
  /** Bytes of content that came from other nodes so far. */
  peerBytes: () => number
}

export interface MeshParts {
  config: NodeConfig
  version: string
  identity: Identity
  coordinator: { peerId: PeerId; publicKey: Uint8Array; addresses: () => string[] }
  certificate: () => string
  world: World
  /** Coordinator time. */
  now: () => number
  blobs: Blobs
  clock: Clock
  random: Random
  log: Log
  createMesh: typeof createMeshNode
  connected: () => boolean
  /** May new tasks come? */
  mayClaim: () => boolean
  offeredTo: () => OfferedTo
  /** Does this node make the blob again that it is asked for? */
  remakes: (blob: Digest) => boolean
  send: (message: ToCoordinator) => void
  reconnect: (reason: string) => void
  cannotGoOn: (line: string) => void
}

/** `opening` closes the mesh. */
export async function startMesh(opening: AsyncDisposableStack, parts: MeshParts): Promise<NodeMesh> {
  const { config, coordinator, world, now, blobs, clock, random, log, connected, send } = parts
  const mesh = opening.use(
    await parts.createMesh({
      identity: parts.identity,
      listen: config.listen,
      announce: config.announce,
      coordinatorKey: coordinator,
      certificate: parts.certificate,
      isCoordinator: false,
      agentVersion: `computalot-node/${parts.version}`,
      log,
      clock,
      refused({ peer, by, reason }) {
        if (peer !== coordinator.peerId || by !== "them") return
        if (reason === "revoked") parts.cannotGoOn("this node was revoked")
        if (reason === "version") parts.cannotGoOn("the coordinator speaks no protocol version that this agent knows")
      },
    }),
  )
  const isRevoked = (node: NodeId): boolean => world.revoked.has(node)
  const membershipOf = (peer: PeerId): NodeId | null => mesh.membership(peer)?.nodeId ?? null
  shareContent(mesh, blobs, {
    coordinatorPublicKey: coordinator.publicKey,
    revoked: (peer) => {
      const node = membershipOf(peer)
      return node !== null && isRevoked(node)
    },
    remakes: (blob) => parts.remakes(blob),
    clock,
    log,
  })
  const heard = hearAdverts({
    mesh,
    coordinatorPublicKey: coordinator.publicKey,
    withoutCoordinator: () => !connected(),
    isRevoked,
    now,
    clock,
  })
  hearOffers({
    mesh,
    coordinator: coordinator.peerId,
    now,
    heard(offers) {
      if (connected() && parts.mayClaim()) wants.heard(worthPreparing(offers, parts.offeredTo()))
      // The list of revoked members comes with a welcome.
      if (connected() && offers.revocationVersion > world.revocationVersion) parts.reconnect("members were revoked")
    },
  })
  const wants = createWants({ clock, ask: (revisions) => send({ type: "want", revisions }) })
  const convicted = createComplaints({ clock, send: (message) => send(message) })
  let peerBytes = 0
  const fetch = createFetchContent({
    mesh,
    blobs,
    clock,
    random,
    log,
    convicted,
    received: ({ source, bytes }) => void (peerBytes += source === "peer" ? bytes : 0),
  })
  return { mesh, heard, wants, fetch, peerBytes: () => peerBytes }
}
