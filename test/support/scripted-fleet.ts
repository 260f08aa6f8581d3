import { createHeap } from "../../protocol/base/heap.ts"
import { accountId, claimNumber } from "../../protocol/domain/ids.ts"
import type { Requirements } from "../../protocol/domain/requirements.ts"
import { awaitedById, choosePlaces } from "../../coordinator/scheduler/choose-places.ts"
import { createKeptNodes } from "../../coordinator/scheduler/kept-nodes.ts"
import { createPace } from "../../coordinator/scheduler/pace.ts"
import type { PlaceableNode, Wanted } from "../../coordinator/scheduler/place.ts"
import { createReadyQueue } from "../../coordinator/scheduler/ready-queue.ts"
import { NOTHING_RESERVED } from "../../coordinator/scheduler/reservations.ts"
import { usedBeside } from "../../coordinator/scheduler/tasks-ahead.ts"
import { createTakeBacks, type HeldTask } from "../../coordinator/scheduler/take-back.ts"
import { needs } from "./placing.ts"

/**
 * A fleet of numbers on a clock of numbers under the real queue, placing and taking back: nodes start what they are given in the
 * order of the grants, as long as it fits, and give back what they have not started.
 */
export interface ScriptedWork {
  seq: number
  account: number
  submittedMs: number
  tasks: number
  cpu: number
  /** Of the task of this number. */
  runMs: (task: number) => number
  /** What a millisecond of one task costs. */
  rate: number
}

export interface Fleet {
  nodes: number
  coresEach: number
}

export interface Ran {
  /** When each of its tasks started and ended, in the order of their ends. */
  spans: { startedMs: number; endedMs: number }[]
}

interface HeldHere extends HeldTask {
  startedMs: number
  state: "accepted" | "running"
}

interface FleetNode {
  id: string
  line: Map<number, HeldHere>
}

const HOUR_MS = 3600_000
/** A question to a node and its answer. */
const ROUND_TRIP_MS = 20

/** Runs until all tasks of the job `untilSeq` have ended. */
export function runFleet(fleet: Fleet, work: readonly ScriptedWork[], untilSeq: number): Map<number, Ran> {
  let nowMs = 0
  let claims = 0
  const queue = createReadyQueue(300_000)
  const kept = createKeptNodes(300_000)
  const pace = createPace()
  const takeBacks = createTakeBacks({ now: () => nowMs, monotonicMs: () => nowMs, after: () => ({ cancel() {} }) })
  const nodes = Array.from({ length: fleet.nodes }, (_, n): FleetNode => ({ id: `n${n}`, line: new Map() }))
  const jobs = new Map(work.map((one) => [one.seq, { ...one, started: 0, requirements: needs(one.cpu) }]))
  const ran = new Map(work.map(({ seq }): [number, Ran] => [seq, { spans: [] }]))
  const events = createHeap<{ atMs: number; order: number; run: () => void }>(
    (a, b) => a.atMs < b.atMs || (a.atMs === b.atMs && a.order < b.order),
  )
  let order = 0
  let awaited: ReadonlyMap<string, number> = new Map()
  const at = (atMs: number, run: () => void): void => events.push({ atMs, order: order++, run })

  const wanted = (seq: number): Wanted => ({
    requirements: (jobs.get(seq) as { requirements: Requirements }).requirements,
    paceMs: pace.of(seq),
    isWarm: () => true,
    mayRun: () => true,
  })

  function placeable({
    id,
    line,
  }: FleetNode): PlaceableNode & { attempts: ReadonlyMap<number, HeldHere>; node: FleetNode } {
    const used = { cpu: 0, memoryMb: 0, storageGb: 0, gpus: new Set<string>() }
    for (const { requirements } of line.values()) {
      used.cpu += requirements.cpu
      used.memoryMb += requirements.memoryMb
      used.storageGb += requirements.storageGb
    }
    const capacity = { cpu: fleet.coresEach, memoryMb: 1e6, storageGb: 1e6, gpus: [] }
    const node = nodes.find((one) => one.id === id) as FleetNode
    const held = line.size
    const most = Number.POSITIVE_INFINITY
    return {
      id,
      capacity,
      used,
      held,
      most,
      heldAtFirst: held,
      credit: 64,
      hasGpu: false,
      attempts: line,
      node,
      lookBeside: () => usedBeside(capacity, line.values()),
    }
  }

  function look(): void {
    for (;;) {
      const ground = nodes.map(placeable)
      const round = choosePlaces(
        {
          queue,
          kept,
          awaited,
          reserved: NOTHING_RESERVED,
          wanted,
          avoids: () => undefined,
          now: nowMs,
          monotonicMs: nowMs,
          most: 128,
        },
        ground,
      )
      awaited = awaitedById(round)
      for (const { job, node } of round.places) {
        kept.granted(job)
        grant(node.node, job)
      }
      for (const node of nodes) start(node)
      if (round.places.length < 128) return ask(ground, round)
    }
  }

  function grant(node: FleetNode, job: number): void {
    const claim = claimNumber(++claims)
    const requirements = wanted(job).requirements
    node.line.set(claim, { claim, job, task: claim, state: "accepted", requirements, startedMs: 0, grantedAtMs: nowMs })
  }

  function start(node: FleetNode): void {
    let free = fleet.coresEach
    for (const { state, requirements } of node.line.values()) if (state === "running") free -= requirements.cpu
    for (const task of node.line.values()) {
      const job = jobs.get(task.job)
      if (task.state === "running" || !job) continue
      if (task.requirements.cpu > free) return
      free -= task.requirements.cpu
      task.state = "running"
      task.startedMs = nowMs
      const runMs = job.runMs(job.started++)
      at(nowMs + runMs, () => ended(node, task, runMs))
    }
  }

  function ended(node: FleetNode, { claim, job, startedMs }: HeldHere, runMs: number): void {
    node.line.delete(claim)
    queue.ended(job, Math.ceil((jobs.get(job)?.rate ?? 0) * runMs))
    pace.took(job, runMs)
    ran.get(job)?.spans.push({ startedMs, endedMs: nowMs })
    start(node)
    look()
  }

  function ask(
    ground: readonly ReturnType<typeof placeable>[],
    { awaited, kept: keptFor }: ReturnType<typeof choosePlaces<ReturnType<typeof placeable>>>,
  ): void {
    const asks = takeBacks.choose({
      nodes: ground,
      awaited,
      kept: keptFor,
      wanted,
      precedes: (job, other, tasks) => queue.precedes(job, other, tasks, nowMs),
      isHeld: (claim) => nodes.some(({ line }) => line.has(claim)),
    })
    for (const { from, task } of asks) {
      const { line } = nodes.find(({ id }) => id === from.id) as FleetNode
      at(nowMs + ROUND_TRIP_MS, () => {
        if (line.get(task.claim)?.state !== "accepted") return
        line.delete(task.claim)
        queue.returned(task.job, 1)
        queue.add(task.job, 1)
        look()
      })
    }
  }

  for (const { seq, account, submittedMs, tasks, cpu, rate } of work) {
    at(submittedMs, () => {
      const kind = `${cpu} of ${seq}`
      const cost = Math.max(1, Math.round(rate * HOUR_MS))
      queue.put({ seq, account: accountId(account), priority: "normal", kind, readySince: nowMs, tasks, cost })
      look()
    })
  }
  const target = jobs.get(untilSeq)?.tasks ?? 0
  while ((ran.get(untilSeq)?.spans.length ?? 0) < target) {
    const next = events.pop()
    if (!next) throw new Error("nothing happens any more, and work is left")
    nowMs = next.atMs
    next.run()
  }
  return ran
}
