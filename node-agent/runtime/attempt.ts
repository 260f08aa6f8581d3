import { join } from "node:path"
import * as z from "zod"
import type { FailureKind } from "../../protocol/domain/statuses.ts"
import type { AttemptExit, AttemptSpec, RunningAttempt } from "./driver.ts"
import { readReason, readSupervision, signalName, type SupervisorEnd } from "./supervision.ts"
import type { Supervised } from "./supervisor.ts"

/** What a driver must still know of an attempt when another agent adopts it. */
export type AttemptRecord = z.infer<typeof attemptRecord>
const attemptRecord = z.object({
  name: z.string(),
  memoryBytes: z.number(),
  pids: z.number(),
  diskBytes: z.number(),
  timeoutMs: z.number(),
  network: z.enum(["none", "outbound"]),
})

export function recordOf({ name, limits, network }: AttemptSpec): AttemptRecord {
  const { memoryBytes, pids, diskBytes, timeoutMs } = limits
  return { name, memoryBytes, pids, diskBytes, timeoutMs, network }
}

/** Null when the directory holds no attempt of a driver. */
export function readRecord(attemptDir: string): AttemptRecord | null {
  try {
    return attemptRecord.parse(JSON.parse(readSupervision(attemptDir)?.record ?? ""))
  } catch {
    return null
  }
}

/** What only the driver can tell of an end: looked at after the program is gone and before its disk is. */
export interface EndSigns {
  /** A failure of the sandbox itself or a missing command, told by exit code and error output. */
  refused?(end: SupervisorEnd): { failureKind: FailureKind; message: string } | null
  diskFull?(): Promise<boolean>
}

/** The limits that an end may have to name. */
type NamedLimits = Pick<AttemptRecord, "memoryBytes" | "pids" | "diskBytes" | "timeoutMs">

export function runningAttempt(
  attemptDir: string,
  record: NamedLimits,
  supervised: Supervised,
  signs: EndSigns,
): RunningAttempt {
  const done = supervised.done.then(async (end) => {
    const refused = end.cause === "program" ? signs.refused?.(end) : null
    if (refused) return { ...usage(end), exitCode: null, signal: null, ...refused }
    const failed = end.cause === "program" && end.exit_code !== 0
    const full = failed && end.oom_kills === 0 && ((await signs.diskFull?.().catch(() => false)) ?? false)
    // Asked only where somebody stopped it: most attempts end by themselves, and have no such file.
    const stopReason = end.cause === "stopped" ? readReason(attemptDir) : "cancelled"
    return explainEnd(end, record, { diskFull: full, stopReason })
  })
  return {
    done,
    stop: (reason) => supervised.stop(reason),
    extend: (deadline) => supervised.extend(deadline),
    stdoutPath: join(attemptDir, "stdout"),
    stderrPath: join(attemptDir, "stderr"),
  }
}

/** What the end means for the attempt. Pure. */
function explainEnd(
  end: SupervisorEnd,
  record: NamedLimits,
  seen: { diskFull: boolean; stopReason: "cancelled" | "deadline" },
): AttemptExit {
  const ended = (failureKind: FailureKind | null, message: string | null): AttemptExit => ({
    ...usage(end),
    exitCode: end.cause === "program" ? end.exit_code : null,
    signal: end.signal === null ? null : signalName(end.signal),
    failureKind,
    message,
  })
  switch (end.cause) {
    case "timeout":
      return ended("timeout", `ran longer than its timeout of ${record.timeoutMs / 1000} s`)
    case "stopped":
      if (seen.stopReason === "cancelled") return ended("cancelled", "was cancelled while it ran")
      return ended("node_lost", "the claim of this attempt ended")
    case "deadline":
      return ended("node_lost", "the claim ended while the node had no contact with the coordinator")
    case "lost":
      return ended("sandbox_error", "the supervisor of the attempt was killed from outside")
    case "oom":
      return ended("oom", outOfMemory(record.memoryBytes))
    case "program":
      if (end.exit_code === 0) return ended(null, null)
      if (end.oom_kills > 0) return ended("oom", outOfMemory(record.memoryBytes))
      if (seen.diskFull) return ended("disk_full", `its disk of ${mebibytes(record.diskBytes)} (storage_gb) was full`)
      if (end.signal !== null) return ended("signal", withPids(`ended by ${signalName(end.signal)}`))
      return ended("exit_code", withPids(`exit code ${end.exit_code}${likelySignal(end.exit_code)}`))
  }

  function withPids(text: string): string {
    return end.pids_refused > 0 ? `${text}; it was refused new processes at the limit of ${record.pids}` : text
  }
}

function usage(end: SupervisorEnd): Pick<AttemptExit, "runtimeMs" | "cpuMs" | "peakMemoryBytes"> {
  return { runtimeMs: end.runtime_ms, cpuMs: end.cpu_ms, peakMemoryBytes: end.peak_memory_bytes }
}

function outOfMemory(bytes: number): string {
  return `out of memory: used more than its limit of ${mebibytes(bytes)} (memory_mb)`
}

/** Sandboxes and shells report a signal as 128 + its number; a program may exit so by itself, hence the wording. */
function likelySignal(code: number | null): string {
  if (code === null || code <= 128 || code > 128 + 31) return ""
  return ` (as after ${signalName(code - 128)})`
}

const mebibytes = (bytes: number): string => `${Math.round(bytes / 1024 / 1024)} MB`
