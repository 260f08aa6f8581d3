import { z } from "zod"
import { readFileSync } from "node:fs"
import { errorText } from "../../protocol/base/error-text.ts"
import { divideRoundingUp, parseUsd, type MicroUsd } from "../../protocol/domain/money.ts"
import type { Requirements } from "../../protocol/domain/requirements.ts"
import type { ReliabilityMode } from "../../protocol/domain/statuses.ts"

/** What things cost, in micro-dollars per hour. */
export interface Prices {
  cpuCoreHour: MicroUsd
  /** GiB. */
  memoryGbHour: MicroUsd
  gpuHour: Record<GpuClass, MicroUsd>
}

/** GPUs by the memory that a job asks for; one that asks for none may get any, and pays for the smallest. */
export const GPU_CLASSES = ["gpu_16gb", "gpu_24gb", "gpu_48gb", "gpu_80gb", "gpu_large"] as const
export type GpuClass = (typeof GPU_CLASSES)[number]

/**
 * The built-in table, for spare machines: every documented example fits into $5, also the dear ones: 50 tasks of two
 * hours cost $1.05 at the most, two GPU hours $0.42, nine GPU hours $1.90.
 */
export const DEFAULT_PRICES: Prices = {
  cpuCoreHour: 10_000n,
  memoryGbHour: 1_000n,
  gpuHour: { gpu_16gb: 200_000n, gpu_24gb: 300_000n, gpu_48gb: 600_000n, gpu_80gb: 1_200_000n, gpu_large: 2_000_000n },
}

/** Micro-dollars per millisecond, exactly: `numerator ÷ RATE_DENOMINATOR`. */
export interface Rate {
  numerator: bigint
}

/** What decides a job's price. */
export interface PricedWork {
  requirements: Requirements
  timeoutSeconds: number
  /** How long the client believes a task takes. */
  runtimeHintSeconds: number | null
  tasks: number
  maxRetries: number
  reliabilityMode: ReliabilityMode
  /** Where it does not pay by its requirements: the rate of a task, and what stands for its class (GAP-65). */
  machine?: { rate: Rate; like: Requirements }
}

export interface JobEstimate {
  /** The most the job can cost: its hold. */
  hold: MicroUsd
  /** What one task must find unspent and unreserved in the hold to start. */
  taskReserve: MicroUsd
  rate: Rate
  resourceClass: string
  runtimeClass: RuntimeClass
}

/** Pure: the price of exactly this job (B-016, GAP-09). Retries count only where the client demands every task. */
export function estimateJob(work: PricedWork, prices: Prices): JobEstimate {
  const rate = work.machine?.rate ?? rateOf(work.requirements, prices)
  const taskReserve = costOf(rate, reserveMilliseconds(work))
  const attempts = work.reliabilityMode === "strict_complete" ? 1 + work.maxRetries : 1
  return {
    hold: taskReserve * BigInt(work.tasks) * BigInt(attempts),
    taskReserve,
    rate,
    resourceClass: resourceClass(work.machine?.like ?? work.requirements),
    runtimeClass: runtimeClass(reserveMilliseconds(work)),
  }
}

export function rateOf(requirements: Requirements, prices: Prices): Rate {
  const microCores = BigInt(Math.ceil(Math.round(requirements.cpu * 1e9) / 1e3))
  const cpu = microCores * prices.cpuCoreHour * MIB_PER_GIB
  const memory = BigInt(requirements.memoryMb) * prices.memoryGbHour * MICRO
  const gpus = BigInt(requirements.gpuCount) * prices.gpuHour[gpuClass(requirements)] * MICRO * MIB_PER_GIB
  return { numerator: cpu + memory + gpus }
}

/** The price of `milliseconds` at this rate, up to the next whole micro-dollar. */
export function costOf(rate: Rate, milliseconds: number): MicroUsd {
  return divideRoundingUp(rate.numerator * BigInt(Math.ceil(milliseconds)), RATE_DENOMINATOR)
}

/** The most milliseconds whose cost is within the budget; 0 when it buys none. */
export function affordableMs(rate: Rate, budget: MicroUsd): number {
  let low = 0
  let high = LONGEST_AFFORDABLE_MS
  while (low < high) {
    const middle = Math.ceil((low + high) / 2)
    if (costOf(rate, middle) <= budget) low = middle
    else high = middle - 1
  }
  return low
}

/** Seven days: no task may run longer (GAP-70). */
const LONGEST_AFFORDABLE_MS = 7 * 86_400_000

/**
 * The milliseconds an attempt is billed (rulings, Holds): the smaller of what the node measured and what passed between
 * accepted grant and report by the coordinator's clock, less the time without contact. Never below zero.
 */
export function billedMilliseconds(attempt: {
  measuredMs: number
  acceptedAtMs: number
  reportedAtMs: number
  lostContactMs: number
}): number {
  const seen = attempt.reportedAtMs - attempt.acceptedAtMs - attempt.lostContactMs
  return Math.max(0, Math.ceil(Math.min(attempt.measuredMs, seen)))
}

/** Time without contact up to now: what was recorded, and a loss that still goes on. */
export function withoutContactMs(
  attempt: { lostContactMs: number; contactLostAt: number | null },
  nowMs: number,
): number {
  return attempt.lostContactMs + (attempt.contactLostAt === null ? 0 : Math.max(0, nowMs - attempt.contactLostAt))
}

/**
 * How long a task may be expected to run at the most: half again the hint, but no less than a tenth of the timeout, so
 * that a wrong hint does not starve the job, and never above the timeout.
 */
export function reserveMilliseconds(work: Pick<PricedWork, "timeoutSeconds" | "runtimeHintSeconds">): number {
  const timeoutMs = Math.ceil(work.timeoutSeconds * 1000)
  if (work.runtimeHintSeconds === null) return timeoutMs
  return Math.min(Math.max(Math.ceil(work.runtimeHintSeconds * 1500), Math.ceil(timeoutMs / 10)), timeoutMs)
}

export type RuntimeClass = "short" | "medium" | "long"

/** Up to five minutes, up to an hour, and above. */
function runtimeClass(milliseconds: number): RuntimeClass {
  if (milliseconds <= 300_000) return "short"
  return milliseconds <= 3_600_000 ? "medium" : "long"
}

/** The GPU's class, else `cpu_small` (1 core, 2 GiB), `cpu_medium` (4 cores, 16 GiB) or `cpu_large`. */
function resourceClass(requirements: Requirements): string {
  if (requirements.gpuCount > 0) return gpuClass(requirements)
  if (requirements.cpu <= 1 && requirements.memoryMb <= 2048) return "cpu_small"
  return requirements.cpu <= 4 && requirements.memoryMb <= 16_384 ? "cpu_medium" : "cpu_large"
}

function gpuClass(requirements: Requirements): GpuClass {
  const gib = (requirements.gpuMemoryMb ?? 0) / 1024
  if (gib <= 16) return "gpu_16gb"
  if (gib <= 24) return "gpu_24gb"
  if (gib <= 48) return "gpu_48gb"
  return gib <= 80 ? "gpu_80gb" : "gpu_large"
}

/**
 * The operator's price table: `{cpu_core_hour, memory_gb_hour, gpu_hour: {class: usd}}`, each part optional. Throws one
 * clear line when the file cannot be read or a price is no dollar amount of at most six decimals.
 */
export function readPrices(file: string): Prices {
  let json: unknown
  try {
    json = JSON.parse(readFileSync(file, "utf8"))
  } catch (error) {
    throw new Error(`the price table ${file} cannot be read: ${errorText(error)}`, { cause: error })
  }
  const parsed = pricesFile.safeParse(json)
  if (!parsed.success) {
    const [issue] = parsed.error.issues
    throw new Error(`the price table ${file}: ${issue?.path.join(".") || "it"}: ${issue?.message}`)
  }
  const { cpu_core_hour, memory_gb_hour, gpu_hour } = parsed.data
  return {
    cpuCoreHour: cpu_core_hour ?? DEFAULT_PRICES.cpuCoreHour,
    memoryGbHour: memory_gb_hour ?? DEFAULT_PRICES.memoryGbHour,
    gpuHour: Object.fromEntries(
      GPU_CLASSES.map((name) => [name, gpu_hour?.[name] ?? DEFAULT_PRICES.gpuHour[name]]),
    ) as Record<GpuClass, MicroUsd>,
  }
}

const MICRO = 1_000_000n
const MIB_PER_GIB = 1024n
const MS_PER_HOUR = 3_600_000n
const RATE_DENOMINATOR = MICRO * MIB_PER_GIB * MS_PER_HOUR

/** Dearer is a slip of the keyboard, and sums must stay below 2^53 micro-dollars. */
const HIGHEST_PRICE = 10_000_000_000n

const price = z.number().transform((usd, context) => {
  const micro = parseUsd(usd)
  if (micro !== null && micro >= 0n && micro <= HIGHEST_PRICE) return micro
  context.addIssue("must be dollars per hour from 0 to 10000 with at most six decimals")
  return z.NEVER
})
const pricesFile = z.strictObject({
  cpu_core_hour: price.optional(),
  memory_gb_hour: price.optional(),
  gpu_hour: z.partialRecord(z.enum(GPU_CLASSES), price).optional(),
})
