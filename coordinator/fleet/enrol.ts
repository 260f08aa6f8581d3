import { sha256Hex } from "../../protocol/base/digest.ts"
import type { Clock, Instant } from "../../protocol/base/clock.ts"
import { randomText, type Random } from "../../protocol/base/random.ts"
import { ComputalotError, invalidField } from "../../protocol/domain/errors.ts"
import { newNodeId, type AccountId, type NodeId, type PeerId } from "../../protocol/domain/ids.ts"
import type { NodeRole } from "../../protocol/domain/statuses.ts"
import { judgeEnrolment, type SigningKey } from "../../protocol/wire/signing.ts"
import { signCertificate } from "../../protocol/wire/certificate.ts"
import {
  insertNode,
  insertNodeToken,
  nodeByPeer,
  nodeTokenByHash,
  spendNodeToken,
  type NodeRow,
} from "../store/fleet.ts"
import type { Store, Tx } from "../store/store.ts"

export interface EnrolmentParts {
  store: Store
  clock: Clock
  random: Random
  /** The coordinator's own key: signs certificates. */
  key: SigningKey
  certificateTtlMs: number
}

/** A join token as it was made. The token itself is shown once and kept only as a hash. */
export interface JoinToken {
  id: string
  token: string
  expiresAt: Instant
}

/** `also` runs in the write that makes it. A second call makes another. */
export async function createJoinToken(
  parts: EnrolmentParts,
  wanted: {
    name: string | null
    maxUses: number
    ttlMs: number
    roles: readonly NodeRole[]
    account: AccountId | null
  },
  also: (tx: Tx, made: JoinToken) => Promise<void> = async () => {},
): Promise<JoinToken> {
  const at = parts.clock.now()
  const made = {
    id: `ntk_${randomText(parts.random, 16)}`,
    token: `fln_${randomText(parts.random, 32)}`,
    expiresAt: at + wanted.ttlMs,
  }
  await parts.store.write(async (tx) => {
    await insertNodeToken(tx, { ...wanted, id: made.id, hash: sha256Hex(made.token), expiresAt: made.expiresAt, at })
    await also(tx, made)
  })
  return made
}

export interface Enrolment {
  token: string
  peerId: PeerId
  publicKey: string
  signature: string
  name: string | null
  agentVersion: string
}

/**
 * Takes a node into the fleet. An enrolled key with its own token, spent or expired, gets the same node id again. 422 for
 * malformed keys, 401 for a token or signature that is not good, 403 for a revoked key (rulings, Enrolment).
 */
export async function enrolNode(parts: EnrolmentParts, request: Enrolment): Promise<NodeRow> {
  const verdict = judgeEnrolment(request)
  if (verdict === "malformed")
    throw invalidField(
      "public_key",
      "must be base64 of the 32 raw bytes of the key that peer_id names, and signature base64 of 64 bytes",
    )
  if (verdict === "forged") throw refused("the signature is not this key's over computalot-enroll:<token>:<peer_id>")
  const at = parts.clock.now()
  const id = newNodeId(parts.random)
  return await parts.store.write(async (tx) => {
    const token = await nodeTokenByHash(tx, sha256Hex(request.token))
    if (!token) throw refused("the join token is not known")
    const known = await nodeByPeer(tx, request.peerId)
    if (known?.state === "revoked") {
      throw new ComputalotError("key_revoked", "this node's key was revoked", {
        recommendedAction:
          "Ask the deployment's administrator; a revoked key never returns. A new data directory makes a new key.",
      })
    }
    if (known && known.token === token.id) return known
    if (!(await spendNodeToken(tx, token.id, at))) throw refused("the join token has expired or has no use left")
    if (known) return known
    await insertNode(tx, {
      id,
      peerId: request.peerId,
      name: request.name,
      token: token.id,
      account: token.accountId,
      roles: token.roles,
      agentVersion: request.agentVersion,
      at,
    })
    const made = await nodeByPeer(tx, request.peerId)
    if (!made) throw new Error("an inserted node is found")
    return made
  })
}

/** A membership certificate for the node, valid from now. */
export function certify(
  parts: EnrolmentParts,
  node: { id: NodeId; peerId: PeerId; roles: readonly NodeRole[] },
): string {
  const issuedAt = parts.clock.now()
  return signCertificate(parts.key, {
    peerId: node.peerId,
    nodeId: node.id,
    roles: [...node.roles],
    issuedAt,
    expiresAt: issuedAt + parts.certificateTtlMs,
  })
}

function refused(why: string): ComputalotError {
  return new ComputalotError("enrolment_refused", why, {
    recommendedAction: "Ask the deployment's administrator for a new join token and start the node with --token.",
  })
}
