import { execa } from "execa"
import type { Gpu } from "../../protocol/domain/requirements.ts"

/** A broken driver makes nvidia-smi hang for minutes; a working one answers within a second. */
const ANSWER_TIMEOUT_MS = 5_000

const FIELDS = ["index", "uuid", "name", "memory.total", "driver_version", "compute_cap", "mig.mode.current"] as const

export interface FoundGpu extends Gpu {
  index: number
  driverVersion: string
  /** `8.9`; empty when the driver does not say. */
  computeCapability: string
}

export interface GpuProbe {
  gpus: FoundGpu[]
  /** Why there are none although the machine has the tool, or what was left out: one sentence each, for the operator. */
  problems: string[]
}

/**
 * Asks nvidia-smi, the only program that knows NVIDIA cards by UUID. Never rejects: a machine without it has no GPU.
 * `path` is where programs are looked for (the agent's PATH).
 */
export async function probeGpus(path: string, timeoutMs = ANSWER_TIMEOUT_MS): Promise<GpuProbe> {
  const asked = await execa("nvidia-smi", [`--query-gpu=${FIELDS.join(",")}`, "--format=csv,noheader,nounits"], {
    env: { PATH: path },
    extendEnv: false,
    timeout: timeoutMs,
    forceKillAfterDelay: 500,
    reject: false,
    stdin: "ignore",
    // A child that it leaves behind must not keep us waiting.
    cleanup: true,
    maxBuffer: 1024 * 1024,
  })
  if (asked.code === "ENOENT") return { gpus: [], problems: [] }
  if (asked.timedOut)
    return { gpus: [], problems: [`nvidia-smi did not answer within ${timeoutMs / 1000} s: no GPU is offered`] }
  if (asked.exitCode !== 0) {
    const said = `${asked.stdout}\n${asked.stderr}`.trim().split("\n")[0] ?? ""
    return { gpus: [], problems: [`nvidia-smi failed (${asked.exitCode ?? asked.signal ?? asked.code}): ${said}`] }
  }
  return parseGpus(asked.stdout)
}

/** Reads the lines nvidia-smi prints for `FIELDS`. Pure. */
export function parseGpus(csv: string): GpuProbe {
  const probe: GpuProbe = { gpus: [], problems: [] }
  for (const line of csv.split("\n").filter((text) => text.trim() !== "")) {
    const [index, uuid, model, memory, driverVersion, computeCapability, mig] = line
      .split(",")
      .map((field) => field.trim())
    if (uuid === undefined || !uuid.startsWith("GPU-") || model === undefined) {
      probe.problems.push(`nvidia-smi printed a line we cannot read: ${line.slice(0, 120)}`)
    } else if (mig === "Enabled") {
      probe.problems.push(`GPU ${uuid} is split (MIG), which is not supported: it is not offered`)
    } else {
      probe.gpus.push({
        index: Number(index),
        uuid,
        model,
        memoryMb: known(memory) ? Math.floor(Number(memory)) : 0,
        driverVersion: known(driverVersion) ? driverVersion : "",
        computeCapability: known(computeCapability) ? computeCapability : "",
      })
    }
  }
  return probe
}

/** nvidia-smi says [N/A], [Not Supported] or N/A where a card or driver does not tell. */
function known(field: string | undefined): field is string {
  return field !== undefined && field !== "" && !/^\[?(N\/A|Not Supported|Unknown Error)\]?$/i.test(field)
}
