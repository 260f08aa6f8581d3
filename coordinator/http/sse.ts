import type { IncomingHttpHeaders, ServerResponse } from "node:http"
import { every, type Clock, type Timer } from "../../protocol/base/clock.ts"
import { timestampText } from "../../protocol/api/common.ts"
import { stringifyJson } from "../../protocol/base/json-text.ts"

/** One frame as text. Made once for all who watch the same thing. Ids are comparable and resumable; without one none is sent. */
export function eventFrame(frame: { event: string; id?: string; data: unknown }): string {
  const id = frame.id === undefined ? "" : `id: ${frame.id}\n`
  const data = onOneLine(stringifyJson(frame.data))
  return `event: ${frame.event}\n${id}data: ${data}\n\n`
}

/** A line end in what a runner wrote would end the frame; between JSON's tokens a space says the same. */
const onOneLine = (json: string): string => json.replaceAll(/[\r\n]+/g, " ")

/** Where a client that was cut off wants to go on; null at the first time. Anything is taken, nothing is trusted. */
export function lastEventId(headers: IncomingHttpHeaders): string | null {
  const given = headers["last-event-id"]
  return typeof given === "string" && given !== "" && given.length <= 200 ? given : null
}

export interface EventStream {
  /** Queues one frame made by `eventFrame`. False once the stream has ended: then nothing is sent any more. */
  send(frame: string): boolean
  /**
   * Resolves true once little waits: whoever has a lot to send asks before each frame. False once the stream has ended; a
   * reader that takes nothing for a ping interval, at least five seconds, while much waits is cut off by asking.
   */
  room(): Promise<boolean>
  /**
   * Sends one frame whose data, JSON, comes in pieces, each when there is room for it: for what may be larger than memory
   * should hold. Nothing else may be sent meanwhile. False once the stream has ended.
   */
  sendInPieces(head: { event: string; id: string }, pieces: AsyncIterable<string>): Promise<boolean>
  /** Sends what is queued and ends. A second call does nothing. */
  end(): void
  /** Aborted when the stream has ended, for whatever reason. */
  readonly ended: AbortSignal
  /** Resolves then. */
  readonly over: Promise<void>
}

export interface EventStreamParts {
  response: ServerResponse
  clock: Clock
  /** The request's: aborted when the client is gone or the coordinator stops. */
  signal: AbortSignal
  /** Asked every ping interval: a revoked key or an expired session closes its streams (rulings, Streams). */
  stillAllowed: () => Promise<boolean>
  pingMs: number
  /** A snapshot comes first, however long it takes to make: no ping before it. */
  beginsWithSnapshot?: boolean
  /** Then a `timeout` frame asks the client to come back. */
  limitMs: number
}

/**
 * Opens an event stream: headers and a comment line go out at once, a `ping` after `pingMs` without any frame, `timeout` after
 * `limitMs`. A reader so slow that more than 1 MiB waits behind the frame being written is cut off; it resumes by id. One frame
 * of any size may wait, with little else: cut off by it, a client would come back to the same frame for ever. What all streams
 * hold together is bounded, too: beyond that those who hold most are cut off.
 */
export function openEventStream(parts: EventStreamParts): EventStream {
  const { response, clock } = parts
  const ended = new AbortController()
  const waiting: string[] = []
  let waitingBytes = 0
  let writing = false
  let ending = false
  let hasBegun = parts.beginsWithSnapshot !== true
  let inPieces = false
  let limitReached = false
  let roomWanted: (() => void) | null = null
  const holders = holdersOf(clock)
  let ping: Timer = schedulePing()
  const limit = clock.after(parts.limitMs, () => {
    limitReached = true
    if (!inPieces) endByLimit()
  })
  const { promise: over, resolve: isOver } = Promise.withResolvers<void>()
  // Twice in each interval, so that the answer too is there within it.
  const recheck = every(clock, parts.pingMs / 2, () => {
    parts.stillAllowed().then(
      (allowed) => allowed || stream.end(),
      () => stream.end(),
    )
  })

  const stream: EventStream = {
    send(frame) {
      if (ending) return false
      const hadRoom = waitingBytes <= LITTLE_BYTES
      push(frame)
      if (hadRoom || waitingBytes <= LARGEST_BACKLOG_BYTES) return true
      cutOff()
      return false
    },
    room() {
      if (ending || waitingBytes <= LITTLE_BYTES) return Promise.resolve(!ending)
      return new Promise((resolve) => {
        const answer = (): void => {
          tooSlow.cancel()
          roomWanted = null
          resolve(!ending)
        }
        const tooSlow = clock.after(Math.max(parts.pingMs, SLOWEST_READER_MS), cutOff)
        roomWanted = answer
      })
    },
    async sendInPieces({ event, id }, pieces) {
      if (ending) return false
      inPieces = true
      try {
        push(`event: ${event}\nid: ${id}\ndata: `)
        for await (const piece of pieces) {
          if (!(await stream.room())) return false
          push(onOneLine(piece))
        }
        push("\n\n")
        inPieces = false
        if (limitReached) endByLimit()
        return await stream.room()
      } finally {
        // Half a frame is none: whoever reads it drops it with the connection.
        if (inPieces && !ending) cutOff()
      }
    },
    end() {
      if (ending) return
      stop()
      response.end(waiting.splice(0).join(""))
    },
    ended: ended.signal,
    over,
  }

  function endByLimit(): void {
    stream.send(eventFrame({ event: "timeout", data: { reason: "limit", reconnect: true } }))
    stream.end()
  }

  function push(text: string): void {
    hasBegun = true
    ping.cancel()
    ping = schedulePing()
    waiting.push(text)
    waitingBytes += Buffer.byteLength(text)
    writeOn()
    if (text.length >= LARGE_TEXT) boundWhatIsHeld(holders)
  }

  function writeOn(): void {
    while (!writing) {
      const frame = waiting.shift()
      if (frame === undefined) break
      waitingBytes -= Buffer.byteLength(frame)
      writing = !response.write(frame)
    }
    if (waitingBytes <= LITTLE_BYTES) roomWanted?.()
  }

  function cutOff(): void {
    if (!ending) stop()
    response.destroy()
  }

  function schedulePing(): Timer {
    return clock.after(parts.pingMs, () => {
      if (inPieces || !hasBegun) ping = schedulePing()
      else stream.send(eventFrame({ event: "ping", data: { at: timestampText(clock.now()) } }))
    })
  }

  function stop(): void {
    ending = true
    ping.cancel()
    limit.cancel()
    recheck[Symbol.dispose]()
    roomWanted?.()
    ended.abort(new Error("the stream has ended"))
    isOver()
  }

  response.writeHead(200, {
    "content-type": "text/event-stream; charset=utf-8",
    // no-transform: proxies and compression would hold frames back.
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
  })
  response.on("drain", () => {
    writing = false
    writeOn()
  })
  const holder: Holder = { heldBytes: () => waitingBytes + response.writableLength, cutOff }
  holders.add(holder)
  response.on("close", () => {
    holders.delete(holder)
    if (!ending) stop()
  })
  response.write(": connected\n\n")
  if (parts.signal.aborted || response.req.method === "HEAD") stream.end()
  else parts.signal.addEventListener("abort", () => stream.end(), { once: true })
  return stream
}

interface Holder {
  heldBytes(): number
  cutOff(): void
}

/** Memory is the process's: so is its bound, and the list of those who hold some. A simulated process is told by its clock. */
const holdersByClock = new WeakMap<Clock, Set<Holder>>()

function holdersOf(clock: Clock): Set<Holder> {
  const holders = holdersByClock.get(clock) ?? new Set<Holder>()
  holdersByClock.set(clock, holders)
  return holders
}

function boundWhatIsHeld(holders: ReadonlySet<Holder>): void {
  const byBytes = [...holders].map((holder) => ({ holder, bytes: holder.heldBytes() }))
  let total = byBytes.reduce((sum, { bytes }) => sum + bytes, 0)
  for (const { holder, bytes } of byBytes.toSorted((left, right) => right.bytes - left.bytes)) {
    if (total <= MOST_HELD_BYTES) return
    holder.cutOff()
    total -= bytes
  }
}

/** Of all streams together: what readers that take nothing can make the process keep for them. */
const MOST_HELD_BYTES = 128 * 1024 * 1024
/** Shorter ones are bounded well enough by each stream's own backlog. */
const LARGE_TEXT = 256 * 1024
/** Queued behind the frame being written; one snapshot may be larger than this by itself (rulings, Streams). */
const LARGEST_BACKLOG_BYTES = 1024 * 1024
/** However often there are pings: a busy moment on either side is not a reader that takes nothing. */
const SLOWEST_READER_MS = 5_000
/** Whoever waits for room goes on when no more than this waits. */
const LITTLE_BYTES = 64 * 1024
