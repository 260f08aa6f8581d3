import { systemClock } from "../../protocol/base/clock.ts"
import { silentLog } from "../../protocol/base/log.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import { nodeId, type NodeId } from "../../protocol/domain/ids.ts"
import type { RefusedPeer } from "../../protocol/mesh/admission.ts"
import { createMeshNode, type MeshNodeOptions } from "../../protocol/mesh/create-mesh-node.ts"
import { identityFromSeed, type Identity } from "../../protocol/mesh/identity.ts"
import type { MeshNode } from "../../protocol/mesh/mesh.ts"
import { signCertificate, type Membership } from "../../protocol/wire/certificate.ts"

/** A coordinator and members through real libp2p on 127.0.0.1. Dispose it to stop every node. */
export interface TestMesh extends AsyncDisposable {
  coordinator: TestNode
  /** A node with a valid certificate, connected to nobody yet. */
  member(options?: Partial<MeshNodeOptions> & { membership?: Partial<Membership> }): Promise<TestNode>
  /** A certificate of this deployment for `identity`. */
  certificateOf(identity: Identity, membership?: Partial<Membership>): string
}

export interface TestNode extends MeshNode {
  identity: Identity
  nodeId: NodeId
  /** Where others dial it. */
  address: string
  refusals: RefusedPeer[]
}

export const newIdentity = (): Promise<Identity> => identityFromSeed(systemRandom.bytes(32))

export async function startTestMesh(options: Partial<MeshNodeOptions> = {}): Promise<TestMesh> {
  const coordinatorIdentity = await newIdentity()
  const nodes: TestNode[] = []
  let count = 0

  async function start(identity: Identity, id: NodeId, more: Partial<MeshNodeOptions>): Promise<TestNode> {
    const refusals: RefusedPeer[] = []
    const node = await createMeshNode({
      identity,
      listen: ["/ip4/127.0.0.1/tcp/0"],
      coordinatorKey: coordinatorIdentity,
      certificate: () => null,
      isCoordinator: false,
      agentVersion: "computalot-test/1",
      log: silentLog,
      clock: systemClock,
      refused: (refusal) => refusals.push(refusal),
      ...more,
    })
    const started = { ...node, identity, nodeId: id, refusals, address: node.addresses()[0] ?? "" }
    nodes.push(started)
    return started
  }

  function certificateOf(identity: Identity, membership: Partial<Membership> = {}): string {
    const now = Date.now()
    return signCertificate(coordinatorIdentity, {
      peerId: identity.peerId,
      nodeId: nodeId(`node_${identity.peerId.slice(-8)}`),
      roles: ["worker"],
      issuedAt: now,
      expiresAt: now + 7 * 24 * 3600_000,
      ...membership,
    })
  }

  const coordinator = await start(coordinatorIdentity, nodeId("coordinator"), { isCoordinator: true, ...options })
  return {
    coordinator,
    certificateOf,
    async member({ membership, ...more } = {}) {
      const identity = more.identity ?? (await newIdentity())
      const id = membership?.nodeId ?? nodeId(`node_${++count}`)
      const certificate = certificateOf(identity, { nodeId: id, ...membership })
      return start(identity, id, { certificate: () => certificate, ...more })
    },
    [Symbol.asyncDispose]: async () => {
      await Promise.all(nodes.map((node) => node[Symbol.asyncDispose]()))
    },
  }
}
