import type { Clock, Timer } from "../../protocol/base/clock.ts"
import type { PeerId } from "../../protocol/domain/ids.ts"
import type { MeshStream } from "../../protocol/mesh/mesh.ts"
import type { StreamProtocol } from "../../protocol/wire/stream-protocol.ts"

/** As `protocol/mesh/mesh-stream.ts`: a peer that takes nothing for this long is gone. */
const STALLED_AFTER_MS = 30_000

/** One side of a stream, kept as the real mesh keeps it: whole frames in order, bounded, ended by either side. */
export class SimStream implements MeshStream {
  readonly peer: PeerId
  readonly #protocol: StreamProtocol
  readonly #clock: Clock
  /** Puts something on its way to the other side. */
  readonly #put: (arrive: (other: SimStream) => void) => void
  readonly #ended = new AbortController()
  readonly #received: Uint8Array[] = []
  #waiters: { below: number; resolve: () => void; reject: (error: Error) => void }[] = []
  #unsentBytes = 0
  #takenBytes = 0
  #stall: Timer | null = null
  #failure: Error | null = null
  #closing = false
  #remoteClosed = false
  #iterated = false
  #reader: (() => void) | null = null

  constructor(peer: PeerId, protocol: StreamProtocol, clock: Clock, put: (arrive: (other: SimStream) => void) => void) {
    this.peer = peer
    this.#protocol = protocol
    this.#clock = clock
    this.#put = put
  }

  get ended(): AbortSignal {
    return this.#ended.signal
  }

  send(frame: Uint8Array): Promise<void> {
    const { name, largestFrameBytes, unsentBytes } = this.#protocol
    if (frame.length > largestFrameBytes) {
      return Promise.reject(new Error(`a frame of ${frame.length} bytes is longer than ${name} allows`))
    }
    if (this.#failure !== null || this.#closing || this.ended.aborted) {
      return Promise.reject(this.#failure ?? new Error("the stream is closed"))
    }
    this.#unsentBytes += frame.length
    if (this.#unsentBytes > 2 * Math.max(unsentBytes, frame.length)) {
      this.fail(new Error(`${name}: the peer reads too slowly, ${this.#unsentBytes} bytes are unsent`))
      return Promise.reject(this.#failure ?? new Error("unsent"))
    }
    this.#put((other) => {
      this.#taken(frame.length)
      other.receive(frame)
    })
    this.#watchForStall()
    return this.#unsentBytes < unsentBytes ? SENT : this.#unsentBelow(unsentBytes)
  }

  async *frames(): AsyncGenerator<Uint8Array> {
    if (this.#iterated) throw new Error("the frames of a stream are iterated once")
    this.#iterated = true
    for (;;) {
      const frame = this.#received.shift()
      if (frame !== undefined) {
        yield frame
        continue
      }
      if (this.#failure !== null) throw this.#failure
      if (this.#remoteClosed) return
      await new Promise<void>((resolve) => {
        this.#reader = resolve
      })
    }
  }

  async close(): Promise<void> {
    if (this.#closing) return
    this.#closing = true
    try {
      if (this.#unsentBytes > 0) await this.#unsentBelow(1)
    } catch (error) {
      if (this.#failure !== null) throw this.#failure
      throw error
    }
    this.#put((other) => other.remoteClosed())
    if (this.#remoteClosed) this.#finish()
  }

  reset(reason: string): void {
    this.#received.length = 0
    if (this.#failure === null && !this.ended.aborted) {
      this.#put((other) => other.fail(new Error(`${this.#protocol.name}: the peer reset the stream`)))
    }
    this.fail(new Error(reason))
  }

  // ── the other side, and the connection ──

  receive(frame: Uint8Array): void {
    if (this.#failure !== null) return
    this.#received.push(frame)
    this.#wake()
  }

  remoteClosed(): void {
    this.#remoteClosed = true
    this.#wake()
    if (this.#closing) this.#finish()
  }

  fail(error: Error): void {
    if (this.ended.aborted && this.#failure !== null) return
    this.#failure ??= error
    this.#finish()
  }

  #finish(): void {
    this.#stall?.cancel()
    const error = this.#failure ?? new Error("the stream is closed")
    for (const waiter of this.#waiters.splice(0)) waiter.reject(error)
    this.#wake()
    if (!this.ended.aborted) this.#ended.abort(error)
  }

  #taken(bytes: number): void {
    this.#unsentBytes -= bytes
    this.#takenBytes += bytes
    const waiting = this.#waiters
    this.#waiters = waiting.filter(({ below }) => this.#unsentBytes >= below)
    for (const { below, resolve } of waiting) if (this.#unsentBytes < below) resolve()
    if (this.#unsentBytes === 0) this.#stall?.cancel()
  }

  #unsentBelow(below: number): Promise<void> {
    return new Promise((resolve, reject) => this.#waiters.push({ below, resolve, reject }))
  }

  #watchForStall(): void {
    if (this.#stall !== null) return
    const taken = this.#takenBytes
    this.#stall = this.#clock.after(STALLED_AFTER_MS, () => {
      this.#stall = null
      if (this.#unsentBytes === 0 || this.ended.aborted) return
      if (this.#takenBytes > taken) return this.#watchForStall()
      this.fail(new Error(`${this.#protocol.name}: the peer has taken nothing for ${STALLED_AFTER_MS / 1000} s`))
    })
  }

  #wake(): void {
    const wake = this.#reader
    this.#reader = null
    wake?.()
  }
}

const SENT = Promise.resolve()
