import { accountId } from "../../protocol/domain/ids.ts"
import type { Requirements } from "../../protocol/domain/requirements.ts"
import { awaitedById, choosePlaces, type Round } from "../../coordinator/scheduler/choose-places.ts"
import { createKeptNodes, type KeptNodes } from "../../coordinator/scheduler/kept-nodes.ts"
import type { PlaceableNode, Wanted } from "../../coordinator/scheduler/place.ts"
import { NOTHING_RESERVED } from "../../coordinator/scheduler/reservations.ts"
import { createReadyQueue, type ReadyJob, type ReadyQueue } from "../../coordinator/scheduler/ready-queue.ts"

/** The real queue, the real keeping and placing, and a fleet of numbers: what runs when is the test's. */
export interface Placing {
  queue: ReadyQueue
  kept: KeptNodes
  put(job: PlacedJob): void
  /** One look for work: what is placed is granted. */
  look(nodes: readonly PlaceableNode[], nowMs: number): Round<PlaceableNode>
}

interface PlacedJob extends Partial<Omit<ReadyJob, "account">> {
  seq: number
  account: number
  cpu: number
  /** Short enough to be handed ahead of slots when it is below five seconds. */
  paceMs?: number
}

export const needs = (cpu: number): Requirements => ({
  cpu,
  memoryMb: 1,
  storageGb: 1,
  gpuCount: 0,
  profile: "cpu",
})

export function createPlacing(ageingMs: number): Placing {
  const queue = createReadyQueue(ageingMs)
  const kept = createKeptNodes(ageingMs)
  const jobs = new Map<number, Wanted>()
  let awaited: ReadonlyMap<string, number> = new Map()
  return {
    queue,
    kept,
    put({ seq, account, cpu, paceMs, ...more }) {
      jobs.set(seq, { requirements: needs(cpu), paceMs: paceMs ?? null, isWarm: () => true, mayRun: () => true })
      const job = { priority: "normal" as const, kind: `${cpu} of ${account}`, readySince: 0, tasks: 1, cost: 10 }
      queue.put({ ...job, ...more, seq, account: accountId(account) })
    },
    look(nodes, nowMs) {
      const round = choosePlaces(
        {
          queue,
          kept,
          awaited,
          reserved: NOTHING_RESERVED,
          wanted: (job) => jobs.get(job),
          avoids: () => undefined,
          now: nowMs,
          monotonicMs: nowMs,
          most: 512,
        },
        nodes,
      )
      awaited = awaitedById(round)
      for (const { job } of round.places) kept.granted(job)
      return round
    },
  }
}

/** A machine with room for `cpu` small tasks, on which `busy` of it is taken. */
export function machineOf(id: string, cpu: number, busy = 0, more: Partial<PlaceableNode> = {}): PlaceableNode {
  return {
    id,
    capacity: { cpu, memoryMb: 1_000_000, storageGb: 1_000_000, gpus: [] },
    used: { cpu: busy, memoryMb: busy, storageGb: busy, gpus: new Set() },
    held: busy,
    most: Number.POSITIVE_INFINITY,
    heldAtFirst: busy,
    credit: 64,
    hasGpu: false,
    ...more,
  }
}
