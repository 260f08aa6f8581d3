import { createHash, randomBytes } from "node:crypto"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { createHasher } from "../../node-agent/cache/hasher.ts"
import { openBlobs, type Blobs } from "../../node-agent/cache/blobs.ts"
import { systemClock } from "../../protocol/base/clock.ts"
import { silentLog } from "../../protocol/base/log.ts"
import { digest } from "../../protocol/domain/ids.ts"
import type { ContentRef } from "../../protocol/wire/content-source.ts"
import { pieceBytesFor, pieceListDigest, type PieceList } from "../../protocol/wire/piece-list.ts"

export const MIB = 1024 * 1024

export interface TestBlob {
  bytes: Uint8Array
  list: PieceList
  ref: ContentRef
}

/** Random bytes with their piece list, made without the code under test. */
export function newTestBlob(size: number, bytes: Uint8Array = randomBytes(size)): TestBlob {
  const sha256 = (data: Uint8Array): Buffer => createHash("sha256").update(data).digest()
  const pieceBytes = pieceBytesFor(bytes.length)
  const pieces: Buffer[] = []
  for (let at = 0; at < bytes.length; at += pieceBytes) pieces.push(sha256(bytes.subarray(at, at + pieceBytes)))
  const joined = new Uint8Array(Buffer.concat(pieces))
  const list = { digest: digest(sha256(bytes).toString("hex")), size: bytes.length, pieceBytes, pieces: joined }
  return { bytes, list, ref: { digest: list.digest, size: list.size, pieceListDigest: pieceListDigest(list) } }
}

/** `bytes` as a stream in uneven chunks. */
export async function* inChunks(bytes: Uint8Array, chunkBytes = 100_000): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += chunkBytes) yield bytes.subarray(at, at + chunkBytes)
}

/** A store in a directory of its own, or in the given one; only its own directory is removed at the end. */
export async function openTestBlobs(options: { directory?: string; quotaBytes?: number } = {}): Promise<TestBlobs> {
  const directory = options.directory ?? mkdtempSync(join(tmpdir(), "computalot-blobs-"))
  const quotaBytes = options.quotaBytes ?? 1024 * MIB
  const clock = systemClock
  const blobs = await openBlobs({ directory, quotaBytes, clock, log: silentLog, hasher: createHasher(clock) })
  return {
    ...blobs,
    directory,
    async [Symbol.asyncDispose]() {
      await blobs[Symbol.asyncDispose]()
      if (options.directory === undefined) rmSync(directory, { recursive: true, force: true })
    },
  }
}

export interface TestBlobs extends Blobs {
  directory: string
}
