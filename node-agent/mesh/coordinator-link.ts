import { createBackoff } from "../../protocol/base/backoff.ts"
import { every, sleep, type Clock, type Timer } from "../../protocol/base/clock.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import type { Log } from "../../protocol/base/log.ts"
import type { Random } from "../../protocol/base/random.ts"
import type { PeerId } from "../../protocol/domain/ids.ts"
import type { Mesh, MeshStream } from "../../protocol/mesh/mesh.ts"
import {
  CONTROL_PROTOCOL,
  decodeToNode,
  encodeMessage,
  type Hello,
  type RevokedAhead,
  type ToCoordinator,
  type ToNode,
  type Welcome,
} from "../../protocol/wire/control.ts"

/** The node's one control stream to the coordinator: dialled again for ever, reconciled by hello at every start. */
export interface CoordinatorLink extends AsyncDisposable {
  /** True between a welcome and the end of its stream. */
  readonly connected: boolean
  /** Sends, or drops when there is no welcomed stream: what must not be lost waits in the outbox for the next welcome. */
  send(message: ToCoordinator): void
  /** Ends the stream; the loop says hello again at once. For when local time jumped or the node's facts changed. */
  reconnect(reason: string): void
}

export interface LinkParts {
  mesh: Mesh
  coordinator: { peerId: PeerId; addresses: () => string[] }
  clock: Clock
  random: Random
  log: Log
  /** What to say first: asked anew for each connection. */
  hello: () => Hello
  /** What each heartbeat names. */
  heartbeat: () => { claim: number; running_ms: number | null }[]
  /** Bytes of content that came from other nodes since the agent started. */
  peerBytes: () => number
  onWelcome: (welcome: Welcome) => void
  /** `sentAtMs`: for heartbeat replies, the monotonic time at which the answered heartbeat was sent. */
  onMessage: (message: Exclude<ToNode, Welcome | RevokedAhead>, sentAtMs: number) => void
  onLost: (reason: string) => void
  /** The coordinator refuses us for good (revoked, version): the agent stops with this line. */
  onRefused: (reason: string, message: string) => void
}

/** A welcome that does not come within this is not coming. */
const WELCOME_TIMEOUT_MS = 15_000
/** Heartbeats without any reply after which the stream is given up. */
const SILENT_HEARTBEATS = 4

export function createCoordinatorLink(parts: LinkParts): CoordinatorLink {
  const { mesh, clock, log } = parts
  const stopped = new AbortController()
  let current: { stream: MeshStream; welcomed: boolean } | null = null
  let members = 0

  const running = (async () => {
    const backoff = createBackoff(parts.random, FIRST_REDIAL_MS, LONGEST_REDIAL_MS)
    while (!stopped.signal.aborted) {
      const reason = await connectOnce(() => backoff.reset()).catch(errorText)
      if (stopped.signal.aborted) break
      log.warn("coordinator link ended", { reason })
      parts.onLost(reason)
      // After a coordinator restart all members return: spread them so that fifty handshakes a second is the most.
      const spreadMs = Math.max(FIRST_REDIAL_MS, (members / 50) * 1000)
      const delayMs = Math.max(backoff.next(), parts.random.integer(Math.ceil(spreadMs)))
      await sleep(clock, delayMs, stopped.signal).catch(() => undefined)
    }
  })()

  /** Runs one connection to its end; resolves or rejects with why it ended. */
  async function connectOnce(connected: () => void): Promise<string> {
    const stream = await openControlStream()
    const connection = { stream, welcomed: false }
    current = connection
    using silence = new SilenceWatch(clock, stream)
    let heartbeats: Disposable | null = null
    const beats: Beats = { n: 0, sentAt: new Map() }
    const revoked: string[] = []
    try {
      silence.expect(WELCOME_TIMEOUT_MS)
      await stream.send(encodeMessage(parts.hello()))
      for await (const frame of stream.frames()) {
        const message = decodeToNode(frame)
        if (message.type === "refusal") {
          if (message.reason !== "starting") parts.onRefused(message.reason, message.message)
          return `refused: ${message.message}`
        }
        if (message.type === "revoked") {
          revoked.push(...message.nodes)
          continue
        }
        if (message.type === "welcome") {
          connection.welcomed = true
          members = message.members
          connected()
          silence.expect(message.heartbeat_ms * SILENT_HEARTBEATS)
          heartbeats?.[Symbol.dispose]()
          const heart = startHeartbeats(stream, message.heartbeat_ms, beats)
          heartbeats = heart
          parts.onWelcome({ ...message, revoked: [...revoked.splice(0), ...message.revoked] })
          // Its answer tells that what was said in the welcome's turn has been heard.
          heart.beat()
          continue
        }
        silence.heard()
        let sentAtMs = clock.monotonicMs()
        if (message.type === "heartbeat_reply") {
          sentAtMs = beats.sentAt.get(message.n) ?? sentAtMs
          for (const n of beats.sentAt.keys()) if (n <= message.n) beats.sentAt.delete(n)
          if (message.heartbeat_ms !== undefined && heartbeats) {
            silence.expect(message.heartbeat_ms * SILENT_HEARTBEATS)
            heartbeats[Symbol.dispose]()
            heartbeats = startHeartbeats(stream, message.heartbeat_ms, beats)
          }
        }
        if (connection.welcomed) parts.onMessage(message, sentAtMs)
      }
      return "the coordinator closed the stream"
    } finally {
      heartbeats?.[Symbol.dispose]()
      current = null
      stream.reset("the control stream is over")
    }
  }

  async function openControlStream(): Promise<MeshStream> {
    let last: unknown = new Error("no coordinator address is known")
    for (const address of parts.coordinator.addresses()) {
      try {
        await mesh.dial(address, stopped.signal)
        return await mesh.openStream(parts.coordinator.peerId, CONTROL_PROTOCOL, stopped.signal)
      } catch (error) {
        last = error
      }
    }
    throw new Error("cannot reach the coordinator", { cause: last })
  }

  function startHeartbeats(stream: MeshStream, intervalMs: number, beats: Beats): Heart {
    const timer = every(clock, intervalMs, beat)
    function beat(): void {
      beats.n += 1
      beats.sentAt.set(beats.n, clock.monotonicMs())
      transmit(stream, {
        type: "heartbeat",
        n: beats.n,
        attempts: parts.heartbeat(),
        peer_bytes: parts.peerBytes(),
      })
    }
    return { beat, [Symbol.dispose]: () => timer[Symbol.dispose]() }
  }

  function transmit(stream: MeshStream, message: ToCoordinator): void {
    // A rejected send means that the stream ended: the read loop sees it too, and hello starts over.
    stream.send(encodeMessage(message)).catch(() => undefined)
  }

  return {
    get connected() {
      return current?.welcomed === true
    },
    send(message) {
      if (current?.welcomed) transmit(current.stream, message)
    },
    reconnect(reason) {
      // What came with the stream's last frames is not heard any more.
      if (current) current.welcomed = false
      current?.stream.reset(reason)
    },
    async [Symbol.asyncDispose]() {
      stopped.abort(new Error("the link is closed"))
      await current?.stream.close().catch(() => undefined)
      current?.stream.reset("the link is closed")
      await running
    },
  }
}

/** Heartbeats of one connection, whatever their interval: when each that is not answered was sent. */
interface Beats {
  n: number
  sentAt: Map<number, number>
}

interface Heart extends Disposable {
  /** One now, beside the regular ones. */
  beat(): void
}

/** Resets a stream on which nothing was heard for too long. */
class SilenceWatch implements Disposable {
  readonly #clock: Clock
  readonly #stream: MeshStream
  #limitMs = 0
  #lastMs: number
  #look: Timer | null = null

  constructor(clock: Clock, stream: MeshStream) {
    this.#clock = clock
    this.#stream = stream
    this.#lastMs = clock.monotonicMs()
  }

  expect(limitMs: number): void {
    this.#limitMs = limitMs
    this.heard()
    this.#look?.cancel()
    this.#lookIn(limitMs)
  }

  /** Every frame is heard: the next look is not moved for it, but set anew when it comes too early. */
  heard(): void {
    this.#lastMs = this.#clock.monotonicMs()
  }

  #lookIn(delayMs: number): void {
    this.#look = this.#clock.after(delayMs, () => {
      const restMs = this.#lastMs + this.#limitMs - this.#clock.monotonicMs()
      if (restMs > 0) this.#lookIn(Math.ceil(restMs))
      else this.#stream.reset("nothing heard for too long")
    })
  }

  [Symbol.dispose](): void {
    this.#look?.cancel()
  }
}

const FIRST_REDIAL_MS = 250
/** A coordinator that was away for long finds its fleet again within a second or two; how many come at once, `spreadMs` bounds. */
const LONGEST_REDIAL_MS = 1_000
