import { readFileSync, unlinkSync, writeFileSync } from "node:fs"
import { rename, writeFile } from "node:fs/promises"
import { constants as system } from "node:os"
import { join } from "node:path"
import { setTimeout as pause } from "node:timers/promises"
import * as z from "zod"

/** How an attempt ended, as its supervisor saw it. */
export type SupervisorEnd = z.infer<typeof supervisorEnd>
const supervisorEnd = z.object({
  /** `lost`: the supervisor itself was killed; nobody knows. */
  cause: z.enum(["program", "stopped", "oom", "timeout", "deadline", "lost"]),
  exit_code: z.number().nullable(),
  /** The number. */
  signal: z.number().nullable(),
  runtime_ms: z.number(),
  cpu_ms: z.number().nullable(),
  peak_memory_bytes: z.number().nullable(),
  oom_kills: z.number(),
  pids_refused: z.number(),
  /** Something could not be killed within ten seconds. */
  left_over: z.boolean(),
})

/** Proves that the process of a number is the one that was meant. */
export interface Identity {
  pid: number
  /** When it started, in clock ticks since boot. */
  startTicks: string
  bootId: string
}

/**
 * The file `supervisor` in an attempt's directory, all that another agent has to know: a line of who supervises it and in which
 * groups, a line of the driver's (JSON), and from its end on a line of that (JSON), appended by the supervisor.
 */
const RECORD_FILE = "supervisor"

export function writeSupervision(attemptDir: string, identity: Identity, group: string, record: object): void {
  const { pid, startTicks, bootId } = identity
  writeFileSync(join(attemptDir, RECORD_FILE), `${pid} ${startTicks} ${bootId} ${group}\n${JSON.stringify(record)}\n`)
}

export function removeRecord(attemptDir: string): void {
  try {
    unlinkSync(join(attemptDir, RECORD_FILE))
  } catch {
    // There was none.
  }
}

/** Null when the directory holds no attempt. */
export function readSupervision(
  attemptDir: string,
): { identity: Identity; group: string; record: string; end: SupervisorEnd | null } | null {
  let text
  try {
    text = readFileSync(join(attemptDir, RECORD_FILE), "utf8")
  } catch {
    return null
  }
  const [first = "", record = "", end = ""] = text.split("\n")
  const [pid, startTicks, bootId, group] = first.split(" ")
  if (startTicks === undefined || bootId === undefined || group === undefined) return null
  return { identity: { pid: Number(pid), startTicks, bootId }, group, record, end: parseEnd(end) }
}

export function readEnd(attemptDir: string): SupervisorEnd | null {
  return readSupervision(attemptDir)?.end ?? null
}

export function parseEnd(line: string): SupervisorEnd | null {
  try {
    return supervisorEnd.parse(JSON.parse(line))
  } catch {
    return null
  }
}

/** How often the end of an attempt is looked for that nobody will report. */
const LOOK_INTERVAL_MS = 100

export async function lookForEnd(attemptDir: string, isAlive: () => boolean): Promise<SupervisorEnd> {
  while (true) {
    // Life first, file second: a supervisor that is gone has written what it will ever write.
    const alive = isAlive()
    const end = readEnd(attemptDir)
    if (end !== null) return end
    if (!alive) return LOST
    await pause(LOOK_INTERVAL_MS)
  }
}

export function isAlive({ pid, startTicks, bootId }: Identity): boolean {
  return bootId === bootIdNow() && startTicks === startTicksOf(pid)
}

export function signal(identity: Identity, name: NodeJS.Signals): void {
  if (!isAlive(identity)) return
  try {
    process.kill(identity.pid, name)
  } catch {
    // It ended in this moment.
  }
}

/** Stays beside the end, so that every later look at it gives the same reason. */
export function keepReason(attemptDir: string, reason: string): void {
  try {
    writeFileSync(join(attemptDir, REASON_FILE), reason, { flag: "wx" })
  } catch {
    // There is one, or the disk is full: the attempt is stopped all the same.
  }
}

const REASON_FILE = "stop"

/** Why a stopped attempt was stopped. */
export function readReason(attemptDir: string): "cancelled" | "deadline" {
  try {
    return readFileSync(join(attemptDir, REASON_FILE), "utf8") === "deadline" ? "deadline" : "cancelled"
  } catch {
    return "cancelled"
  }
}

export async function moveDeadline(attemptDir: string, identity: Identity, deadline: number): Promise<void> {
  const path = join(attemptDir, "deadline")
  await writeFile(`${path}.new`, String(deadline))
  await rename(`${path}.new`, path)
  signal(identity, "SIGUSR1")
}

const LOST: SupervisorEnd = {
  cause: "lost",
  exit_code: null,
  signal: null,
  runtime_ms: 0,
  cpu_ms: null,
  peak_memory_bytes: null,
  oom_kills: 0,
  pids_refused: 0,
  left_over: false,
}

export function signalName(signal: number): string {
  const known = Object.entries(system.signals).find(([, number]) => number === signal)
  return known?.[0] ?? `signal ${signal}`
}

export function identityOf(pid: number): Identity {
  return { pid, startTicks: startTicksOf(pid) ?? "", bootId: bootIdNow() }
}

/** When the process started, in clock ticks since boot; null when it is gone (a zombie is). */
function startTicksOf(pid: number): string | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8")
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ")
    return fields[0] === "Z" || fields[0] === "X" ? null : (fields[19] ?? null)
  } catch {
    return null
  }
}

let bootId: string | null = null
function bootIdNow(): string {
  bootId ??= readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim()
  return bootId
}
