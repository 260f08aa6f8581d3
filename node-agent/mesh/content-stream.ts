import type { Clock } from "../../protocol/base/clock.ts"
import type { PeerId } from "../../protocol/domain/ids.ts"
import {
  CONTENT_PROTOCOL,
  decodeContentReply,
  encodeContent,
  type ContentReply,
  type ContentRequest,
} from "../../protocol/wire/content.ts"
import type { Mesh } from "../../protocol/mesh/mesh.ts"
import { within } from "../../protocol/mesh/within.ts"

/** Who may have a blob, and where to dial it when it is not connected. */
export interface ContentHolder {
  peer: PeerId
  addresses: string[]
}

/** The asking end of the content protocol: one question at a time, each answered or broken off within seconds. */
export interface ContentStream extends Disposable {
  /** `largestBytes`: a source that announces more is broken off. Rejects when the source stalls, breaks off or talks nonsense. */
  ask(request: ContentRequest, largestBytes?: number): Promise<ContentAnswer>
}

/** A reply with its bulk. */
export type ContentAnswer = Exclude<ContentReply, { type: "bytes" }> | { type: "bytes"; bytes: Uint8Array }

/** Opens a stream to `holder`, dialling its addresses in turn when it is not connected. */
export async function openContentStream(
  mesh: Pick<Mesh, "peers" | "dial" | "openStream">,
  clock: Clock,
  holder: ContentHolder,
  signal: AbortSignal,
): Promise<ContentStream> {
  if (!mesh.peers().includes(holder.peer)) await dialAny(mesh, holder, signal)
  const stream = await mesh.openStream(holder.peer, CONTENT_PROTOCOL, signal)
  const frames = stream.frames()[Symbol.asyncIterator]()

  async function nextFrame(withinMs: number): Promise<Uint8Array> {
    const next = await within(clock, withinMs, stream, frames.next(), signal)
    if (next.done === true) throw new Error("the source hung up")
    return next.value
  }

  async function readBytes(size: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(size)
    const until = clock.monotonicMs() + STALL_MS + size / SLOWEST_BYTES_PER_MS
    for (let filled = 0; filled < size;) {
      const left = until - clock.monotonicMs()
      if (left <= 0) throw new Error("the source sends too slowly")
      const chunk = await nextFrame(Math.min(STALL_MS, left))
      if (chunk.length === 0 || chunk.length > size - filled)
        throw new Error("the source sent other bytes than announced")
      bytes.set(chunk, filled)
      filled += chunk.length
    }
    return bytes
  }

  /** Between questions both halves close in peace; in the middle of an answer only a reset stops it. */
  let asking = false

  return {
    async ask(request, largestBytes = 0) {
      asking = true
      await within(clock, STALL_MS, stream, stream.send(encodeContent(request)), signal)
      const reply = decodeContentReply(await nextFrame(STALL_MS))
      if (reply === null) throw new Error("the source's reply is malformed")
      if (reply.type === "bytes" && reply.size > largestBytes) throw new Error("the source announced too many bytes")
      const answer = reply.type === "bytes" ? { type: reply.type, bytes: await readBytes(reply.size) } : reply
      asking = false
      return answer
    },
    [Symbol.dispose]() {
      if (asking) stream.reset("the answer is no longer wanted")
      else stream.close().catch(() => stream.reset("closing failed"))
    },
  }
}

async function dialAny(mesh: Pick<Mesh, "dial">, holder: ContentHolder, signal: AbortSignal): Promise<void> {
  let problem: unknown = new Error("the holder has no address")
  for (const address of holder.addresses) {
    try {
      const reached = await mesh.dial(address, signal)
      if (reached === holder.peer) return
      problem = new Error(`another peer answers at ${address}`)
    } catch (error) {
      signal.throwIfAborted()
      problem = error
    }
  }
  throw problem
}

/** A source must send the next frame within this. */
const STALL_MS = 5_000
/** And its frames must add up: 50 KB/s are the least that is worth waiting for. */
const SLOWEST_BYTES_PER_MS = 50
