import { z } from "zod"
import { decodeCbor, encodeCbor } from "../base/cbor.ts"
import { DIGEST_PATTERN } from "../domain/ids.ts"
import { LONGEST_GRANT } from "./content-grant.ts"
import type { StreamProtocol } from "./stream-protocol.ts"

/**
 * Pieces of blobs, from node to node and, as a last resort, from the coordinator (architecture §5.6). One stream fetches one
 * blob: the asker opens it with its grant, then asks for one thing at a time. Bulk follows a `bytes` frame as plain frames of
 * at most `CHUNK_BYTES`, so that progress shows within a piece and nothing is copied into an envelope.
 *
 * Version history: 1 the first.
 */
export const CONTENT_PROTOCOL: StreamProtocol = {
  name: "/computalot/content/1",
  largestFrameBytes: 256 * 1024,
  /** Two for each of the few blobs a node fetches at once. */
  streamsPerPeer: 16,
  /** About one piece: more only queues in our memory. */
  unsentBytes: 1024 * 1024,
}

/** One frame of bulk. */
export const CHUNK_BYTES = 256 * 1024

// ── asker → source ──────────────────────────────────────────────────────────────────────────────────────────────────

const requestSchema = z.discriminatedUnion("type", [
  /** First frame. Answered `have`, `absent`, `busy`, or `refused`. */
  z.strictObject({
    type: z.literal("open"),
    grant: z.string().max(LONGEST_GRANT),
    blob: z.string().regex(DIGEST_PATTERN),
  }),
  /** Which pieces now? Answered `have` or `absent`. */
  z.strictObject({ type: z.literal("have") }),
  /** The piece list. Answered `bytes` or `absent`. */
  z.strictObject({ type: z.literal("list") }),
  /** Answered `bytes`, `absent` or `busy`. */
  z.strictObject({ type: z.literal("piece"), index: z.int().nonnegative() }),
])
export type ContentRequest = z.infer<typeof requestSchema>

// ── source → asker ──────────────────────────────────────────────────────────────────────────────────────────────────

const replySchema = z.discriminatedUnion("type", [
  z.strictObject({ type: z.literal("have"), pieces: z.instanceof(Uint8Array) }),
  /** `size` bytes follow as plain frames. */
  z.strictObject({ type: z.literal("bytes"), size: z.int().nonnegative() }),
  z.strictObject({ type: z.literal("absent") }),
  /** Others are served first: come back later, or ask somebody else. */
  z.strictObject({ type: z.literal("busy"), retry_ms: z.int().nonnegative() }),
  /** No valid grant for this blob. Says nothing about whether the blob is here. The stream ends after it. */
  z.strictObject({ type: z.literal("refused") }),
])
export type ContentReply = z.infer<typeof replySchema>

export function encodeContent(message: ContentRequest | ContentReply): Uint8Array {
  return encodeCbor(message)
}

/** The request in `frame`; null when it is none, and the stream is then reset. */
export function decodeContentRequest(frame: Uint8Array): ContentRequest | null {
  return parse(requestSchema, frame)
}

/** The reply in `frame`; null when it is none, and the peer is then dropped. */
export function decodeContentReply(frame: Uint8Array): ContentReply | null {
  return parse(replySchema, frame)
}

function parse<T>(schema: z.ZodType<T>, frame: Uint8Array): T | null {
  try {
    return schema.parse(decodeCbor(frame))
  } catch {
    return null
  }
}
