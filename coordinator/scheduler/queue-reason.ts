import { unreachable } from "../../protocol/base/assert.ts"
import type { Clock, Instant } from "../../protocol/base/clock.ts"
import type { QueueReasonCode } from "../../protocol/api/jobs.ts"
import type { JobId } from "../../protocol/domain/ids.ts"
import type { Capacity, Requirements } from "../../protocol/domain/requirements.ts"
import { freeOf, mayRunProjects, slots, type NodeFacts, type PlacementPolicy, type Used } from "../fleet/fit.ts"
import { isCloned } from "../fleet/fleet.ts"
import { isInReach } from "../fleet/liveness.ts"
import { mostAttempts } from "../fleet/node-rules.ts"
import type { Member, MemberFacts, Members, Standing } from "../fleet/members.ts"
import type { QueueReason, QueueReasons } from "../jobs/read/read-job.ts"
import { waitsFor } from "../jobs/text.ts"
import type { KnownJobs } from "../jobs/job-facts.ts"
import type { KeptNodes } from "./kept-nodes.ts"
import type { ReadyQueue } from "./ready-queue.ts"
import type { Pace } from "./pace.ts"
import type { Reservations, Taken } from "./reservations.ts"
import type { RuntimeSpecs, Trouble } from "./runtime-specs.ts"

/** How far the runtime of the job's revision is. */
type RuntimeState =
  | { state: "ready" }
  /** `noBuilder`: no machine that could build it is connected. */
  | { state: "building"; noBuilder: boolean }
  /** The last attempt failed and another one is coming. */
  | ({ state: "failed" } & Trouble)

/** A node with contact that takes work. */
export interface QueueNode extends NodeFacts {
  capacity: Capacity
  used: Used
  /** Attempts that it holds, and may hold: one on probation holds one at a time. */
  held: number
  most: number
}

export interface QueueFacts {
  nodes: readonly QueueNode[]
  requirements: Requirements
  policy: PlacementPolicy
  runtime: RuntimeState
  /** A job of the account that comes first waits too. */
  higherWaits: boolean
  /** What the hold has left does not cover another task. */
  budgetShort: boolean
  /**
   * A machine takes nothing but the next task of this job, or some take nothing but another's: those show no free room in
   * `nodes`.
   */
  kept: "for_it" | "for_others" | null
  /** When the first slot that fits it becomes free, as far as run times so far tell; null where nothing tells honestly. */
  etaSeconds: number | null
  /** It waits for what is its own: seats that were promised and have no room, or a machine free of others. */
  ownWaits: "seats" | "node" | null
}

/** Why a waiting job waits: the first thing that would have to change. Pure; names no machine (interfaces, queue_reason). */
export function queueReason(facts: QueueFacts): QueueReason {
  const { nodes, requirements, policy, runtime } = facts
  const allowed = nodes.filter((node) => mayRunProjects(node, policy))
  const { eligible, busy } = countSlots(allowed, requirements)
  const because = (code: QueueReasonCode, message: string, suggestion: string): QueueReason => ({
    code,
    message,
    eligible_slots: eligible,
    busy_slots: busy,
    suggestion,
  })

  if (facts.budgetShort) {
    return because(
      "waiting_for_budget",
      "what is left of the job's hold is reserved for the tasks that run",
      "Nothing to do: further tasks start as running ones end and cost less than was reserved for them; max_cost_usd decides how many fit side by side.",
    )
  }
  if (eligible === 0) return because("no_matching_capacity", ...noCapacity(nodes.length, allowed.length, requirements))
  switch (runtime.state) {
    case "failed":
      return because(
        "runtime_failed",
        `the project's runtime could not be made and is tried again: ${runtime.message}`,
        runtime.fault === "project"
          ? "Read the project's status/details; correct what it names and push again."
          : "Nothing to correct in the project: it is tried again, and on every machine that connects.",
      )
    case "building":
      return because(
        "runtime_preparing",
        runtime.noBuilder
          ? "the project's image is not built yet, and no machine that builds images is connected"
          : "the project's image is being built",
        runtime.noBuilder
          ? "The operator has to connect a node with the role builder."
          : "Nothing to do: tasks start when it is ready. The project's status/details show how far it is.",
      )
    case "ready":
      break
    default:
      return unreachable(runtime)
  }
  if (facts.ownWaits === "node") {
    return because(
      "reservation_wait",
      "it is to have a machine to itself, and no machine that fits is free of other accounts' work",
      "Nothing to do: a machine is made free for it when it has waited for a while. Without placement_policy dedicated it starts sooner.",
    )
  }
  if (facts.ownWaits === "seats") {
    return because(
      "reservation_wait",
      "machines on which its capacity was reserved are gone, and the others are full",
      "Nothing to do: what becomes free goes to it before anything else.",
    )
  }
  if (facts.higherWaits) {
    return because(
      "held_by_priority",
      "another job of this account comes first",
      "Nothing to do: it rises with time. A higher priority puts new jobs in front.",
    )
  }
  if (facts.kept === "for_it") {
    return because(
      "capacity_busy",
      "it has waited longest for so much room: what becomes free on one machine is kept for it",
      "Nothing to do: it starts when what runs on that machine has ended. Smaller requirements fit sooner.",
    )
  }
  if (busy >= eligible) {
    const reason = because(
      "capacity_busy",
      `all ${eligible} ${eligible === 1 ? "slot that fits is" : "slots that fit are"} taken${facts.kept === "for_others" ? ", reserved, or kept for a task that has waited longer" : " or reserved"}`,
      "Nothing to do: it starts when one is free. Smaller requirements fit more machines.",
    )
    return facts.etaSeconds === null ? reason : { ...reason, eta_s: facts.etaSeconds }
  }
  return because(
    "runtime_preparing",
    "a machine is free and is being made ready for the task",
    "Nothing to do: the task is about to start.",
  )
}

/** Jobs that must complete before this one's tasks are handed out (G-001). */
function dependencyReason(blockedBy: readonly JobId[], slots: { eligible: number; busy: number }): QueueReason {
  return {
    code: "waiting_for_dependency",
    message: waitsFor(blockedBy),
    blocked_by: [...blockedBy],
    eligible_slots: slots.eligible,
    busy_slots: slots.busy,
    suggestion: "Nothing to do: it goes on when they have completed, and is cancelled if one of them ends otherwise.",
  }
}

/** The machine that runs a task cannot be reached at the moment. */
function contactLostReason(eligible: { eligible: number; busy: number }): QueueReason {
  return {
    code: "node_contact_lost",
    message: "the machine that runs this task cannot be reached",
    eligible_slots: eligible.eligible,
    busy_slots: eligible.busy,
    suggestion: "Nothing to do: it goes on when the machine is back, or runs again elsewhere, and is not billed twice.",
  }
}

/** Slots that could ever fit a task, and how many of them are taken. */
function countSlots(
  nodes: readonly Pick<QueueNode, "capacity" | "used" | "held" | "most">[],
  requirements: Requirements,
): { eligible: number; busy: number } {
  let eligible = 0
  let free = 0
  for (const { capacity, used, held, most } of nodes) {
    const all = Math.min(slots(capacity, requirements), most)
    eligible += all
    free += Math.max(0, Math.min(all, slots(freeOf(capacity, used), requirements), most - held))
  }
  return { eligible, busy: eligible - free }
}

function noCapacity(connected: number, allowed: number, need: Requirements): [message: string, suggestion: string] {
  if (connected === 0) {
    return ["no machine is connected", "The operator has to connect nodes; the job starts by itself when one fits."]
  }
  if (allowed === 0) {
    return [
      "no connected machine may run project work: they lack the role worker, a sandbox, or limits they can enforce",
      "The operator has to connect other nodes, or allow these (COMPUTALOT_ALLOW_UNSANDBOXED, COMPUTALOT_ALLOW_UNENFORCED).",
    ]
  }
  return [
    `no connected machine is large enough for ${needed(need)}`,
    "Ask for less in requirements, or wait for a larger machine.",
  ]
}

function needed(need: Requirements): string {
  const gpus =
    need.gpuCount === 0
      ? ""
      : `, ${need.gpuCount} GPU${need.gpuMemoryMb === undefined ? "" : ` of ${need.gpuMemoryMb} MB`}`
  return `${need.cpu} cores, ${need.memoryMb} MB of memory, ${need.storageGb} GB of storage${gpus}`
}

interface QueueReasonParts {
  members: Members
  queue: Pick<ReadyQueue, "isFirst" | "isBlocked" | "first">
  pace: Pick<Pace, "of">
  kept: Pick<KeptNodes, "jobOn" | "isWaitingFor">
  reservations: Pick<Reservations, "waitsFor" | "takenFrom">
  known: Pick<KnownJobs, "get">
  specs: Pick<RuntimeSpecs, "canRun" | "trouble">
  policy: PlacementPolicy
  clock: Clock
}

/** The reasons as memory knows them now. */
export function createQueueReasons(parts: QueueReasonParts): QueueReasons {
  return {
    job({ head, submission, blockedBy }) {
      const live = liveMembers(parts.members, parts.clock.now())
      if (blockedBy.length > 0) return dependencyReason(blockedBy, slotsFor(submission.requirements, live))
      const isForOther = ({ id }: LiveMember): boolean => (parts.kept.jobOn(id) ?? head.seq) !== head.seq
      const facts = parts.known.get(head.seq)
      const asLeft = (member: LiveMember): QueueNode => {
        const node = asNode(member)
        const taken = facts ? parts.reservations.takenFrom(facts, member.id) : null
        if (taken === "all" || isForOther(member)) return withoutRoom(node)
        return taken ? withLess(node, taken) : node
      }
      return queueReason({
        nodes: live.map(asLeft),
        requirements: submission.requirements,
        policy: parts.policy,
        runtime: runtimeOf(parts, head.revision, live),
        higherWaits: !parts.queue.isFirst(head.seq, parts.clock.now()),
        budgetShort: parts.queue.isBlocked(head.seq),
        kept: parts.kept.isWaitingFor(head.seq) ? "for_it" : live.some(isForOther) ? "for_others" : null,
        etaSeconds: etaSeconds(parts, head.seq, submission.requirements, live),
        ownWaits: parts.reservations.waitsFor(head.seq),
      })
    },
    contactLost({ submission }) {
      return contactLostReason(slotsFor(submission.requirements, liveMembers(parts.members, parts.clock.now())))
    },
  }

  function slotsFor(requirements: Requirements, live: readonly LiveMember[]): { eligible: number; busy: number } {
    const allowed = live.map(asNode).filter((node) => mayRunProjects(node, parts.policy))
    return countSlots(allowed, requirements)
  }
}

/**
 * For the job that is served next alone: who stands behind others cannot be told when. The first end, by its job's usual run
 * time, of a running task that leaves room enough.
 */
function etaSeconds(
  { queue, pace, clock }: QueueReasonParts,
  job: number,
  need: Requirements,
  live: readonly LiveMember[],
): number | null {
  if (queue.first(clock.now(), () => true)?.seq !== job) return null
  let soonestMs = Number.POSITIVE_INFINITY
  for (const { attempts } of live) {
    for (const attempt of attempts.values()) {
      const paceMs = pace.of(attempt.job)
      if (attempt.startedAt === null || paceMs === null || !leavesRoom(attempt.requirements, need)) continue
      soonestMs = Math.min(soonestMs, Math.max(0, attempt.startedAt + paceMs - clock.now()))
    }
  }
  return Number.isFinite(soonestMs) ? Math.ceil(soonestMs / 1000) : null
}

const leavesRoom = (its: Requirements, need: Requirements): boolean =>
  its.cpu >= need.cpu &&
  its.memoryMb >= need.memoryMb &&
  its.storageGb >= need.storageGb &&
  its.gpuCount >= need.gpuCount &&
  (its.gpuMemoryMb ?? 0) >= (need.gpuMemoryMb ?? 0)

type LiveMember = Member & { facts: MemberFacts; standing: Standing }

/** Those that may get work. */
function liveMembers(members: Members, now: Instant): LiveMember[] {
  return [...members.all()].filter((member): member is LiveMember => {
    if (member.state !== "active" || !member.facts || !member.standing?.open || member.standing.draining) return false
    if (isCloned(member, now)) return false
    return isInReach(members.contact(member))
  })
}

function asNode({ facts, standing, roles, used, attempts, probation }: LiveMember): QueueNode {
  return {
    roles: roles.filter((role) => facts.roles.includes(role)),
    isolation: facts.isolation,
    enforces: facts.enforces,
    capacity: standing.capacity,
    used,
    held: attempts.size,
    most: mostAttempts(probation),
  }
}

function withoutRoom(node: QueueNode): QueueNode {
  const { gpus, ...rest } = node.capacity
  return { ...node, used: { ...rest, gpus: new Set(gpus.map(({ uuid }) => uuid)) } }
}

function withLess(node: QueueNode, taken: Taken): QueueNode {
  const { used } = node
  return {
    ...node,
    used: {
      cpu: used.cpu + taken.cpu,
      memoryMb: used.memoryMb + taken.memoryMb,
      storageGb: used.storageGb + taken.storageGb,
      gpus: new Set([...used.gpus, ...taken.gpus]),
    },
  }
}

function runtimeOf({ specs, policy }: QueueReasonParts, revision: string, live: readonly LiveMember[]): RuntimeState {
  const workers = live.filter((member) => mayRunProjects(asNode(member), policy))
  const trouble = specs.trouble(revision, workers)
  if (trouble !== null) return { state: "failed", ...trouble }
  if (workers.some((member) => specs.canRun(revision, member))) return { state: "ready" }
  return { state: "building", noBuilder: !live.some((member) => asNode(member).roles.includes("builder")) }
}
