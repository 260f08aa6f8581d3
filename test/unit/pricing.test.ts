import { rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import fc from "fast-check"
import { describe, expect, test } from "vitest"
import { dedicatedRate, machineAs, machineRate } from "../../coordinator/billing/dedicated.ts"
import {
  billedMilliseconds,
  costOf,
  DEFAULT_PRICES,
  estimateJob,
  rateOf,
  readPrices,
  reserveMilliseconds,
  type PricedWork,
} from "../../coordinator/billing/pricing.ts"
import type { Requirements } from "../../protocol/domain/requirements.ts"
import { newDataDir } from "../support/store.ts"

const CPU: Requirements = { cpu: 1, memoryMb: 512, storageGb: 1, gpuCount: 0, profile: "cpu" }
const GPU: Requirements = { ...CPU, gpuCount: 1, profile: "gpu" }
const WORK: PricedWork = {
  requirements: CPU,
  timeoutSeconds: 3600,
  runtimeHintSeconds: null,
  tasks: 1,
  maxRetries: 0,
  reliabilityMode: "best_effort",
}
const hold = (work: Partial<PricedWork>): bigint => estimateJob({ ...WORK, ...work }, DEFAULT_PRICES).hold

describe("an estimate", () => {
  test("one core and half a GiB for an hour cost what the table says", () => {
    expect(hold({})).toBe(10_500n)
    expect(hold({ requirements: GPU })).toBe(210_500n)
  })

  test("B-016: it grows with tasks, timeout, requirements and, under strict_complete only, retries", () => {
    expect(hold({ tasks: 2 })).toBe(2n * hold({}))
    expect(hold({ timeoutSeconds: 7200 })).toBe(2n * hold({}))
    expect(hold({ requirements: { ...CPU, cpu: 2, memoryMb: 1024 } })).toBe(2n * hold({}))
    expect(hold({ maxRetries: 2 })).toBe(hold({}))
    expect(hold({ maxRetries: 2, reliabilityMode: "strict_complete" })).toBe(3n * hold({}))
  })

  test("B-016: a hint lowers it to half again the hint, but not below a tenth of the timeout nor above the timeout", () => {
    expect(reserveMilliseconds({ timeoutSeconds: 1000, runtimeHintSeconds: null })).toBe(1_000_000)
    expect(reserveMilliseconds({ timeoutSeconds: 1000, runtimeHintSeconds: 200 })).toBe(300_000)
    expect(reserveMilliseconds({ timeoutSeconds: 1000, runtimeHintSeconds: 1 })).toBe(100_000)
    expect(reserveMilliseconds({ timeoutSeconds: 1000, runtimeHintSeconds: 5000 })).toBe(1_000_000)
  })

  test("B-020: it names the classes it was made for", () => {
    const classes = (requirements: Requirements, timeoutSeconds = 60) => {
      const { resourceClass, runtimeClass } = estimateJob({ ...WORK, requirements, timeoutSeconds }, DEFAULT_PRICES)
      return [resourceClass, runtimeClass]
    }
    expect(classes(CPU)).toEqual(["cpu_small", "short"])
    expect(classes({ ...CPU, cpu: 4 }, 3600)).toEqual(["cpu_medium", "medium"])
    expect(classes({ ...CPU, memoryMb: 65_536 }, 7200)).toEqual(["cpu_large", "long"])
    expect(classes(GPU)).toEqual(["gpu_16gb", "short"])
    expect(classes({ ...GPU, gpuMemoryMb: 81_921 })).toEqual(["gpu_large", "short"])
  })

  test("GAP-65: of a dedicated job each task pays its share of the whole machine, GPUs with the memory they have", () => {
    const gpu = (memoryMb: number) => ({ uuid: `GPU-${memoryMb}`, model: "T", memoryMb })
    const machine = { cpu: 8, memoryMb: 16_384, storageGb: 100, gpus: [] }
    expect(machineRate(machine, DEFAULT_PRICES)).toEqual(rateOf({ ...CPU, cpu: 8, memoryMb: 16_384 }, DEFAULT_PRICES))
    const rate = (tasks: number) => dedicatedRate({ capacity: machine, tasks }, DEFAULT_PRICES)
    expect(rate(1)).toEqual(machineRate(machine, DEFAULT_PRICES))
    expect(costOf(rate(1), 3_600_000)).toBe(96_000n)
    expect(costOf(rate(8), 3_600_000)).toBe(12_000n)
    // What fills it pays no less than it costs, however it is divided.
    for (const tasks of [1, 3, 7, 8])
      expect(rate(tasks).numerator * BigInt(tasks)).toBeGreaterThanOrEqual(rate(1).numerator)
    const withGpus = { ...machine, gpus: [gpu(16_384), gpu(81_920)] }
    expect(costOf(dedicatedRate({ capacity: withGpus, tasks: 1 }, DEFAULT_PRICES), 3_600_000)).toBe(1_496_000n)

    const like = machineAs(withGpus)
    expect(like).toMatchObject({ gpuCount: 2, gpuMemoryMb: 81_920, profile: "gpu" })
    const whole = estimateJob({ ...WORK, machine: { rate: rate(1), like: machineAs(machine) } }, DEFAULT_PRICES)
    expect([whole.hold, whole.resourceClass]).toEqual([96_000n, "cpu_large"])
  })

  test("GAP-09: every documented example fits into $5", () => {
    const examples: [string, bigint][] = [
      ["A21 getting started", hold({ timeoutSeconds: 120, reliabilityMode: "strict_complete" })],
      ["A25 20 chunks of 30 minutes", hold({ tasks: 20, timeoutSeconds: 1800 })],
      ["A26 sweep of 9 hours", hold({ tasks: 9 })],
      ["A27 training on a GPU", hold({ requirements: { ...GPU, gpuMemoryMb: 16_384 }, timeoutSeconds: 7200 })],
      ["A31 50 tasks of two hours", hold({ tasks: 50, timeoutSeconds: 7200 })],
      [
        "A33 8 cores, 16 GiB and a GPU",
        hold({ requirements: { ...GPU, cpu: 8, memoryMb: 16_384, gpuMemoryMb: 12_288 } }),
      ],
      ["A35 sweep of 9 GPU hours", hold({ tasks: 9, requirements: GPU })],
    ]
    for (const [name, amount] of examples) expect(amount, name).toBeLessThanOrEqual(5_000_000n)
    expect(hold({ tasks: 50, timeoutSeconds: 7200 })).toBe(1_050_000n)
    expect(hold({ tasks: 9, requirements: GPU })).toBe(1_894_500n)
  })
})

describe("a charge", () => {
  test("is rounded up once, to the next micro-dollar", () => {
    const rate = rateOf({ ...CPU, cpu: 0.1, memoryMb: 1 }, DEFAULT_PRICES)
    expect(costOf(rate, 0)).toBe(0n)
    expect(costOf(rate, 1)).toBe(1n)
    expect(costOf(rate, 3_600_000)).toBe(1_001n) // 1000 for the tenth of a core, 0.98 for the MiB
  })

  test("never costs more in pieces below the reserve than the reserve allows for, and grows with time", () => {
    const anyCpu = fc.integer({ min: 1, max: 1280 }).map((tenths) => tenths / 10)
    const anyMs = fc.integer({ min: 0, max: 7 * 24 * 3_600_000 })
    fc.assert(
      fc.property(anyCpu, fc.integer({ min: 1, max: 1 << 21 }), anyMs, anyMs, (cpu, memoryMb, a, b) => {
        const rate = rateOf({ ...CPU, cpu, memoryMb }, DEFAULT_PRICES)
        const [less, more] = a < b ? [a, b] : [b, a]
        expect(costOf(rate, less)).toBeLessThanOrEqual(costOf(rate, more))
        const split = costOf(rate, less) + costOf(rate, more - less)
        expect(split - costOf(rate, more)).toBeGreaterThanOrEqual(0n)
        expect(split - costOf(rate, more)).toBeLessThanOrEqual(1n)
      }),
    )
  })

  test("is for the smaller of what the node measured and what the coordinator saw, less lost contact", () => {
    const attempt = { measuredMs: 5_000, acceptedAtMs: 1_000, reportedAtMs: 9_000, lostContactMs: 0 }
    expect(billedMilliseconds(attempt)).toBe(5_000)
    expect(billedMilliseconds({ ...attempt, measuredMs: 50_000 })).toBe(8_000)
    expect(billedMilliseconds({ ...attempt, lostContactMs: 6_000 })).toBe(2_000)
    expect(billedMilliseconds({ ...attempt, lostContactMs: 60_000 })).toBe(0)
    expect(billedMilliseconds({ ...attempt, measuredMs: -1 })).toBe(0)
  })
})

test("the operator's price table changes what it names, and a wrong one is refused with its path", () => {
  const dir = newDataDir()
  const file = join(dir, "prices.json")
  const read = (text: string) => {
    writeFileSync(file, text)
    return readPrices(file)
  }
  expect(read('{"cpu_core_hour": 0.05, "gpu_hour": {"gpu_24gb": 1}}')).toEqual({
    ...DEFAULT_PRICES,
    cpuCoreHour: 50_000n,
    gpuHour: { ...DEFAULT_PRICES.gpuHour, gpu_24gb: 1_000_000n },
  })
  expect(() => read('{"cpu_core_hour": -1}')).toThrow("cpu_core_hour: must be dollars per hour")
  expect(() => read('{"memory_gb_hour": 0.0000001}')).toThrow("at most six decimals")
  expect(() => read('{"gpu_hour": {"gpu_1tb": 1}}')).toThrow("gpu_hour")
  expect(() => read('{"cpu": 1}')).toThrow("price table")
  expect(() => read("{")).toThrow("cannot be read")
  rmSync(dir, { recursive: true })
})
