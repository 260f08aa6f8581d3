import type { Clock, Instant } from "../../protocol/base/clock.ts"
import { ComputalotError } from "../../protocol/domain/errors.ts"
import type { AccountId } from "../../protocol/domain/ids.ts"
import type { Requirements } from "../../protocol/domain/requirements.ts"
import { fit, freeOf, slots, type Used } from "../fleet/fit.ts"
import type { HeldAttempt } from "../fleet/members.ts"
import type { JobFacts } from "../jobs/job-facts.ts"
import type { CapacityWanted, HeldCapacity } from "../jobs/submit.ts"
import type { ReservationRow } from "../store/reservations.ts"
import { missingShare, mostKept } from "./kept-nodes.ts"
import { occupy, type PlaceableNode } from "./place.ts"

/**
 * Capacity that belongs to jobs (V-*, SC-006; rulings, Reservations): seats of guaranteed reservations, and nodes that one
 * project has to itself. A seat is room for one task of its job; idle ones stand on nodes with that much free room, and nobody
 * else gets it. Which node that is, is memory's business and may change with every look: nodes come and go, the promise stays.
 * Derived from the rows of reservations and jobs.
 */
export interface Reservations {
  /** Holds seats for a job that is about to be made; `no_capacity` when so many are not free now. `nodes`: as `look`. */
  admit(wanted: CapacityWanted, nodes: readonly GroundNode[], granting: readonly Granting[]): HeldCapacity
  /** What an earlier start promised. Once, before its jobs are known. */
  restore(rows: readonly ReservationRow[]): void
  /** The job is planned, goes on or runs again: what it has to itself is looked after from here on. Twice is fine. */
  know(job: JobFacts): void
  /** The job is over. Did it have anything to itself? */
  over(job: number): boolean
  /**
   * Where everything stands now. Told at every look for work, before anything is placed; idle seats take their room off `nodes`.
   */
  look(nodes: readonly GroundNode[], granting?: readonly Granting[]): Reserved
  /** May the job's tasks be placed on the node at all, as of the last look? */
  mayUse(job: JobFacts, node: string): boolean
  /** Is something guaranteed to the job now? Its tasks keep to slots: none is handed ahead of one. */
  isGuaranteed(job: number): boolean
  /** What the job's tasks wait for: seats that no node has room for, or a node free of others. Null: for neither. */
  waitsFor(job: number): "seats" | "node" | null
  /** What others have reserved of the node, as of the last look. */
  takenFrom(job: JobFacts, node: string): "all" | Taken | null
}

/** Room that idle seats take. */
export type Taken = Pick<Used, "cpu" | "memoryMb" | "storageGb"> & { gpus: string[] }

/** A node as placement sees it, with what runs there. */
export type GroundNode = PlaceableNode & { attempts: ReadonlyMap<number, { job: number }> }

/** Placed, and on its way to the rows: memory does not hold it yet. */
export interface Granting {
  job: number
  node: string
}

export interface Reserved {
  /** Idle seats, those of the reservation that was admitted first at the front. */
  seats: readonly ReservedSeat[]
  /** Nodes that take nothing new, and the job they are to become free for. */
  closing: ReadonlyMap<string, number>
  /** Nodes on which nothing is handed ahead of slots: the agent would start it in a seat that becomes free. */
  quiet: ReadonlySet<string>
}

export interface ReservedSeat {
  job: number
  /** Of work; a job with seats is a kind of its own. */
  kind: string
  node: string
  gpus: readonly string[]
  /** A task is placed in it. */
  taken(): void
}

export const NOTHING_RESERVED: Reserved = { seats: [], closing: new Map(), quiet: new Set() }

export interface ReservationsParts {
  clock: Clock
  /** All attempts of a job. */
  attemptsOf: (job: number) => Iterable<Pick<HeldAttempt, "node" | "claimable">>
  /** Facts of a job that is not over. */
  known: (job: number) => Pick<JobFacts, "account"> | undefined
  /** Can the node run the job's revision now, and is that ready there? */
  runsOn: (job: JobFacts, node: string) => { can: boolean; warm: boolean }
  /** Is the node kept for a large task? */
  isKept: (node: string) => boolean
  /** After so long a node is closed for a job that waits for one free of others. */
  ageingMs: number
  /** Work may start somewhere: look again. */
  wake: () => void
}

interface Standing {
  /** Null while its job is being made. */
  job: JobFacts | null
  account: AccountId
  project: string
  requirements: Requirements
  /** Seats in all, those that run included; 0: it only wants a node of its own. */
  parallelism: number
  dedicated: boolean
  /** Null: it lasts as long as the job. */
  expiresAt: Instant | null
  /** Monotonic; when it began to wait for a node of its own. */
  waitsSinceMs: number
  /** Idle ones. */
  seats: Seat[]
  /** Idle ones without room. */
  owed: number
  /** The nodes that its project has to itself. */
  nodes: Set<string>
  /** Nodes that are to become free for it. */
  closing: Set<string>
}

interface Seat {
  node: string
  gpus: string[]
}

/** Whose node it is; `only`: for this one alone, once there is room. */
interface Closed {
  account: AccountId
  project: string
  only: Standing | null
}

export function createReservations(parts: ReservationsParts): Reservations {
  const { clock } = parts
  const standings = new Set<Standing>()
  const byJob = new Map<number, Standing>()
  const promised = new Map<number, ReservationRow>()
  /** As of the last look. */
  let closed = new Map<string, Closed>()

  function begin(wanted: CapacityWanted, job: JobFacts | null, expiresAt: Instant | null): Standing {
    const standing: Standing = {
      ...wanted,
      job,
      expiresAt,
      waitsSinceMs: clock.monotonicMs(),
      seats: [],
      owed: 0,
      nodes: new Set(),
      closing: new Set(),
    }
    standings.add(standing)
    if (job) byJob.set(job.seq, standing)
    if (expiresAt !== null) endAt(standing, expiresAt)
    return standing
  }

  function end(standing: Standing): void {
    standings.delete(standing)
    if (standing.job) byJob.delete(standing.job.seq)
  }

  /** A look drops what has expired: one is due then, whatever else happens. */
  function endAt(standing: Standing, at: Instant): void {
    clock.after(Math.max(1, at - clock.now()), () => {
      if (!standings.has(standing)) return
      if (clock.now() < at) return endAt(standing, at)
      parts.wake()
    })
  }

  // ── a look ────────────────────────────────────────────────────────────────────────────────────────────────────────

  function look(nodes: readonly GroundNode[], granting: readonly Granting[] = []): Reserved {
    closed = new Map()
    const now = clock.now()
    for (const one of standings) if (one.expiresAt !== null && now >= one.expiresAt) end(one)
    if (standings.size === 0) return NOTHING_RESERVED
    const byId = new Map(nodes.map((node) => [node.id, node]))
    const quiet = new Set<string>()
    const idle = new Map<Standing, number>()
    for (const one of standings) {
      const running = runningOn(one, granting)
      idle.set(one, Math.max(0, one.parallelism - running.length))
      if (one.dedicated) keepNodes(one, running, byId)
      if (one.parallelism > 0) for (const node of running) quiet.add(node)
    }
    for (const one of standings) keepSeats(one, idle.get(one) ?? 0, byId)
    for (const one of standings) {
      seatIdle(one, idle.get(one) ?? 0, nodes, granting)
      if (one.parallelism === 0 && !hasNode(one, byId)) takeNode(one, nodes, granting)
    }
    closeForOwed(nodes)
    closeForDedicated(nodes, byId)
    for (const { seats } of standings) for (const { node } of seats) quiet.add(node)
    return { seats: [...standings].flatMap(seatsOf), closing: closingNodes(), quiet }
  }

  /** The node of each of its tasks that takes a seat: one that may be granted again takes none. */
  function runningOn({ job }: Standing, granting: readonly Granting[]): string[] {
    if (!job) return []
    const held = [...parts.attemptsOf(job.seq)].flatMap(({ node, claimable }) => (claimable ? [] : [node as string]))
    return [...held, ...granting.flatMap((one) => (one.job === job.seq ? [one.node] : []))]
  }

  /** Its nodes are those it has and those on which it runs; one that is not there any more, or cannot run it, is let go. */
  function keepNodes(one: Standing, running: readonly string[], byId: ReadonlyMap<string, GroundNode>): void {
    one.nodes = new Set([...[...one.nodes].filter((id) => byId.has(id) && canRun(one, id)), ...running])
    for (const id of one.nodes) closed.set(id, closedFor(one))
  }

  function keepSeats(one: Standing, idle: number, byId: ReadonlyMap<string, GroundNode>): void {
    const before = one.seats
    one.seats = []
    for (const seat of before) {
      const node = byId.get(seat.node)
      if (one.seats.length === idle) return
      if (node && mayHold(one, node) && canRun(one, seat.node)) sit(one, node)
    }
  }

  function seatIdle(one: Standing, idle: number, nodes: readonly GroundNode[], granting: readonly Granting[]): void {
    if (one.seats.length < idle) {
      for (const node of byPreference(one, nodes)) {
        if (!mayHold(one, node) || (one.dedicated && !isOwn(one, node) && !isFreeOfOthers(one, node, granting)))
          continue
        while (one.seats.length < idle && sit(one, node));
        if (one.seats.length === idle) break
      }
    }
    one.owed = idle - one.seats.length
  }

  /** One more seat on the node, if it has room. */
  function sit(one: Standing, node: GroundNode): boolean {
    const gpus = node.held < node.most ? fit(freeOf(node.capacity, node.used), one.requirements) : null
    if (!gpus) return false
    occupy(node, one.requirements, gpus)
    one.seats.push({ node: node.id, gpus })
    if (one.dedicated) own(one, node)
    return true
  }

  function own(one: Standing, { id }: GroundNode): void {
    one.nodes.add(id)
    closed.set(id, closedFor(one))
  }

  /** A node of its own for a job that wants no more: the smallest that does. */
  function takeNode(one: Standing, nodes: readonly GroundNode[], granting: readonly Granting[]): void {
    const smallestFirst = byPreference(
      one,
      nodes.toSorted((a, b) => a.capacity.cpu - b.capacity.cpu),
    )
    const node = smallestFirst.find(
      (node) =>
        mayHold(one, node) &&
        fit(node.capacity, one.requirements) !== null &&
        (isOwn(one, node) || isFreeOfOthers(one, node, granting)),
    )
    if (node) own(one, node)
  }

  const hasNode = (one: Standing, byId: ReadonlyMap<string, GroundNode>): boolean =>
    [...one.nodes].some((id) => byId.has(id))

  /** Where it can run, is warm, and is in nobody's way; what is equal in that stays in the given order. */
  function byPreference(one: Standing, nodes: readonly GroundNode[]): GroundNode[] {
    const points = new Map(
      nodes.map((node) => {
        const { can, warm } = one.job ? parts.runsOn(one.job, node.id) : { can: true, warm: false }
        const leavesGpu = one.requirements.gpuCount > 0 || !node.hasGpu
        const isOurs = one.nodes.has(node.id)
        return [
          node,
          [isOurs, can, leavesGpu, warm, !parts.isKept(node.id)].reduce((sum, is) => 2 * sum + Number(is), 0),
        ]
      }),
    )
    return nodes.toSorted((a, b) => (points.get(b) ?? 0) - (points.get(a) ?? 0))
  }

  function canRun({ job }: Standing, node: string): boolean {
    return job === null || parts.runsOn(job, node).can
  }

  /** Nobody else has the node to himself. */
  function mayHold(one: Standing, { id }: GroundNode): boolean {
    const its = closed.get(id)
    return !its || its.only === one || (its.only === null && isOwner(its, one))
  }

  /** The project has it already. */
  function isOwn(one: Standing, { id }: GroundNode): boolean {
    const its = closed.get(id)
    return its !== undefined && its.only === null && isOwner(its, one)
  }

  /** No other account's work is there or on its way, and no other project's seat. */
  function isFreeOfOthers(one: Standing, node: GroundNode, granting: readonly Granting[]): boolean {
    for (const { job } of node.attempts.values()) if (parts.known(job)?.account !== one.account) return false
    for (const { job, node: id } of granting) {
      if (id === node.id && parts.known(job)?.account !== one.account) return false
    }
    for (const other of standings) {
      if (!isOwner(other, one) && other.seats.some((seat) => seat.node === node.id)) return false
    }
    return true
  }

  // ── nodes that are to become free ─────────────────────────────────────────────────────────────────────────────────

  /** What was promised comes before all else: for each seat without room one node takes nothing new until there is some. */
  function closeForOwed(nodes: readonly GroundNode[]): void {
    for (const one of standings) {
      if (one.parallelism > 0) closeNearest(one, nodes, one.owed, (node) => missingShare(node, one.requirements))
    }
  }

  /** A node free of others comes by chance in a quiet fleet. In a busy one it has to be made, after an ageing interval. */
  function closeForDedicated(nodes: readonly GroundNode[], byId: ReadonlyMap<string, GroundNode>): void {
    const nowMs = clock.monotonicMs()
    let left = mostKept(nodes.length)
    for (const one of standings) {
      if (one.parallelism > 0) continue
      if (hasNode(one, byId)) one.waitsSinceMs = nowMs
      const isDue = left > 0 && !hasNode(one, byId) && nowMs - one.waitsSinceMs >= parts.ageingMs
      left -= closeNearest(one, nodes, isDue ? 1 : 0, ({ attempts }) => attempts.size)
    }
  }

  /** Of the nodes that it could have, those that are nearest to free; one that was closed for it stays. How many. */
  function closeNearest(
    one: Standing,
    nodes: readonly GroundNode[],
    most: number,
    distance: (node: GroundNode) => number,
  ): number {
    const before = one.closing
    one.closing = new Set()
    if (most === 0) return 0
    const was = ({ id }: GroundNode): number => Number(before.has(id))
    const could = nodes.filter((node) => mayHold(one, node) && couldHold(one, node))
    const nearest = could.toSorted((a, b) => was(b) - was(a) || distance(a) - distance(b)).slice(0, most)
    for (const node of nearest) close(one, node)
    return nearest.length
  }

  function couldHold(one: Standing, node: GroundNode): boolean {
    return slots(node.capacity, one.requirements) > 0 && canRun(one, node.id)
  }

  function close(one: Standing, { id }: GroundNode): void {
    one.closing.add(id)
    closed.set(id, closedFor(one, one))
  }

  function closingNodes(): Map<string, number> {
    const nodes = new Map<string, number>()
    for (const { job, closing } of standings) if (job) for (const id of closing) nodes.set(id, job.seq)
    return nodes
  }

  function seatsOf(one: Standing): ReservedSeat[] {
    const { job } = one
    if (!job) return []
    return one.seats.map((seat) => ({
      job: job.seq,
      kind: job.kind,
      ...seat,
      taken: () => void (one.seats = one.seats.filter((other) => other !== seat)),
    }))
  }

  // ── admission ─────────────────────────────────────────────────────────────────────────────────────────────────────

  function admit(wanted: CapacityWanted, nodes: readonly GroundNode[], granting: readonly Granting[]): HeldCapacity {
    look(nodes, granting)
    const before = closed
    closed = new Map(before)
    const one = begin(wanted, null, null)
    seatIdle(one, wanted.parallelism, nodes, granting)
    if (one.owed > 0) {
      end(one)
      closed = before
      throw refused(wanted, one.seats.length, nodes)
    }
    return {
      keep(job, expiresAt) {
        one.job = job
        one.expiresAt = expiresAt
        byJob.set(job.seq, one)
        endAt(one, expiresAt)
      },
      [Symbol.dispose]() {
        if (one.job) return
        end(one)
        parts.wake()
      },
    }
  }

  function mayUse(job: JobFacts, node: string): boolean {
    if (closed.size === 0 && !job.dedicated) return true
    const its = closed.get(node)
    const mine = byJob.get(job.seq)
    // Who has a seat there keeps it, or it and the one that the node is closed for would wait for each other.
    const isSeated = mine?.seats.some((seat) => seat.node === node) === true
    if (its?.only ? its.only !== mine && !isSeated : its && !isOwner(its, job)) return false
    return mine?.dedicated !== true || mine.nodes.has(node)
  }

  return {
    admit,
    look,
    restore(rows) {
      for (const row of rows) promised.set(row.job, row)
    },
    know(job) {
      if (byJob.has(job.seq)) return
      const row = promised.get(job.seq)
      promised.delete(job.seq)
      const wanted = { account: job.account, project: job.project, requirements: job.requirements }
      if (row && row.expiresAt > clock.now()) {
        begin({ ...wanted, parallelism: row.parallelism, dedicated: job.dedicated }, job, row.expiresAt)
      } else if (job.dedicated && job.guaranteed === 0) {
        begin({ ...wanted, parallelism: 0, dedicated: true }, job, null)
      }
    },
    over(job) {
      // Or the job's retry would have it, whose reservation ended with the job.
      promised.delete(job)
      const one = byJob.get(job)
      if (one) end(one)
      return one !== undefined
    },
    mayUse,
    isGuaranteed: (job) => (byJob.get(job)?.parallelism ?? 0) > 0,
    waitsFor(job) {
      const one = byJob.get(job)
      if (!one) return null
      if (one.parallelism === 0) return one.nodes.size === 0 ? "node" : null
      return one.owed > 0 ? "seats" : null
    },
    takenFrom(job, node) {
      if (!mayUse(job, node)) return "all"
      const taken: Taken = { cpu: 0, memoryMb: 0, storageGb: 0, gpus: [] }
      let seats = 0
      for (const one of standings) {
        if (one.job?.seq === job.seq) continue
        for (const seat of one.seats) {
          if (seat.node !== node) continue
          seats += 1
          taken.cpu += one.requirements.cpu
          taken.memoryMb += one.requirements.memoryMb
          taken.storageGb += one.requirements.storageGb
          taken.gpus.push(...seat.gpus)
        }
      }
      return seats === 0 ? null : taken
    },
  }
}

type Owner = Pick<Standing, "account" | "project">
const isOwner = (a: Owner, b: Owner): boolean => a.account === b.account && a.project === b.project

const closedFor = ({ account, project }: Owner, only: Standing | null = null): Closed => ({ account, project, only })

function refused(
  { parallelism, requirements, dedicated }: CapacityWanted,
  free: number,
  nodes: readonly GroundNode[],
): ComputalotError {
  const eligible = nodes.reduce((sum, { capacity }) => sum + slots(capacity, requirements), 0)
  const where = dedicated ? " on machines that nobody else uses" : ""
  const none = eligible === 0 ? "no connected machine is large enough for one of its tasks" : null
  return new ComputalotError(
    "no_capacity",
    none ?? `${parallelism} slots are to be reserved${where}, and ${free} can be now`,
    {
      recommendedAction:
        "Nothing was created. Ask for less parallelism or smaller requirements, send it again later, or leave reservation " +
        "out: a best_effort job waits until there is room.",
      details: { parallelism, available_parallelism: free, eligible_slots: eligible },
    },
  )
}
