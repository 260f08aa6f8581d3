import type { IncomingHttpHeaders, ServerResponse } from "node:http"
import type { Clock, Timer } from "../../protocol/base/clock.ts"
import { timestampText } from "../../protocol/api/common.ts"
import { stringifyJson } from "../../protocol/base/json-text.ts"
import type { SnapshotTurn } from "./snapshot-turns.ts"

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
   * should hold. Nothing else may be sent meanwhile. Each piece is made in `turn`, which is over while the reader is waited
   * for. False once the stream has ended.
   */
  sendInPieces(
    head: { event: string; id: string },
    pieces: AsyncIterable<string> | Iterable<string>,
    turn: SnapshotTurn,
  ): Promise<boolean>
  /** Sends what is queued and ends. A second call does nothing. */
  end(): void
  /** Has it ended, for whatever reason? */
  readonly hasEnded: boolean
  /** Calls `act` once when it has ended; at once where it has. */
  whenEnded(act: () => void): void
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
  const { response, signal } = parts
  const stream = new OpenStream(parts)
  response.writeHead(200, {
    "content-type": "text/event-stream; charset=utf-8",
    // no-transform: proxies and compression would hold frames back.
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
  })
  response.write(": connected\n\n")
  stream.begin()
  if (signal.aborted || response.req.method === "HEAD") stream.end()
  else signal.addEventListener("abort", () => stream.end(), { once: true })
  return stream
}

/** There may be thousands, open for hours with nothing to tell: one object and one timer each. */
class OpenStream implements EventStream {
  readonly #parts: EventStreamParts
  readonly #holders: Set<OpenStream>
  readonly #limitAtMs: number
  #recheckAtMs: number
  /** Of the last frame. */
  #sentAtMs: number
  #timer: Timer | null = null
  /** Behind the frame being written. */
  #waiting: string[] = []
  #waitingBytes = 0
  #writing = false
  #ending = false
  #hasBegun: boolean
  #inPieces = false
  #limitReached = false
  #roomWanted: (() => void) | null = null
  #atEnd: (() => void)[] = []

  constructor(parts: EventStreamParts) {
    const nowMs = parts.clock.monotonicMs()
    this.#parts = parts
    this.#holders = holdersOf(parts.clock)
    this.#limitAtMs = nowMs + parts.limitMs
    this.#recheckAtMs = nowMs + parts.pingMs / RECHECKS_PER_PING
    this.#sentAtMs = nowMs
    this.#hasBegun = parts.beginsWithSnapshot !== true
  }

  begin(): void {
    const { response } = this.#parts
    response.on("drain", () => {
      this.#writing = false
      this.#writeOn()
    })
    response.on("close", () => {
      this.#holders.delete(this)
      this.#stop()
    })
    this.#holders.add(this)
    this.#schedule()
  }

  get hasEnded(): boolean {
    return this.#ending
  }

  whenEnded(act: () => void): void {
    if (this.#ending) act()
    else this.#atEnd.push(act)
  }

  send(frame: string): boolean {
    if (this.#ending) return false
    const hadRoom = this.#waitingBytes <= LITTLE_BYTES
    this.#push(frame)
    if (hadRoom || this.#waitingBytes <= LARGEST_BACKLOG_BYTES) return true
    this.cutOff()
    return false
  }

  room(): Promise<boolean> {
    if (this.#ending || this.#waitingBytes <= LITTLE_BYTES) return Promise.resolve(!this.#ending)
    return new Promise((resolve) => {
      const answer = (): void => {
        tooSlow.cancel()
        this.#roomWanted = null
        resolve(!this.#ending)
      }
      const { clock, pingMs } = this.#parts
      const tooSlow = clock.after(Math.max(pingMs, SLOWEST_READER_MS), () => this.cutOff())
      this.#roomWanted = answer
    })
  }

  async sendInPieces(
    { event, id }: { event: string; id: string },
    pieces: AsyncIterable<string> | Iterable<string>,
    turn: SnapshotTurn,
  ): Promise<boolean> {
    if (this.#ending) return false
    this.#inPieces = true
    try {
      this.#push(`event: ${event}\nid: ${id}\ndata: `)
      for await (const piece of pieces) {
        if (this.#waitingBytes > LITTLE_BYTES) turn.pause()
        if (!(await this.room())) return false
        this.#push(onOneLine(piece))
        await turn.goOn()
      }
      this.#push("\n\n")
      this.#inPieces = false
      if (this.#limitReached) this.#endByLimit()
      return await this.room()
    } finally {
      // Half a frame is none: whoever reads it drops it with the connection.
      if (this.#inPieces && !this.#ending) this.cutOff()
    }
  }

  end(): void {
    if (this.#ending) return
    this.#stop()
    this.#parts.response.end(this.#waiting.splice(0).join(""))
  }

  cutOff(): void {
    this.#stop()
    this.#parts.response.destroy()
  }

  heldBytes(): number {
    return this.#waitingBytes + this.#parts.response.writableLength
  }

  #push(text: string): void {
    this.#hasBegun = true
    this.#sentAtMs = this.#parts.clock.monotonicMs()
    this.#waiting.push(text)
    this.#waitingBytes += Buffer.byteLength(text)
    this.#writeOn()
    if (text.length >= LARGE_TEXT) boundWhatIsHeld(this.#holders)
  }

  #writeOn(): void {
    while (!this.#writing) {
      const frame = this.#waiting.shift()
      if (frame === undefined) break
      this.#waitingBytes -= Buffer.byteLength(frame)
      this.#writing = !this.#parts.response.write(frame)
    }
    if (this.#waitingBytes <= LITTLE_BYTES) this.#roomWanted?.()
  }

  /** For whatever is due first; a frame in between only makes the next ping later. */
  #schedule(): void {
    const { clock, pingMs } = this.#parts
    const limitAtMs = this.#limitReached ? Number.POSITIVE_INFINITY : this.#limitAtMs
    const dueMs = Math.min(this.#sentAtMs + pingMs, this.#recheckAtMs, limitAtMs)
    this.#timer = clock.after(Math.max(1, Math.ceil(dueMs - clock.monotonicMs())), () => this.#tick())
  }

  #tick(): void {
    const { clock, pingMs } = this.#parts
    const nowMs = clock.monotonicMs()
    if (nowMs >= this.#limitAtMs && !this.#limitReached) {
      this.#limitReached = true
      if (!this.#inPieces) return this.#endByLimit()
    }
    if (nowMs >= this.#recheckAtMs) {
      this.#recheckAtMs = nowMs + pingMs / RECHECKS_PER_PING
      this.#recheck()
    }
    if (nowMs >= this.#sentAtMs + pingMs) {
      if (this.#inPieces || !this.#hasBegun) this.#sentAtMs = nowMs
      else this.send(eventFrame({ event: "ping", data: { at: timestampText(clock.now()) } }))
    }
    if (!this.#ending) this.#schedule()
  }

  #recheck(): void {
    this.#parts.stillAllowed().then(
      (allowed) => allowed || this.end(),
      () => this.end(),
    )
  }

  #endByLimit(): void {
    this.send(eventFrame({ event: "timeout", data: { reason: "limit", reconnect: true } }))
    this.end()
  }

  #stop(): void {
    if (this.#ending) return
    this.#ending = true
    this.#timer?.cancel()
    this.#roomWanted?.()
    for (const act of this.#atEnd.splice(0)) act()
  }
}

/** Memory is the process's: so is its bound, and the list of those who hold some. A simulated process is told by its clock. */
const holdersByClock = new WeakMap<Clock, Set<OpenStream>>()

function holdersOf(clock: Clock): Set<OpenStream> {
  const holders = holdersByClock.get(clock) ?? new Set<OpenStream>()
  holdersByClock.set(clock, holders)
  return holders
}

function boundWhatIsHeld(holders: ReadonlySet<OpenStream>): void {
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
/** So that the answer too is there within the ping interval. */
const RECHECKS_PER_PING = 2
/** However often there are pings: a busy moment on either side is not a reader that takes nothing. */
const SLOWEST_READER_MS = 5_000
/** Whoever waits for room goes on when no more than this waits. */
const LITTLE_BYTES = 64 * 1024
