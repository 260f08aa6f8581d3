import { digest, type Digest } from "../domain/ids.ts"
import type { PieceSet } from "./piece-set.ts"

/** A blob as grants and images name it. */
export interface ContentRef {
  /** sha256 of its bytes. */
  digest: Digest
  /** In bytes. */
  size: number
  /** sha256 of its piece list; null exactly for blobs of at most one piece (1 MiB). */
  pieceListDigest: Digest | null
}

/** As control frames, image records and grants write it; digests checked by their schemas. */
export interface WireContentRef {
  digest: string
  size: number
  piece_list: string | null
}

export function toWireRef(blob: ContentRef): WireContentRef {
  return { digest: blob.digest, size: blob.size, piece_list: blob.pieceListDigest }
}

export function fromWireRef(blob: WireContentRef): ContentRef {
  const pieceListDigest = blob.piece_list === null ? null : digest(blob.piece_list)
  return { digest: digest(blob.digest), size: blob.size, pieceListDigest }
}

/** What the content protocol serves from: a node's cache, the coordinator's artifact store. Absent blobs give null, never an error. */
export interface ContentSource {
  /** The blob, whole or in part; null when no piece of it is here. */
  has(digest: Digest): Promise<ContentRef | null>
  /** The pieces that `readPiece` can give right now. Grows while the source itself still downloads. */
  bitmap(digest: Digest): Promise<PieceSet | null>
  /** The encoded piece list (`encodePieceList`), also for blobs of one piece. */
  pieceList(digest: Digest): Promise<Uint8Array | null>
  /** The bytes of piece `index`; null when the source lacks it. */
  readPiece(digest: Digest, index: number): Promise<Uint8Array | null>
}
