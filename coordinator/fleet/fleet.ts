import type { Clock, Instant } from "../../protocol/base/clock.ts"
import { jittered, type Random } from "../../protocol/base/random.ts"
import { ComputalotError, notFound } from "../../protocol/domain/errors.ts"
import { digest, revisionId, type Digest, type NodeId, type PeerId } from "../../protocol/domain/ids.ts"
import { CERTIFICATE_GRACE_MS, CERTIFICATE_SKEW_MS, type Membership } from "../../protocol/wire/certificate.ts"
import type { Hello, ToCoordinator } from "../../protocol/wire/control.ts"
import type { Log } from "../../protocol/base/log.ts"
import { randomText } from "../../protocol/base/random.ts"
import { recordNodeGone, recordReplica, recordRuntimeNote } from "../projects/record.ts"
import { sanitise } from "../projects/sanitise.ts"
import {
  allNodes,
  nodeById,
  nodeByPeer,
  readmitNode,
  recordHello,
  recordSeen,
  updateNodeState,
  type NodeRow,
  type NodeState,
} from "../store/fleet.ts"
import { longestCertificateMs } from "../store/meta.ts"
import { pardon, storeCloned } from "../store/node-faults.ts"
import type { Store, Tx } from "../store/store.ts"
import { createBoots } from "./boots.ts"
import { capacityFrom } from "./capacity.ts"
import { certify, type EnrolmentParts } from "./enrol.ts"
import { mayRunProjects, type PlacementPolicy } from "./fit.ts"
import { isInReach } from "./liveness.ts"
import type { Member, Members } from "./members.ts"

/** The fleet's acts: who a peer is, what nodes say of themselves and their replicas, and the admin's word on them. */
export interface Fleet {
  /** Takes the members of an earlier start into memory. Once, before the mesh opens. */
  load(): Promise<void>
  /**
   * The member that says hello, with its facts stored; null for peers that never enrolled. Whose genuine certificate names
   * nobody we know was enrolled after the backup that these data come from, and is taken in again. `cloned`: another machine
   * speaks with its key, which started later and is connected.
   */
  hello(peer: PeerId, hello: Hello, membership: Membership | null): Promise<Member | "cloned" | null>
  replica(member: Member, report: Extract<ToCoordinator, { type: "replica" }>): Promise<void>
  memberCount(): number
  /** Addresses of some other members, for the node to connect to. */
  peersFor(member: Member): string[]
  /** Grows with every revocation. */
  revocationVersion(): number
  isRevoked(node: NodeId): boolean
  /** Everybody who was ever revoked: what this program itself admits nobody of. */
  revoked(): NodeId[]
  /** Those whose certificates some member may still believe: what members are told (architecture §5.1). */
  revokedWithCertificate(): NodeId[]
  /** A fresh certificate when the member's is past the first part of its life, else null. Asked at every sign of life. */
  renewedCertificate(member: Member): string | null
  /**
   * 404 for unknown nodes; 409 for a revoked one: that is final, and revoking it again changes nothing. A revoked node is cut
   * off by the caller. `active` ends probation, and what was seen of clones.
   */
  setState(id: NodeId, state: NodeState, reason: string | null): Promise<Member>
  rows(): Promise<NodeRow[]>
  /** Stores when members were last heard; called now and then. */
  storeSeen(): Promise<void>
}

export interface FleetParts extends EnrolmentParts {
  store: Store
  clock: Clock
  random: Random
  log: Log
  members: Members
  /** Replicas changed: prepared runtimes may serve waiting work, or a set-up failed. */
  replicaChanged: (revision: string, member: Member, news: ReplicaNews) => void
}

/** Members that lack the coordinator believe an ended certificate for so long, by clocks that go wrong both ways. */
const BELIEVED_AFTER_END_MS = CERTIFICATE_GRACE_MS + 2 * CERTIFICATE_SKEW_MS
/** What a node said of a revision, fit for clients to read. */
export type ReplicaNews =
  | { state: "initializing" | "ready" | "removed" }
  | { state: "failed"; message: string; logTail: string }
  /** The node itself could not prepare it, by no fault of the project; nobody could give it the blob `missing`. */
  | { state: "unable"; message: string; missing: Digest | null }

/** Characters of a reason: it stands in sentences. */
const LONGEST_REASON = 400
const LONGEST_LOG_TAIL = 8000

/** Addresses told to a joining node. */
const PEERS_TOLD = 8
const ONE_BOOT = { alternates: false, second: false }
/** Two machines with one key: so long without a sign of the second, and the node gets work again. */
const CLONED_MS = 3600_000

export function createFleet(parts: FleetParts): Fleet {
  const { store, clock, members } = parts
  /** When each member gets its next certificate. */
  const renewAt = new Map<NodeId, Instant>()
  /** With when they were; null where that is not known. */
  const revokedAt = new Map<NodeId, Instant | null>()
  let longestCertificate = parts.certificateTtlMs
  const boots = createBoots()

  function adopt(row: NodeRow): Member {
    const member = members.add({ id: row.id, peer: row.peerId, name: row.name, roles: row.roles, state: row.state })
    member.lastSeenAt ??= row.lastSeenAt
    member.probation = row.probation
    member.clonedUntil = row.clonedAt === null ? null : row.clonedAt + CLONED_MS
    return member
  }

  /** Does the row tell of it? Then the node gets nothing new for a while (architecture §5.1). */
  function showsClones(row: NodeRow, bootId: string, at: Instant): { alternates: boolean; second: boolean } {
    const alternates = boots.heard(row.id, bootId, clock.monotonicMs())
    const isCloned = alternates || (row.clonedAt !== null && at < row.clonedAt + CLONED_MS)
    const member = members.byNode(row.id)
    const isHere =
      member &&
      member.session !== null &&
      isInReach(members.contact(member)) &&
      boots.isNewest(row.id, member.facts?.bootId ?? bootId)
    return { alternates, second: isCloned && isHere === true && !boots.isNewest(row.id, bootId) }
  }

  return {
    async load() {
      longestCertificate = await store.write((tx) => longestCertificateMs(tx, parts.certificateTtlMs))
      for (const row of await store.read(allNodes)) {
        adopt(row)
        if (row.state === "revoked") revokedAt.set(row.id, row.revokedAt)
      }
    },
    async hello(peer, hello, membership) {
      const at = clock.now()
      const before = await store.read((view) => nodeByPeer(view, peer))
      const { alternates, second } = before ? showsClones(before, hello.boot_id, at) : ONE_BOOT
      const row = await store.write(async (tx) => {
        const known = await nodeByPeer(tx, peer)
        if (!known) return membership && (await readmitted(tx, membership, hello, at))
        if (alternates || second) await storeCloned(tx, known.id, at)
        if (!second) await recordHello(tx, known.id, hello.agent_version, JSON.stringify(factsOnly(hello)), at)
        return await nodeByPeer(tx, peer)
      })
      if (!row) return null
      const member = adopt(row)
      if (alternates) parts.log.warn("two machines speak with one key", { node: row.id, boot_id: hello.boot_id })
      if (second) return "cloned"
      member.facts = {
        agentVersion: hello.agent_version,
        bootId: hello.boot_id,
        roles: row.roles.filter((role) => hello.roles.includes(role)),
        runtime: hello.runtime,
        isolation: hello.isolation,
        enforces: hello.enforces,
        network: hello.network,
        addresses: hello.addresses,
        capacity: capacityFrom(hello.capacity),
      }
      return member
    },
    async replica(member, report) {
      const revision = revisionId(report.revision)
      const at = clock.now()
      const ids = [`diag_${randomText(parts.random, 16)}`, `diag_${randomText(parts.random, 16)}`] as const
      const needsNote = member.facts?.runtime === "process" && report.state === "ready"
      const counts = await store.write(async (tx) => {
        const recorded = await recordReplica(tx, {
          revision,
          node: member.id,
          id: ids[0],
          at,
          state: report.state,
          message: report.message,
          logTail: report.log_tail,
        })
        if (recorded && needsNote) await recordRuntimeNote(tx, { revision, id: ids[1], at })
        return recorded
      })
      // Jobs may wait for an earlier revision too: what a node can or cannot run counts for them.
      if (counts || report.state === "unable" || report.state === "ready")
        parts.replicaChanged(report.revision, member, newsOf(report))
    },
    memberCount: () => [...members.all()].filter(({ session }) => session !== null).length,
    peersFor(member) {
      const others = [...members.all()].filter((other) => other !== member && other.session !== null)
      const told: string[] = []
      while (told.length < PEERS_TOLD && others.length > 0) {
        const [other] = others.splice(parts.random.integer(others.length), 1)
        told.push(...(other?.facts?.addresses ?? []).slice(0, 1))
      }
      return told
    },
    revocationVersion: () => revokedAt.size,
    isRevoked: (node) => revokedAt.has(node),
    revoked: () => [...revokedAt.keys()],
    revokedWithCertificate() {
      const since = clock.now() - longestCertificate - BELIEVED_AFTER_END_MS
      return [...revokedAt].flatMap(([id, at]) => (at === null || at > since ? [id] : []))
    },
    renewedCertificate(member) {
      const at = clock.now()
      if (at < (renewAt.get(member.id) ?? at)) return null
      // A random moment between 40 % and 60 % of its life, so that a fleet enrolled together does not renew together.
      renewAt.set(member.id, at + jittered(parts.random, parts.certificateTtlMs * 0.5))
      return certify(parts, { id: member.id, peerId: member.peer, roles: member.roles })
    },
    async setState(id, state, reason) {
      const at = clock.now()
      const row = await store.read((view) => nodeById(view, id))
      if (!row) throw notFound(`the node ${id}`)
      const isNew = await store.write(async (tx) => {
        const changed = await updateNodeState(tx, id, { state, reason, at })
        if (changed && state === "active") await pardon(tx, id, at)
        if (changed && state === "revoked") await recordNodeGone(tx, id)
        return changed
      })
      if (!isNew && state === "revoked") return adopt(row)
      if (!isNew) {
        throw new ComputalotError("conflict", "the node is revoked, and that is final", {
          recommendedAction: "Enrol the machine again with a new data directory and a new join token.",
        })
      }
      const member = adopt(row)
      member.state = state
      if (state === "active") {
        member.probation = null
        member.clonedUntil = null
        member.restsUntilMs = Number.NEGATIVE_INFINITY
      }
      if (state === "revoked") revokedAt.set(id, at)
      members.changed()
      return member
    },
    rows: () => store.read(allNodes),
    async storeSeen() {
      const heard = [...members.all()].filter(({ session, lastSeenAt }) => session !== null && lastSeenAt !== null)
      if (heard.length === 0) return
      await store.write(async (tx) => {
        for (const { id, lastSeenAt } of heard) await recordSeen(tx, id, lastSeenAt ?? 0)
      })
    },
  }
}

async function readmitted(
  tx: Tx,
  { nodeId, peerId, roles, issuedAt }: Membership,
  hello: Hello,
  at: Instant,
): Promise<NodeRow | null> {
  const known = { id: nodeId, peerId, roles, enrolledAt: issuedAt, agentVersion: hello.agent_version }
  await readmitNode(tx, known)
  await recordHello(tx, nodeId, hello.agent_version, JSON.stringify(factsOnly(hello)), at)
  return await nodeByPeer(tx, peerId)
}

export const isCloned = ({ clonedUntil }: Member, now: Instant): boolean => clonedUntil !== null && now < clonedUntil

/** What projects need to know of the fleet at this moment (readiness). */
export function fleetFacts(members: Members, policy: PlacementPolicy, now: Instant) {
  const live = liveMembers(members, now)
  const workers = liveWorkers(members, policy, now)
  const liveIds = new Set<NodeId>(live.map(({ id }) => id))
  return {
    isLive: (node: NodeId) => liveIds.has(node),
    workers: workers.length,
    workersWithoutImage: workers.filter(({ facts }) => facts?.runtime === "process").length,
    builders: live.filter(({ facts }) => facts?.roles.includes("builder") && facts.runtime !== "process").length,
  }
}

/** Is there a worker with contact that takes work? What waits without one waits for the fleet, not for its turn (GAP-63). */
export function hasLiveWorker(members: Members, now: Instant): boolean {
  return [...members.all()].some(
    (member) =>
      member.state === "active" &&
      member.facts?.roles.includes("worker") &&
      member.standing?.draining === false &&
      !isCloned(member, now) &&
      members.contact(member) === "connected",
  )
}

/** Connected members that may run project work. */
export function liveWorkers(members: Members, policy: PlacementPolicy, now: Instant): Member[] {
  return liveMembers(members, now).filter(({ facts }) => facts !== null && mayRunProjects(facts, policy))
}

/**
 * Who is given work. Not a machine that lost its power, whose stream stays open and says nothing; nor one of two with one key,
 * which gets nothing new: what only they have not tried would wait for them.
 */
function liveMembers(members: Members, now: Instant): Member[] {
  return [...members.all()].filter(
    (member) =>
      member.session !== null &&
      member.facts !== null &&
      member.state === "active" &&
      isInReach(members.contact(member)) &&
      !isCloned(member, now),
  )
}

function newsOf({ state, message, log_tail, missing }: Extract<ToCoordinator, { type: "replica" }>): ReplicaNews {
  const reason = sanitise(message ?? "", LONGEST_REASON)
  if (state === "unable") {
    const why = reason === "" ? "a machine could not prepare it" : reason
    return { state, message: why, missing: missing === undefined ? null : digest(missing) }
  }
  if (state === "failed") {
    const why = reason === "" ? "preparing it failed" : reason
    return { state, message: why, logTail: sanitise(log_tail ?? "", LONGEST_LOG_TAIL) }
  }
  return { state }
}

function factsOnly({ roles, capacity, runtime, isolation, enforces, network, addresses, boot_id }: Hello): object {
  return { roles, capacity, runtime, isolation, enforces, network, addresses, boot_id }
}
