import { spawn, type ChildProcess } from "node:child_process"
import { readFileSync } from "node:fs"
import { readFile, rename, writeFile } from "node:fs/promises"
import { constants } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import * as z from "zod"
import { every, systemClock } from "../../protocol/base/clock.ts"
import { RuntimeRefusal } from "./driver.ts"

/** What a supervisor is asked to run. Paths are the host's. */
export interface SupervisedCommand {
  attemptDir: string
  /** Absolute path of what is executed; `argv[0]` is what it sees as its name. */
  program: string
  argv: string[]
  /** Complete: nothing of the agent's environment is inherited. */
  env: Record<string, string>
  cwd: string
  timeoutMs: number
  deadline: number
  group: SupervisedGroup
}

/** The control groups a supervisor puts the program into, and the files it reads there. Empty where there are none. */
export interface SupervisedGroup {
  directories: string[]
  /** Counts processes killed for memory. */
  oomFile?: string
  peakFile?: string
  cpuFile?: string
  /** Units of `cpuFile` in a millisecond. */
  cpuPerMs?: number
  /** Counts refused forks. */
  pidsFile?: string
}

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

export interface Supervised {
  /** Resolves when the supervisor has written its end and everything below it is gone. Never rejects. */
  readonly done: Promise<SupervisorEnd>
  /** Kills the whole tree; resolves with `done`. */
  stop(): Promise<void>
  /** Moves the deadline (wall clock, ms). */
  extend(deadline: number): Promise<void>
}

export interface Launcher extends AsyncDisposable {
  /** Resolves once the program has been executed under its own supervisor; rejects with a `RuntimeRefusal`. */
  start(command: SupervisedCommand): Promise<Supervised>
}

/**
 * Starts supervisors through one small launcher process: a fork of it costs a tenth of starting a program from this process.
 * The launcher starts with the first attempt and again when it was killed; attempts outlive it.
 */
export function createLauncher(): Launcher {
  let running: RunningLauncher | null = null
  return {
    async start(command) {
      if (running === null || running.gone) running = runLauncher()
      return running.start(command)
    },
    async [Symbol.asyncDispose]() {
      await running?.close()
      running = null
    },
  }
}

interface RunningLauncher {
  gone: boolean
  start(command: SupervisedCommand): Promise<Supervised>
  close(): Promise<void>
}

function runLauncher(): RunningLauncher {
  // A session of its own, so that neither a terminal's ^C nor a kill of the agent's group reaches the attempts.
  const child: ChildProcess = spawn(SUPERVISOR, { stdio: ["pipe", "pipe", "ignore"], detached: true, env: {}, cwd: "/" })
  const starting = new Map<number, { started(pid: number): void; refused(reason: string): void }>()
  const live = new Map<number, () => void>()
  let requests = 0
  let buffered = ""

  child.stdout?.setEncoding("utf8").on("data", (text: string) => {
    const lines = (buffered + text).split("\n")
    buffered = lines.pop() ?? ""
    for (const line of lines) report(line)
  })
  child.stdin?.on("error", () => {})
  const ended = new Promise<void>((resolve) => {
    child.once("error", (error) => end(`the supervisor cannot be started: ${error.message}`))
    child.once("exit", () => end("the launcher of supervisors ended"))
    function end(reason: string): void {
      launcher.gone = true
      for (const waiting of starting.values()) waiting.refused(reason)
      starting.clear()
      for (const look of live.values()) look()
      live.clear()
      resolve()
    }
  })

  function report(line: string): void {
    const [word, id, ...rest] = line.split(" ")
    const request = Number(id)
    if (word === "started") starting.get(request)?.started(Number(rest[0]))
    if (word === "refused") starting.get(request)?.refused(rest.join(" "))
    if (word === "ended") {
      starting.get(request)?.refused("its supervisor was killed")
      live.get(request)?.()
      live.delete(request)
    }
    starting.delete(request)
  }

  const launcher: RunningLauncher = {
    gone: false,
    start(command) {
      const request = ++requests
      return new Promise<Supervised>((resolve, reject) => {
        starting.set(request, {
          started(pid) {
            // The launcher reports the end of its own; if it is killed, the files are looked at instead.
            const reported = new Promise<void>((wake) => live.set(request, wake))
            resolve(follow(command.attemptDir, pid, reported))
          },
          refused: (reason) => reject(new RuntimeRefusal("sandbox_error", `the attempt could not be started: ${reason}`)),
        })
        child.stdin?.write(encode(request, command))
      })
    },
    async close() {
      child.stdin?.end()
      await ended
    },
  }
  return launcher
}

function encode(request: number, command: SupervisedCommand): Buffer {
  const { group } = command
  const fields = [
    `id=${request}`,
    `dir=${command.attemptDir}`,
    `program=${command.program}`,
    `cwd=${command.cwd}`,
    `timeout=${command.timeoutMs}`,
    `deadline=${command.deadline}`,
    ...command.argv.map((arg) => `arg=${arg}`),
    ...Object.entries(command.env).map(([name, value]) => `env=${name}=${value}`),
    ...group.directories.map((directory) => `group=${directory}`),
  ]
  if (group.oomFile !== undefined) fields.push(`oom=${group.oomFile}`)
  if (group.peakFile !== undefined) fields.push(`peak=${group.peakFile}`)
  if (group.cpuFile !== undefined) fields.push(`cpu=${group.cpuFile}`, `cpu_per_ms=${group.cpuPerMs ?? 1}`)
  if (group.pidsFile !== undefined) fields.push(`pids=${group.pidsFile}`)
  if (fields.some((field) => field.includes("\0"))) {
    throw new RuntimeRefusal("preparation_failed", "a command, variable or path contains a NUL character")
  }
  const body = Buffer.from(fields.map((field) => `${field}\0`).join(""))
  return Buffer.concat([Buffer.from(`${body.length}\n`), body])
}

/** Takes over the supervisor of an attempt, or its end; null when neither can be proved. */
export async function adoptSupervised(attemptDir: string): Promise<Supervised | null> {
  const record = await readFile(join(attemptDir, "supervisor"), "utf8").catch(() => null)
  if (record === null) return null
  const [pid, startTicks, bootId] = record.trim().split(" ")
  if (bootId === bootIdNow() && startTicks === startTicksOf(Number(pid))) return follow(attemptDir, Number(pid), null)
  return readEnd(attemptDir) === null ? null : follow(attemptDir, null, null)
}

/** How often the end of an attempt is looked for that another agent's launcher started. */
const LOOK_INTERVAL_MS = 100

/** `reported` resolves when the end should be looked for; null: look regularly. A null pid has ended. */
function follow(attemptDir: string, pid: number | null, reported: Promise<void> | null): Supervised {
  const startTicks = pid === null ? null : startTicksOf(pid)
  const lives = (): boolean => pid !== null && startTicks !== null && startTicksOf(pid) === startTicks
  const looked = async (): Promise<SupervisorEnd> => {
    while (true) {
      // Life first, file second: a supervisor that is gone has written what it will ever write.
      const alive = lives()
      const end = readEnd(attemptDir)
      if (end !== null) return end
      if (!alive) return LOST
      await new Promise<void>((resolve) => {
        const timer = every(systemClock, LOOK_INTERVAL_MS, () => {
          timer[Symbol.dispose]()
          resolve()
        })
      })
    }
  }
  const done = reported === null ? looked() : reported.then(looked)
  const signal = (name: NodeJS.Signals): void => {
    if (pid === null || !lives()) return
    try {
      process.kill(pid, name)
    } catch {
      // It ended in this moment.
    }
  }
  return {
    done,
    async stop() {
      signal("SIGTERM")
      await done
    },
    async extend(deadline) {
      const path = join(attemptDir, "deadline")
      await writeFile(`${path}.new`, String(deadline))
      await rename(`${path}.new`, path)
      signal("SIGUSR1")
    },
  }
}

function readEnd(attemptDir: string): SupervisorEnd | null {
  try {
    return supervisorEnd.parse(JSON.parse(readFileSync(join(attemptDir, "exit"), "utf8")))
  } catch {
    return null
  }
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
  const known = Object.entries(constants.signals).find(([, number]) => number === signal)
  return known?.[0] ?? `signal ${signal}`
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

const SUPERVISOR = fileURLToPath(new URL("./supervisor", import.meta.url))
