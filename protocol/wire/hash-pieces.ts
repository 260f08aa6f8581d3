import { createHash } from "node:crypto"
import { assert } from "../base/assert.ts"
import { digest } from "../domain/ids.ts"
import { PIECE_BYTES, pieceBytesFor, type PieceList } from "./piece-list.ts"

/** Makes a blob's piece list while its bytes pass by. Hashes where it is called: large files belong into a worker. */
export interface PieceHashing {
  update(chunk: Uint8Array): void
  /** The list of everything that passed. To be called once, at the end. */
  finish(): PieceList
}

/**
 * `pieceBytes` must be `pieceBytesFor` the final size; the default fits every blob up to 64 GiB, so that a stream of unknown
 * length can be hashed as it comes.
 */
export function hashPieces(pieceBytes = PIECE_BYTES): PieceHashing {
  const whole = createHash("sha256")
  const pieces: Buffer[] = []
  let piece = createHash("sha256")
  let filled = 0
  let size = 0

  function endPiece(): void {
    pieces.push(piece.digest())
    piece = createHash("sha256")
    filled = 0
  }

  return {
    update(chunk) {
      whole.update(chunk)
      size += chunk.length
      for (let at = 0; at < chunk.length;) {
        const taken = Math.min(pieceBytes - filled, chunk.length - at)
        piece.update(chunk.subarray(at, at + taken))
        filled += taken
        at += taken
        if (filled === pieceBytes) endPiece()
      }
    },
    finish() {
      if (filled > 0) endPiece()
      assert(pieceBytes === pieceBytesFor(size), "the piece size is that of the blob's size")
      const joined = new Uint8Array(pieces.length * 32)
      pieces.forEach((one, index) => joined.set(one, index * 32))
      return { digest: digest(whole.digest("hex")), size, pieceBytes, pieces: joined }
    },
  }
}
