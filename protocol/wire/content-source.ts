import type { Digest } from "../domain/ids.ts"
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
