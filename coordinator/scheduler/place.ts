import type { Capacity, Requirements } from "../../protocol/domain/requirements.ts"
import { fit, freeOf, slots, type Used } from "../fleet/fit.ts"
import { aheadOf } from "./pace.ts"

/** A node that may get work now, as placement sees it. */
export interface PlaceableNode {
  id: string
  capacity: Capacity
  used: Used
  /** Attempts it holds. */
  held: number
  /** Attempts it held when this round of placing began. */
  heldAtFirst: number
  credit: number
  hasGpu: boolean
}

export interface Wanted {
  requirements: Requirements
  /** Typical run time of the job's tasks, null when unknown. */
  paceMs: number | null
  /** Is the revision's runtime ready on the node? */
  isWarm: (node: PlaceableNode) => boolean
  /** May the node run this work at all? */
  mayRun: (node: PlaceableNode) => boolean
}

/**
 * The best place for one task: a free slot on a warm node, then on any; CPU work leaves GPU nodes for last (SC-002); among
 * equals the one with most room. Without a free slot a short task may be handed ahead. Null when nothing fits. Pure.
 */
export function choosePlace(
  nodes: readonly PlaceableNode[],
  wanted: Wanted,
): { node: PlaceableNode; gpus: string[] } | null {
  let best: { node: PlaceableNode; gpus: string[]; score: number } | null = null
  for (const node of nodes) {
    if (!wanted.mayRun(node)) continue
    const free = freeOf(node.capacity, node.used)
    const gpus = fit(free, wanted.requirements)
    const score = gpus ? freeSlotScore(node, wanted, free) : aheadScore(node, wanted)
    if (score !== null && (!best || score > best.score)) best = { node, gpus: gpus ?? [], score }
  }
  return best && { node: best.node, gpus: best.gpus }
}

function freeSlotScore(node: PlaceableNode, wanted: Wanted, free: Capacity): number {
  const spare = node.capacity.cpu === 0 ? 0 : free.cpu / node.capacity.cpu
  const leavesGpu = wanted.requirements.gpuCount > 0 || !node.hasGpu
  return (wanted.isWarm(node) ? 100 : 0) + (leavesGpu ? 20 : 0) + spare
}

/**
 * Below every free slot, most credit left first; never for GPUs, which are exclusive. Only a node that has used up half of
 * what it held ahead gets more: many tasks in one grant cost both sides one write, one after another as many as tasks.
 */
function aheadScore(node: PlaceableNode, wanted: Wanted): number | null {
  if (wanted.requirements.gpuCount > 0 || !wanted.isWarm(node)) return null
  const side = slots(node.capacity, wanted.requirements)
  const ahead = aheadOf(wanted.paceMs, side, node.credit)
  const room = side + ahead - node.held
  const wantsMore = node.heldAtFirst <= side + ahead / 2
  return side > 0 && ahead > 0 && room > 0 && wantsMore ? -1 / room : null
}
