import { readFileSync } from "node:fs"
import { statfs } from "node:fs/promises"
import { availableParallelism, totalmem } from "node:os"
import type { Capacity, Gpu } from "../../protocol/domain/requirements.ts"
import { probeGpus } from "./gpu.ts"

/** What the operator lends. Absent: all there is (of memory and storage, what is safe to lend). */
export interface OperatorCaps {
  cpu?: number
  memoryMb?: number
  storageGb?: number
  gpus?: GpuCap
}

/** `--gpus N` lends the first N found; `--gpus N:MEMORY_MB` says N cards of that size, for simulations. */
export interface GpuCap {
  count: number
  memoryMb?: number
}

export interface HardwareProbe {
  capacity: Capacity
  problems: string[]
}

/** The agent, its libraries and the system need some themselves. */
const KEPT_MEMORY_MB = 512
const KEPT_STORAGE_GB = 2

const MEBIBYTE = 1024 * 1024
const GIBIBYTE = 1024 * MEBIBYTE

/**
 * What the machine has, cut to what the operator lends. `mayExceed` (the process runtime alone): caps count as said even when
 * the machine has less; otherwise a cap above the machine is an error that names the flag.
 */
export async function probeHardware(place: {
  dataDir: string
  path: string
  caps: OperatorCaps
  mayExceed: boolean
}): Promise<HardwareProbe> {
  const disk = await statfs(place.dataDir)
  const found = await probeGpus(place.path)
  const machine: Capacity = {
    cpu: availableParallelism(),
    memoryMb: Math.max(0, Math.floor(usableMemoryBytes() / MEBIBYTE) - KEPT_MEMORY_MB),
    storageGb: Math.max(0, Math.floor((disk.bavail * disk.bsize) / GIBIBYTE) - KEPT_STORAGE_GB),
    gpus: found.gpus.map(({ uuid, model, memoryMb }) => ({ uuid, model, memoryMb })),
  }
  return { capacity: applyCaps(machine, place.caps, place.mayExceed), problems: found.problems }
}

/** Pure. Throws an error for the operator when a cap exceeds the machine and must not. */
export function applyCaps(machine: Capacity, caps: OperatorCaps, mayExceed: boolean): Capacity {
  const lend = (flag: string, has: number, cap: number | undefined): number => {
    if (cap === undefined) return has
    if (cap > has && !mayExceed) {
      throw new Error(`${flag} ${cap} is more than this machine can lend (${has}); only --runtime process may say more`)
    }
    return cap
  }
  return {
    cpu: lend("--cpus", machine.cpu, caps.cpu),
    memoryMb: lend("--memory-mb", machine.memoryMb, caps.memoryMb),
    storageGb: lend("--storage-gb", machine.storageGb, caps.storageGb),
    gpus: lendGpus(machine.gpus, caps.gpus, mayExceed),
  }
}

function lendGpus(found: Gpu[], cap: GpuCap | undefined, mayExceed: boolean): Gpu[] {
  if (cap === undefined) return found
  if (!mayExceed) {
    const fitting = found.filter((gpu) => cap.memoryMb === undefined || gpu.memoryMb >= cap.memoryMb)
    if (cap.count > fitting.length) {
      throw new Error(
        `--gpus ${cap.count} is more than this machine has (${fitting.length}); only --runtime process may say more`,
      )
    }
    return fitting.slice(0, cap.count)
  }
  return Array.from({ length: cap.count }, (_, index) => {
    const real = found[index]
    const memoryMb = cap.memoryMb ?? real?.memoryMb ?? 0
    return real === undefined ? { uuid: `GPU-simulated-${index}`, model: "simulated", memoryMb } : { ...real, memoryMb }
  })
}

/** Reads `N` or `N:MEMORY_MB`; null when it is neither. */
export function parseGpuCap(text: string): GpuCap | null {
  const match = /^(\d+)(?::(\d+))?$/.exec(text)
  if (match === null) return null
  return match[2] === undefined ? { count: Number(match[1]) } : { count: Number(match[1]), memoryMb: Number(match[2]) }
}

/** What can be had without swapping, within the limit of a container the agent may run in. */
function usableMemoryBytes(): number {
  const constrained = process.constrainedMemory()
  const total = constrained > 0 ? Math.min(totalmem(), constrained) : totalmem()
  const available = /^MemAvailable:\s+(\d+) kB/m.exec(readText("/proc/meminfo"))
  return available === null ? total : Math.min(total, Number(available[1]) * 1024)
}

function readText(path: string): string {
  try {
    return readFileSync(path, "utf8")
  } catch {
    return ""
  }
}
