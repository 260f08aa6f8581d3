import { z } from "zod"
import { decodeCbor, encodeCbor } from "../base/cbor.ts"
import type { Instant } from "../base/clock.ts"
import { nodeId, peerId, type NodeId, type PeerId } from "../domain/ids.ts"
import { NODE_ROLES, type NodeRole } from "../domain/statuses.ts"
import { SIGNATURE_BYTES, signBytes, unbase64, verifyBytes, type SigningKey } from "./signing.ts"

/** What the coordinator says of a member (architecture §5.1). */
export interface Membership {
  peerId: PeerId
  nodeId: NodeId
  roles: NodeRole[]
  issuedAt: Instant
  expiresAt: Instant
}

export type CertificateVerdict =
  | { valid: true; membership: Membership }
  /** Signed by the coordinator, but outside its time: who it was for is still known. */
  | { valid: false; reason: "expired" | "not_yet_valid"; membership: Membership }
  | { valid: false; reason: "malformed" | "forged" }

/** Clocks of members may differ by this much. */
export const CERTIFICATE_SKEW_MS = 5 * 60_000
/** So long after its end a certificate still counts among members that lack the coordinator, who alone could renew it. */
export const CERTIFICATE_GRACE_MS = 24 * 3600_000

/** The certificate as text: base64 of the canonical CBOR of the facts followed by the signature. */
export function signCertificate(coordinator: SigningKey, membership: Membership): string {
  const facts = encodeCbor({
    peer_id: membership.peerId,
    node_id: membership.nodeId,
    roles: membership.roles,
    issued_at: membership.issuedAt,
    expires_at: membership.expiresAt,
  })
  return Buffer.concat([facts, signBytes(coordinator.seed, signed(facts))]).toString("base64")
}

/** `withoutCoordinator`: does the verifier itself lack the coordinator now? Then the grace counts. Never throws. */
export function verifyCertificate(
  text: string,
  coordinatorPublicKey: Uint8Array,
  now: Instant,
  { withoutCoordinator }: { withoutCoordinator: boolean },
): CertificateVerdict {
  const bytes = text.length <= LONGEST_CERTIFICATE ? unbase64(text) : null
  if (bytes === null || bytes.length <= SIGNATURE_BYTES) return { valid: false, reason: "malformed" }
  const facts = bytes.subarray(0, -SIGNATURE_BYTES)
  if (!verifyBytes(coordinatorPublicKey, signed(facts), bytes.subarray(-SIGNATURE_BYTES))) {
    return { valid: false, reason: "forged" }
  }
  const membership = parseFacts(facts)
  if (membership === null) return { valid: false, reason: "malformed" }
  const ends = membership.expiresAt + CERTIFICATE_SKEW_MS + (withoutCoordinator ? CERTIFICATE_GRACE_MS : 0)
  if (now < membership.issuedAt - CERTIFICATE_SKEW_MS) return { valid: false, reason: "not_yet_valid", membership }
  if (now >= ends) return { valid: false, reason: "expired", membership }
  return { valid: true, membership }
}

/** Bounds what an unknown peer can make us decode; ours are about 350 characters. */
export const LONGEST_CERTIFICATE = 2048

/** Says what the signature is about, so that no other signature of the same key can be shown as a certificate. */
const SIGNED_PREFIX = new TextEncoder().encode("computalot-certificate:1:")

function signed(facts: Uint8Array): Uint8Array {
  return Buffer.concat([SIGNED_PREFIX, facts])
}

const factsSchema = z.object({
  peer_id: z.string().max(128),
  node_id: z.string().max(128),
  roles: z.array(z.enum(NODE_ROLES)).max(NODE_ROLES.length),
  issued_at: z.int(),
  expires_at: z.int(),
})

function parseFacts(bytes: Uint8Array): Membership | null {
  try {
    const facts = factsSchema.parse(decodeCbor(bytes))
    return {
      peerId: peerId(facts.peer_id),
      nodeId: nodeId(facts.node_id),
      roles: facts.roles,
      issuedAt: facts.issued_at,
      expiresAt: facts.expires_at,
    }
  } catch {
    return null
  }
}
