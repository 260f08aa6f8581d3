import type { Stream } from "@libp2p/interface"
import type { Clock, Timer } from "../base/clock.ts"
import type { PeerId } from "../domain/ids.ts"
import { createFrameDecoder, encodeFrame, FrameTooLong } from "../wire/frames.ts"
import type { StreamProtocol } from "../wire/stream-protocol.ts"
import type { MeshStream } from "./mesh.ts"
import { saveWindowUpdates } from "./window-updates.ts"

/**
 * Frames over a libp2p stream. libp2p's own ways of waiting are not used, because they lose memory or hang: `onDrain()`
 * works once only, `for await` over a stream reads without limit and misses an end that came before it, and `send`
 * buffers for ever. Here unsent frames wait in a queue of our own, and received ones pause the stream.
 */
export function wrapStream(stream: Stream, peer: PeerId, protocol: StreamProtocol, clock: Clock): MeshStream {
  saveWindowUpdates(stream)
  const ended = new AbortController()
  let failure: Error | null = null

  function fail(error: Error): void {
    failure ??= error
    stream.abort(failure)
    finish()
  }

  function finish(): void {
    blocked?.cancel()
    blocked = null
    if (failure !== null) dropPending()
    for (const waiter of waiters.splice(0)) waiter.reject(failure ?? new Error("the stream is closed"))
    wakeReader()
    if (!ended.signal.aborted) ended.abort(failure ?? new Error("the stream is closed"))
  }

  // A connection that breaks closes its streams without an error; only the other side's own word is a clean end.
  let remoteClosedItsHalf = stream.status === "open" && stream.remoteWriteStatus !== "writable"
  stream.addEventListener("remoteCloseWrite", () => {
    remoteClosedItsHalf = true
  })
  stream.addEventListener("close", (event) => {
    if (event.error !== undefined) failure ??= event.error
    else if (!remoteClosedItsHalf) failure ??= new Error(`${protocol.name}: the connection closed`)
    // Both halves are closed. Bytes that were held back while we paused are still there and come at resume.
    if (stream.readBufferLength === 0) remoteEnded = true
    finish()
  })

  // ── sending ──

  /** Frames that libp2p has not got yet, in order. */
  let pending: Uint8Array[] = []
  let pendingBytes = 0
  let sentBytes = 0
  let takenAtWatch = 0
  let flushing = false
  let closing = false
  let blocked: Timer | null = null
  const waiters: { below: number; resolve: () => void; reject: (error: Error) => void }[] = []

  const unsentBytes = (): number => pendingBytes + stream.writeBufferLength

  function dropPending(): void {
    pending = []
    pendingBytes = 0
  }

  function send(body: Uint8Array): Promise<void> {
    if (body.length > protocol.largestFrameBytes) {
      return Promise.reject(new Error(`a frame of ${body.length} bytes is longer than ${protocol.name} allows`))
    }
    if (failure !== null || closing || ended.signal.aborted) {
      return Promise.reject(failure ?? new Error("the stream is closed"))
    }
    const frame = encodeFrame(body)
    pending.push(frame)
    pendingBytes += frame.length
    sentBytes += frame.length
    if (unsentBytes() > 2 * Math.max(protocol.unsentBytes, frame.length)) {
      fail(new Error(`${protocol.name}: the peer reads too slowly, ${unsentBytes()} bytes are unsent`))
      return Promise.reject(failure ?? new Error("unsent"))
    }
    if (!flushing) {
      flushing = true
      // Frames sent within one turn of the event loop leave together: one encryption and one write for all of them.
      setImmediate(flush)
    }
    return unsentBytes() < protocol.unsentBytes ? SENT : unsentBelow(protocol.unsentBytes)
  }

  function unsentBelow(below: number): Promise<void> {
    return new Promise((resolve, reject) => waiters.push({ below, resolve, reject }))
  }

  function flush(): void {
    flushing = false
    if (ended.signal.aborted) return
    try {
      while (pending.length > 0 && !stream.writableNeedsDrain) stream.send(nextBatch())
    } catch (error) {
      return fail(new Error(`${protocol.name}: sending failed`, { cause: error }))
    }
    settleWaiters()
    watchForStall()
  }

  /** Small frames together, a large one alone. */
  function nextBatch(): Uint8Array {
    let count = 0
    let bytes = 0
    for (const frame of pending) {
      if (count > 0 && bytes + frame.length > BATCH_BYTES) break
      count++
      bytes += frame.length
    }
    const batch = pending.splice(0, count)
    pendingBytes -= bytes
    const [only] = batch
    return only !== undefined && count === 1 ? only : Buffer.concat(batch, bytes)
  }

  function settleWaiters(): void {
    const unsent = unsentBytes()
    for (const waiter of waiters.splice(0)) {
      if (unsent < waiter.below) waiter.resolve()
      else waiters.push(waiter)
    }
  }

  /** A peer that takes nothing at all for a while is not slow but gone, also when nobody waits for it. */
  function watchForStall(): void {
    const taken = sentBytes - unsentBytes()
    if (blocked !== null && taken === takenAtWatch) return
    blocked?.cancel()
    blocked = null
    takenAtWatch = taken
    if (unsentBytes() === 0) return
    blocked = clock.after(STALLED_AFTER_MS, () => {
      fail(new Error(`${protocol.name}: the peer has taken nothing for ${STALLED_AFTER_MS / 1000} s`))
    })
  }

  // libp2p goes on with its own rest in a microtask queued before this one.
  stream.addEventListener("drain", () => queueMicrotask(flush))

  async function close(): Promise<void> {
    if (closing) return
    closing = true
    try {
      if (unsentBytes() > 0) await unsentBelow(1)
      await stream.close({ signal: AbortSignal.timeout(STALLED_AFTER_MS) })
    } catch (error) {
      if (failure !== null) throw failure
      if (!ended.signal.aborted) fail(new Error(`${protocol.name}: closing failed`, { cause: error }))
    }
  }

  // ── receiving ──

  const decoder = createFrameDecoder(protocol.largestFrameBytes)
  const received: Uint8Array[] = []
  let receivedBytes = 0
  let remoteEnded = false
  let resuming = false
  let iterated = false
  let reader: (() => void) | null = null

  function wakeReader(): void {
    const wake = reader
    reader = null
    wake?.()
  }

  stream.addEventListener("message", (event) => {
    if (failure !== null) return
    const { frames, tooLong } = decoder.push(event.data.subarray())
    for (const frame of frames) {
      received.push(frame)
      receivedBytes += frame.length
    }
    if (tooLong !== undefined) {
      fail(
        new FrameTooLong(
          `${protocol.name}: a frame of ${tooLong} bytes is over the limit of ${protocol.largestFrameBytes}`,
        ),
      )
      return
    }
    pauseWhenFull()
    if (frames.length > 0) wakeReader()
  })

  stream.addEventListener("end", () => {
    remoteEnded = true
    wakeReader()
  })

  function pauseWhenFull(): void {
    // Pausing inside `resume()` would be undone by the end of it: resumeReading looks again afterwards.
    if (receivedBytes < READ_AHEAD_BYTES || resuming || stream.readStatus !== "readable") return
    stream.pause()
  }

  function resumeReading(): void {
    if (stream.readStatus !== "paused") return
    resuming = true
    try {
      stream.resume()
    } catch (error) {
      // The connection went away while we were paused; what it had brought was handed out above.
      failure ??= new Error(`${protocol.name}: reading on failed`, { cause: error })
    } finally {
      resuming = false
    }
    if (ended.signal.aborted && stream.readBufferLength === 0) remoteEnded = true
    pauseWhenFull()
  }

  async function* frames(): AsyncGenerator<Uint8Array> {
    if (iterated) throw new Error("the frames of a stream are iterated once")
    iterated = true
    for (;;) {
      const frame = received.shift()
      if (frame !== undefined) {
        receivedBytes -= frame.length
        if (receivedBytes < READ_AHEAD_BYTES / 2) resumeReading()
        yield frame
        continue
      }
      if (failure !== null) throw failure
      if (stream.readableEnded || remoteEnded) {
        if (decoder.insideFrame) throw new Error(`${protocol.name}: the stream ended inside a frame`)
        return
      }
      await new Promise<void>((resolve) => {
        reader = resolve
      })
    }
  }

  return {
    peer,
    send,
    frames,
    close,
    reset: (reason) => {
      received.length = 0
      receivedBytes = 0
      fail(new Error(reason))
    },
    ended: ended.signal,
  }
}

/** Frames go to libp2p in batches of about this size: one yamux frame's worth. */
const BATCH_BYTES = 64 * 1024
/** Received and not yet iterated bytes above which the stream is paused; yamux's window comes on top of it. */
const READ_AHEAD_BYTES = 1024 * 1024
/** Long enough for a machine that swaps or compiles, short enough that a dead peer's buffers go. */
const STALLED_AFTER_MS = 30_000

const SENT = Promise.resolve()
