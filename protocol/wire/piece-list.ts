import { z } from "zod"
import { decodeCbor, encodeCbor } from "../base/cbor.ts"
import { sha256Hex } from "../base/digest.ts"
import { DIGEST_PATTERN, digest, type Digest } from "../domain/ids.ts"
import type { ContentRef } from "./content-source.ts"

/**
 * How a blob is cut into pieces that can be verified one by one (architecture §5.6). Itself content-addressed: the sha256 of
 * its canonical encoding is the piece-list digest that grants name. The piece size follows from the blob's size alone, so
 * everyone who has the bytes makes the same list.
 */
export interface PieceList {
  digest: Digest
  size: number
  pieceBytes: number
  /** The sha256 of every piece, 32 bytes each, one after another. */
  pieces: Uint8Array
}

/** Large enough that asking costs little beside sending, small enough to be lost without regret. */
export const PIECE_BYTES = 1024 * 1024
/** For blobs whose list would otherwise grow past `LARGEST_LIST_PIECES`. */
const LARGE_PIECE_BYTES = 4 * PIECE_BYTES
/** A list of at most 2 MiB. */
const LARGEST_LIST_PIECES = 65_536
/** 256 GiB: what the largest pieces and the longest list can name. */
export const LARGEST_BLOB_BYTES = LARGE_PIECE_BYTES * LARGEST_LIST_PIECES
/** What an encoded list may weigh, its own words included. */
export const LARGEST_LIST_BYTES = LARGEST_LIST_PIECES * 32 + 1024

/** Bytes of a piece of a blob of `size` bytes. */
export function pieceBytesFor(size: number): number {
  return size <= PIECE_BYTES * LARGEST_LIST_PIECES ? PIECE_BYTES : LARGE_PIECE_BYTES
}

export function pieceCount(list: Pick<PieceList, "size" | "pieceBytes">): number {
  return Math.ceil(list.size / list.pieceBytes)
}

/** Where piece `index` lies in the blob. The last one may be shorter. */
export function pieceRange(list: PieceList, index: number): { offset: number; length: number } {
  const offset = index * list.pieceBytes
  return { offset, length: Math.min(list.pieceBytes, list.size - offset) }
}

export function pieceDigest(list: PieceList, index: number): Uint8Array {
  return list.pieces.subarray(index * 32, index * 32 + 32)
}

/** Canonical: the same list always gives the same bytes. */
export function encodePieceList(list: PieceList): Uint8Array {
  return encodeCbor({ digest: list.digest, size: list.size, piece_size: list.pieceBytes, pieces: list.pieces })
}

/** The list's name in references and grants; null when the blob is one piece and its own digest says everything. */
export function pieceListDigest(list: PieceList): Digest | null {
  return list.size <= PIECE_BYTES ? null : digest(sha256Hex(encodePieceList(list)))
}

/** The list of a blob of at most one piece, which needs no list to travel. */
export function onePieceList(blob: Pick<ContentRef, "digest" | "size">): PieceList {
  const pieces = blob.size === 0 ? new Uint8Array() : Uint8Array.from(Buffer.from(blob.digest, "hex"))
  return { digest: blob.digest, size: blob.size, pieceBytes: PIECE_BYTES, pieces }
}

/**
 * The list in `bytes`, when it is exactly the one that `blob` names: its digest, canonical, of the right blob, size and
 * number of pieces. Otherwise null: whoever sent it lied or is broken.
 */
export function readPieceList(bytes: Uint8Array, blob: ContentRef): PieceList | null {
  if (bytes.length > LARGEST_LIST_BYTES || sha256Hex(bytes) !== blob.pieceListDigest) return null
  const list = decodePieceList(bytes)
  return list !== null && list.digest === blob.digest && list.size === blob.size ? list : null
}

/** Any well-formed list, without knowing which one was wanted; null when `bytes` are none. */
export function decodePieceList(bytes: Uint8Array): PieceList | null {
  const facts = parseFacts(bytes)
  if (facts === null) return null
  const list = { digest: digest(facts.digest), size: facts.size, pieceBytes: facts.piece_size, pieces: facts.pieces }
  const sound = list.pieceBytes === pieceBytesFor(list.size) && list.pieces.length === pieceCount(list) * 32
  return sound ? list : null
}

const factsSchema = z.strictObject({
  digest: z.string().regex(DIGEST_PATTERN),
  size: z.int().nonnegative().max(LARGEST_BLOB_BYTES),
  piece_size: z.int().positive(),
  pieces: z.instanceof(Uint8Array),
})

function parseFacts(bytes: Uint8Array): z.infer<typeof factsSchema> | null {
  try {
    return factsSchema.parse(decodeCbor(bytes))
  } catch {
    return null
  }
}
