import type { Clock } from "../../protocol/base/clock.ts"
import { sleep } from "../../protocol/base/clock.ts"
import { unreachable } from "../../protocol/base/assert.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import type { Log } from "../../protocol/base/log.ts"
import { randomText, type Random } from "../../protocol/base/random.ts"
import { peerId, type NodeId, type PeerId } from "../../protocol/domain/ids.ts"
import type { MeshNode, MeshStream } from "../../protocol/mesh/mesh.ts"
import {
  CONTROL_PROTOCOL,
  CONTROL_VERSION,
  decodeToCoordinator,
  encodeMessage,
  REVOKED_IN_FRAME,
  type Hello,
  type ItemVerdict,
  type ToCoordinator,
  type ToNode,
} from "../../protocol/wire/control.ts"
import { signEpoch, verifyEpoch } from "../../protocol/wire/epoch.ts"
import { FrameTooLong } from "../../protocol/wire/frames.ts"
import type { SigningKey } from "../../protocol/wire/signing.ts"
import { capacityFrom } from "../fleet/capacity.ts"
import type { ContentBytes } from "../fleet/content-bytes.ts"
import { newIntervalMs } from "../fleet/liveness.ts"
import type { Member, Members, Session } from "../fleet/members.ts"
import type { Fleet } from "../fleet/fleet.ts"
import type { Reputation } from "../fleet/reputation.ts"
import type { Checkpoints } from "../scheduler/checkpoints.ts"
import type { Claims } from "../scheduler/claims.ts"
import type { Builds } from "../scheduler/builds.ts"
import type { Prepare } from "../scheduler/prepare.ts"
import { createFrameBudget, type FrameBudget } from "./frame-budget.ts"

/** The node-facing door: reads control streams, calls one act a message, answers (architecture §5.3). */
export interface ControlDoor extends AsyncDisposable {
  /** The node behind a transfer token, or null. Tokens live as long as their connection. */
  nodeOfToken(token: string): NodeId | null
  /** Ends a member's stream. */
  close(node: NodeId, reason: string): void
}

export interface ControlDoorParts {
  mesh: MeshNode
  clock: Clock
  random: Random
  log: Log
  key: SigningKey
  epoch: number
  members: Members
  fleet: Fleet
  claims: Claims
  checkpoints: Checkpoints
  builds: Builds
  prepare: Prepare
  reputation: Pick<Reputation, "offence" | "complained">
  claimLifetimeMs: number
  /** How often nodes beat in a fleet of so many. */
  heartbeatMs: (members: number) => number
  contentBytes: Pick<ContentBytes, "heard">
  wake: () => void
  /** A later epoch than ours is proved: what we run on is an older copy of the data, and the program ends. */
  superseded: (later: number) => Promise<void>
}

/** A stream that says no hello within this is closed. */
const HELLO_TIMEOUT_MS = 15_000
/** The last word of a coordinator that ends waits no longer for whoever reads it. */
const REFUSAL_TIMEOUT_MS = 1_000
/** What a hello costs beside its attempts: certificates, writes, the welcome. */
const HELLO_MS = 5
/** Reports of one node in work at once; further frames wait unread (architecture §5.3). */
const REPORTS_IN_WORK = 2

export function openControlDoor(parts: ControlDoorParts): ControlDoor {
  const { mesh, clock, log, members } = parts
  const tokens = new Map<string, NodeId>()
  const sessions = new Map<NodeId, { session: Session; token: string }>()
  const stopped = new AbortController()
  const open = new Set<Promise<void>>()
  const reporting = new Map<Member, Set<Promise<void>>>()
  const budgets = new WeakMap<Member, FrameBudget>()
  const proof = signEpoch(parts.key, parts.epoch)

  mesh.serve(CONTROL_PROTOCOL, async (stream, from) => {
    const served = serve(stream, from).catch((error: unknown) => {
      log.warn("control stream ended", { peer: from, reason: errorText(error) })
    })
    open.add(served)
    await served.finally(() => open.delete(served))
    stream.reset("the control stream is over")
  })

  async function serve(stream: MeshStream, from: PeerId): Promise<void> {
    const frames = stream.frames()[Symbol.asyncIterator]()
    const first = await within(HELLO_TIMEOUT_MS, frames.next())
    if (first.done) return
    const hello = readHello(first.value)
    if (hello === null) {
      offence(members.byPeer(from), "a first frame that is no hello")
      return await refuse(stream, "malformed", "the first frame says hello, within the limits of the protocol")
    }
    const member = await admit(stream, from, hello)
    if (!member) return
    await budgetOf(member).spend(
      { ms: HELLO_MS, bytes: first.value.length, items: hello.attempts.length },
      stream.ended,
    )
    const session = createSession(stream)
    const token = takeOver(member, session)
    try {
      await greet(member, session, hello, token)
      for (let next = await frames.next(); !next.done; next = await frames.next()) {
        parts.claims.heard(member)
        const beganMs = clock.monotonicMs()
        const message = read(member, next.value)
        const handled = handle(member, session, message)
        const cost = { ms: clock.monotonicMs() - beganMs, bytes: next.value.length, items: itemsToWrite(message) }
        await handled
        await budgetOf(member).spend(cost, stream.ended)
      }
    } catch (error) {
      if (error instanceof FrameTooLong) offence(member, "a control frame over the limit")
      throw error
    } finally {
      leave(member, session, token)
    }
  }

  function read(member: Member, frame: Uint8Array): ToCoordinator {
    try {
      return decodeToCoordinator(frame)
    } catch (cause) {
      offence(member, "a malformed control frame")
      throw new Error("a malformed control frame", { cause })
    }
  }

  function offence(member: Member | undefined, what: string): void {
    if (member && member.state !== "revoked") parts.reputation.offence(member, what)
  }

  /** Of the member, whichever of its streams the frames come on. */
  function budgetOf(member: Member): FrameBudget {
    const budget = budgets.get(member) ?? createFrameBudget(clock)
    budgets.set(member, budget)
    return budget
  }

  /** The member behind the hello, or null after a refusal that says why. */
  async function admit(stream: MeshStream, from: PeerId, hello: Hello): Promise<Member | null> {
    if (hello.version !== CONTROL_VERSION) {
      await refuse(stream, "version", `this coordinator speaks version ${CONTROL_VERSION}, the node ${hello.version}`)
      return null
    }
    const proved = hello.epoch_proof !== null && verifyEpoch(mesh.peerId, hello.epoch, hello.epoch_proof)
    if (hello.epoch > parts.epoch && proved) {
      const refused = refuse(stream, "epoch", "this coordinator runs on an older copy of its data")
      await within(REFUSAL_TIMEOUT_MS, refused).catch(() => undefined)
      await parts.superseded(hello.epoch)
      return null
    }
    const member = await parts.fleet.hello(from, hello, mesh.membership(from))
    if (member === "cloned") {
      await refuse(stream, "cloned", "another machine that started later speaks with this node's key")
      return null
    }
    if (member && member.state !== "revoked") return member
    await refuse(stream, "revoked", "this node is not a member, or was revoked")
    return null
  }

  async function refuse(
    stream: MeshStream,
    reason: Extract<ToNode, { type: "refusal" }>["reason"],
    message: string,
  ): Promise<void> {
    await stream.send(encodeMessage({ type: "refusal", reason, message }))
    await stream.close()
  }

  function createSession(stream: MeshStream): Session {
    return {
      send(message) {
        const frame = encodeMessage(message)
        if (frame.length > CONTROL_PROTOCOL.largestFrameBytes) {
          // Resetting would bring the same message again with the next hello.
          return log.error("a message is too large for its frame", { type: message.type, bytes: frame.length })
        }
        stream.send(frame).catch(() => stream.reset("it could not be written to"))
      },
      close: (reason) => stream.reset(reason),
    }
  }

  /** A newer stream of the same node replaces the older one: the node redials before we notice a broken one. */
  function takeOver(member: Member, session: Session): string {
    const before = sessions.get(member.id)
    if (before) {
      tokens.delete(before.token)
      before.session.close("a newer stream of this node replaced it")
    }
    const token = `nds_${randomText(parts.random, 40)}`
    tokens.set(token, member.id)
    sessions.set(member.id, { session, token })
    // Nothing is granted before the welcome: what it was offered on the older stream is reconciled first.
    member.session = null
    member.standing = null
    return token
  }

  async function greet(member: Member, session: Session, hello: Hello, token: string): Promise<void> {
    const attempts = await parts.claims.hello(member, hello.attempts)
    if (sessions.get(member.id)?.session !== session) throw new Error("a newer stream of this node replaced it")
    if (member.state === "revoked") throw new Error("the node was revoked")
    parts.claims.heard(member)
    member.session = session
    member.heartbeatMs = parts.heartbeatMs(sessions.size)
    const revoked = parts.fleet.revokedWithCertificate()
    while (revoked.length > REVOKED_IN_FRAME) {
      session.send({ type: "revoked", nodes: revoked.splice(0, REVOKED_IN_FRAME) })
    }
    session.send({
      type: "welcome",
      version: CONTROL_VERSION,
      epoch: parts.epoch,
      epoch_proof: proof,
      now: clock.now(),
      heartbeat_ms: member.heartbeatMs,
      claim_lifetime_ms: parts.claimLifetimeMs,
      members: parts.fleet.memberCount(),
      attempts,
      peers: parts.fleet.peersFor(member),
      revocation_version: parts.fleet.revocationVersion(),
      revoked,
      transfer_token: token,
      certificate: parts.fleet.renewedCertificate(member),
    })
    // It may have been decided while the node was away, also that it works again.
    session.send({ type: "node_state", state: member.state })
    await parts.builds.hello(member)
    log.info("node connected", { node: member.id, attempts: hello.attempts.length })
    members.changed()
  }

  function leave(member: Member, session: Session, token: string): void {
    tokens.delete(token)
    if (sessions.get(member.id)?.session !== session) return
    sessions.delete(member.id)
    member.session = null
    member.standing = null
    log.info("node disconnected", { node: member.id })
    members.changed()
  }

  async function handle(member: Member, session: Session, message: ToCoordinator): Promise<void> {
    switch (message.type) {
      case "hello":
        return session.close("hello is said once")
      case "claim":
        member.standing = {
          open: message.open,
          draining: message.draining,
          capacity: capacityFrom(message.capacity),
          warm: new Set(message.warm),
          credit: message.credit,
        }
        members.changed()
        return parts.wake()
      case "accept":
        return parts.claims.accepted(member, message.claims)
      case "give_back":
        return await parts.claims.gaveBack(member, message.items)
      case "started":
        return parts.claims.started(member, message.claims)
      case "heartbeat": {
        if (message.peer_bytes !== undefined) parts.contentBytes.heard(member, message.peer_bytes)
        const answer = parts.claims.heartbeat(member, message.attempts)
        const newMs = newIntervalMs(member.heartbeatMs, parts.heartbeatMs(sessions.size))
        if (newMs !== null) member.heartbeatMs = newMs
        session.send({
          type: "heartbeat_reply",
          n: message.n,
          ...answer,
          ...(newMs !== null && { heartbeat_ms: newMs }),
        })
        const certificate = parts.fleet.renewedCertificate(member)
        if (certificate !== null) session.send({ type: "certificate", certificate })
        return
      }
      case "progress":
        parts.claims.progress(member, message.items)
        return parts.checkpoints.heard(member, message.items)
      case "report":
        return await storeBeside(member, session, () => parts.claims.report(member, message.items))
      case "checkpoint":
        return await storeBeside(member, session, async () => [await parts.checkpoints.store(member, message.item)])
      case "fell_back":
        return await parts.checkpoints.fellBack(member, message)
      case "replica":
        return await parts.fleet.replica(member, message)
      case "built": {
        const verdict = await parts.builds.built(member, message)
        return session.send({ type: "verdicts", items: [verdict] })
      }
      case "taken_back":
        return await parts.claims.gaveBack(
          member,
          message.not_started.map((claim) => ({ claim, reason: "taken back" })),
        )
      case "want":
        return await parts.prepare.want(member, message.revisions)
      case "complaint":
        return complained(member, message)
      default:
        return unreachable(message)
    }
  }

  function complained(member: Member, { peer_id, kind }: Extract<ToCoordinator, { type: "complaint" }>): void {
    const accused = peerId(peer_id)
    if (kind === "content") return parts.reputation.complained(member, accused)
    return parts.claims.refusedTo(member, accused)
  }

  /** Reports and checkpoints are stored side by side, two at most, so that one write's wait does not hold up heartbeats. */
  async function storeBeside(member: Member, session: Session, store: () => Promise<ItemVerdict[]>): Promise<void> {
    const inWork = reporting.get(member) ?? new Set()
    while (inWork.size >= REPORTS_IN_WORK) await Promise.race(inWork)
    reporting.set(member, inWork)
    const stored = store()
      .then((verdicts) => session.send({ type: "verdicts", items: verdicts }))
      .catch((error: unknown) => {
        // Nothing was stored and nothing is answered: after the next hello the node reports again.
        log.error("a report could not be stored", { node: member.id, error: errorText(error) })
        session.close("a report could not be stored")
      })
      .finally(() => {
        inWork.delete(stored)
        if (inWork.size === 0) reporting.delete(member)
      })
    inWork.add(stored)
  }

  async function within<T>(limitMs: number, promise: Promise<T>): Promise<T> {
    const timeout = new AbortController()
    try {
      return await Promise.race([
        promise,
        sleep(clock, limitMs, AbortSignal.any([timeout.signal, stopped.signal])).then(() => {
          throw new Error("it did not come in time")
        }),
      ])
    } finally {
      timeout.abort(new Error("answered"))
    }
  }

  return {
    nodeOfToken: (token) => tokens.get(token) ?? null,
    close(node, reason) {
      sessions.get(node)?.session.close(reason)
    },
    async [Symbol.asyncDispose]() {
      stopped.abort(new Error("the coordinator stops"))
      for (const { session } of sessions.values()) session.close("the coordinator stops")
      await Promise.all(open)
      await Promise.all([...reporting.values()].flatMap((inWork) => [...inWork]))
    },
  }
}

/** The hello in the first frame; null when there is none in it. */
function readHello(frame: Uint8Array): Hello | null {
  try {
    const message = decodeToCoordinator(frame)
    return message.type === "hello" ? message : null
  } catch {
    return null
  }
}

/** What of a message takes part in a write. */
function itemsToWrite(message: ToCoordinator): number {
  switch (message.type) {
    case "report":
    case "give_back":
      return message.items.length
    case "started":
      return message.claims.length
    case "taken_back":
      return message.not_started.length
    case "replica":
    case "built":
    case "want":
    case "complaint":
    case "checkpoint":
    case "fell_back":
      return 1
    case "hello":
    case "claim":
    case "accept":
    case "heartbeat":
    case "progress":
      return 0
    default:
      return unreachable(message)
  }
}
