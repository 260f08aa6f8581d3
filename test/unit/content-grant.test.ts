import { expect, test } from "vitest"
import { systemRandom } from "../../protocol/base/random.ts"
import { digest, peerId } from "../../protocol/domain/ids.ts"
import {
  CONTENT_GRANT_SKEW_MS,
  grantedBlob,
  LARGEST_GRANT_BLOBS,
  LONGEST_GRANT,
  signContentGrant,
  verifyContentGrant,
  type ContentGrant,
} from "../../protocol/wire/content-grant.ts"
import { decodeContentReply, decodeContentRequest, encodeContent } from "../../protocol/wire/content.ts"
import { encodePieceList, onePieceList, readPieceList } from "../../protocol/wire/piece-list.ts"
import { signBytes, signingKeyFromSeed } from "../../protocol/wire/signing.ts"
import { MIB, newTestBlob } from "../support/content.ts"

const coordinator = signingKeyFromSeed(systemRandom.bytes(32))
const node = peerId("12D3KooWFetcher")
const NOW = 1_800_000_000_000
const image = newTestBlob(3 * MIB).ref
const payload = newTestBlob(1000).ref
const grant: ContentGrant = { node, blobs: [image, payload], expiresAt: NOW + 60_000 }

test("a content grant signed by the coordinator is valid for its node, and names its blobs with their piece lists", () => {
  const verdict = verifyContentGrant(signContentGrant(coordinator, grant), coordinator.publicKey, node, NOW)
  expect(verdict).toEqual({ valid: true, grant })
  expect(grantedBlob(grant, image.digest)).toEqual(image)
  expect(image.pieceListDigest).toMatch(/^[0-9a-f]{64}$/)
  expect(payload.pieceListDigest).toBeNull()
})

test("a content grant of another node is not valid for this one", () => {
  const text = signContentGrant(coordinator, grant)
  const verdict = verifyContentGrant(text, coordinator.publicKey, peerId("12D3KooWThief"), NOW)
  expect(verdict).toEqual({ valid: false, reason: "wrong_node" })
})

test("a content grant ends at its expiry plus the clocks' tolerance", () => {
  const text = signContentGrant(coordinator, grant)
  const at = (now: number) => verifyContentGrant(text, coordinator.publicKey, node, now)
  expect(at(grant.expiresAt + CONTENT_GRANT_SKEW_MS - 1).valid).toBe(true)
  expect(at(grant.expiresAt + CONTENT_GRANT_SKEW_MS)).toEqual({ valid: false, reason: "expired" })
})

test("a content grant does not name a foreign blob", () => {
  expect(grantedBlob(grant, digest("0".repeat(64)))).toBeNull()
})

test("a grant signed by another key, changed, or made of another signed thing is forged", () => {
  const stranger = signingKeyFromSeed(systemRandom.bytes(32))
  const forged = { valid: false, reason: "forged" }
  expect(verifyContentGrant(signContentGrant(stranger, grant), coordinator.publicKey, node, NOW)).toEqual(forged)
  const bytes = Buffer.from(signContentGrant(coordinator, grant), "base64")
  bytes[20] = (bytes[20] ?? 0) ^ 1
  expect(verifyContentGrant(bytes.toString("base64"), coordinator.publicKey, node, NOW)).toEqual(forged)
  const facts = bytes.subarray(0, -64)
  const otherwise = Buffer.concat([facts, signBytes(coordinator.seed, facts)]).toString("base64")
  expect(verifyContentGrant(otherwise, coordinator.publicKey, node, NOW)).toEqual(forged)
})

test("what is no grant at all is malformed", () => {
  for (const text of ["", "hello", "AAAA", "A".repeat(LONGEST_GRANT + 4)]) {
    expect(verifyContentGrant(text, coordinator.publicKey, node, NOW)).toEqual({ valid: false, reason: "malformed" })
  }
})

test("the largest grant fits its limit and into a request's frame", () => {
  const blobs = Array.from({ length: LARGEST_GRANT_BLOBS }, () => ({ ...image, size: 200_000_000_000 }))
  const text = signContentGrant(coordinator, { ...grant, blobs })
  expect(text.length).toBeLessThanOrEqual(LONGEST_GRANT)
  expect(verifyContentGrant(text, coordinator.publicKey, node, NOW).valid).toBe(true)
  const request = { type: "open", grant: text, blob: image.digest } as const
  expect(decodeContentRequest(encodeContent(request))).toEqual(request)
})

test("malformed content frames give null, well-formed ones themselves", () => {
  const reply = { type: "have", pieces: new Uint8Array([1, 2]) } as const
  expect(decodeContentReply(encodeContent(reply))).toEqual(reply)
  expect(decodeContentReply(new Uint8Array([255, 1]))).toBeNull()
  expect(decodeContentRequest(encodeContent({ type: "piece", index: -1 }))).toBeNull()
  expect(decodeContentRequest(encodeContent(reply))).toBeNull()
})

test("a piece list of another blob, size or count is not taken, though its digest is the one named", () => {
  const { list, ref } = newTestBlob(3 * MIB)
  expect(readPieceList(encodePieceList(list), ref)).toEqual(list)
  expect(readPieceList(encodePieceList(list), { ...ref, size: ref.size - 1 })).toBeNull()
  expect(readPieceList(encodePieceList(list), payload)).toBeNull()
  const short = { ...list, pieces: list.pieces.subarray(32) }
  const named = newTestBlob(0, encodePieceList(short)).ref.digest
  expect(readPieceList(encodePieceList(short), { ...ref, pieceListDigest: named })).toBeNull()
})

test("a blob of one piece needs no list: its digest is its piece's", () => {
  const small = newTestBlob(5000)
  expect(onePieceList(small.ref)).toEqual(small.list)
  const empty = newTestBlob(0)
  expect(onePieceList(empty.ref)).toEqual(empty.list)
})
