import { errorText } from "../../protocol/base/error-text.ts"
import type { PeerId } from "../../protocol/domain/ids.ts"
import type { Verdict } from "../../protocol/gossip/verdict.ts"
import type { MeshNodeOptions } from "../../protocol/mesh/create-mesh-node.ts"
import type { GossipMessage, MeshNode, MeshStream } from "../../protocol/mesh/mesh.ts"
import { CONTROL_PROTOCOL } from "../../protocol/wire/control.ts"
import { verifyCertificate, type Membership } from "../../protocol/wire/certificate.ts"
import type { StreamProtocol } from "../../protocol/wire/stream-protocol.ts"
import type { Machine, Program } from "./machine.ts"
import { Pipe, type Network } from "./network.ts"
import { SimStream } from "./sim-stream.ts"

/** From such a loss on, gossip is a sample of itself: each word would reach each of a thousand nodes. */
export const THINNED = 0.9
const DIAL_TIMEOUT_MS = 5_000
const OPEN_STREAM_TIMEOUT_MS = 10_000
const LINGER_MS = 10_000
const WORDS_KEPT = 20

/** All mesh nodes of one simulated world, in place of libp2p: the same interface, over the simulated network. */
export class SimMesh {
  readonly network: Network
  /** By address without the peer: who listens there now, or did last. */
  readonly #listening = new Map<string, Endpoint>()
  /** Every frame that arrives, for those who watch the world. */
  tap: (frame: { from: Program; to: Program; protocol: string; bytes: Uint8Array }) => void = () => {}
  /** Every frame of a control stream at the moment in which the side that serves it says it. */
  said: (bytes: Uint8Array) => void = () => {}
  /** A frame of a control stream came to the side that serves it. */
  heard: (from: PeerId) => void = () => {}
  /** The latest stream of each protocol that a program opened, and what it said on it last. */
  readonly spoken = new Map<Program, { stream: SimStream; frames: Uint8Array[] }>()
  /** Words of gossip by what became of them on their way. */
  readonly gossip = { sent: 0, lost: 0, twice: 0 }

  constructor(network: Network) {
    this.network = network
  }

  /** A `createMeshNode` for one program. */
  creator(program: Program): (options: MeshNodeOptions) => Promise<MeshNode> {
    return async (options) => {
      const endpoint = new Endpoint(this, program, options)
      this.#listening.set(endpoint.place, endpoint)
      return endpoint
    }
  }

  /** Keeps the last words of a node, for those who will say them again. */
  overhear(program: Program, stream: SimStream): void {
    const frames: Uint8Array[] = []
    this.spoken.set(program, { stream, frames })
    const send = stream.send.bind(stream)
    stream.send = (frame) => {
      if (frames.push(frame) > WORDS_KEPT) frames.shift()
      return send(frame)
    }
  }

  listenerAt(place: string): Endpoint | undefined {
    return this.#listening.get(place)
  }

  endpoints(): Endpoint[] {
    return [...this.#listening.values()].filter(({ program }) => program.isAlive)
  }

  /** The program is gone. A killed one's kernel still hangs up; a machine without power says nothing. */
  ended(program: Program, { hangsUp }: { hangsUp: boolean }): void {
    for (const endpoint of this.#listening.values()) if (endpoint.program === program) endpoint.dies(hangsUp)
  }

  /** Breaks the connections between two machines: what is under way is lost. Says how many. */
  breakBetween(a: Machine, b: Machine): number {
    let broken = 0
    for (const endpoint of this.endpoints()) {
      if (endpoint.program.machine !== a) continue
      for (const connection of endpoint.connections()) {
        if (connection.other(endpoint).program.machine !== b) continue
        connection.break("the connection broke")
        broken += 1
      }
    }
    return broken
  }
}

/** A connection of two endpoints, with every stream in it. */
class Connection {
  readonly dialer: Endpoint
  readonly answerer: Endpoint
  readonly #pipes: [Pipe, Pipe]
  readonly #streams = new Map<Endpoint, Set<SimStream>>()
  isOpen = true

  constructor(dialer: Endpoint, answerer: Endpoint) {
    this.dialer = dialer
    this.answerer = answerer
    const { network } = dialer.mesh
    const refused = (side: Endpoint) => () => this.#lostBy(side, "the peer's machine refused it")
    this.#pipes = [
      new Pipe(network, dialer.program, answerer.program, refused(dialer)),
      new Pipe(network, answerer.program, dialer.program, refused(answerer)),
    ]
    this.#streams.set(dialer, new Set()).set(answerer, new Set())
  }

  other(side: Endpoint): Endpoint {
    return side === this.dialer ? this.answerer : this.dialer
  }

  pipeFrom(side: Endpoint): Pipe {
    return this.#pipes[side === this.dialer ? 0 : 1]
  }

  streamsOf(side: Endpoint): Set<SimStream> {
    return this.#streams.get(side) ?? new Set()
  }

  /** Both sides lose it at once; so does what is under way. */
  break(reason: string): void {
    if (!this.isOpen) return
    this.isOpen = false
    for (const pipe of this.#pipes) pipe.break()
    this.#lostBy(this.dialer, reason)
    this.#lostBy(this.answerer, reason)
  }

  /** One side hangs up: the other hears it after what was sent before. */
  hangUp(side: Endpoint): void {
    this.pipeFrom(side).put(() => this.#lostBy(this.other(side), "the connection closed"))
    this.pipeFrom(this.other(side)).break()
  }

  #lostBy(side: Endpoint, reason: string): void {
    this.isOpen = false
    if (!side.program.isAlive) return
    for (const stream of this.streamsOf(side)) stream.fail(new Error(reason))
    this.streamsOf(side).clear()
    side.lost(this)
  }
}

/** One program's mesh node. */
class Endpoint implements MeshNode {
  readonly mesh: SimMesh
  readonly program: Program
  readonly peerId: PeerId
  /** Its address without the peer id: the machine's, whoever runs there. */
  readonly place: string
  readonly #options: MeshNodeOptions
  readonly #connections = new Set<Connection>()
  readonly #served = new Map<string, (stream: MeshStream, from: PeerId) => Promise<void>>()
  readonly #judges = new Map<string, (message: GossipMessage) => Verdict>()
  readonly #watchers = new Set<(change: { peer: PeerId; connected: boolean }) => void>()
  readonly #open = new Map<string, number>()
  readonly #memberships = new Map<PeerId, Membership>()
  #revoked = new Set<string>()

  constructor(mesh: SimMesh, program: Program, options: MeshNodeOptions) {
    this.mesh = mesh
    this.program = program
    this.#options = options
    this.peerId = options.identity.peerId
    this.place = placeOf(program.machine)
  }

  connections(): Connection[] {
    return [...this.#connections]
  }

  addresses(): string[] {
    return [`${this.place}/p2p/${this.peerId}`]
  }

  peers(): PeerId[] {
    return [...new Set(this.connections().map((connection) => connection.other(this).peerId))]
  }

  membership(peer: PeerId): Membership | null {
    return this.#memberships.get(peer) ?? null
  }

  // ── connections ──

  dial(address: string, signal?: AbortSignal): Promise<PeerId> {
    const split = address.lastIndexOf("/p2p/")
    const place = address.slice(0, split)
    const wanted = address.slice(split + "/p2p/".length)
    const known = this.connections().find((connection) => connection.other(this).peerId === wanted)
    if (known) return Promise.resolve(known.other(this).peerId)
    return new Promise((resolve, reject) => {
      const giveUp = (error: Error): void => {
        timeout.cancel()
        signal?.removeEventListener("abort", aborted)
        reject(error)
      }
      const aborted = (): void => giveUp(signal?.reason as Error)
      const timeout = this.program.clock.after(DIAL_TIMEOUT_MS, () => giveUp(new Error(`${place} does not answer`)))
      if (signal?.aborted) return aborted()
      signal?.addEventListener("abort", aborted, { once: true })
      const there = this.mesh.listenerAt(place)
      if (!there) return
      const { network } = this.mesh
      const [here, away] = [this.program.machine, there.program.machine]
      network.packet(here, away, () => {
        const listener = this.mesh.listenerAt(place)
        network.packet(away, here, () => {
          if (!this.program.isAlive || signal?.aborted) return
          if (!listener?.program.isAlive) return giveUp(new Error(`${place} refuses connections`))
          if (listener.peerId !== wanted) return giveUp(new Error(`${place} is not ${wanted}`))
          timeout.cancel()
          signal?.removeEventListener("abort", aborted)
          this.#connect(listener)
          resolve(listener.peerId)
        })
      })
    })
  }

  #connect(listener: Endpoint): void {
    const ours = this.#judge(listener)
    const theirs = listener.#judge(this)
    if (ours === null || theirs === null) {
      this.#options.refused?.({ peer: listener.peerId, by: ours === null ? "us" : "them", reason: "revoked" } as never)
      return
    }
    const connection = new Connection(this, listener)
    listener.#joined(connection, theirs)
    this.#joined(connection, ours)
  }

  /** Who the other is, by its certificate; `"coordinator"` for the coordinator, null for who is not admitted. */
  #judge(other: Endpoint): Membership | "coordinator" | null {
    if (other.#options.isCoordinator) return "coordinator"
    const text = other.#options.certificate()
    if (text === null) return null
    const { publicKey } = this.#options.coordinatorKey
    const now = this.program.clock.now()
    const verdict = verifyCertificate(text, publicKey, now, { withoutCoordinator: !this.#options.isCoordinator })
    if (!("membership" in verdict) || verdict.membership.peerId !== other.peerId) return null
    if (this.#revoked.has(verdict.membership.nodeId)) return null
    return verdict.valid || this.#options.admitExpired?.(verdict.membership) === true ? verdict.membership : null
  }

  #joined(connection: Connection, membership: Membership | "coordinator"): void {
    const { peerId } = connection.other(this)
    const isFirst = !this.peers().includes(peerId)
    this.#connections.add(connection)
    if (membership !== "coordinator") this.#memberships.set(peerId, membership)
    if (isFirst) for (const watcher of this.#watchers) watcher({ peer: peerId, connected: true })
  }

  lost(connection: Connection): void {
    if (!this.#connections.delete(connection)) return
    const { peerId } = connection.other(this)
    if (this.peers().includes(peerId)) return
    for (const watcher of this.#watchers) watcher({ peer: peerId, connected: false })
  }

  /** Its program is gone. */
  dies(hangsUp: boolean): void {
    for (const connection of this.#connections) {
      if (hangsUp) connection.hangUp(this)
      else connection.pipeFrom(this).break()
    }
    this.#connections.clear()
  }

  async drop(peer: PeerId, reason: string): Promise<void> {
    for (const connection of this.connections()) if (connection.other(this).peerId === peer) connection.break(reason)
  }

  // ── streams ──

  openStream(to: PeerId, protocol: StreamProtocol, signal?: AbortSignal): Promise<MeshStream> {
    const connection = this.connections().findLast((one) => one.isOpen && one.other(this).peerId === to)
    if (signal?.aborted) return Promise.reject(signal.reason as Error)
    if (!connection) return Promise.reject(new Error(`${to} is not connected`))
    const there = connection.other(this)
    const pair: { near: SimStream | null; far: SimStream | null } = { near: null, far: null }
    const sides = (from: Endpoint, to: Endpoint, other: "near" | "far") => (arrive: (side: SimStream) => void) =>
      connection.pipeFrom(from).put(() => {
        const side = pair[other]
        if (side && to.program.isAlive) arrive(side)
      })
    return new Promise((resolve, reject) => {
      const near = new SimStream(to, protocol, this.program.clock, sides(this, there, "far"))
      pair.near = near
      if (protocol.name === CONTROL_PROTOCOL.name) this.mesh.overhear(this.program, near)
      connection.streamsOf(this).add(near)
      const late = this.program.clock.after(OPEN_STREAM_TIMEOUT_MS, () => near.reset("no answer to a new stream"))
      const aborted = (): void => near.reset("the caller gave up")
      signal?.addEventListener("abort", aborted, { once: true })
      const settled = (): void => {
        late.cancel()
        signal?.removeEventListener("abort", aborted)
      }
      near.ended.addEventListener("abort", () => {
        settled()
        connection.streamsOf(this).delete(near)
        reject(near.ended.reason as Error)
      })
      connection.pipeFrom(this).put(() => {
        const far = new SimStream(this.peerId, protocol, there.program.clock, sides(there, this, "near"))
        const refusal = there.#takeStream(connection, far, protocol)
        if (refusal !== null) return connection.pipeFrom(there).put(() => near.fail(new Error(refusal)))
        pair.far = far
        connection.pipeFrom(there).put(() => {
          settled()
          resolve(this.#tapped(near, there, protocol))
        })
      })
    })
  }

  /** Frames are shown to the tap as they are read. */
  #tapped(stream: SimStream, from: Endpoint, protocol: StreamProtocol): MeshStream {
    const { mesh, program } = this
    const receive = stream.receive.bind(stream)
    stream.receive = (bytes) => {
      mesh.tap({ from: from.program, to: program, protocol: protocol.name, bytes })
      receive(bytes)
    }
    return stream
  }

  /** Serves a stream that the other side opened; else says why not. */
  #takeStream(connection: Connection, stream: SimStream, protocol: StreamProtocol): string | null {
    const handle = this.#served.get(protocol.name)
    if (!handle) return `${protocol.name} is not served`
    const key = `${stream.peer} ${protocol.name}`
    const open = this.#open.get(key) ?? 0
    if (open >= protocol.streamsPerPeer) return "too many streams"
    this.#open.set(key, open + 1)
    connection.streamsOf(this).add(stream)
    if (protocol.name === CONTROL_PROTOCOL.name) {
      const send = stream.send.bind(stream)
      stream.send = (frame) => {
        if (this.program.isAlive) this.mesh.said(frame)
        return send(frame)
      }
      const receive = stream.receive.bind(stream)
      stream.receive = (frame) => {
        this.mesh.heard(stream.peer)
        receive(frame)
      }
    }
    stream.ended.addEventListener("abort", () => {
      connection.streamsOf(this).delete(stream)
      this.#open.set(key, (this.#open.get(key) ?? 1) - 1)
    })
    void this.#run(stream, handle)
    return null
  }

  async #run(stream: SimStream, handle: (stream: MeshStream, from: PeerId) => Promise<void>): Promise<void> {
    try {
      await handle(stream, stream.peer)
      await stream.close()
      if (stream.ended.aborted) return
      const linger = this.program.clock.after(LINGER_MS, () => stream.reset("its handler has ended"))
      stream.ended.addEventListener("abort", () => linger.cancel(), { once: true })
    } catch (error) {
      stream.reset(errorText(error))
    }
  }

  serve(protocol: StreamProtocol, handle: (stream: MeshStream, from: PeerId) => Promise<void>): void {
    this.#served.set(protocol.name, handle)
  }

  // ── gossip ──

  subscribe(topic: string, judge: (message: GossipMessage) => Verdict): void {
    this.#judges.set(topic, judge)
  }

  async publish(topic: string, data: Uint8Array): Promise<{ recipients: number }> {
    const { network, gossip } = this.mesh
    if (network.weather.gossipLoss >= THINNED) return this.#publishThinly(topic, data)
    for (const other of this.#reachable()) {
      const times = network.chance.happens(network.weather.gossipTwice) ? 2 : 1
      gossip.sent += 1
      gossip.twice += times - 1
      for (let n = 0; n < times; n++) {
        if (network.chance.happens(network.weather.gossipLoss)) {
          gossip.lost += 1
          continue
        }
        const arrive = (): void => {
          if (other.program.isAlive) other.#judges.get(topic)?.({ topic, from: this.peerId, data })
        }
        network.packet(this.program.machine, other.program.machine, arrive, { relayed: true })
      }
    }
    return { recipients: this.#connections.size }
  }

  /** As with a great loss, without a draw for each word that is lost: from one who hears it to the next. */
  #publishThinly(topic: string, data: Uint8Array): { recipients: number } {
    const { network, gossip } = this.mesh
    const others = [...this.#reachable()]
    const next = (): number =>
      1 + Math.floor(Math.log(1 - network.chance.fraction()) / Math.log(network.weather.gossipLoss))
    gossip.sent += others.length
    gossip.lost += others.length
    for (let at = next() - 1; at < others.length; at += next()) {
      const other = others[at]
      if (!other) break
      gossip.lost -= 1
      const arrive = (): void => {
        if (other.program.isAlive) other.#judges.get(topic)?.({ topic, from: this.peerId, data })
      }
      network.packet(this.program.machine, other.program.machine, arrive, { relayed: true })
    }
    return { recipients: this.#connections.size }
  }

  /** Whom a message reaches from peer to peer. */
  #reachable(): Set<Endpoint> {
    const reached = new Set<Endpoint>([this])
    for (const endpoint of reached) {
      for (const connection of endpoint.#connections) {
        const other = connection.other(endpoint)
        if (other.program.isAlive && !this.mesh.network.isCut(endpoint.program.machine, other.program.machine))
          reached.add(other)
      }
    }
    reached.delete(this)
    return reached
  }

  watchPeers(seen: (change: { peer: PeerId; connected: boolean }) => void): () => void {
    this.#watchers.add(seen)
    return () => void this.#watchers.delete(seen)
  }

  setRevoked(ids: Iterable<string>): void {
    this.#revoked = new Set(ids)
    for (const connection of this.connections()) {
      const membership = this.#memberships.get(connection.other(this).peerId)
      if (membership && this.#revoked.has(membership.nodeId)) connection.break("the member was revoked")
    }
  }

  async showCertificate(): Promise<void> {}

  async [Symbol.asyncDispose](): Promise<void> {
    this.dies(true)
  }
}

/** Of machine 3: `/ip4/10.0.0.3/tcp/4001`. */
function placeOf({ lane }: Machine): string {
  return `/ip4/10.${(lane >> 16) & 255}.${(lane >> 8) & 255}.${lane & 255}/tcp/4001`
}
