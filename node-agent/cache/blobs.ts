import { constants } from "node:fs"
import { copyFile, mkdir, open, rename, rm, stat, utimes, type FileHandle } from "node:fs/promises"
import { join } from "node:path"
import { assert } from "../../protocol/base/assert.ts"
import type { Clock, Instant } from "../../protocol/base/clock.ts"
import type { Log } from "../../protocol/base/log.ts"
import { ComputalotError } from "../../protocol/domain/errors.ts"
import type { Digest } from "../../protocol/domain/ids.ts"
import type { ContentRef, ContentSource } from "../../protocol/wire/content-source.ts"
import {
  encodePieceList,
  LARGEST_BLOB_BYTES,
  PIECE_BYTES,
  pieceBytesFor,
  pieceCount,
  pieceDigest,
  pieceListDigest,
  pieceRange,
  type PieceList,
} from "../../protocol/wire/piece-list.ts"
import {
  addPiece,
  emptyPieceSet,
  fullPieceSet,
  hasPiece,
  removePiece,
  type PieceSet,
} from "../../protocol/wire/piece-set.ts"
import { listPath, partialPath, readRange, scanBlobFiles, syncPath, wholePath, writeAll } from "./blob-files.ts"
import { chooseEvictions, type EvictionCandidate } from "./eviction.ts"
import type { Hasher } from "./hasher.ts"

/**
 * Blobs on this node's disk, named by sha256 (architecture §5.6). Whole ones and those still being downloaded, both served to
 * peers piece by piece. Stays within its quota by dropping what was used longest ago, never what is pinned or being written.
 */
export interface Blobs extends ContentSource, AsyncDisposable {
  /** The whole blob, when it is here. Does not read it. */
  find(digest: Digest): ContentRef | null
  /**
   * Stores a file's or a stream's bytes; the file is copied and stays. Pinned for `holder`, when given, from the moment it is
   * here. Bytes already stored: the same reference again. Rejects with `storage_full` when they do not fit.
   */
  put(from: BlobInput, options?: { holder?: string; signal?: AbortSignal }): Promise<ContentRef>
  /**
   * Begins or resumes a download. Null when the blob is whole by now. Only one may write a blob at a time. `list` must be the
   * one that `blob` names. Rejects with `storage_full` when the blob does not fit.
   */
  begin(blob: ContentRef, list: PieceList): Promise<PartialBlob | null>
  /**
   * The file of a whole blob, pinned for `holder` until `unpin`; never to be written to. Its bytes are checked once after
   * every start. Null when it is absent or was damaged, and then it is dropped.
   */
  open(digest: Digest, holder: string): Promise<{ path: string; size: number } | null>
  /** Keeps a blob from eviction, also one that is not here yet. Pinning twice needs unpinning twice. */
  pin(digest: Digest, holder: string): void
  /** Gives one pin back. Without one nothing happens. */
  unpin(digest: Digest, holder: string): void
  /** Has everything else evicted before this blob, also when it is not here yet. Sparing twice is sparing once. */
  spare(digest: Digest, holder: string): void
  /** Gives back all that `holder` pins or spares. */
  unpinAll(holder: string): void
  usage(): { bytes: number; quotaBytes: number; blobs: number }
}

export type BlobInput = { file: string } | { stream: AsyncIterable<Uint8Array> }

/** A blob being downloaded. Disposing keeps what has arrived, for another time. */
export interface PartialBlob extends AsyncDisposable {
  /** The pieces that are here: grows with `write`. */
  readonly have: PieceSet
  /** Keeps a piece whose bytes are right; false when they are not. Only kept pieces are ever served. */
  write(index: number, bytes: Uint8Array): Promise<boolean>
  /**
   * Makes the blob whole, once every piece is here: synced, renamed, found by `find`. Throws when the pieces are all right but
   * the whole is not: then the list was never this blob's, and everything is dropped.
   */
  finish(): Promise<ContentRef>
}

export interface BlobsParts {
  directory: string
  quotaBytes: number
  clock: Clock
  log: Log
  hasher: Hasher
}

interface Entry {
  blob: ContentRef
  list: PieceList
  whole: boolean
  /** Null for a partial blob of an earlier run until `begin` has looked at its bytes. */
  have: PieceSet | null
  /** Were the whole blob's bytes seen to be right since the start? */
  checked: boolean
  writing: boolean
  lastUsedAt: Instant
  touchedAt: Instant
}

/**
 * Opens the store in `directory` and sweeps what a crash left half done. Which pieces a partial blob holds is written nowhere:
 * a resumed download hashes the file, so no crash can make it claim too much.
 */
export async function openBlobs(parts: BlobsParts): Promise<Blobs> {
  const { directory, quotaBytes, clock, log, hasher } = parts
  await mkdir(directory, { recursive: true })
  const entries = new Map<Digest, Entry>()
  for (const { list, whole, lastUsedAt } of await scanBlobFiles(directory)) {
    entries.set(list.digest, { ...newEntry(list, whole, lastUsedAt), checked: false, have: whole ? allOf(list) : null })
  }
  const pins = new Map<Digest, Map<string, number>>()
  const spared = new Map<Digest, Set<string>>()
  /** Evicted blobs whose files are still being deleted: nobody may write them anew before. */
  const leaving = new Map<Digest, Promise<void>>()
  /** Bytes promised to puts that are under way. */
  let reserved = 0
  let lastTemporary = 0

  const temporaryPath = (): string => join(directory, `${process.pid}-${++lastTemporary}.tmp`)
  const pathOf = (entry: Entry): string => (entry.whole ? wholePath : partialPath)(directory, entry.blob.digest)

  /** Evicts until `bytes` more fit and promises them to the caller. Who is chosen is gone from memory before anything waits. */
  async function reserve(bytes: number): Promise<void> {
    const evicted = chooseEvictions(candidates(), reserved + bytes, quotaBytes)
    if (evicted === null) throw cacheFull(bytes, quotaBytes)
    reserved += bytes
    for (const blob of evicted) log.info("blob evicted", { blob })
    await Promise.all(evicted.map((blob) => forget(blob)))
  }

  function candidates(): EvictionCandidate[] {
    return [...entries.values()].map((entry) => ({
      digest: entry.blob.digest,
      bytes: entry.blob.size,
      lastUsedAt: entry.lastUsedAt,
      kept: entry.writing || pins.has(entry.blob.digest),
      spared: spared.has(entry.blob.digest),
    }))
  }

  async function forget(blob: Digest): Promise<void> {
    entries.delete(blob)
    const paths = [wholePath, partialPath, listPath].map((path) => path(directory, blob))
    const gone = Promise.all(paths.map((path) => rm(path, { force: true }))).then(() => undefined)
    leaving.set(blob, gone)
    await gone.finally(() => {
      if (leaving.get(blob) === gone) leaving.delete(blob)
    })
  }

  async function dropDamaged(entry: Entry): Promise<void> {
    log.warn("damaged blob dropped", { blob: entry.blob.digest })
    if (entries.get(entry.blob.digest) === entry) await forget(entry.blob.digest)
  }

  /** Remembers the use, on disk at most once a minute: eviction after a restart goes by the file's time. */
  function use(entry: Entry): void {
    const now = clock.now()
    entry.lastUsedAt = now
    if (now - entry.touchedAt < TOUCH_INTERVAL_MS) return
    entry.touchedAt = now
    void utimes(pathOf(entry), now / 1000, now / 1000).catch(() => {})
  }

  async function writeList(list: PieceList): Promise<void> {
    if (list.size <= PIECE_BYTES) return
    const temporary = temporaryPath()
    await using file = await open(temporary, "wx")
    await writeAll(file, encodePieceList(list), 0)
    await file.sync()
    await rename(temporary, listPath(directory, list.digest))
  }

  /** Takes the finished, synced file `from` into the store. */
  async function install(from: string, list: PieceList): Promise<Entry> {
    await leaving.get(list.digest)
    await writeList(list)
    await rename(from, wholePath(directory, list.digest))
    await syncPath(directory)
    const entry = newEntry(list, true, clock.now())
    entries.set(list.digest, entry)
    return entry
  }

  /** Writes the input to `temporary`, asking `hold` for the room before it is used. */
  async function receive(
    from: BlobInput,
    temporary: string,
    hold: (bytes: number) => Promise<void>,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    if ("file" in from) {
      await hold((await stat(from.file)).size)
      await copyFile(from.file, temporary, constants.COPYFILE_FICLONE)
    } else {
      await using file = await open(temporary, "wx")
      let written = 0
      let held = 0
      for await (const chunk of from.stream) {
        signal?.throwIfAborted()
        if (written + chunk.length > held) {
          const more = Math.max(chunk.length, RESERVE_STEP_BYTES)
          await hold(more)
          held += more
        }
        await writeAll(file, chunk, written)
        written += chunk.length
      }
    }
    signal?.throwIfAborted()
  }

  const blobs: Blobs = {
    find(blob) {
      const entry = entries.get(blob)
      if (!entry?.whole) return null
      use(entry)
      return entry.blob
    },

    async put(from, { holder, signal } = {}) {
      const temporary = temporaryPath()
      let held = 0
      const hold = async (bytes: number): Promise<void> => {
        await reserve(bytes)
        held += bytes
      }
      try {
        await receive(from, temporary, hold, signal)
        const { size } = await stat(temporary)
        if (size > LARGEST_BLOB_BYTES) throw cacheFull(size, quotaBytes)
        const list = await hasher.file(temporary, pieceBytesFor(size))
        const known = entries.get(list.digest)
        if (known?.whole) {
          use(known)
          if (holder !== undefined) blobs.pin(list.digest, holder)
          return known.blob
        }
        await syncPath(temporary)
        const entry = await install(temporary, list)
        if (holder !== undefined) blobs.pin(list.digest, holder)
        // A download of the same blob that is under way sees at its next step that it is whole.
        if (known !== undefined) await rm(partialPath(directory, list.digest), { force: true })
        return entry.blob
      } catch (error) {
        throw spaceError(error)
      } finally {
        reserved -= held
        await rm(temporary, { force: true })
      }
    },

    async begin(blob, list) {
      await leaving.get(blob.digest)
      const known = entries.get(blob.digest)
      if (known?.whole) return null
      assert(known?.writing !== true, "one writer per partial blob")
      let entry = known
      // A crash may have come before a new file got its size, which is all that is known of a blob of one piece.
      if (entry && (entry.blob.pieceListDigest !== blob.pieceListDigest || entry.blob.size !== blob.size)) {
        await forget(blob.digest)
        entry = undefined
      }
      if (entry === undefined) {
        await reserve(list.size)
        entry = { ...newEntry(list, false, clock.now()), have: emptyPieceSet(pieceCount(list)) }
        entries.set(blob.digest, entry)
        reserved -= list.size
      }
      entry.writing = true
      try {
        await writeList(list)
        const have = entry.have ?? (await piecesIn(partialPath(directory, blob.digest), list, hasher))
        entry.have = have
        use(entry)
        const file = await open(partialPath(directory, blob.digest), constants.O_RDWR | constants.O_CREAT)
        await file.truncate(list.size)
        return partial(entry, have, file)
      } catch (error) {
        entry.writing = false
        throw spaceError(error)
      }
    },

    async open(blob, holder) {
      const entry = entries.get(blob)
      if (!entry?.whole) return null
      blobs.pin(blob, holder)
      use(entry)
      if (!entry.checked) {
        const hashed = await hasher.file(wholePath(directory, blob), entry.list.pieceBytes).catch(() => null)
        entry.checked = hashed?.digest === blob
        if (!entry.checked) {
          blobs.unpin(blob, holder)
          await dropDamaged(entry)
          return null
        }
      }
      return { path: wholePath(directory, blob), size: entry.blob.size }
    },

    pin(blob, holder) {
      const holders = pins.get(blob) ?? new Map<string, number>()
      holders.set(holder, (holders.get(holder) ?? 0) + 1)
      pins.set(blob, holders)
    },

    unpin(blob, holder) {
      const holders = pins.get(blob)
      const count = holders?.get(holder)
      if (holders === undefined || count === undefined) return
      if (count > 1) holders.set(holder, count - 1)
      else holders.delete(holder)
      if (holders.size === 0) pins.delete(blob)
    },

    spare(blob, holder) {
      spared.set(blob, (spared.get(blob) ?? new Set()).add(holder))
    },

    unpinAll(holder) {
      for (const held of [pins, spared]) {
        for (const [blob, holders] of held) {
          holders.delete(holder)
          if (holders.size === 0) held.delete(blob)
        }
      }
    },

    usage() {
      let bytes = reserved
      for (const entry of entries.values()) bytes += entry.blob.size
      return { bytes, quotaBytes, blobs: entries.size }
    },

    async has(blob) {
      const entry = entries.get(blob)
      return entry?.have ? entry.blob : null
    },

    async bitmap(blob) {
      return entries.get(blob)?.have?.slice() ?? null
    },

    async pieceList(blob) {
      const entry = entries.get(blob)
      return entry === undefined ? null : encodePieceList(entry.list)
    },

    async readPiece(blob, index) {
      const entry = entries.get(blob)
      if (entry === undefined || !entry.have || index >= pieceCount(entry.list) || !hasPiece(entry.have, index))
        return null
      use(entry)
      const bytes = await readRange(pathOf(entry), pieceRange(entry.list, index))
      if (bytes !== null && (await isPiece(bytes, entry.list, index, hasher))) return bytes
      // A whole blob that is damaged goes; a piece that is damaged while we download is fetched once more.
      if (entry.whole) await dropDamaged(entry)
      else if (entries.get(blob) === entry) removePiece(entry.have, index)
      return null
    },

    async [Symbol.asyncDispose]() {
      await hasher[Symbol.asyncDispose]()
    },
  }

  function partial(entry: Entry, have: PieceSet, file: FileHandle): PartialBlob {
    let open = true
    const close = async (): Promise<void> => {
      if (!open) return
      open = false
      entry.writing = false
      await file.close()
    }
    return {
      have,
      async write(index, bytes) {
        if (hasPiece(have, index)) return true
        if (bytes.length !== pieceRange(entry.list, index).length) return false
        if (!(await isPiece(bytes, entry.list, index, hasher))) return false
        try {
          await writeAll(file, bytes, pieceRange(entry.list, index).offset)
        } catch (error) {
          throw spaceError(error)
        }
        addPiece(have, index)
        return true
      },
      async finish() {
        const blob = entry.blob.digest
        const whole = entries.get(blob)
        if (whole?.whole) return (await close(), whole.blob)
        await file.sync()
        const hashed = await hasher.file(partialPath(directory, blob), entry.list.pieceBytes)
        await close()
        if (hashed.digest !== blob) {
          await forget(blob)
          throw new Error(`the piece list ${entry.blob.pieceListDigest} is not that of blob ${blob}`)
        }
        const finished = await install(partialPath(directory, blob), entry.list)
        finished.checked = true
        return finished.blob
      },
      [Symbol.asyncDispose]: close,
    }
  }

  // The quota may be smaller than it was.
  await reserve(0)
  return blobs
}

function newEntry(list: PieceList, whole: boolean, at: Instant): Entry {
  return {
    blob: { digest: list.digest, size: list.size, pieceListDigest: pieceListDigest(list) },
    list,
    whole,
    have: whole ? allOf(list) : null,
    checked: whole,
    writing: false,
    lastUsedAt: at,
    touchedAt: at,
  }
}

const allOf = (list: PieceList): PieceSet => fullPieceSet(pieceCount(list))

/** Which pieces of a partial blob's file are right. */
async function piecesIn(path: string, list: PieceList, hasher: Hasher): Promise<PieceSet> {
  const have = emptyPieceSet(pieceCount(list))
  const hashed = await hasher.file(path, list.pieceBytes).catch(() => null)
  if (hashed === null) return have
  for (let index = 0; index < hashed.pieces.length / 32; index++) {
    const right = Buffer.compare(hashed.pieces.subarray(index * 32, index * 32 + 32), pieceDigest(list, index)) === 0
    if (right) addPiece(have, index)
  }
  return have
}

async function isPiece(bytes: Uint8Array, list: PieceList, index: number, hasher: Hasher): Promise<boolean> {
  return Buffer.compare(await hasher.piece(bytes), pieceDigest(list, index)) === 0
}

function cacheFull(bytes: number, quotaBytes: number): ComputalotError {
  return new ComputalotError("storage_full", `the cache has no room for ${bytes} more bytes of its ${quotaBytes}`, {
    recommendedAction: "Give the node a larger cache (--cache-gb), or wait until running tasks end.",
  })
}

/** A full disk is the same refusal as a full quota. */
function spaceError(error: unknown): unknown {
  const code = error instanceof Error && "code" in error ? error.code : undefined
  if (code !== "ENOSPC" && code !== "EDQUOT") return error
  return new ComputalotError("storage_full", "the disk of the cache is full", {
    recommendedAction: "Free space on the cache's disk.",
    cause: error,
  })
}

/** Eviction order survives restarts to the minute. */
const TOUCH_INTERVAL_MS = 60_000
/** A stream of unknown length asks for room in steps of this. */
const RESERVE_STEP_BYTES = 1024 * 1024
