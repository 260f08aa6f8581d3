import { assert } from "../../protocol/base/assert.ts"
import type { Clock, Instant } from "../../protocol/base/clock.ts"
import type { ClaimNumber, NodeId, PeerId } from "../../protocol/domain/ids.ts"
import type { Capacity, Requirements } from "../../protocol/domain/requirements.ts"
import type { Enforceable, Isolation, NodeRole } from "../../protocol/domain/statuses.ts"
import type { ToNode } from "../../protocol/wire/control.ts"
import type { NodeState } from "../store/fleet.ts"
import { contactOf, type Contact } from "./liveness.ts"

/**
 * The fleet as memory knows it: who is connected, what each lends, which attempts each holds. Derived from rows and hellos;
 * losing it loses nothing.
 */
export interface Members {
  all(): Iterable<Member>
  byNode(node: NodeId): Member | undefined
  byPeer(peer: PeerId): Member | undefined
  /** Adds a member, or gives the one that is there. */
  add(node: { id: NodeId; peer: PeerId; name: string | null; roles: readonly NodeRole[]; state: NodeState }): Member
  /** The attempt of a claim number, wherever it is held. */
  attempt(claim: number): HeldAttempt | undefined
  /** All attempts of a job, wherever they are held. */
  ofJob(job: number): ReadonlySet<HeldAttempt>
  hold(member: Member, attempt: HeldAttempt): void
  /** The attempt ended: its room is free again. Unknown numbers are fine. */
  release(claim: number): HeldAttempt | undefined
  /** Its node came back without it: the claim stands until its task is granted again, but nothing takes its room. */
  vacate(attempt: HeldAttempt): void
  contact(member: Member): Contact
  /** Called after any change that may let work start or stop (room, contact, warmth). */
  onChange(run: () => void): void
  changed(): void
}

export interface Member {
  readonly id: NodeId
  readonly peer: PeerId
  name: string | null
  roles: readonly NodeRole[]
  /** The admin's word. */
  state: NodeState
  /** From the last hello; null before the first since this start. */
  facts: MemberFacts | null
  session: Session | null
  /** Monotonic ms of the last frame; null before the first since this start. */
  lastHeardMs: number | null
  lastSeenAt: Instant | null
  /** The advert that came last over the mesh, whoever passed it on. */
  advert: { heardAtMs: number; intervalMs: number } | null
  standing: Standing | null
  /** The interval it was told to beat at: its own silence is measured by it. */
  heartbeatMs: number
  /** Attempts whose end it reported since this coordinator started. */
  tasksEnded: number
  /** Why it gets one attempt at a time, and nothing ahead; null when it is trusted like any other. */
  probation: { since: Instant; reason: string } | null
  /** Wall time until which it gets nothing new, because two machines speak with its key; null when one does. */
  clonedUntil: Instant | null
  /** Monotonic ms until which it gets nothing new: it took work and did not start it. */
  restsUntilMs: number
  readonly attempts: Map<number, HeldAttempt>
  readonly used: { cpu: number; memoryMb: number; storageGb: number; gpus: Set<string> }
}

export interface MemberFacts {
  agentVersion: string
  bootId: string
  roles: readonly NodeRole[]
  runtime: string
  isolation: Isolation
  enforces: readonly Enforceable[]
  network: "none" | "outbound"
  addresses: readonly string[]
  capacity: Capacity
}

/** The standing claim (architecture §5.4): memory, never a write. */
export interface Standing {
  open: boolean
  draining: boolean
  capacity: Capacity
  warm: ReadonlySet<string>
  credit: number
}

/** A welcomed control stream. */
export interface Session {
  /** Never waits: a stream that is too slow is reset, and reconciliation restores what was lost. */
  send(message: ToNode): void
  close(reason: string): void
}

export interface HeldAttempt {
  readonly claim: ClaimNumber
  readonly node: NodeId
  /** Of the job and the task in the store. */
  readonly job: number
  readonly task: number
  readonly index: number
  readonly number: number
  state: "offered" | "accepted" | "running"
  readonly requirements: Requirements
  readonly gpus: readonly string[]
  readonly reserveMicro: bigint
  readonly grantedAt: Instant
  acceptedAt: Instant | null
  startedAt: Instant | null
  /** Monotonic. */
  readonly grantedAtMs: number
  /** Monotonic ms at which the claim ends unless a heartbeat renews it. */
  expiresAtMs: number
  /** Monotonic ms of the last heartbeat that named it. */
  heardAtMs: number
  /** What the node says it has run, for bills of cancelled attempts. */
  runningMs: number | null
  /** Contact was lost for long enough: the task may be granted again, though the number is not spent yet. */
  claimable: boolean
  /** Boot id of the agent that was granted it; null when that was before this start. */
  readonly bootId: string | null
  /** Its agent came back without it. */
  died: boolean
  /** Monotonic ms of last contact with its node, while contact is lost and clients are told so. */
  contactLostMs: number | null
  /** One extension was given because time or the coordinator paused; no further one until its node was heard. */
  extended: boolean
  /** Monotonic ms of its last durable checkpoint: what it did before is not at stake. */
  checkpointedAtMs: number | null
  progress: string | null
  outputTail: string | null
  /** Wall time of the last progress or output. */
  feedbackAt: Instant | null
}

/** @param timing `heartbeatMs`: of a member until its welcome tells it another interval */
export function createMembers(clock: Clock, timing: { heartbeatMs: number; claimLifetimeMs: number }): Members {
  const members = new Map<NodeId, Member>()
  const byPeer = new Map<PeerId, Member>()
  const attempts = new Map<number, HeldAttempt>()
  const byJob = new Map<number, Set<HeldAttempt>>()
  /** Claims that hold no room any more. */
  const vacated = new Set<number>()
  let listeners: (() => void)[] = []

  function giveRoomBack({ used }: Member, { requirements, gpus }: HeldAttempt): void {
    used.cpu -= requirements.cpu
    used.memoryMb -= requirements.memoryMb
    used.storageGb -= requirements.storageGb
    for (const uuid of gpus) used.gpus.delete(uuid)
  }

  return {
    all: () => members.values(),
    byNode: (node) => members.get(node),
    byPeer: (peer) => byPeer.get(peer),
    add(node) {
      const known = members.get(node.id)
      if (known) return known
      const member: Member = {
        id: node.id,
        peer: node.peer,
        name: node.name,
        roles: node.roles,
        state: node.state,
        facts: null,
        session: null,
        lastHeardMs: null,
        lastSeenAt: null,
        advert: null,
        standing: null,
        heartbeatMs: timing.heartbeatMs,
        tasksEnded: 0,
        probation: null,
        clonedUntil: null,
        restsUntilMs: Number.NEGATIVE_INFINITY,
        attempts: new Map(),
        used: { cpu: 0, memoryMb: 0, storageGb: 0, gpus: new Set() },
      }
      members.set(node.id, member)
      byPeer.set(node.peer, member)
      return member
    },
    attempt: (claim) => attempts.get(claim),
    ofJob: (job) => byJob.get(job) ?? NO_ATTEMPTS,
    hold(member, attempt) {
      assert(!attempts.has(attempt.claim), "a claim number is held once")
      attempts.set(attempt.claim, attempt)
      member.attempts.set(attempt.claim, attempt)
      const its = byJob.get(attempt.job)
      if (its) its.add(attempt)
      else byJob.set(attempt.job, new Set([attempt]))
      member.used.cpu += attempt.requirements.cpu
      member.used.memoryMb += attempt.requirements.memoryMb
      member.used.storageGb += attempt.requirements.storageGb
      for (const uuid of attempt.gpus) member.used.gpus.add(uuid)
    },
    release(claim) {
      const attempt = attempts.get(claim)
      if (!attempt) return undefined
      attempts.delete(claim)
      const member = members.get(attempt.node)
      assert(member, "an attempt is held by a member")
      member.attempts.delete(claim)
      const its = byJob.get(attempt.job)
      its?.delete(attempt)
      if (its?.size === 0) byJob.delete(attempt.job)
      if (member.attempts.size === 0) {
        // Sums of fractions drift; an empty node has nothing in use.
        member.used.cpu = member.used.memoryMb = member.used.storageGb = 0
        member.used.gpus.clear()
      } else if (!vacated.has(claim)) giveRoomBack(member, attempt)
      vacated.delete(claim)
      return attempt
    },
    vacate(attempt) {
      const member = members.get(attempt.node)
      if (!member || attempts.get(attempt.claim) !== attempt || vacated.has(attempt.claim)) return
      vacated.add(attempt.claim)
      giveRoomBack(member, attempt)
    },
    contact(member) {
      if (member.lastHeardMs === null) return "offline"
      return contactOf({
        streamOpen: member.session !== null,
        silentMs: clock.monotonicMs() - member.lastHeardMs,
        heartbeatMs: member.heartbeatMs,
        claimLifetimeMs: timing.claimLifetimeMs,
      })
    },
    onChange(run) {
      listeners = [...listeners, run]
    },
    changed() {
      for (const run of listeners) run()
    },
  }
}

const NO_ATTEMPTS: ReadonlySet<HeldAttempt> = new Set()
