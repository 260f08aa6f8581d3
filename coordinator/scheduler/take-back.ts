import type { Clock } from "../../protocol/base/clock.ts"
import { fit, freeOf } from "../fleet/fit.ts"
import type { HeldAttempt } from "../fleet/members.ts"
import { isOverfull } from "./choose-places.ts"
import { occupy, type PlaceableNode, type Wanted } from "./place.ts"
import { tasksAhead } from "./tasks-ahead.ts"

/**
 * Which tasks that were handed ahead of free slots are asked back (architecture §5.4): those that a free slot elsewhere would
 * run sooner, and those that stand before a task of higher order. A take-back is a request: the task is free again only when
 * its node answers that it has not started it.
 *
 * Fleets do not pass tasks round: a number is asked for once, a task once in `REST_MS`, and only what would wait longer where
 * it is than moving it costs. Nothing is ever asked for without a free slot or a waiting task to give its place to.
 */
interface TakeBacks {
  choose(facts: Omit<TakeBackFacts, "mayAsk" | "nowMs"> & { isHeld: (claim: number) => boolean }): Ask[]
}

export interface TakeBackFacts {
  /** Monotonic. */
  nowMs: number
  /** Nodes as the last round of placing left them, with what they hold. */
  nodes: readonly HoldingNode[]
  /** Nodes whose next free slot a task of this job waits for. */
  awaited: ReadonlyMap<PlaceableNode, number>
  /** Nodes that take one task and nothing else. */
  kept: ReadonlyMap<PlaceableNode, number>
  wanted: (job: number) => Wanted | undefined
  /** Does a waiting task of the first job come before `tasks` of the second, were they put back? */
  precedes: (job: number, other: number, tasks: number) => boolean
  mayAsk: (task: HeldTask) => boolean
}

export type HeldTask = Pick<HeldAttempt, "claim" | "job" | "task" | "state" | "requirements" | "grantedAtMs">
export type HoldingNode = PlaceableNode & { attempts: ReadonlyMap<number, HeldTask> }

export interface Ask {
  from: HoldingNode
  task: HeldTask
  /** Where a slot is free for it; null when it makes room for another task. */
  to: PlaceableNode | null
}

/** Question, answer, a write, a grant: the least that moving a task costs across a wide network. */
const MOVE_MS = 500
/** Question and answer: what starts sooner is not asked for, also where it makes room for another. */
const ASK_MS = 100
/** What is handed ahead is two seconds of work: what still stands there after as long again was misjudged by its pace. */
const OVERDUE_MS = 4_000
/** A task that came back rests where it is put next. What is handed ahead is two seconds of work: then it has run. */
const REST_MS = 5_000
/** An answer takes one round trip; after this long the slot it was asked for is given to others. */
const ANSWER_MS = 2_000

export function createTakeBacks(clock: Clock): TakeBacks {
  const asked = new Map<number, { atMs: number; to: string | null; task: HeldTask }>()
  const rests = new Map<number, number>()

  return {
    choose(facts) {
      if (!facts.nodes.some(isOverfull)) return []
      const nowMs = clock.monotonicMs()
      for (const [task, atMs] of rests) if (nowMs - atMs >= REST_MS) rests.delete(task)
      for (const claim of asked.keys()) if (!facts.isHeld(claim)) asked.delete(claim)
      for (const { atMs, to, task } of asked.values()) {
        const target = facts.nodes.find(({ id }) => id === to)
        // Its slot is taken as long as the answer may come.
        if (target && nowMs - atMs < ANSWER_MS) occupy(target, task.requirements, [])
      }
      const asks = chooseTakeBacks({
        ...facts,
        nowMs,
        mayAsk: ({ claim, task }) => !asked.has(claim) && !rests.has(task),
      })
      for (const { task, to } of asks) {
        asked.set(task.claim, { atMs: nowMs, to: to?.id ?? null, task })
        rests.set(task.task, nowMs)
      }
      return asks
    },
  }
}

/** Pure but for the room of `nodes`: what is to come back takes its slot there. */
function chooseTakeBacks(facts: TakeBackFacts): Ask[] {
  const asks: Ask[] = []
  const free = facts.nodes.filter((node) => !facts.kept.has(node) && node.capacity.cpu - node.used.cpu >= SMALLEST_CPU)
  for (const from of facts.nodes) {
    if (!isOverfull(from) || !(free.length > 0 || mayMakeRoom(from))) continue
    const late = startingLate(from)
    const counts = new Map<number, number>()
    for (const { task } of late) counts.set(task.job, (counts.get(task.job) ?? 0) + 1)
    // The last in line first: the others start sooner where they are.
    for (const { task, inMs } of late.toReversed()) {
      if (!facts.mayAsk(task)) continue
      const to = inMs > MOVE_MS ? freeSlotFor(task) : null
      if (to) occupy(to, task.requirements, [])
      if (to || makesRoom(from, task.job, counts.get(task.job) ?? 0)) asks.push({ from, task, to })
    }
  }
  return asks

  /** A look at each attempt, before the line is sorted: in a fleet full of one job's tasks nothing is to be moved. */
  function mayMakeRoom(from: HoldingNode): boolean {
    for (const { state, job } of from.attempts.values()) if (state !== "running" && makesRoom(from, job, 1)) return true
    return false
  }

  function makesRoom(from: HoldingNode, job: number, tasks: number): boolean {
    const waiter = facts.awaited.get(from)
    return facts.kept.has(from) || (waiter !== undefined && waiter !== job && facts.precedes(waiter, job, tasks))
  }

  /** What stands ahead and starts only after the time that an answer takes. */
  function startingLate(from: HoldingNode): { task: HeldTask; inMs: number }[] {
    const line = [...from.attempts.values()]
    const ahead = tasksAhead(from.capacity, line)
    const slots = Math.max(1, line.length - ahead.length)
    return ahead.flatMap((task, position) => {
      const isOverdue = facts.nowMs - task.grantedAtMs > OVERDUE_MS
      const paceMs = facts.wanted(task.job)?.paceMs ?? 0
      const inMs = isOverdue ? Number.POSITIVE_INFINITY : ((position + 1) / slots) * paceMs
      return inMs > ASK_MS ? [{ task, inMs }] : []
    })
  }

  /** Only where its runtime is ready: preparing one takes longer than what stands ahead. */
  function freeSlotFor({ job, requirements }: HeldTask): PlaceableNode | null {
    const wanted = facts.wanted(job)
    if (!wanted) return null
    const hasRoom = (node: PlaceableNode): boolean => fit(freeOf(node.capacity, node.used), requirements) !== null
    return free.find((node) => hasRoom(node) && wanted.mayRun(node) && wanted.isWarm(node)) ?? null
  }
}

/** The least a task may ask for (rulings, Fields). */
const SMALLEST_CPU = 0.1 - 1e-6
