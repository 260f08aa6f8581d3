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
  /** It may hold no more attempts than this: one on probation. */
  most: number
  /** Attempts it held when this round of placing began. */
  heldAtFirst: number
  credit: number
  hasGpu: boolean
  /** What is in use of a crowded node for good (`usedBeside`): a look at each attempt, taken only when asked for. */
  lookBeside?: () => Used | null
  /** What was found then, and what was placed since. */
  beside?: Used | null
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

export interface Chosen<N> {
  node: N
  gpus: string[]
}

/**
 * The best free slot for one task: on a warm node, then on any; CPU work leaves GPU nodes for last (SC-002); among equals the
 * one with most room. Null when none is free. Pure.
 */
export function chooseSlot<N extends PlaceableNode>(nodes: readonly N[], wanted: Wanted): Chosen<N> | null {
  let best: (Chosen<N> & { score: number }) | null = null
  for (const node of nodes) {
    if (node.held >= node.most || !wanted.mayRun(node)) continue
    const free = freeOf(node.capacity, node.used)
    const gpus = fit(free, wanted.requirements)
    const score = gpus ? freeSlotScore(node, wanted, free) : null
    if (gpus && score !== null && (!best || score > best.score)) best = { node, gpus, score }
  }
  return best && { node: best.node, gpus: best.gpus }
}

/** Where a short task that found no free slot is handed ahead of one; null when nowhere. Pure. */
export function chooseAhead<N extends PlaceableNode>(nodes: readonly N[], wanted: Wanted): Chosen<N> | null {
  if (wanted.paceMs === null || wanted.requirements.gpuCount > 0) return null
  let best: { node: N; score: number } | null = null
  for (const node of nodes) {
    if (node.held >= node.most || !wanted.mayRun(node)) continue
    const score = aheadScore(node, wanted)
    if (score !== null && (!best || score > best.score)) best = { node, score }
  }
  return best && { node: best.node, gpus: [] }
}

/** Could the node run it if nothing else ran there? */
export function couldRun(node: PlaceableNode, wanted: Wanted): boolean {
  return wanted.mayRun(node) && fit(node.capacity, wanted.requirements) !== null
}

/** The task takes its room on the node, for the rest of this round. */
export function occupy(node: PlaceableNode, requirements: Requirements, gpus: readonly string[]): void {
  node.used = withTask(node.used, requirements, gpus)
  if (node.beside) node.beside = withTask(node.beside, requirements, gpus)
  node.held += 1
}

function withTask(used: Used, requirements: Requirements, gpus: readonly string[]): Used {
  return {
    cpu: used.cpu + requirements.cpu,
    memoryMb: used.memoryMb + requirements.memoryMb,
    storageGb: used.storageGb + requirements.storageGb,
    gpus: gpus.length === 0 ? used.gpus : new Set([...used.gpus, ...gpus]),
  }
}

function freeSlotScore(node: PlaceableNode, wanted: Wanted, free: Capacity): number {
  const spare = node.capacity.cpu === 0 ? 0 : free.cpu / node.capacity.cpu
  const leavesGpu = wanted.requirements.gpuCount > 0 || !node.hasGpu
  return (wanted.isWarm(node) ? 100 : 0) + (leavesGpu ? 20 : 0) + spare
}

/**
 * Most credit left first; never for GPUs, which are exclusive. Only a node that has used up half of
 * what it held ahead gets more: many tasks in one grant cost both sides one write, one after another as many as tasks.
 */
function aheadScore(node: PlaceableNode, wanted: Wanted): number | null {
  if (!wanted.isWarm(node)) return null
  const side = slots(node.capacity, wanted.requirements)
  const ahead = aheadOf(wanted.paceMs, side, node.credit)
  const room = side + ahead - node.held
  const wantsMore = node.heldAtFirst <= side + ahead / 2
  return side > 0 && ahead > 0 && room > 0 && wantsMore ? -1 / room : null
}
