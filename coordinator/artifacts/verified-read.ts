import { createHash } from "node:crypto"
import { createReadStream, type Stats } from "node:fs"
import type { FileHandle } from "node:fs/promises"
import { Readable } from "node:stream"
import { ComputalotError } from "../../protocol/domain/errors.ts"
import type { Digest } from "../../protocol/domain/ids.ts"

/**
 * Reads of blobs that never end well with other bytes than their digest says: what fits into one piece is checked before the
 * first byte goes out, a larger blob before its last piece does. A part of one is given out once the whole was read and found
 * right since the file last changed. Each takes the open file and closes it.
 */
export interface VerifiedReads {
  /** Throws where the damage shows before the first byte; later the stream breaks, which is what tells its reader. */
  stream(file: FileHandle, digest: Digest, range?: { start: number; end: number }): Promise<Readable>
  /** Null when it is damaged, or larger than `maxBytes`. */
  whole(file: FileHandle, digest: Digest, maxBytes: number): Promise<Buffer | null>
}

/** `onDamage` is told of each read that met damage. */
export function createVerifiedReads(onDamage: (digest: Digest, problem: string) => void): VerifiedReads {
  /** Which state of its file was read whole and found right, the one looked at longest ago first. */
  const right = new Map<Digest, string>()

  function remember(digest: Digest, stats: Stats): void {
    right.delete(digest)
    right.set(digest, stateOf(stats))
    for (const oldest of right.keys()) {
      if (right.size <= REMEMBERED) break
      right.delete(oldest)
    }
  }

  function damagedNow(digest: Digest): ComputalotError {
    right.delete(digest)
    onDamage(digest, "its bytes have another digest")
    return new ComputalotError("internal", "the stored bytes are damaged and are not given out", {
      recommendedAction: "Upload the bytes again, or have the operator bring them back from a copy.",
      details: { sha256: digest },
    })
  }

  /** The pieces of the file; the last one only once all of them are right. */
  async function* checked(pieces: AsyncIterable<Buffer>, digest: Digest, stats: Stats): AsyncGenerator<Buffer> {
    const hash = createHash("sha256")
    let held: Buffer | null = null
    for await (const piece of pieces) {
      hash.update(piece)
      if (held) yield held
      held = piece
    }
    if (hash.digest("hex") !== digest) throw damagedNow(digest)
    remember(digest, stats)
    if (held) yield held
  }

  async function wholeOrThrow(file: FileHandle, digest: Digest, stats: Stats): Promise<Buffer> {
    const pieces: Buffer[] = []
    for await (const piece of checked(piecesOf(file), digest, stats)) pieces.push(piece)
    return Buffer.concat(pieces)
  }

  function checkedStream(file: FileHandle, digest: Digest, stats: Stats): Readable {
    const pieces = piecesOf(file)
    // A reader that leaves before the first piece would otherwise leave the file open.
    return Readable.from(checked(pieces, digest, stats), { objectMode: false }).once("close", () => pieces.destroy())
  }

  return {
    async stream(file, digest, range) {
      try {
        const stats = await file.stat()
        if (range === undefined) {
          if (stats.size > READ_BYTES) return checkedStream(file, digest, stats)
          return Readable.from([await wholeOrThrow(file, digest, stats)], { objectMode: false })
        }
        if (right.get(digest) !== stateOf(stats)) await check(file, digest)
        remember(digest, stats)
        return createReadStream("", { fd: file, autoClose: true, highWaterMark: READ_BYTES, ...range })
      } catch (error) {
        await file.close()
        throw error
      }
    },
    async whole(file, digest, maxBytes) {
      try {
        const stats = await file.stat()
        return stats.size > maxBytes ? null : await wholeOrThrow(file, digest, stats)
      } catch (error) {
        if (error instanceof ComputalotError) return null
        throw error
      } finally {
        await file.close()
      }
    },
  }

  /** Reads all of it and leaves the file open. */
  async function check(file: FileHandle, digest: Digest): Promise<void> {
    const hash = createHash("sha256")
    const piece = Buffer.allocUnsafe(READ_BYTES)
    for (let at = 0; ;) {
      const { bytesRead } = await file.read(piece, 0, READ_BYTES, at)
      if (bytesRead === 0) break
      hash.update(piece.subarray(0, bytesRead))
      at += bytesRead
    }
    if (hash.digest("hex") !== digest) throw damagedNow(digest)
  }
}

function piecesOf(file: FileHandle): Readable & AsyncIterable<Buffer> {
  return createReadStream("", { fd: file, autoClose: true, highWaterMark: READ_BYTES })
}

/** Another file, or the same written to again. */
const stateOf = ({ ino, size, mtimeMs }: Stats): string => `${ino}/${size}/${mtimeMs}`

/** Large reads keep the number of turns per gigabyte low; hashing one takes a fraction of a millisecond. */
const READ_BYTES = 256 * 1024
const REMEMBERED = 10_000
