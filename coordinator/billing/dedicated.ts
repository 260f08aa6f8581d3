import { divideRoundingUp } from "../../protocol/domain/money.ts"
import type { Capacity, Requirements } from "../../protocol/domain/requirements.ts"
import { rateOf, type Prices, type Rate } from "./pricing.ts"

/** A machine that is one project's alone for as long as the job runs, and how many of its tasks run there side by side. */
export interface WholeMachine {
  capacity: Capacity
  tasks: number
}

/**
 * Pure: what one task of a dedicated job pays: its share of the whole machine, whose other capacity nobody gets (GAP-65). Rounded
 * up, so that the tasks that fill it pay no less than it costs.
 */
export function dedicatedRate({ capacity, tasks }: WholeMachine, prices: Prices): Rate {
  return { numerator: divideRoundingUp(machineRate(capacity, prices).numerator, BigInt(tasks)) }
}

/** As if one task asked for all of it; each GPU counts with its own memory. */
export function machineRate(capacity: Capacity, prices: Prices): Rate {
  const parts = [
    rateOf(machineAs(capacity, 0), prices),
    ...capacity.gpus.map(({ memoryMb }) => rateOf({ ...NOTHING, gpuCount: 1, gpuMemoryMb: memoryMb }, prices)),
  ]
  return { numerator: parts.reduce((sum, { numerator }) => sum + numerator, 0n) }
}

/** The machine as requirements, for its class: of several GPUs the largest names it. */
export function machineAs({ cpu, memoryMb, storageGb, gpus }: Capacity, gpuCount = gpus.length): Requirements {
  const machine = { cpu, memoryMb, storageGb, gpuCount, profile: gpuCount > 0 ? "gpu" : "cpu" } as const
  return gpuCount === 0 ? machine : { ...machine, gpuMemoryMb: Math.max(...gpus.map((gpu) => gpu.memoryMb)) }
}

const NOTHING: Requirements = { cpu: 0, memoryMb: 0, storageGb: 0, gpuCount: 0, profile: "gpu" }
