import { createHash, type Hash } from "node:crypto"
import { mkdir, open, opendir, rename, rm, stat } from "node:fs/promises"
import type { FileHandle } from "node:fs/promises"
import { dirname, join } from "node:path"
import type { Readable } from "node:stream"
import type { Instant } from "../../protocol/base/clock.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import { randomText, type Random } from "../../protocol/base/random.ts"
import { ComputalotError } from "../../protocol/domain/errors.ts"
import { DIGEST_PATTERN, digest as asDigest, type Digest } from "../../protocol/domain/ids.ts"
import { createVerifiedReads } from "./verified-read.ts"

/**
 * Files on local disk, named by the sha256 of their bytes: `<root>/blobs/ab/abcdef…`. What a record refers to is complete and
 * durable before the record can exist: bytes go to `<root>/incoming/`, are synced, then renamed.
 */
export interface ObjectFiles {
  /**
   * Stores a stream, a piece at a time: memory stays the same for any size. The blob is pinned until the answer is disposed,
   * so that no sweep removes it before the caller's record stands; bytes that are already there are stored once.
   * Refuses with `body_too_large` above `maxBytes`, `invalid_request` for another digest than expected, `storage_full` when
   * the disk is full. An abort or failure leaves nothing behind.
   */
  put(bytes: AsyncIterable<Uint8Array>, options: PutOptions): Promise<PinnedBlob>
  /** The same without giving the bytes a name yet: for what has to be looked at first. The caller discards or keeps it. */
  receive(bytes: AsyncIterable<Uint8Array>, options: PutOptions): Promise<IncomingFile>
  /** A new name below `incoming/`, for a part that writes a file by itself and then keeps it. */
  incomingPath(): string
  /** Takes a synced file below `incoming/` in under its digest, pinned. */
  keep(file: { path: string; digest: Digest; size: number }): Promise<PinnedBlob>
  /** Pins a blob that is already here, or answers null. */
  pin(digest: Digest): Promise<PinnedBlob | null>
  /**
   * Bytes `start` … `end`, both inclusive, as a stream; the whole blob without them. A removal does not end a running read.
   * Damaged bytes are never given out whole: it throws, or the stream breaks before its last piece (`verified-read.ts`).
   */
  open(digest: Digest, range?: { start: number; end: number }): Promise<Readable>
  /** All of a blob in memory; null when it is not here, larger than `maxBytes`, or damaged. */
  read(digest: Digest, maxBytes: number): Promise<Buffer | null>
  /** A small range in memory, unverified: who asks for pieces knows their digests. Null when the blob is not here. */
  readRange(digest: Digest, start: number, length: number): Promise<Buffer | null>
  /** Size in bytes, or null when the blob is not here, or is known to be damaged. */
  size(digest: Digest): Promise<number | null>
  /** The stored bytes turned out to be others than their name says. The next put of the blob replaces them. */
  isDamaged(digest: Digest, problem: string): void
  /** Blobs found damaged since the start, until they are put again or removed. */
  damaged(): ReadonlyMap<Digest, string>
  /** Where a blob lies: for worker threads, which open it themselves. */
  path(digest: Digest): string
  /**
   * Removes a blob unless it is pinned or `isNeeded` answers true. Nothing can pin it in between. Answers whether it is gone.
   */
  remove(digest: Digest, isNeeded: () => Promise<boolean>): Promise<boolean>
  /** Removes unfinished files last changed before `before`. */
  sweepIncoming(before: Instant): Promise<number>
  /** Every stored blob last changed before `before`, one at a time: to find what no record ever named. */
  blobs(before: Instant): AsyncIterable<Digest>
}

interface PutOptions {
  /** Inclusive. */
  maxBytes: number
  expectedDigest?: Digest
  signal?: AbortSignal
}

/** A stored blob that stays until this is disposed and, from then on, as long as a record needs it. */
export interface PinnedBlob extends Disposable {
  digest: Digest
  size: number
}

/** A complete file without a name. `discard` removes it; a second call does nothing. */
interface IncomingFile {
  path: string
  digest: Digest
  size: number
  discard(): Promise<void>
}

/** `onDamage` is told once of each damaged blob. */
export async function openObjectFiles(
  root: string,
  random: Random,
  onDamage: (digest: Digest, problem: string) => void = () => {},
): Promise<ObjectFiles> {
  const blobs = join(root, BLOBS)
  const incoming = join(root, "incoming")
  await mkdir(blobs, { recursive: true })
  await mkdir(incoming, { recursive: true })
  const pins = new Map<Digest, number>()
  const locks = new Map<Digest, Promise<unknown>>()
  const damaged = new Map<Digest, string>()
  const reads = createVerifiedReads(isDamaged)

  function isDamaged(digest: Digest, problem: string): void {
    if (damaged.has(digest)) return
    damaged.set(digest, problem)
    onDamage(digest, problem)
  }

  const path = (digest: Digest): string => blobPath(root, digest)
  const incomingPath = (): string => join(incoming, randomText(random, 24))

  function pinned(digest: Digest, size: number): PinnedBlob {
    pins.set(digest, (pins.get(digest) ?? 0) + 1)
    let held = true
    return {
      digest,
      size,
      [Symbol.dispose]() {
        if (!held) return
        held = false
        const left = (pins.get(digest) ?? 1) - 1
        if (left === 0) pins.delete(digest)
        else pins.set(digest, left)
      },
    }
  }

  /** Keeping and removing one digest never overlap: a put that finds the blob pins it before a removal can look. */
  function alone<T>(digest: Digest, act: () => Promise<T>): Promise<T> {
    const before = locks.get(digest) ?? Promise.resolve()
    const done = before.then(act)
    const settled = done.catch(() => {})
    locks.set(digest, settled)
    void settled.then(() => {
      if (locks.get(digest) === settled) locks.delete(digest)
    })
    return done
  }

  async function receive(bytes: AsyncIterable<Uint8Array>, options: PutOptions): Promise<IncomingFile> {
    const to = incomingPath()
    const discard = (): Promise<void> => rm(to, { force: true })
    try {
      const written = await writeAndHash(to, bytes, options)
      return { path: to, ...written, discard }
    } catch (error) {
      await discard()
      throw refusalOf(error)
    }
  }

  function keep(file: { path: string; digest: Digest; size: number }): Promise<PinnedBlob> {
    return alone(file.digest, async () => {
      const to = path(file.digest)
      await mkdir(dirname(to), { recursive: true })
      // What is there already may have been cut short, or be known for other bytes.
      if ((await fileSize(to)) !== file.size || damaged.has(file.digest)) {
        await rename(file.path, to)
        damaged.delete(file.digest)
        await syncDirectory(dirname(to))
      } else {
        await rm(file.path, { force: true })
      }
      return pinned(file.digest, file.size)
    })
  }

  return {
    path,
    incomingPath,
    receive,
    keep,
    async put(bytes, options) {
      const file = await receive(bytes, options)
      try {
        return await keep(file)
      } catch (error) {
        await file.discard()
        throw refusalOf(error)
      }
    },
    pin: (digest) =>
      alone(digest, async () => {
        const size = await fileSize(path(digest))
        return size === null ? null : pinned(digest, size)
      }),
    async open(digest, range) {
      // Opened before the answer: from here on the bytes stay readable, also when the blob is removed.
      const file = await open(path(digest), "r")
      return await reads.stream(file, digest, range)
    },
    async read(digest, maxBytes) {
      const file = await openIfThere(path(digest))
      return file && (await reads.whole(file, digest, maxBytes))
    },
    async readRange(digest, start, length) {
      const file = await openIfThere(path(digest))
      if (file === null) return null
      try {
        const piece = Buffer.allocUnsafe(length)
        const { bytesRead } = await file.read(piece, 0, length, start)
        return piece.subarray(0, bytesRead)
      } finally {
        await file.close()
      }
    },
    size: async (digest) => (damaged.has(digest) ? null : await fileSize(path(digest))),
    isDamaged,
    damaged: () => damaged,
    remove: (digest, isNeeded) =>
      alone(digest, async () => {
        if (pins.has(digest) || (await isNeeded())) return false
        await rm(path(digest), { force: true })
        damaged.delete(digest)
        return true
      }),
    async sweepIncoming(before) {
      let removed = 0
      for await (const entry of await opendir(incoming)) {
        const file = join(incoming, entry.name)
        if (!(await changedBefore(file, before))) continue
        await rm(file, { force: true })
        removed++
      }
      return removed
    },
    async *blobs(before) {
      for await (const folder of await opendir(blobs)) {
        for await (const entry of await opendir(join(blobs, folder.name))) {
          if (!DIGEST_PATTERN.test(entry.name)) continue
          if (await changedBefore(join(blobs, folder.name, entry.name), before)) yield asDigest(entry.name)
        }
      }
    },
  }
}

/** Where the blob of this digest lies below a data directory. */
export const blobPath = (root: string, digest: string): string => join(root, BLOBS, digest.slice(0, 2), digest)
const BLOBS = "blobs"

/** Writes until the stream ends, then syncs. One piece is in memory at a time: the next is asked for when this one is on its way. */
async function writeAndHash(
  path: string,
  bytes: AsyncIterable<Uint8Array>,
  options: PutOptions,
): Promise<{ digest: Digest; size: number }> {
  const file = await open(path, "wx", 0o600)
  try {
    const hash = createHash("sha256")
    const size = await writeAll(file, hash, bytes, options)
    const digest = asDigest(hash.digest("hex"))
    if (options.expectedDigest !== undefined && options.expectedDigest !== digest) {
      throw new ComputalotError("invalid_request", `the bytes have sha256 ${digest}, not ${options.expectedDigest}`, {
        recommendedAction: "Send the bytes that the digest was made of.",
      })
    }
    await file.sync()
    return { digest, size }
  } finally {
    await file.close()
  }
}

async function writeAll(
  file: FileHandle,
  hash: Hash,
  bytes: AsyncIterable<Uint8Array>,
  options: PutOptions,
): Promise<number> {
  let size = 0
  for await (const chunk of abortable(bytes, options.signal)) {
    size += chunk.byteLength
    if (size > options.maxBytes) throw tooLarge(options.maxBytes)
    hash.update(chunk)
    for (let at = 0; at < chunk.byteLength;) at += (await file.write(chunk, at)).bytesWritten
  }
  options.signal?.throwIfAborted()
  return size
}

/** The same pieces; an abort ends the wait for the next one at once. */
async function* abortable(
  bytes: AsyncIterable<Uint8Array>,
  signal: AbortSignal | undefined,
): AsyncIterable<Uint8Array> {
  if (signal === undefined) return yield* bytes
  signal.throwIfAborted()
  const aborted = Promise.withResolvers<never>()
  aborted.promise.catch(() => {})
  const abort = (): void => aborted.reject(signal.reason)
  signal.addEventListener("abort", abort, { once: true })
  const pieces = bytes[Symbol.asyncIterator]()
  try {
    while (true) {
      const next = await Promise.race([pieces.next(), aborted.promise])
      if (next.done === true) return
      yield next.value
    }
  } finally {
    signal.removeEventListener("abort", abort)
    // Not awaited: the source may be the very thing that hangs.
    void pieces.return?.().catch(() => {})
  }
}

function tooLarge(maxBytes: number): ComputalotError {
  return new ComputalotError("body_too_large", `the body is larger than ${maxBytes} bytes`, {
    recommendedAction: "Send less, or store large data elsewhere and refer to it.",
    details: { limit_bytes: maxBytes },
  })
}

/** A full disk is the deployment's trouble, not a bug: 503, and nothing was stored. */
function refusalOf(error: unknown): unknown {
  const code = (error as NodeJS.ErrnoException).code
  if (code !== "ENOSPC" && code !== "EDQUOT" && code !== "EROFS") return error
  return new ComputalotError("storage_full", `the coordinator cannot store more: ${errorText(error)}`, {
    recommendedAction: "Try again later; nothing was stored.",
    headers: { "Retry-After": "30" },
    cause: error,
  })
}

async function fileSize(path: string): Promise<number | null> {
  try {
    return (await stat(path)).size
  } catch (error) {
    if (isMissing(error)) return null
    throw error
  }
}

async function changedBefore(path: string, before: Instant): Promise<boolean> {
  try {
    return (await stat(path)).mtimeMs < before
  } catch (error) {
    if (isMissing(error)) return false
    throw error
  }
}

async function openIfThere(path: string): Promise<FileHandle | null> {
  try {
    return await open(path, "r")
  } catch (error) {
    if (isMissing(error)) return null
    throw error
  }
}

const isMissing = (error: unknown): boolean => (error as NodeJS.ErrnoException).code === "ENOENT"

/** A rename is durable once its directory is. */
async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, "r")
  try {
    await directory.sync()
  } finally {
    await directory.close()
  }
}
