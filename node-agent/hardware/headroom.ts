import type { Capacity, Gpu, Requirements } from "../../protocol/domain/requirements.ts"

/** What one running attempt has been given. */
export interface Taken {
  requirements: Pick<Requirements, "cpu" | "memoryMb" | "storageGb">
  gpuUuids: readonly string[]
}

/** What is left of a node's capacity beside what runs. Pure; never below zero, also when an operator lowered a cap. */
export function headroom(capacity: Capacity, running: readonly Taken[]): Capacity {
  const used = (pick: (requirements: Taken["requirements"]) => number): number =>
    running.reduce((sum, taken) => sum + pick(taken.requirements), 0)
  const busy = new Set(running.flatMap((taken) => taken.gpuUuids))
  return {
    // Tenths of cores are added up: rounded, or three times 0.1 would not fit into 0.3.
    cpu: Math.max(0, Math.round((capacity.cpu - used((needs) => needs.cpu)) * 1000) / 1000),
    memoryMb: Math.max(0, capacity.memoryMb - used((needs) => needs.memoryMb)),
    storageGb: Math.max(0, capacity.storageGb - used((needs) => needs.storageGb)),
    gpus: capacity.gpus.filter((gpu) => !busy.has(gpu.uuid)),
  }
}

/** Chooses free GPUs for an attempt, the smallest that suffice, so that large ones stay for who needs them. Null: too few. */
export function chooseGpus(free: readonly Gpu[], needs: Pick<Requirements, "gpuCount" | "gpuMemoryMb">): Gpu[] | null {
  const fitting = free
    .filter((gpu) => needs.gpuMemoryMb === undefined || gpu.memoryMb >= needs.gpuMemoryMb)
    .toSorted((one, other) => one.memoryMb - other.memoryMb)
  return fitting.length < needs.gpuCount ? null : fitting.slice(0, needs.gpuCount)
}
