import { spawn, type ChildProcess } from "node:child_process"
import { closeSync, constants, openSync, writeFileSync, writeSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { errorText } from "../../protocol/base/error-text.ts"
import { RuntimeRefusal } from "./driver.ts"
import type { GroupLimits, SupervisedGroup, TaskGroups } from "./limits.ts"
import {
  identityOf,
  isAlive,
  keepReason,
  lookForEnd,
  moveDeadline,
  parseEnd,
  readEnd,
  readSupervision,
  removeRecord,
  signal,
  writeSupervision,
  type Identity,
  type SupervisorEnd,
} from "./supervision.ts"

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

export interface Supervised {
  /** Resolves when everything below the supervisor is gone and it has noted the end. Never rejects. */
  readonly done: Promise<SupervisorEnd>
  /** Kills the whole tree; resolves with `done`. The first reason stays beside the end. */
  stop(reason: "cancelled" | "deadline"): Promise<void>
  /** Moves the deadline (wall clock, ms). */
  extend(deadline: number): Promise<void>
}

export interface Launcher extends AsyncDisposable {
  /**
   * Runs the command under a supervisor, in control groups that no other attempt is in, and resolves once it has been executed.
   * `record` is kept in the attempt's directory before anything runs. Rejects with a `RuntimeRefusal`; then nothing is left.
   */
  start(command: SupervisedCommand, limits: GroupLimits, record: object): Promise<Supervised>
  /** Takes over an attempt, or its end, whoever started it; null when neither can be proved. */
  adopt(attemptDir: string): Supervised | null
  /** Ends what is left of an attempt, whoever started it, in its control groups too. Unknown directories are fine. */
  release(attemptDir: string): Promise<void>
  /** Gives up the supervisors that wait and their groups; the next attempt gets new ones. */
  rest(): Promise<void>
  /** Is the group one that this launcher's supervisors use? */
  uses(group: string): boolean
}

/** Supervisors that wait for work, at least: as many as starts usually come at once. */
const MOST_SPARES = 4
/** And at most, after a rush; one takes a megabyte. */
const MOST_IDLE = 16

/**
 * Runs attempts under supervisors that one small launcher process forks: a fork of it costs a tenth of starting a program from
 * this process. Attempts and their supervisors outlive launcher and agent. A supervisor sits in control groups that it joined
 * once (the kernel takes 5 to 15 ms for that) and serves one attempt after another, as long as each ends by itself and leaves
 * nothing; what did not is given up together with its groups.
 */
export function createLauncher(groups: TaskGroups): Launcher {
  let forker: Forker | null = null
  let wanted = 1
  let closed = false
  const idle: Slot[] = []
  /** Spares on their way. */
  const opening = new Set<Promise<void>>()
  const used = new Set<string>()
  const attempts = new Map<string, { supervised: Supervised; cleared: Promise<void> }>()
  const newGroupName = groupNames()

  async function openSlot(): Promise<Slot> {
    const name = newGroupName()
    used.add(name)
    try {
      if (forker === null || forker.gone) forker = runForker()
      return await forker.open(name, groups.make(name))
    } catch (error) {
      await groups.remove(name)
      used.delete(name)
      throw error
    }
  }

  async function discard(slot: Slot): Promise<void> {
    slot.close()
    await groups.remove(slot.name)
    used.delete(slot.name)
  }

  function keepSpares(): void {
    for (let missing = wanted - idle.length - opening.size; missing > 0; missing--) {
      const spare = openSlot().then(giveBack, () => {})
      opening.add(spare)
      void spare.then(() => opening.delete(spare))
    }
  }

  function giveBack(slot: Slot): Promise<void> | undefined {
    if (closed || slot.lost || idle.length >= MOST_IDLE) return discard(slot)
    idle.push(slot)
    return undefined
  }

  async function takeSlot(limits: GroupLimits): Promise<Slot> {
    // The one that worked last: its memory is still warm.
    for (let slot = idle.pop(); slot !== undefined; slot = idle.pop()) {
      try {
        if (slot.lost) throw new Error("its supervisor was killed")
        slot.limit(limits, groups)
        return slot
      } catch {
        await discard(slot)
      }
    }
    wanted = Math.min(wanted + 1, MOST_SPARES)
    const slot = await openSlot()
    try {
      slot.limit(limits, groups)
    } catch (error) {
      await discard(slot)
      throw error
    }
    return slot
  }

  function serve(slot: Slot, command: SupervisedCommand): Promise<Supervised> {
    const { attemptDir } = command
    return new Promise((resolve, reject) => {
      const request = slot.run(command, {
        started: () => {
          const ended = request.ended.then(async ({ end, clean }) => {
            const found = end ?? (await lookForEnd(attemptDir, () => isAlive(slot.identity)))
            return { found, cleared: clean ? giveBack(slot) : discard(slot) }
          })
          let over = false
          const done = ended.then(({ found }) => {
            over = true
            return found
          })
          const supervised: Supervised = {
            done,
            async stop(reason) {
              if (!over) {
                keepReason(attemptDir, reason)
                request.stop()
              }
              await done
            },
            extend: async (deadline) => (over ? undefined : await moveDeadline(attemptDir, slot.identity, deadline)),
          }
          attempts.set(attemptDir, { supervised, cleared: ended.then(({ cleared }) => cleared) })
          resolve(supervised)
        },
        refused: (reason) => reject(new RuntimeRefusal("sandbox_error", `the attempt could not be started: ${reason}`)),
      })
    })
  }

  function adopt(attemptDir: string): Supervised | null {
    const own = attempts.get(attemptDir)
    if (own !== undefined) return own.supervised
    const left = readSupervision(attemptDir)
    if (left === null) return null
    if (left.end === null && !isAlive(left.identity)) return null
    const done = lookForEnd(attemptDir, () => isAlive(left.identity))
    return {
      done,
      async stop(reason) {
        if (readEnd(attemptDir) === null) {
          keepReason(attemptDir, reason)
          signal(left.identity, "SIGTERM")
        }
        await done
      },
      extend: (deadline) => moveDeadline(attemptDir, left.identity, deadline),
    }
  }

  async function rest(): Promise<void> {
    await Promise.allSettled(opening)
    await Promise.all(idle.splice(0).map(discard))
  }

  return {
    adopt,
    rest,
    uses: (group) => used.has(group),
    async start(command, limits, record) {
      checkText(command)
      const slot = await takeSlot(limits)
      try {
        writeSupervision(command.attemptDir, slot.identity, slot.name, record)
        const started = serve(slot, command)
        keepSpares()
        return await started
      } catch (error) {
        await discard(slot)
        removeRecord(command.attemptDir)
        throw error
      }
    },
    async release(attemptDir) {
      const own = attempts.get(attemptDir)
      if (own !== undefined) {
        await own.supervised.stop("cancelled")
        await own.cleared
        attempts.delete(attemptDir)
      } else {
        const left = readSupervision(attemptDir)
        if (left === null || used.has(left.group)) return
        await adopt(attemptDir)?.stop("cancelled")
        await groups.remove(left.group)
      }
      removeRecord(attemptDir)
    },
    async [Symbol.asyncDispose]() {
      closed = true
      await rest()
      await forker?.close()
      forker = null
    },
  }
}

/** Unique for ever on this machine, also after a restart within the same millisecond. */
function groupNames(): () => string {
  const start = `${Date.now().toString(36)}-${process.pid}`
  let made = 0
  return () => `${start}-${++made}`
}

/** A supervisor of this agent in its groups. */
interface Slot {
  readonly name: string
  readonly identity: Identity
  /** Its supervisor or the launcher was killed: it serves nobody after this. */
  readonly lost: boolean
  limit(limits: GroupLimits, groups: TaskGroups): void
  /** One at a time. */
  run(command: SupervisedCommand, told: { started(): void; refused(reason: string): void }): SlotRequest
  /** The supervisor ends after what it does now. */
  close(): void
}

interface SlotRequest {
  /** Resolves when the supervisor says so, or when it can no longer say so: then the end is in the files, if anywhere. */
  readonly ended: Promise<{ end: SupervisorEnd | null; clean: boolean }>
  stop(): void
}

/** The launcher process. */
interface Forker {
  readonly gone: boolean
  open(name: string, group: SupervisedGroup): Promise<Slot>
  close(): Promise<void>
}

/** Who hears the reports of one supervisor. */
interface SlotReports {
  waiting(pid: number, descriptor: number): void
  started(request: number): void
  refused(request: number, reason: string): void
  ended(request: number, clean: boolean, end: string): void
  lost(): void
}

function runForker(): Forker {
  // A session of its own, so that neither a terminal's ^C nor a kill of the agent's group reaches the attempts.
  const child: ChildProcess = spawn(SUPERVISOR, {
    stdio: ["pipe", "pipe", "ignore"],
    detached: true,
    env: {},
    cwd: "/",
  })
  const slots = new Map<string, SlotReports>()
  let gone = false
  let buffered = ""

  child.stdout?.setEncoding("utf8").on("data", (text: string) => {
    const lines = (buffered + text).split("\n")
    buffered = lines.pop() ?? ""
    for (const line of lines) report(line)
  })
  child.stdin?.on("error", () => {})
  const ended = new Promise<void>((resolve) => {
    child.once("error", end)
    child.once("exit", end)
    function end(): void {
      gone = true
      for (const slot of slots.values()) slot.lost()
      resolve()
    }
  })

  function report(line: string): void {
    const [word = "", name = "", request = "", ...rest] = line.split(" ")
    const slot = slots.get(name)
    if (slot === undefined) return
    switch (word) {
      case "waiting":
        return slot.waiting(Number(request), Number(rest[0]))
      case "started":
        return slot.started(Number(request))
      case "refused":
        return slot.refused(Number(request), rest.join(" "))
      case "ended":
        return slot.ended(Number(request), rest[0] === "1", rest.slice(1).join(" "))
      case "gone":
        slots.delete(name)
        return slot.lost()
    }
  }

  return {
    get gone() {
      return gone
    },
    open(name, group) {
      return new Promise((resolve, reject) => {
        const refused = (reason: string): void =>
          reject(new RuntimeRefusal("sandbox_error", `the attempt could not be started: ${reason}`))
        if (gone || child.pid === undefined) return refused("the launcher of supervisors ended")
        const launcherPid = child.pid
        const drop = (): void => {
          if (!gone) child.stdin?.write(message([`slot=${name}`, "drop=1"]))
        }
        slots.set(name, {
          waiting(pid, descriptor) {
            try {
              // The launcher's end of the pipe, opened anew: attempts do not pass through it, and one that was killed is no harm.
              const pipe = openSync(`/proc/${launcherPid}/fd/${descriptor}`, constants.O_WRONLY | constants.O_NONBLOCK)
              const opened = createSlot(name, identityOf(pid), pipe, drop)
              slots.set(name, opened.reports)
              resolve(opened.slot)
            } catch (error) {
              drop()
              refused(errorText(error))
            }
          },
          lost: () => refused("its supervisor ended"),
          started() {},
          refused() {},
          ended() {},
        })
        child.stdin?.write(message([`slot=${name}`, ...groupFields(group)]))
      })
    },
    async close() {
      child.stdin?.end()
      await ended
      // Supervisors of living attempts hold the other end.
      child.stdout?.destroy()
    },
  }
}

/** More than this might not fit into the pipe at once, and this process must not wait for a reader. */
const LONGEST_MESSAGE_BYTES = 32 * 1024

function createSlot(
  name: string,
  identity: Identity,
  pipe: number,
  drop: () => void,
): { slot: Slot; reports: SlotReports } {
  let lost = false
  let open = true
  let limited = ""
  let requests = 0
  let serving: {
    id: number
    started(): void
    refused(reason: string): void
    ended(end: SupervisorEnd | null, clean: boolean): void
  } | null = null
  const current = (id: number) => (serving?.id === id ? serving : null)

  const slot: Slot = {
    name,
    identity,
    get lost() {
      return lost
    },
    limit(limits, groups) {
      const text = JSON.stringify(limits)
      if (text === limited) return
      limited = ""
      groups.limit(name, limits)
      limited = text
    },
    run(command, told) {
      const id = ++requests
      const ended = new Promise<{ end: SupervisorEnd | null; clean: boolean }>((resolve) => {
        serving = {
          id,
          ...told,
          ended(end, clean) {
            serving = null
            resolve({ end, clean: clean && !lost })
          },
        }
      })
      try {
        if (lost) throw new Error("its supervisor ended")
        writeSync(pipe, fitting(message([`id=${id}`, ...commandFields(command)]), command.attemptDir))
      } catch (error) {
        serving = null
        told.refused(errorText(error))
      }
      return {
        ended,
        stop() {
          try {
            if (open) writeSync(pipe, message([`stop=${id}`]))
            else signal(identity, "SIGTERM")
          } catch {
            // It was killed: the look at its files ends the attempt.
          }
        },
      }
    },
    close() {
      if (!open) return
      open = false
      closeSync(pipe)
      drop()
    },
  }
  return {
    slot,
    reports: {
      waiting() {},
      started: (id) => current(id)?.started(),
      refused: (id, reason) => current(id)?.refused(reason),
      ended: (id, clean, end) => current(id)?.ended(parseEnd(end), clean),
      lost() {
        lost = true
        serving?.refused("its supervisor was killed")
        serving?.ended(null, false)
      },
    },
  }
}

function fitting(request: Buffer, attemptDir: string): Buffer {
  if (request.length <= LONGEST_MESSAGE_BYTES) return request
  const path = join(attemptDir, "request")
  const body = request.subarray(request.indexOf(10) + 1)
  writeFileSync(path, body, { mode: 0o600 })
  return message([`whole=${path}`])
}

function message(fields: string[]): Buffer {
  const body = Buffer.from(fields.map((field) => `${field}\0`).join(""))
  return Buffer.concat([Buffer.from(`${body.length}\n`), body])
}

function commandFields(command: SupervisedCommand): string[] {
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
  return fields
}

function groupFields(group: SupervisedGroup): string[] {
  const fields = group.directories.map((directory) => `group=${directory}`)
  if (group.oomFile !== undefined) fields.push(`oom=${group.oomFile}`)
  if (group.peakFile !== undefined) fields.push(`peak=${group.peakFile}`)
  if (group.usageFile !== undefined) fields.push(`usage=${group.usageFile}`)
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

const SUPERVISOR = fileURLToPath(new URL("./supervisor", import.meta.url))
