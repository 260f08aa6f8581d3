import type { Connection, Stream } from "@libp2p/interface"
import type { Clock, Timer } from "../base/clock.ts"
import { errorText } from "../base/error-text.ts"
import type { Log } from "../base/log.ts"
import { peerId, type NodeId, type PeerId } from "../domain/ids.ts"
import { verifyCertificate, type Membership } from "../wire/certificate.ts"
import { decodeHello, encodeHello, HELLO_PROTOCOL, type HelloMessage, type Refusal } from "../wire/hello.ts"
import { agreeOnVersion, type VersionRange } from "../wire/version.ts"
import type { Guests } from "./guests.ts"
import { wrapStream } from "./mesh-stream.ts"
import type { MeshStream } from "./mesh.ts"

/** How long a new connection has to show a valid certificate (architecture §5.1). */
export const ADMISSION_TIMEOUT_MS = 5_000

/** A peer that was not admitted, or did not admit us. */
export interface RefusedPeer {
  peer: PeerId
  /** `us`: we refused it. `them`: it refused us. */
  by: "us" | "them"
  reason: Refusal
  detail: string
}

export interface AdmissionOptions {
  isCoordinator: boolean
  coordinator: { peerId: PeerId; publicKey: Uint8Array }
  /** Our own, read at every exchange; null while there is none. */
  certificate: () => string | null
  /** Admits the holder of an expired certificate all the same: the coordinator does it for members it has not revoked. */
  admitExpired: (membership: Membership) => boolean
  agentVersion: string
  versions: VersionRange
  clock: Clock
  log: Log
  guests: Guests
  /** The first connection of a peer was admitted, or the last one closed. */
  changed: (peer: PeerId, connected: boolean) => void
  /** A connection was admitted, or an admitted one closed while another stays: this is now the one to use. */
  preferred: (peer: PeerId, connection: Connection) => void
  refused: (refusal: RefusedPeer) => void
}

/**
 * Who is in: every connection starts with an exchange of certificates (`wire/hello.ts`), and is closed when that has not
 * ended well in time. A connection *serves* from when we have admitted the peer, and is *admitted* once the peer has
 * admitted us as well: only then do we open streams on it.
 */
export interface Admission extends Disposable {
  opened(connection: Connection): void
  closed(connection: Connection): void
  /** Serves the other side's hello. */
  answer(stream: Stream, connection: Connection): Promise<void>
  /** Do we serve what comes on this connection? */
  serves(connection: Connection): boolean
  /** The newest admitted connection of a peer, or null. */
  connectionOf(peer: PeerId): Connection | null
  /** As `connectionOf`, but waits for an exchange that is under way. Rejects when none is, or when it fails. */
  awaitConnection(peer: PeerId, signal: AbortSignal): Promise<Connection>
  peers(): PeerId[]
  /** What the certificate of an admitted peer says; null for the coordinator and for peers that are not admitted. */
  membership(peer: PeerId): Membership | null
  /** Shows our certificate again on every admitted connection, after a renewal. */
  showAgain(): Promise<void>
  /** From now on these members are out, also those that are in. */
  setRevoked(ids: ReadonlySet<NodeId>): void
  /** Ends connections whose certificates have ended meanwhile. */
  sweepExpired(): void
}

interface Guest {
  connection: Connection
  peer: PeerId
  openedAt: number
  serves: boolean
  admitted: boolean
  /** It was told to go, or told us to, and why was said once. */
  parted: boolean
  /** Text of the certificate it showed, to be judged again later. */
  certificate: string | null
  membership: Membership | null
  deadline: Timer
}

type Verdict =
  | { admit: true; version: number; membership: Membership | null }
  | { admit: false; reason: Refusal; detail: string }

export function createAdmission(options: AdmissionOptions): Admission {
  const { clock, log } = options
  const guests = new Map<Connection, Guest>()
  /** Admitted connections of each peer, oldest first. */
  const members = new Map<PeerId, Connection[]>()
  let revoked: ReadonlySet<NodeId> = new Set()
  const waiters = new Set<() => void>()

  function opened(connection: Connection): void {
    const peer = peerId(connection.remotePeer.toString())
    const guest: Guest = {
      connection,
      peer,
      openedAt: clock.monotonicMs(),
      serves: false,
      admitted: false,
      parted: false,
      certificate: null,
      membership: null,
      deadline: clock.after(ADMISSION_TIMEOUT_MS, () => {
        if (!guest.admitted) part(guest, { by: "us", reason: "too_late", detail: "no valid certificate in time" })
      }),
    }
    guests.set(connection, guest)
    if (connection.direction === "outbound") void introduce(guest)
    else options.guests.entered(connection, peer, () => connection.abort(new Error("others want to come in")))
  }

  function closed(connection: Connection): void {
    const guest = guests.get(connection)
    if (guest === undefined) return
    guests.delete(connection)
    guest.deadline.cancel()
    options.guests.left(connection)
    if (guest.admitted) forget(guest)
    wakeWaiters()
  }

  function forget(guest: Guest): void {
    const rest = (members.get(guest.peer) ?? []).filter((connection) => connection !== guest.connection)
    const last = rest.at(-1)
    if (last !== undefined) {
      members.set(guest.peer, rest)
      options.preferred(guest.peer, last)
      return
    }
    members.delete(guest.peer)
    options.changed(guest.peer, false)
  }

  // ── the exchange ──

  /** Our side of it as the dialer. A second time, on an admitted connection, it shows a renewed certificate. */
  async function introduce(guest: Guest): Promise<void> {
    const signal = AbortSignal.timeout(ADMISSION_TIMEOUT_MS)
    let stream: MeshStream | null = null
    try {
      stream = wrapStream(
        await guest.connection.newStream([HELLO_PROTOCOL.name], { signal }),
        guest.peer,
        HELLO_PROTOCOL,
        clock,
      )
      resetAt(signal, stream)
      await stream.send(encodeHello(ownHello()))
      const answer = await nextMessage(stream)
      if (!(await judgeAnswer(guest, stream, answer))) return
      admit(guest)
      await stream.close()
    } catch (error) {
      stream?.reset("the exchange failed")
      if (guests.has(guest.connection)) part(guest, { by: "us", reason: "unknown", detail: errorText(error) })
    }
  }

  async function answer(stream: Stream, connection: Connection): Promise<void> {
    const guest = guests.get(connection)
    if (guest === undefined) return stream.abort(new Error("the connection is closed"))
    const wrapped = wrapStream(stream, guest.peer, HELLO_PROTOCOL, clock)
    resetAt(AbortSignal.timeout(ADMISSION_TIMEOUT_MS), wrapped)
    try {
      const messages = wrapped.frames()[Symbol.asyncIterator]()
      const hello = await readMessage(messages)
      const verdict = judge(guest.peer, hello)
      if (!verdict.admit) return await refuse(guest, wrapped, verdict)
      remember(guest, hello, verdict.membership)
      await wrapped.send(encodeHello(ownHello()))
      const last = await readMessage(messages)
      if (last?.type === "admitted") admit(guest)
      else partAfter(guest, last)
      await wrapped.close()
    } catch (error) {
      wrapped.reset("the exchange failed")
      if (!guest.admitted && guests.has(connection)) {
        part(guest, { by: "us", reason: "malformed_hello", detail: errorText(error) })
      }
    }
  }

  /** The dialer's second half: judges the answer and says so. True when the peer is in. */
  async function judgeAnswer(guest: Guest, stream: MeshStream, message: HelloMessage | null): Promise<boolean> {
    if (message?.type === "refused") {
      partAfter(guest, message)
      return false
    }
    const verdict = judge(guest.peer, message)
    if (!verdict.admit) {
      await refuse(guest, stream, verdict)
      return false
    }
    remember(guest, message, verdict.membership)
    await stream.send(encodeHello({ type: "admitted", version: verdict.version }))
    return true
  }

  function judge(peer: PeerId, message: HelloMessage | null): Verdict {
    if (message?.type !== "hello") return refusal("malformed_hello", "what came was no hello")
    const version = agreeOnVersion(options.versions, message)
    if (version === null) {
      const ours = `${options.versions.oldest} to ${options.versions.newest}`
      return refusal("version", `we speak versions ${ours}, you speak ${message.oldest} to ${message.newest}`)
    }
    if (peer === options.coordinator.peerId) return { admit: true, version, membership: null }
    const standing = judgeCertificate(peer, message.certificate)
    return "reason" in standing ? refusal(standing.reason, standing.detail) : { admit: true, version, ...standing }
  }

  function judgeCertificate(
    peer: PeerId,
    text: string | null,
  ): { membership: Membership } | { reason: Refusal; detail: string } {
    if (text === null) return { reason: "no_certificate", detail: "members show a certificate" }
    const verdict = verifyCertificate(text, options.coordinator.publicKey, clock.now(), {
      withoutCoordinator: !options.isCoordinator && !members.has(options.coordinator.peerId),
    })
    if (!("membership" in verdict)) {
      return { reason: `${verdict.reason}_certificate`, detail: "the certificate is not the coordinator's" }
    }
    if (verdict.membership.peerId !== peer) return { reason: "foreign_certificate", detail: "it is another peer's" }
    if (revoked.has(verdict.membership.nodeId)) return { reason: "revoked", detail: "the member was revoked" }
    if (verdict.valid || (verdict.reason === "expired" && options.admitExpired(verdict.membership))) {
      return { membership: verdict.membership }
    }
    return { reason: `${verdict.reason}_certificate`, detail: "the certificate is outside its time" }
  }

  function remember(guest: Guest, message: HelloMessage | null, membership: Membership | null): void {
    guest.serves = true
    guest.membership = membership
    guest.certificate = message?.type === "hello" ? message.certificate : null
  }

  function admit(guest: Guest): void {
    if (guest.admitted || guest.parted || !guests.has(guest.connection)) return
    guest.admitted = true
    guest.deadline.cancel()
    options.guests.left(guest.connection)
    const others = members.get(guest.peer) ?? []
    members.set(guest.peer, [...others, guest.connection])
    options.preferred(guest.peer, guest.connection)
    if (others.length === 0) options.changed(guest.peer, true)
    wakeWaiters()
    // A peer that dials although it is connected holds the former connection for dead. Two young ones are two that dialed
    // each other at the same time: both may stay.
    for (const [i, other] of others.entries()) {
      const age = clock.monotonicMs() - (guests.get(other)?.openedAt ?? 0)
      const tooMany = others.length - i >= CONNECTIONS_PER_MEMBER
      if (age > SIMULTANEOUS_DIAL_MS || tooMany) other.abort(new Error("replaced by a newer connection"))
    }
  }

  async function refuse(guest: Guest, stream: MeshStream, verdict: { reason: Refusal; detail: string }): Promise<void> {
    report(guest, { by: "us", ...verdict })
    const { oldest, newest } = options.versions
    await stream.send(encodeHello({ type: "refused", oldest, newest, reason: verdict.reason, detail: verdict.detail }))
    await stream.close()
    // It closes when it has read why; one that does not is cut off a moment later.
    clock.after(PARTING_MS, () => endConnection(guest))
  }

  /** The peer refused us, or broke off. */
  function partAfter(guest: Guest, message: HelloMessage | null): void {
    const said = message?.type === "refused" ? message : { reason: "unknown" as const, detail: "it broke off" }
    part(guest, { by: "them", reason: said.reason, detail: said.detail })
  }

  function part(guest: Guest, why: Omit<RefusedPeer, "peer">): void {
    report(guest, why)
    endConnection(guest)
  }

  function report(guest: Guest, why: Omit<RefusedPeer, "peer">): void {
    guest.serves = false
    guest.deadline.cancel()
    if (guest.parted) return
    guest.parted = true
    log.info("peer not admitted", { peer: guest.peer, ...why })
    options.refused({ peer: guest.peer, ...why })
  }

  function endConnection(guest: Guest): void {
    if (guests.has(guest.connection)) guest.connection.abort(new Error("not admitted"))
  }

  function ownHello(): HelloMessage {
    return {
      type: "hello",
      oldest: options.versions.oldest,
      newest: options.versions.newest,
      agent_version: options.agentVersion,
      certificate: options.isCoordinator ? null : options.certificate(),
    }
  }

  // ── later ──

  async function awaitConnection(peer: PeerId, signal: AbortSignal): Promise<Connection> {
    for (;;) {
      const connection = connectionOf(peer)
      if (connection !== null) return connection
      if (![...guests.values()].some((guest) => guest.peer === peer)) throw new Error(`${peer} is not connected`)
      signal.throwIfAborted()
      await new Promise<void>((resolve) => {
        const wake = (): void => {
          waiters.delete(wake)
          signal.removeEventListener("abort", wake)
          resolve()
        }
        waiters.add(wake)
        signal.addEventListener("abort", wake, { once: true })
      })
    }
  }

  function wakeWaiters(): void {
    for (const wake of waiters) wake()
  }

  function connectionOf(peer: PeerId): Connection | null {
    return members.get(peer)?.findLast((connection) => connection.status === "open") ?? null
  }

  /** Ends the connections whose certificate would not be admitted any more. */
  function judgeAgain(): void {
    for (const guest of guests.values()) {
      if (guest.membership === null) continue
      const standing = judgeCertificate(guest.peer, guest.certificate)
      if ("reason" in standing) part(guest, { by: "us", ...standing })
    }
  }

  return {
    opened,
    closed,
    answer,
    serves: (connection) => guests.get(connection)?.serves === true,
    connectionOf,
    awaitConnection,
    peers: () => [...members.keys()],
    membership: (peer) => {
      const connection = members.get(peer)?.at(-1)
      return connection === undefined ? null : (guests.get(connection)?.membership ?? null)
    },
    showAgain: async () => {
      await Promise.all([...guests.values()].filter((guest) => guest.admitted).map(introduce))
    },
    setRevoked: (ids) => {
      revoked = ids
      judgeAgain()
    },
    sweepExpired: judgeAgain,
    [Symbol.dispose]: () => {
      for (const guest of guests.values()) guest.deadline.cancel()
      guests.clear()
      members.clear()
      wakeWaiters()
    },
  }
}

/** A peer that was refused has this long to read why. */
const PARTING_MS = 1_000
/** Connections opened this close to one another may be two peers dialing each other. */
const SIMULTANEOUS_DIAL_MS = 10_000
/** Two dialed each other, and both returned before the former connections were seen to be dead. */
const CONNECTIONS_PER_MEMBER = 4

const refusal = (reason: Refusal, detail: string): Verdict => ({ admit: false, reason, detail })

function resetAt(signal: AbortSignal, stream: MeshStream): void {
  const late = (): void => stream.reset("the exchange took too long")
  signal.addEventListener("abort", late, { once: true })
  stream.ended.addEventListener("abort", () => signal.removeEventListener("abort", late), { once: true })
}

function nextMessage(stream: MeshStream): Promise<HelloMessage | null> {
  return readMessage(stream.frames()[Symbol.asyncIterator]())
}

/** The next message; null when it is malformed, or the other side ended. */
async function readMessage(frames: AsyncIterator<Uint8Array>): Promise<HelloMessage | null> {
  const next = await frames.next()
  return next.done === true ? null : decodeHello(next.value)
}
