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

export function createObjectContent(files: Pick<ObjectFiles, "size" | "readRange">): ObjectContent {
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
    for (let index = 0; index < pieceCount(list); index++) {
      const { offset, length } = pieceRange(list, index)
      const piece = await files.readRange(blob, offset, length)
      if (piece === null) return null
      // Web crypto hashes on libuv's pool: the thread that runs the mesh goes on meanwhile.
      list.pieces.set(new Uint8Array(await crypto.subtle.digest("SHA-256", new Uint8Array(piece))), index * 32)
    }
    return list
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
      return await files.readRange(blob, offset, length)
    },
  }
}

/** Of about 32 bytes for each MiB: 8 MiB for 256 blobs of 1 GiB. */
const REMEMBERED_LISTS = 256
