import type { AccountId, NodeId } from "../../protocol/domain/ids.ts"
import type { Requirements } from "../../protocol/domain/requirements.ts"
import { freeOf } from "../fleet/fit.ts"
import { couldRun, type PlaceableNode, type Wanted } from "./place.ts"

/**
 * Room for large tasks (architecture §5.4): where smaller ones come and go, what fits only an empty node would wait for ever. A
 * task that has been first in its account's order for one ageing interval gets a node that takes nothing else until it is
 * granted. Memory only: a restart starts the wait again.
 */
export interface KeptNodes {
  /**
   * Looks again: who is first since when, and which nodes are kept. Told at every look for work, before anything is placed, so
   * that freed room is kept before it is given away. Answers the kept nodes with their jobs, the longest wait first.
   */
  look(firsts: readonly FirstTask[], nodes: readonly PlaceableNode[], nowMs: number): ReadonlyMap<string, number>
  /** A task of the job was granted: its next one starts to wait. */
  granted(job: number): void
  /** For whose next task the node takes nothing else; null when it is not kept. */
  jobOn(node: NodeId): number | null
  isWaitingFor(job: number): boolean
}

/** The task that is first in its account's order, of those that could run on a live node. */
export interface FirstTask {
  account: AccountId
  job: number
  wanted: Wanted
}

export function createKeptNodes(priorityAgeingMs: number): KeptNodes {
  let waits: Waits = new Map()
  let kept: ReadonlyMap<string, number> = new Map()
  return {
    look(firsts, nodes, nowMs) {
      waits = firstSince(waits, firsts, nowMs)
      const due = firsts
        .map((first) => ({ ...first, sinceMs: waits.get(first.account)?.sinceMs ?? nowMs }))
        .filter(({ sinceMs }) => nowMs - sinceMs >= priorityAgeingMs)
      kept = keepNodes(kept, due, nodes)
      return kept
    },
    granted(job) {
      for (const [account, wait] of waits) if (wait.job === job) waits.delete(account)
    },
    jobOn: (node) => kept.get(node) ?? null,
    isWaitingFor: (job) => [...kept.values()].includes(job),
  }
}

/** Which job of each account is first, and since when (monotonic ms). */
type Waits = Map<AccountId, { job: number; sinceMs: number }>

/** Who is not first any more starts anew when it is first again. Pure. */
export function firstSince(
  before: ReadonlyMap<AccountId, { job: number; sinceMs: number }>,
  firsts: readonly Pick<FirstTask, "account" | "job">[],
  nowMs: number,
): Waits {
  return new Map(
    firsts.map(({ account, job }) => {
      const known = before.get(account)
      return [account, known?.job === job ? known : { job, sinceMs: nowMs }] as const
    }),
  )
}

export interface DueTask extends Pick<FirstTask, "job" | "wanted"> {
  sinceMs: number
}

/** At most a quarter of the fleet stands still for large tasks; one node does in any fleet. */
export const mostKept = (nodes: number): number => Math.max(1, Math.floor(nodes / 4))

/**
 * Which node is kept for which task: one each, the longest wait first. A task keeps the node it has, or its wait for what runs
 * there would start again; a node that is gone, draining or too small now is not among `nodes` or could not run it, and a
 * task that is no longer due is not among `due`. Pure.
 */
export function keepNodes(
  before: ReadonlyMap<string, number>,
  due: readonly DueTask[],
  nodes: readonly PlaceableNode[],
): Map<string, number> {
  const waiting = due.toSorted((a, b) => a.sinceMs - b.sinceMs || a.job - b.job)
  const most = mostKept(nodes.length)
  const nodeOf = new Map<DueTask, PlaceableNode>()
  const taken = new Set<PlaceableNode>()
  const keep = (task: DueTask, node: PlaceableNode | null | undefined): void => {
    if (!node || taken.size === most) return
    nodeOf.set(task, node)
    taken.add(node)
  }
  for (const task of waiting) {
    keep(
      task,
      nodes.find((node) => before.get(node.id) === task.job && couldRun(node, task.wanted)),
    )
  }
  for (const task of waiting) if (!nodeOf.has(task)) keep(task, nearestToFree(nodes, taken, task.wanted))
  return new Map(
    waiting.flatMap((task) => {
      const node = nodeOf.get(task)
      return node ? [[node.id, task.job] as const] : []
    }),
  )
}

/** The node on which least has to end before the task fits; a warm one among equals. */
function nearestToFree(
  nodes: readonly PlaceableNode[],
  taken: ReadonlySet<PlaceableNode>,
  wanted: Wanted,
): PlaceableNode | null {
  let best: { node: PlaceableNode; missing: number } | null = null
  for (const node of nodes) {
    if (taken.has(node) || !couldRun(node, wanted)) continue
    const missing = missingShare(node, wanted.requirements)
    if (
      !best ||
      missing < best.missing ||
      (missing === best.missing && wanted.isWarm(node) && !wanted.isWarm(best.node))
    )
      best = { node, missing }
  }
  return best && best.node
}

/** The largest part of what the node lends that is taken and needed: 0 when the task fits now. */
export function missingShare({ capacity, used }: PlaceableNode, need: Requirements): number {
  const free = freeOf(capacity, used)
  const share = (needed: number, has: number, all: number): number => (all === 0 ? 0 : Math.max(0, needed - has) / all)
  return Math.max(
    share(need.cpu, free.cpu, capacity.cpu),
    share(need.memoryMb, free.memoryMb, capacity.memoryMb),
    share(need.storageGb, free.storageGb, capacity.storageGb),
    share(need.gpuCount, free.gpus.length, capacity.gpus.length),
  )
}
