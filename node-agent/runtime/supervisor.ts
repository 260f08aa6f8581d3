import { spawn, type ChildProcess } from "node:child_process"
import { readFileSync } from "node:fs"
import { readFile, rename, writeFile } from "node:fs/promises"
import { constants } from "node:os"
import { join } from "node:path"
import { setTimeout as pause } from "node:timers/promises"
import { fileURLToPath } from "node:url"
import * as z from "zod"
import { RuntimeRefusal } from "./driver.ts"
import type { GroupLimits, SupervisedGroup, TaskGroups } from "./limits.ts"

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
  /** Made in order in a mount namespace of the attempt's own, as root (a plain user: as root of a user namespace). */
  mounts?: SupervisedMount[]
  /** Path of a network namespace to run in. */
  netns?: string
  /** Files the program finds open as descriptors 3, 4, …; created when they are missing. */
  files?: string[]
  /** User and group to become before the program is executed. */
  uid?: number
}

export type SupervisedMount =
  | { kind: "mkdir" | "touch"; target: string }
  | { kind: "bind"; source: string; target: string }
  | { kind: "readonly-bind"; source: string; target: string }
  | { kind: "tmpfs" | "overlay"; target: string; options: string }

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
  /**
   * Runs the command under its own supervisor, in control groups of its own, and resolves once it has been executed. `named`
   * hears the name of the groups before anything runs. Rejects with a `RuntimeRefusal`; then nothing is left.
   */
  start(command: SupervisedCommand, limits: GroupLimits, named: (group: string) => void): Promise<Supervised>
}

/** Supervisors that wait for work, at most: as many as starts usually come at once. */
const MOST_SPARES = 4

/**
 * Starts supervisors through one small launcher process: a fork of it costs a tenth of starting a program from this process.
 * The launcher starts with the first attempt and again when it was killed; attempts outlive it. Supervisors wait for work in
 * groups they have joined already: the kernel lets a process wait 5 to 15 ms for that.
 */
export function createLauncher(groups: TaskGroups): Launcher {
  let process: LauncherProcess | null = null
  let spares: Spare[] = []
  let wanted = 1
  const newGroupName = groupNames()

  function addSpare(): Spare {
    if (process === null || process.gone) {
      void discardSpares()
      process = runLauncher()
    }
    const name = newGroupName()
    const spare = { launcher: process, request: 0, name, group: groups.make(name) }
    spare.request = process.prepare(spare.group)
    return spare
  }

  async function discardSpares(): Promise<void> {
    const discarded = spares
    spares = []
    for (const spare of discarded) await groups.remove(spare.name)
  }

  return {
    async start(command, limits, named) {
      checkText(command)
      if (process?.gone === true) await discardSpares()
      const ready = spares.shift()
      if (ready === undefined) wanted = Math.min(wanted + 1, MOST_SPARES)
      const spare = ready ?? addSpare()
      try {
        groups.limit(spare.name, limits)
        named(spare.name)
        const started = spare.launcher.run(spare.request, command, spare.group)
        while (spares.length < wanted) spares.push(addSpare())
        return await started
      } catch (error) {
        await groups.remove(spare.name)
        throw error
      }
    },
    async [Symbol.asyncDispose]() {
      await process?.close()
      await discardSpares()
      process = null
    },
  }
}

interface Spare {
  launcher: LauncherProcess
  request: number
  name: string
  group: SupervisedGroup
}

/** Unique for ever on this machine, also after a restart within the same millisecond. */
function groupNames(): () => string {
  const start = `${Date.now().toString(36)}-${process.pid}`
  let made = 0
  return () => `${start}-${++made}`
}

interface LauncherProcess {
  gone: boolean
  /** Forks a supervisor that joins the groups and waits. */
  prepare(group: SupervisedGroup): number
  run(request: number, command: SupervisedCommand, group: SupervisedGroup): Promise<Supervised>
  close(): Promise<void>
}

function runLauncher(): LauncherProcess {
  // A session of its own, so that neither a terminal's ^C nor a kill of the agent's group reaches the attempts.
  const child: ChildProcess = spawn(SUPERVISOR, {
    stdio: ["pipe", "pipe", "ignore"],
    detached: true,
    env: {},
    cwd: "/",
  })
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
      // Whoever runs on is followed by its files.
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

  const launcher: LauncherProcess = {
    gone: false,
    prepare(group) {
      const request = ++requests
      child.stdin?.write(message([`id=${request}`, ...group.directories.map((directory) => `group=${directory}`)]))
      return request
    },
    run(request, command, group) {
      return new Promise<Supervised>((resolve, reject) => {
        const refused = (reason: string): void =>
          reject(new RuntimeRefusal("sandbox_error", `the attempt could not be started: ${reason}`))
        if (launcher.gone) return refused("the launcher of supervisors ended")
        starting.set(request, {
          started(pid) {
            const reported = new Promise<void>((wake) => live.set(request, wake))
            resolve(follow(command.attemptDir, pid, reported))
          },
          refused,
        })
        child.stdin?.write(message([`id=${request}`, ...requestFields(command, group)]))
      })
    },
    async close() {
      child.stdin?.end()
      await ended
    },
  }
  return launcher
}

function message(fields: string[]): Buffer {
  const body = Buffer.from(fields.map((field) => `${field}\0`).join(""))
  return Buffer.concat([Buffer.from(`${body.length}\n`), body])
}

function requestFields(command: SupervisedCommand, group: SupervisedGroup): string[] {
  const fields = [
    `dir=${command.attemptDir}`,
    `program=${command.program}`,
    `cwd=${command.cwd}`,
    `timeout=${command.timeoutMs}`,
    `deadline=${command.deadline}`,
    ...command.argv.map((arg) => `arg=${arg}`),
    ...Object.entries(command.env).map(([name, value]) => `env=${name}=${value}`),
  ]
  fields.push(...(command.files ?? []).map((path) => `file=${path}`))
  if (command.netns !== undefined) fields.push(`netns=${command.netns}`)
  if (command.uid !== undefined) fields.push(`uid=${command.uid}`)
  fields.push(...(command.mounts ?? []).flatMap(mountSteps).map((step) => `mount=${step.join("\x01")}`))
  if (group.oomFile !== undefined) fields.push(`oom=${group.oomFile}`)
  if (group.peakFile !== undefined) fields.push(`peak=${group.peakFile}`)
  if (group.cpuFile !== undefined) fields.push(`cpu=${group.cpuFile}`, `cpu_per_ms=${group.cpuPerMs ?? 1}`)
  if (group.pidsFile !== undefined) fields.push(`pids=${group.pidsFile}`)
  return fields
}

const MS_RDONLY = 0x1
const MS_NOSUID = 0x2
const MS_NODEV = 0x4
const MS_REMOUNT = 0x20
const MS_BIND = 0x1000

/** type, source, target, flags, data */
function mountSteps(mount: SupervisedMount): (string | number)[][] {
  switch (mount.kind) {
    case "mkdir":
    case "touch":
      return [[mount.kind, "", mount.target, 0, ""]]
    case "bind":
      return [["", mount.source, mount.target, MS_BIND, ""]]
    case "readonly-bind":
      return [
        ["", mount.source, mount.target, MS_BIND, ""],
        // The kernel takes a bind's flags only in a second call.
        ["", "none", mount.target, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV, ""],
      ]
    case "tmpfs":
      return [["tmpfs", "none", mount.target, MS_NOSUID | MS_NODEV, mount.options]]
    case "overlay":
      return [["overlay", "none", mount.target, MS_NODEV, mount.options]]
  }
}

function checkText(command: SupervisedCommand): void {
  const texts = [
    command.attemptDir,
    command.program,
    command.cwd,
    ...command.argv,
    ...Object.entries(command.env).flat(),
  ]
  if (texts.some((text) => text.includes("\0"))) {
    throw new RuntimeRefusal("preparation_failed", "a command, variable or path contains a NUL character")
  }
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
      await pause(LOOK_INTERVAL_MS)
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
