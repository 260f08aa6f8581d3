import {
  gossipsub,
  StrictSign,
  TopicValidatorResult,
  type GossipSub,
  type GossipSubComponents,
  type GossipsubOpts,
  type Message,
} from "@chainsafe/libp2p-gossipsub"
import { createTopicScoreParams } from "@chainsafe/libp2p-gossipsub/score"
import { identify } from "@libp2p/identify"
import type { Connection, PeerId as LibPeerId, Stream } from "@libp2p/interface"
import { noise } from "@libp2p/noise"
import { peerIdFromString } from "@libp2p/peer-id"
import { tcp } from "@libp2p/tcp"
import { yamux } from "@libp2p/yamux"
import { multiaddr } from "@multiformats/multiaddr"
import { createLibp2p } from "libp2p"
import { assert, present } from "../base/assert.ts"
import { every, type Clock } from "../base/clock.ts"
import { errorText } from "../base/error-text.ts"
import type { Log } from "../base/log.ts"
import { peerId, type PeerId } from "../domain/ids.ts"
import { TOPICS } from "../gossip/topics.ts"
import type { Verdict } from "../gossip/verdict.ts"
import type { Membership } from "../wire/certificate.ts"
import { HELLO_PROTOCOL } from "../wire/hello.ts"
import type { StreamProtocol } from "../wire/stream-protocol.ts"
import { SPOKEN_VERSIONS, type VersionRange } from "../wire/version.ts"
import { ADMISSION_TIMEOUT_MS, createAdmission, type Admission, type RefusedPeer } from "./admission.ts"
import { gateRegistrar, type GatedRegistrar } from "./gated-registrar.ts"
import { createGuests } from "./guests.ts"
import type { Identity } from "./identity.ts"
import { wrapStream } from "./mesh-stream.ts"
import type { GossipMessage, MeshNode, MeshStream, PeerChange } from "./mesh.ts"
import { writeWhole } from "./whole-writes.ts"

export interface MeshNodeOptions {
  identity: Identity
  /** Multiaddrs to listen on; empty: none, the node only dials. */
  listen: string[]
  /** Told to others instead of the listening addresses: behind NAT and proxies. */
  announce?: string[]
  /** Whom certificates are checked against, and who needs none. */
  coordinatorKey: { peerId: PeerId; publicKey: Uint8Array }
  /** Our certificate as it is now; null while there is none. Not asked at the coordinator. */
  certificate: () => string | null
  isCoordinator: boolean
  /** `computalot-node/0.1.0` */
  agentVersion: string
  log: Log
  clock: Clock
  /** Inbound connections in their admission exchange at once; known members go first (architecture §5.3). */
  handshakesAtOnce?: number
  /** Admits the holder of an expired but genuine certificate: the coordinator does so for members it has not revoked. */
  admitExpired?: (membership: Membership) => boolean
  /** Has this peer been a member before, as far as the caller remembers? Such peers go first in a rush. */
  isKnown?: (peer: PeerId) => boolean
  /** Called for each peer that was not admitted or did not admit us, with the reason. */
  refused?: (refusal: RefusedPeer) => void
  /** Of the mesh protocol; programs leave it out. */
  versions?: VersionRange
}

/** Starts a libp2p node and gives it as the mesh. Rejects when an address cannot be listened on. */
export async function createMeshNode(options: MeshNodeOptions): Promise<MeshNode> {
  const { identity, clock, log } = options
  const watchers = new Set<(change: PeerChange) => void>()
  /** Where we dialled the peers that are connected. */
  const dialledAt = new Map<PeerId, string>()
  const known = createMemory<PeerId>(KNOWN_PEERS)
  /** Open streams of each peer and protocol, whichever connection carries them. */
  const openStreams = new Map<string, number>()

  /** Gossip messages that each peer has relayed to us since the last sweep. */
  const messagesTaken = new Map<PeerId, number>()

  const guests = createGuests({
    handshakesAtOnce: options.handshakesAtOnce ?? HANDSHAKES_AT_ONCE,
    clock,
    isKnown: (peer) => known.has(peerId(peer)) || options.isKnown?.(peerId(peer)) === true,
  })
  let gate: GatedRegistrar | null = null
  const admission: Admission = createAdmission({
    isCoordinator: options.isCoordinator,
    coordinator: options.coordinatorKey,
    certificate: options.certificate,
    admitExpired: options.admitExpired ?? (() => false),
    agentVersion: options.agentVersion,
    versions: options.versions ?? SPOKEN_VERSIONS,
    clock,
    log,
    guests,
    preferred: (peer, connection) => {
      known.add(peer)
      gate?.joined(connection.remotePeer, connection)
    },
    changed: (peer, connected) => {
      log.info(connected ? "peer joined" : "peer left", { peer })
      if (!connected) gate?.left(libPeerId(peer))
      const address = connected ? addressDialled(peer) : dialledAt.get(peer)
      if (address === undefined || !connected) dialledAt.delete(peer)
      else dialledAt.set(peer, address)
      const change = { peer, connected, ...(connected || address === undefined ? {} : { dialledAt: address }) }
      for (const watcher of watchers) watcher(change)
    },
    refused: (refusal) => options.refused?.(refusal),
  })

  const node = await createLibp2p({
    start: false,
    privateKey: identity.privateKey,
    addresses: { listen: options.listen, ...(options.announce ? { announce: options.announce } : {}) },
    nodeInfo: { name: "computalot", version: "1", userAgent: options.agentVersion },
    transports: [tcp()],
    connectionEncrypters: [writeWhole(noise())],
    streamMuxers: [yamux(YAMUX)],
    connectionManager: CONNECTIONS,
    // It would abort a connection on one late ping, that is whenever a machine is busy. Peers notice loss themselves.
    connectionMonitor: { enabled: false },
    connectionGater: guests.gater,
    services: {
      identify: identify(),
      gossip: ({
        privateKey,
        peerId,
        peerStore,
        registrar,
        connectionManager,
        logger,
      }: GossipSubComponents): GossipSub => {
        gate = gateRegistrar(registrar, (connection) => admission.serves(connection))
        return gossipsub(GOSSIP)({
          privateKey,
          peerId,
          peerStore,
          registrar: gate.registrar,
          connectionManager,
          logger,
        })
      },
    },
  })
  const gossip = node.services.gossip

  const onOpen = (event: CustomEvent<Connection>): void => admission.opened(event.detail)
  const onClose = (event: CustomEvent<Connection>): void => {
    admission.closed(event.detail)
    void forgetStranger(event.detail.remotePeer)
  }
  node.addEventListener("connection:open", onOpen)
  node.addEventListener("connection:close", onClose)
  await node.handle(HELLO_PROTOCOL.name, (stream, connection) => admission.answer(stream, connection), {
    maxInboundStreams: HELLO_PROTOCOL.streamsPerPeer,
    maxOutboundStreams: HELLO_PROTOCOL.streamsPerPeer,
  })
  try {
    await node.start()
  } catch (error) {
    await node.stop()
    throw new Error(`the mesh cannot listen on ${options.listen.join(", ")}`, { cause: error })
  }

  const sweep = every(clock, SWEEP_INTERVAL_MS, () => {
    admission.sweepExpired()
    messagesTaken.clear()
    // gossipsub opens its stream to a peer once; when only that stream broke, this opens it again.
    for (const peer of admission.peers()) {
      const connection = admission.connectionOf(peer)
      if (connection !== null) gate?.joined(connection.remotePeer, connection)
    }
  })

  /** libp2p remembers every peer that ever proved a key; those that never became members shall cost nothing. */
  async function forgetStranger(peer: LibPeerId): Promise<void> {
    if (known.has(peerId(peer.toString())) || node.getConnections(peer).length > 0) return
    await node.peerStore.delete(peer).catch(() => {})
  }

  function addressDialled(peer: PeerId): string | undefined {
    const connection = admission.connectionOf(peer)
    if (connection?.direction !== "outbound") return undefined
    const address = connection.remoteAddr.toString()
    return address.includes("/p2p/") ? address : `${address}/p2p/${peer}`
  }

  async function dial(address: string, signal?: AbortSignal): Promise<PeerId> {
    const timeout = AbortSignal.timeout(DIAL_TIMEOUT_MS)
    const connection = await node.dial(multiaddr(address), {
      signal: signal === undefined ? timeout : AbortSignal.any([signal, timeout]),
    })
    return peerId(connection.remotePeer.toString())
  }

  async function openStream(to: PeerId, protocol: StreamProtocol, signal?: AbortSignal): Promise<MeshStream> {
    const timeout = AbortSignal.timeout(OPEN_STREAM_TIMEOUT_MS)
    const deadline = signal === undefined ? timeout : AbortSignal.any([signal, timeout])
    const connection = await admission.awaitConnection(to, deadline)
    const stream = await connection.newStream([protocol.name], {
      signal: deadline,
      maxOutboundStreams: protocol.streamsPerPeer,
    })
    // Over the other side's limit libp2p resolves all the same, with a stream that is reset already.
    if (stream.status !== "open") throw new Error(`${protocol.name}: ${to} did not take the stream`)
    return wrapStream(stream, to, protocol, clock)
  }

  function serve(protocol: StreamProtocol, handle: (stream: MeshStream, from: PeerId) => Promise<void>): void {
    const served = (stream: Stream, connection: Connection): void => {
      if (protocol.beforeAdmission !== true && !admission.serves(connection)) {
        return stream.abort(new Error("not admitted"))
      }
      const from = peerId(connection.remotePeer.toString())
      const key = `${from} ${protocol.name}`
      const open = openStreams.get(key) ?? 0
      if (open >= protocol.streamsPerPeer) return stream.abort(new Error("too many streams"))
      openStreams.set(key, open + 1)
      const wrapped = wrapStream(stream, from, protocol, clock)
      wrapped.ended.addEventListener("abort", () => {
        const left = (openStreams.get(key) ?? 1) - 1
        if (left === 0) openStreams.delete(key)
        else openStreams.set(key, left)
      })
      void runHandler(wrapped, protocol, handle)
    }
    node
      .handle(protocol.name, served, {
        maxInboundStreams: protocol.streamsPerPeer,
        maxOutboundStreams: protocol.streamsPerPeer,
        force: true,
      })
      .catch((error: unknown) =>
        log.error("protocol not announced", { protocol: protocol.name, error: errorText(error) }),
      )
  }

  /** The stream ends with its handler: closed when it returned, reset when it threw. */
  async function runHandler(
    stream: MeshStream,
    protocol: StreamProtocol,
    handle: (stream: MeshStream, from: PeerId) => Promise<void>,
  ): Promise<void> {
    try {
      await handle(stream, stream.peer)
      await stream.close()
      if (stream.ended.aborted) return
      // The other side may still be reading our last words; it is not waited for longer than this.
      const linger = clock.after(LINGER_MS, () => stream.reset("its handler has ended"))
      stream.ended.addEventListener("abort", () => linger.cancel(), { once: true })
    } catch (error) {
      log.debug("stream failed", { protocol: protocol.name, peer: stream.peer, error: errorText(error) })
      stream.reset(errorText(error))
    }
  }

  function subscribe(topic: string, judge: (message: GossipMessage) => Verdict): void {
    assert((TOPICS as readonly string[]).includes(topic), `${topic} is one of the mesh's topics`)
    gossip.topicValidators.set(topic, (source, message) => judgeMessage(source, message, judge))
    gossip.subscribe(topic)
  }

  function judgeMessage(
    source: LibPeerId,
    message: Message,
    judge: (message: GossipMessage) => Verdict,
  ): TopicValidatorResult {
    if (message.type !== "signed" || message.data.length > LARGEST_MESSAGE_BYTES) return TopicValidatorResult.Reject
    const relayer = peerId(source.toString())
    if (admission.connectionOf(relayer) === null) return TopicValidatorResult.Ignore
    if (!takeAllowance(relayer)) return TopicValidatorResult.Reject
    const from = peerId(message.from.toString())
    // gossipsub takes a validator that throws for `ignore`; that it threw must be seen.
    try {
      const verdict = judge({ topic: message.topic, from, data: message.data })
      if (verdict.verdict !== "accept") {
        log.debug("gossip not accepted", { topic: message.topic, from, source: source.toString(), ...verdict })
      }
      return RESULTS[verdict.verdict]
    } catch (error) {
      log.error("gossip validator failed", { topic: message.topic, from, error: errorText(error) })
      return TopicValidatorResult.Ignore
    }
  }

  /** False when a peer relays more in these seconds than a whole mesh has to say. */
  function takeAllowance(relayer: PeerId): boolean {
    const taken = (messagesTaken.get(relayer) ?? 0) + 1
    messagesTaken.set(relayer, taken)
    return taken <= MESSAGES_A_SWEEP
  }

  return {
    peerId: identity.peerId,
    addresses: () => node.getMultiaddrs().map(String),
    peers: () => admission.peers(),
    dial,
    drop: async (peer, reason) => {
      for (const connection of node.getConnections(libPeerId(peer))) connection.abort(new Error(reason))
    },
    openStream,
    serve,
    subscribe,
    publish: async (topic, data) => {
      assert(data.length <= LARGEST_MESSAGE_BYTES, `a gossip message of ${data.length} bytes is not too large`)
      return { recipients: (await gossip.publish(topic, data)).recipients.length }
    },
    watchPeers: (seen) => {
      watchers.add(seen)
      return () => void watchers.delete(seen)
    },
    membership: (peer) => admission.membership(peer),
    setRevoked: (ids) => admission.setRevoked(new Set(ids)),
    showCertificate: () => admission.showAgain(),
    [Symbol.asyncDispose]: async () => {
      sweep[Symbol.dispose]()
      await node.stop()
      node.removeEventListener("connection:open", onOpen)
      node.removeEventListener("connection:close", onClose)
      admission[Symbol.dispose]()
      watchers.clear()
    },
  }
}

/** Time for TCP and the handshake of one dial. */
const DIAL_TIMEOUT_MS = 5_000
/** Waiting for admission and choosing the protocol together. */
const OPEN_STREAM_TIMEOUT_MS = 2 * ADMISSION_TIMEOUT_MS
/** Architecture §5.3. */
const HANDSHAKES_AT_ONCE = 50
/** Peers remembered as members, so that they go first in a rush. */
const KNOWN_PEERS = 10_000
/** A handler that has returned leaves the other side this long to read and close. */
const LINGER_MS = 10_000
const SWEEP_INTERVAL_MS = 5_000
/** Twice what any message of ours may be; gossip is no place for more. */
const LARGEST_MESSAGE_BYTES = 64 * 1024
/** In `SWEEP_INTERVAL_MS`, from one peer: eight times the 25 a second that a whole mesh may say (architecture §5.2). */
const MESSAGES_A_SWEEP = 1_000

const RESULTS = {
  accept: TopicValidatorResult.Accept,
  ignore: TopicValidatorResult.Ignore,
  reject: TopicValidatorResult.Reject,
} as const

/** The window may not outgrow the read buffer: a paused stream would be reset by its own speed. */
const YAMUX = {
  maxInboundStreams: 256,
  maxOutboundStreams: 1_000,
  streamOptions: {
    maxStreamWindowSize: 4 * 1024 * 1024,
    maxReadBufferLength: 8 * 1024 * 1024,
    maxWriteBufferLength: 16 * 1024 * 1024,
  },
}

/**
 * libp2p's own limits count by address and would shut out members behind a shared one (measured: nodes lost for ever at 5
 * connections a second); `guests.ts` bounds strangers instead.
 */
const CONNECTIONS = {
  maxConnections: 20_000,
  maxIncomingPendingConnections: 20_000,
  inboundConnectionThreshold: 1_000_000,
  inboundUpgradeTimeout: ADMISSION_TIMEOUT_MS,
  dialTimeout: DIAL_TIMEOUT_MS,
  addressDialTimeout: DIAL_TIMEOUT_MS,
  // `redial.ts` supervises; libp2p's own queue gives up after some tries.
  reconnectRetries: 0,
}

/**
 * A rejected message costs its relayer five points times the square of how many; four reach the graylist. Nothing is
 * asked of delivery rates: most of our topics' members are quiet most of the time.
 */
const TOPIC_SCORE = createTopicScoreParams({
  topicWeight: 1,
  timeInMeshWeight: 0,
  firstMessageDeliveriesWeight: 0,
  meshMessageDeliveriesWeight: 0,
  meshFailurePenaltyWeight: 0,
  invalidMessageDeliveriesWeight: -5,
  invalidMessageDeliveriesDecay: 0.97,
})

const GOSSIP: Partial<GossipsubOpts> = {
  globalSignaturePolicy: StrictSign,
  D: 6,
  Dlo: 4,
  Dhi: 12,
  allowedTopics: [...TOPICS],
  // To all at once is right for a few peers, and what the mesh degree gives anyway.
  floodPublish: false,
  fallbackToFloodsub: false,
  batchPublish: true,
  allowPublishToZeroTopicPeers: true,
  emitSelf: false,
  doPX: false,
  maxInboundDataLength: 256 * 1024,
  maxOutboundBufferSize: 4 * 1024 * 1024,
  maxTopicBytesPerPeer: 16 * 1024,
  /** Asked before the signature is checked, and remembered only after: duplicates cost nothing, and cannot be planted. */
  fastMsgIdFn: (message) => latin1(message.from) + latin1(message.seqno),
  scoreParams: {
    // The default shuts out, without a word, everyone behind an address that more than ten share.
    IPColocationFactorWeight: 0,
    topics: Object.fromEntries(TOPICS.map((topic) => [topic, TOPIC_SCORE])),
  },
}

function latin1(bytes: Uint8Array | null | undefined): string {
  return bytes ? Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("latin1") : ""
}

function libPeerId(peer: PeerId): LibPeerId {
  return peerIdFromString(peer)
}

/** The latest `size` values. */
function createMemory<T>(size: number) {
  const values = new Set<T>()
  return {
    has: (value: T) => values.has(value),
    add(value: T): void {
      values.delete(value)
      values.add(value)
      if (values.size > size) values.delete(present(values.values().next().value, "the oldest value"))
    },
  }
}
