import { ADVERT_LIFE_INTERVALS } from "../../protocol/gossip/node-advert.ts"

/** How a node's contact reads (rulings, Mesh and nodes). `offline`: lost for longer than any claim lives. */
export type Contact = "connected" | "suspect" | "lost_contact" | "offline"

export interface ContactFacts {
  streamOpen: boolean
  /** Since the last frame of the node. */
  silentMs: number
  heartbeatMs: number
  claimLifetimeMs: number
}

/** Three heartbeats missed make a node suspect, four lose contact; a closed stream is suspect at once (architecture §5.5). */
export function contactOf({ streamOpen, silentMs, heartbeatMs, claimLifetimeMs }: ContactFacts): Contact {
  if (silentMs > claimLifetimeMs) return "offline"
  if (silentMs > 4 * heartbeatMs) return "lost_contact"
  if (!streamOpen || silentMs > 3 * heartbeatMs) return "suspect"
  return "connected"
}

/** May it be given work? One that is suspect may be a late timer; one that has lost contact would only lose it. */
export function isInReach(contact: Contact): boolean {
  return contact === "connected" || contact === "suspect"
}

/**
 * How often a node of a fleet this large says that it lives: each second up to 500 nodes, then so that the coordinator hears
 * 500 a second (rulings, Mesh). Never so seldom that a few lost ones end a claim.
 */
export function heartbeatIntervalMs(members: number, claimLifetimeMs: number): number {
  return Math.max(LEAST_HEARTBEAT_MS, Math.min((members / HEARTBEATS_PER_SECOND) * 1_000, claimLifetimeMs / 6))
}

/** What a node that was told `toldMs` is to be told now, null when it may go on: not every joining node is news to all. */
export function newIntervalMs(toldMs: number, dueMs: number): number | null {
  return Math.abs(dueMs - toldMs) >= toldMs / 4 ? dueMs : null
}

const LEAST_HEARTBEAT_MS = 1_000
const HEARTBEATS_PER_SECOND = 500

/**
 * How long to wait from last contact before the task may be granted again: as long as the work at stake is worth, at least
 * `lostAfterMs`, never past the claim (architecture §5.5, the ski-rental question).
 *
 * @param stakeMs preparation and run time since the last durable checkpoint, frozen at last contact
 * @param restMs what was left of the claim at last contact
 */
export function patienceMs(stakeMs: number, lostAfterMs: number, restMs: number): number {
  return Math.min(Math.max(stakeMs, lostAfterMs), restMs)
}

/**
 * Is the fault ours? Two nodes at the least and more than half of all contacts lost within ten seconds are taken to be the
 * coordinator's own doing: nothing becomes claimable by contact until fifteen seconds after the last node returned.
 *
 * @param lostAtMs when each contact that is lost now was last heard
 * @param members nodes with contact or lost within their claims
 */
export function isOurFault(lostAtMs: readonly number[], members: number): boolean {
  if (lostAtMs.length < 2 || lostAtMs.length * 2 <= members) return false
  const sorted = lostAtMs.toSorted((a, b) => a - b)
  const least = Math.floor(members / 2) + 1
  for (let first = 0; first + least <= sorted.length; first++) {
    const last = sorted[first + least - 1] ?? Number.POSITIVE_INFINITY
    if (last - (sorted[first] ?? 0) <= OUR_FAULT_WINDOW_MS) return true
  }
  return false
}

const OUR_FAULT_WINDOW_MS = 10_000
/** After the last node returned, so long until contact counts again. */
const OUR_FAULT_GRACE_MS = 15_000

/** Remembers one outage of our own from its first sign until the grace after the last return. */
export interface OurFault<Node> {
  /** Asked at every look: does contact say nothing about the nodes now? */
  judge(lost: readonly { node: Node; atMs: number }[], members: number, nowMs: number): boolean
  /** The node has contact again. */
  returned(node: Node, nowMs: number): void
}

/** A node's return counts once for each outage: one that flaps does not prolong the grace for all others. */
export function createOurFault<Node>(): OurFault<Node> {
  const away = new Set<Node>()
  const back = new Set<Node>()
  let goesOn = false
  let lastReturnMs = Number.NEGATIVE_INFINITY
  return {
    judge(lost, members, nowMs) {
      const lostAtMs = lost.map(({ atMs }) => atMs)
      const isOurs = isOurFault(lostAtMs, members)
      goesOn = isOurs || (goesOn && nowMs - lastReturnMs < OUR_FAULT_GRACE_MS)
      if (!goesOn) {
        away.clear()
        back.clear()
      } else for (const { node } of lost) if (!back.has(node)) away.add(node)
      return goesOn
    },
    returned(node, nowMs) {
      if (!away.delete(node)) return
      back.add(node)
      lastReturnMs = nowMs
    },
  }
}

/**
 * Do adverts prove that the node lives? One that still came after contact was lost does, until three of its intervals have
 * passed; what was on its way when contact broke proves nothing (architecture §5.5).
 */
export function isAliveByAdverts(
  advert: { heardAtMs: number; intervalMs: number } | null,
  lastContactMs: number,
  heartbeatMs: number,
  nowMs: number,
): boolean {
  if (advert === null || advert.heardAtMs <= lastContactMs + ADVERT_TRAVEL_HEARTBEATS * heartbeatMs) return false
  return nowMs - advert.heardAtMs < ADVERT_LIFE_INTERVALS * advert.intervalMs
}

/** Gossip that was sent before contact broke has arrived by then. */
const ADVERT_TRAVEL_HEARTBEATS = 2
