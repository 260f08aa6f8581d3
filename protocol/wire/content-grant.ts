import { z } from "zod"
import { decodeCbor, encodeCbor } from "../base/cbor.ts"
import type { Instant } from "../base/clock.ts"
import { DIGEST_PATTERN, peerId, type Digest, type PeerId } from "../domain/ids.ts"
import { fromWireRef, toWireRef, type ContentRef } from "./content-source.ts"
import { SIGNATURE_BYTES, signBytes, unbase64, verifyBytes, type SigningKey } from "./signing.ts"

/** The coordinator's leave for one node to be given these blobs (architecture §5.6). Shown to whoever has their pieces. */
export interface ContentGrant {
  node: PeerId
  blobs: ContentRef[]
  expiresAt: Instant
}

export type ContentGrantVerdict =
  | { valid: true; grant: ContentGrant }
  | { valid: false; reason: "malformed" | "forged" | "wrong_node" | "expired" }

/** Clocks of members may differ by this much. */
export const CONTENT_GRANT_SKEW_MS = 5 * 60_000
/** The layers of an image and what else one task needs; more blobs than this are granted in several grants. */
export const LARGEST_GRANT_BLOBS = 256
/** Characters of the longest grant: `LARGEST_GRANT_BLOBS` of about 190 bytes each, in base64. */
export const LONGEST_GRANT = 80 * 1024

/** The grant as text: base64 of the canonical CBOR of the facts followed by the signature. */
export function signContentGrant(coordinator: SigningKey, grant: ContentGrant): string {
  const facts = encodeCbor({
    node: grant.node,
    blobs: grant.blobs.map(toWireRef),
    expires_at: grant.expiresAt,
  })
  return Buffer.concat([facts, signBytes(coordinator.seed, signed(facts))]).toString("base64")
}

/** Judges a grant that `node` showed; who that is, the transport has proved. Never throws. */
export function verifyContentGrant(
  text: string,
  coordinatorPublicKey: Uint8Array,
  node: PeerId,
  now: Instant,
): ContentGrantVerdict {
  const bytes = text.length <= LONGEST_GRANT ? unbase64(text) : null
  if (bytes === null || bytes.length <= SIGNATURE_BYTES) return { valid: false, reason: "malformed" }
  const facts = bytes.subarray(0, -SIGNATURE_BYTES)
  if (!verifyBytes(coordinatorPublicKey, signed(facts), bytes.subarray(-SIGNATURE_BYTES))) {
    return { valid: false, reason: "forged" }
  }
  const grant = parseFacts(facts)
  if (grant === null) return { valid: false, reason: "malformed" }
  if (grant.node !== node) return { valid: false, reason: "wrong_node" }
  if (now >= grant.expiresAt + CONTENT_GRANT_SKEW_MS) return { valid: false, reason: "expired" }
  return { valid: true, grant }
}

/** What the grant says of this blob; null when it does not name it. */
export function grantedBlob(grant: ContentGrant, blob: Digest): ContentRef | null {
  return grant.blobs.find((named) => named.digest === blob) ?? null
}

/** Says what the signature is about, so that no other signature of the same key can be shown as a grant. */
const SIGNED_PREFIX = new TextEncoder().encode("computalot-content-grant:1:")

function signed(facts: Uint8Array): Uint8Array {
  return Buffer.concat([SIGNED_PREFIX, facts])
}

const digestText = z.string().regex(DIGEST_PATTERN)
const factsSchema = z.object({
  node: z.string().max(128),
  blobs: z
    .array(z.object({ digest: digestText, size: z.int().nonnegative(), piece_list: digestText.nullable() }))
    .max(LARGEST_GRANT_BLOBS),
  expires_at: z.int(),
})

function parseFacts(bytes: Uint8Array): ContentGrant | null {
  try {
    const facts = factsSchema.parse(decodeCbor(bytes))
    return { node: peerId(facts.node), blobs: facts.blobs.map(fromWireRef), expiresAt: facts.expires_at }
  } catch {
    return null
  }
}
