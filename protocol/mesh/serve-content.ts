import type { Clock } from "../base/clock.ts"
import type { Log } from "../base/log.ts"
import { digest, type Digest, type PeerId } from "../domain/ids.ts"
import { CONTENT_GRANT_SKEW_MS, grantedBlob, verifyContentGrant } from "../wire/content-grant.ts"
import type { ContentRef, ContentSource } from "../wire/content-source.ts"
import {
  CHUNK_BYTES,
  CONTENT_PROTOCOL,
  decodeContentRequest,
  encodeContent,
  type ContentReply,
  type ContentRequest,
} from "../wire/content.ts"
import type { Mesh, MeshStream } from "./mesh.ts"
import { createTurns } from "./turns.ts"
import { within } from "./within.ts"

export interface ServeContentParts {
  coordinatorPublicKey: Uint8Array
  /** Is this member cut off? Asked at every request. */
  revoked: (peer: PeerId) => boolean
  clock: Clock
  log: Log
  limits: ServeLimits
  /** Asked when a granted blob is not here: is it being made again? Then the asker is told to come back. */
  remakes?: (blob: Digest) => boolean
  /** Told of every piece that was sent whole. */
  sent?: (piece: { to: PeerId; blob: Digest; bytes: number }) => void
}

export interface ServeLimits {
  /** Streams served at once, over all peers; the next is told to come back. */
  streams: number
  /** Pieces and lists read and sent at once. Peers take turns. */
  sends: number
  /**
   * Peers that are sent pieces of one blob at once; the next is told to come back, and meanwhile asks those. A peer that takes
   * nothing for a few seconds counts no more. Null: no limit.
   */
  copiesPerBlob: number | null
}

/**
 * Serves blobs to members that show a grant. Without a valid grant that names the blob the answer is `refused`, whether or not
 * the blob is here. Ends with the mesh.
 */
export function serveContent(mesh: Mesh, source: ContentSource, parts: ServeContentParts): void {
  const { clock, limits } = parts
  const turns = createTurns(limits.sends, clock)
  /** By blob and peer: until when (monotonic) the peer counts as being sent the blob. */
  const copies = new Map<Digest, Map<PeerId, number>>()
  let streams = 0

  mesh.serve(CONTENT_PROTOCOL, async (stream, from) => {
    const requests = stream.frames()[Symbol.asyncIterator]()
    const opening = await nextRequest(stream, requests)
    if (opening?.type !== "open") return stream.reset("the first frame opens the stream")
    const granted = judge(opening, from)
    if (granted === null) return await end(stream, { type: "refused" })
    const { blob, until } = granted
    if (streams >= limits.streams || crowded(blob.digest, from)) {
      return await end(stream, { type: "busy", retry_ms: BUSY_RETRY_MS })
    }
    streams++
    try {
      for (let request: ContentRequest | null = opening; request !== null;) {
        if (clock.now() >= until || parts.revoked(from)) return await end(stream, { type: "refused" })
        countCopy(blob.digest, from)
        await answer(stream, from, blob, request)
        request = await nextRequest(stream, requests)
      }
      await stream.close()
    } finally {
      streams--
      forgetCopies(blob.digest)
    }
  })

  function judge(
    opening: Extract<ContentRequest, { type: "open" }>,
    from: PeerId,
  ): { blob: ContentRef; until: number } | null {
    const verdict = verifyContentGrant(opening.grant, parts.coordinatorPublicKey, from, clock.now())
    const refuse = (reason: string): null => {
      parts.log.debug("content refused", { peer: from, reason })
      return null
    }
    if (parts.revoked(from)) return refuse("revoked")
    if (!verdict.valid) return refuse(verdict.reason)
    const blob = grantedBlob(verdict.grant, digest(opening.blob))
    return blob === null ? refuse("foreign blob") : { blob, until: verdict.grant.expiresAt + CONTENT_GRANT_SKEW_MS }
  }

  function crowded(blob: Digest, from: PeerId): boolean {
    const peers = copies.get(blob)
    if (limits.copiesPerBlob === null || peers === undefined || peers.has(from)) return false
    const now = clock.monotonicMs()
    for (const [peer, until] of peers) if (until <= now) peers.delete(peer)
    return peers.size >= limits.copiesPerBlob
  }

  function countCopy(blob: Digest, from: PeerId): void {
    if (limits.copiesPerBlob === null) return
    const peers = copies.get(blob) ?? new Map<PeerId, number>()
    copies.set(blob, peers.set(from, clock.monotonicMs() + COPY_COUNTS_MS))
  }

  /** When a stream ends: a blob that nobody takes any more is forgotten. */
  function forgetCopies(blob: Digest): void {
    const now = clock.monotonicMs()
    const taken = [...(copies.get(blob)?.values() ?? [])].some((until) => until > now)
    if (!taken) copies.delete(blob)
  }

  async function answer(stream: MeshStream, from: PeerId, blob: ContentRef, request: ContentRequest): Promise<void> {
    const here = await source.has(blob.digest)
    // A blob that was cut by another list has other pieces: for this grant it is not here.
    if (here === null || here.pieceListDigest !== blob.pieceListDigest) {
      const comes = here === null && parts.remakes?.(blob.digest) === true
      return reply(stream, comes ? { type: "busy", retry_ms: BUSY_RETRY_MS } : { type: "absent" })
    }
    switch (request.type) {
      case "open":
      case "have": {
        const pieces = await source.bitmap(blob.digest)
        return reply(stream, pieces === null ? { type: "absent" } : { type: "have", pieces })
      }
      case "list": {
        using turn = await turns.enter(from, TURN_PATIENCE_MS)
        if (turn === null) return reply(stream, { type: "busy", retry_ms: BUSY_RETRY_MS })
        const list = await source.pieceList(blob.digest)
        return await (list === null ? reply(stream, { type: "absent" }) : sendBytes(stream, list))
      }
      case "piece": {
        using turn = await turns.enter(from, TURN_PATIENCE_MS)
        if (turn === null) return reply(stream, { type: "busy", retry_ms: BUSY_RETRY_MS })
        const piece = await source.readPiece(blob.digest, request.index)
        if (piece === null) return reply(stream, { type: "absent" })
        await sendBytes(stream, piece)
        return parts.sent?.({ to: from, blob: blob.digest, bytes: piece.length })
      }
    }
  }

  async function nextRequest(stream: MeshStream, requests: AsyncIterator<Uint8Array>): Promise<ContentRequest | null> {
    const next = await within(clock, REQUEST_WITHIN_MS, stream, requests.next())
    if (next.done === true) return null
    const request = decodeContentRequest(next.value)
    if (request === null) throw new Error("not a content request")
    return request
  }

  async function end(stream: MeshStream, last: ContentReply): Promise<void> {
    await reply(stream, last)
    await within(clock, SEND_WITHIN_MS, stream, stream.close())
  }

  async function reply(stream: MeshStream, message: ContentReply): Promise<void> {
    await within(clock, SEND_WITHIN_MS, stream, stream.send(encodeContent(message)))
  }

  async function sendBytes(stream: MeshStream, bytes: Uint8Array): Promise<void> {
    await reply(stream, { type: "bytes", size: bytes.length })
    for (let at = 0; at < bytes.length; at += CHUNK_BYTES) {
      await within(clock, SEND_WITHIN_MS, stream, stream.send(bytes.subarray(at, at + CHUNK_BYTES)))
    }
  }
}

/** A stream without requests is closed: it holds a place that another could use. */
const REQUEST_WITHIN_MS = 10_000
/** Longer than a slow disk takes to write a piece, shorter than others like to wait for a copy that nobody fetches. */
const COPY_COUNTS_MS = 3_000
/** A peer must take one chunk (256 KiB) in this time, or it is let go. */
const SEND_WITHIN_MS = 15_000
/** So long a request waits for its turn; the asker then tries another source instead of taking us for dead. */
const TURN_PATIENCE_MS = 2_000
const BUSY_RETRY_MS = 1_000
