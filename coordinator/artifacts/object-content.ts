import { createHash, type Hash } from "node:crypto"
import type { Digest } from "../../protocol/domain/ids.ts"
import type { ContentRef, ContentSource } from "../../protocol/wire/content-source.ts"
import {
  encodePieceList,
  onePieceList,
  PIECE_BYTES,
  pieceBytesFor,
  pieceCount,
  pieceListDigest,
  pieceRange,
  type PieceList,
} from "../../protocol/wire/piece-list.ts"
import { fullPieceSet } from "../../protocol/wire/piece-set.ts"
import type { ObjectFiles } from "./object-files.ts"

/**
 * The stored blobs as the content protocol serves them: the last resort of the nodes (architecture §5.6). Piece lists follow
 * from the bytes alone, so none is stored; the latest are remembered, because grants name them again and again.
 */
export interface ObjectContent extends ContentSource {
  /** How grants name the blob; null when it is not here. Reads the whole blob the first time. */
  ref(digest: Digest): Promise<ContentRef | null>
}

export function createObjectContent(files: Pick<ObjectFiles, "size" | "readRange" | "isDamaged">): ObjectContent {
  /** By blob, the one asked for longest ago first. */
  const lists = new Map<Digest, Promise<PieceList | null>>()

  function listOf(blob: Digest): Promise<PieceList | null> {
    const known = lists.get(blob) ?? makeList(blob)
    lists.delete(blob)
    lists.set(blob, known)
    for (const oldest of lists.keys()) {
      if (lists.size <= REMEMBERED_LISTS) break
      lists.delete(oldest)
    }
    const forget = (): void => {
      if (lists.get(blob) === known) lists.delete(blob)
    }
    known.then((list) => (list === null ? forget() : undefined), forget)
    return known
  }

  async function makeList(blob: Digest): Promise<PieceList | null> {
    const size = await files.size(blob)
    if (size === null) return null
    if (size <= PIECE_BYTES) return onePieceList({ digest: blob, size })
    const pieceBytes = pieceBytesFor(size)
    const list: PieceList = {
      digest: blob,
      size,
      pieceBytes,
      pieces: new Uint8Array(32 * pieceCount({ size, pieceBytes })),
    }
    const whole = createHash("sha256")
    for (let index = 0; index < pieceCount(list); index++) {
      const { offset, length } = pieceRange(list, index)
      const piece = await files.readRange(blob, offset, length)
      if (piece === null) return null
      list.pieces.set(await sha256(piece), index * 32)
      await hashInTurns(whole, piece)
    }
    // A list of other bytes would have every node fetch all of them before it finds out.
    return whole.digest("hex") === blob ? list : damaged(blob)
  }

  /** It is not given out, and so is as good as not here. */
  function damaged(blob: Digest): null {
    files.isDamaged(blob, "its bytes have another digest")
    return null
  }

  /** Null also for a blob that was removed since its list was made. */
  async function present(blob: Digest): Promise<PieceList | null> {
    return (await files.size(blob)) === null ? null : await listOf(blob)
  }

  async function ref(blob: Digest): Promise<ContentRef | null> {
    const list = await present(blob)
    return list && { digest: list.digest, size: list.size, pieceListDigest: pieceListDigest(list) }
  }

  return {
    ref,
    has: ref,
    async bitmap(blob) {
      const list = await present(blob)
      return list && fullPieceSet(pieceCount(list))
    },
    async pieceList(blob) {
      const list = await present(blob)
      return list && encodePieceList(list)
    },
    async readPiece(blob, index) {
      const list = await present(blob)
      if (list === null || index >= pieceCount(list)) return null
      const { offset, length } = pieceRange(list, index)
      const piece = await files.readRange(blob, offset, length)
      if (piece === null) return null
      return (await sha256(piece)).equals(list.pieces.subarray(index * 32, index * 32 + 32)) ? piece : damaged(blob)
    },
  }
}

/** Web crypto hashes on libuv's pool: the thread that runs the mesh goes on meanwhile. */
async function sha256(piece: Buffer): Promise<Buffer> {
  return Buffer.from(await crypto.subtle.digest("SHA-256", new Uint8Array(piece)))
}

/** The digest of the whole cannot be had on the pool; a quarter of a millisecond at a time it holds nobody up. */
async function hashInTurns(hash: Hash, piece: Buffer): Promise<void> {
  for (let at = 0; at < piece.length; at += TURN_BYTES) {
    hash.update(piece.subarray(at, at + TURN_BYTES))
    await new Promise((resolve) => setImmediate(resolve))
  }
}

const TURN_BYTES = 256 * 1024

/** Of about 32 bytes for each MiB: 8 MiB for 256 blobs of 1 GiB. */
const REMEMBERED_LISTS = 256
