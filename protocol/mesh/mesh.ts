import type { NodeId, PeerId } from "../domain/ids.ts"
import type { Verdict } from "../gossip/verdict.ts"
import type { Membership } from "../wire/certificate.ts"
import type { StreamProtocol } from "../wire/stream-protocol.ts"

/**
 * The mesh as coordinator and agents see it. `create-mesh-node.ts` is its libp2p form; a simulation passes its own.
 * Nothing here knows what the messages mean.
 */
export interface Mesh extends AsyncDisposable {
  readonly peerId: PeerId
  /** Multiaddrs others can dial, each ending in `/p2p/<peerId>`: the announced ones where given, else the listening ones. */
  addresses(): string[]
  /** Peers with an open, admitted connection. */
  peers(): PeerId[]
  /**
   * Opens a connection when there is none. Resolves once the transport is secured; whether the other side admits us shows
   * only in what it answers. Rejects after `DIAL_TIMEOUT_MS`, or when the signal is aborted.
   */
  dial(address: string, signal?: AbortSignal): Promise<PeerId>
  /** Ends every connection to `peer`. Unknown peers: nothing happens. */
  drop(peer: PeerId, reason: string): Promise<void>
  /**
   * Opens a stream to a connected peer, once it is admitted; rejects when it is not connected, or not admitted in time.
   * Resolving does not mean that it is served: every protocol answers something of its own.
   */
  openStream(to: PeerId, protocol: StreamProtocol, signal?: AbortSignal): Promise<MeshStream>
  /** Serves `protocol`. A handler that throws resets the stream. One handler a protocol; a second call replaces it. */
  serve(protocol: StreamProtocol, handle: (stream: MeshStream, from: PeerId) => Promise<void>): void
  /** Joins `topic`. Each message of an admitted peer passes `judge` first; only accepted ones are relayed. */
  subscribe(topic: string, judge: (message: GossipMessage) => Verdict): void
  /** Publishes to `topic`. `recipients` 0 is no error: nobody listens yet. */
  publish(topic: string, data: Uint8Array): Promise<{ recipients: number }>
  /** Called whenever an admitted peer connects or its last connection closes. Returns how to stop listening. */
  watchPeers(seen: (change: PeerChange) => void): () => void
}

export interface PeerChange {
  peer: PeerId
  connected: boolean
  /** With the end of a connection: the address at which we had dialled the peer, where we had. */
  dialledAt?: string
}

/** The mesh, and who its members are. */
export interface MeshNode extends Mesh {
  /** What an admitted peer's certificate says; null for the coordinator and for others. */
  membership(peer: PeerId): Membership | null
  /** Replaces the list of revoked members: those that are connected are dropped, none of them is admitted. */
  setRevoked(ids: Iterable<NodeId>): void
  /** Shows the (renewed) certificate to every connected peer. */
  showCertificate(): Promise<void>
}

export interface GossipMessage {
  topic: string
  /** Who signed it. The transport has checked the signature. */
  from: PeerId
  data: Uint8Array
}

/** A stream of whole frames, in order. */
export interface MeshStream {
  readonly peer: PeerId
  /** Sends one frame. Resolves when there is room for more; rejects once the stream has ended. */
  send(frame: Uint8Array): Promise<void>
  /**
   * Frames as they come; ends when the other side closed its half, throws when the stream broke or a frame was too long.
   * May be iterated once. Reads only as fast as it is iterated (back-pressure).
   */
  frames(): AsyncIterable<Uint8Array>
  /** Flushes and closes our half. */
  close(): Promise<void>
  /** Ends both halves at once. A second call does nothing. */
  reset(reason: string): void
  /** Aborted when the stream has ended, however it ended. */
  readonly ended: AbortSignal
}
