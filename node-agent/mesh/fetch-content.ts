import { ComputalotError } from "../../protocol/domain/errors.ts"
import type { Digest } from "../../protocol/domain/ids.ts"
import { createTurns } from "../../protocol/mesh/turns.ts"
import type { ContentRef } from "../../protocol/wire/content-source.ts"
import { PIECE_BYTES } from "../../protocol/wire/piece-list.ts"
import type { ContentHolder } from "./content-stream.ts"
import { createDownload, type Download, type Downloaded, type DownloadParts } from "./download.ts"

/** Fetches blobs from other members into this node's cache (architecture §5.6). */
export interface FetchContent {
  /**
   * Makes the blob whole in the cache, from peers at first and the origin at last. Here already: resolves at once. Calls for
   * the same blob share one download, with the sources of all of them; it goes on until the last caller has given up, and what
   * has arrived by then is kept for another time. Pin the blob before, so that it stays. Rejects with `unavailable`,
   * `storage_full`, or the signal's reason.
   */
  fetchBlob(blob: ContentRef, from: FetchFrom): Promise<Downloaded>
}

export interface FetchFrom {
  /** Members that may have the blob, whole or in part. */
  holders: readonly ContentHolder[]
  /** The coordinator, asked only for what no peer gives; null when it has no copy. */
  origin: ContentHolder | null
  /** Signed by the coordinator for this node; names the blob. */
  grant: string
  signal: AbortSignal
}

interface Running {
  download: Download
  callers: number
  ending: AbortController
  ended: Promise<Downloaded>
}

export function createFetchContent(parts: DownloadParts): FetchContent {
  const running = new Map<Digest, Running>()
  const turns = createTurns(DOWNLOADS, parts.clock)

  function start(blob: ContentRef): Running {
    const download = createDownload(parts, blob)
    const ending = new AbortController()
    const started: Running = { download, callers: 0, ending, ended: runInTurn(blob, download, ending.signal) }
    running.set(blob.digest, started)
    const forget = (): void => void running.delete(blob.digest)
    started.ended.then(forget, forget)
    return started
  }

  async function runInTurn(blob: ContentRef, download: Download, signal: AbortSignal): Promise<Downloaded> {
    using _turn = await turns.enter(blob.digest, Number.MAX_SAFE_INTEGER)
    signal.throwIfAborted()
    const fetched = await download.run(signal)
    const { bytesFromPeers, bytesFromOrigin } = fetched
    parts.log.info("content fetched", { blob: blob.digest, from_peers: bytesFromPeers, from_origin: bytesFromOrigin })
    return fetched
  }

  return {
    async fetchBlob(blob, from) {
      from.signal.throwIfAborted()
      checkRef(blob)
      for (;;) {
        const here = parts.blobs.find(blob.digest)
        if (here !== null) return { blob: here, bytesFromPeers: 0, bytesFromOrigin: 0, culprits: [] }
        const known = running.get(blob.digest)
        if (known?.ending.signal.aborted !== true) break
        // Its last caller gave up a moment ago: its file must be closed before another writes it.
        await known.ended.catch(() => {})
      }
      const shared = running.get(blob.digest) ?? start(blob)
      shared.download.addSources(from.holders, from.origin, from.grant)
      shared.callers++
      try {
        return await untilAborted(shared.ended, from.signal)
      } finally {
        shared.callers--
        if (shared.callers === 0) shared.ending.abort(new Error("nobody waits for the blob any more"))
      }
    },
  }
}

/** Whoever published the blob may have written nonsense: what is larger than a piece needs a list, what is smaller has none. */
function checkRef(blob: ContentRef): void {
  if ((blob.pieceListDigest === null) === blob.size <= PIECE_BYTES) return
  throw new ComputalotError(
    "unavailable",
    `the reference to blob ${blob.digest} is malformed: its piece list does not fit its size`,
  )
}

/** Downloads at work at once; further ones wait. Each has up to four pieces in memory. */
const DOWNLOADS = 4

function untilAborted<T>(outcome: Promise<T>, signal: AbortSignal): Promise<T> {
  const { promise: aborted, reject } = Promise.withResolvers<never>()
  const abort = (): void => reject(signal.reason as Error)
  signal.addEventListener("abort", abort, { once: true })
  return Promise.race([outcome, aborted]).finally(() => signal.removeEventListener("abort", abort))
}
