import { createHash } from "node:crypto"
import { existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from "node:fs"
import { availableParallelism } from "node:os"
import { join } from "node:path"
import { setTimeout as pause } from "node:timers/promises"
import type { Enforceable } from "../../protocol/domain/statuses.ts"
import type { Limits } from "./driver.ts"

/** Control groups of this agent's attempts, in whichever hierarchies the machine lets us make groups. */
export interface TaskGroups {
  /** What was found by trying: memory, cpu and pids, or nothing for a plain user. */
  readonly enforces: Enforceable[]
  /** Makes groups of that name, without limits yet. A supervisor goes in, and what it runs is born there. */
  make(name: string): SupervisedGroup
  /** Sets what an attempt may use in groups made before. */
  limit(name: string, limits: GroupLimits): void
  /** Kills every process in the attempt's groups and removes them. Missing groups are fine. */
  remove(name: string): Promise<void>
  /** Names of groups that exist, an earlier agent's included. */
  list(): string[]
  /** Takes the agent's own groups away when no attempt is in them. */
  close(): void
}

/** The control groups a supervisor puts the program into, and the files it reads there. Empty where there are none. */
export interface SupervisedGroup {
  directories: string[]
  /** Counts processes killed for memory. */
  oomFile?: string
  peakFile?: string
  usageFile?: string
  cpuFile?: string
  /** Units of `cpuFile` in a millisecond. */
  cpuPerMs?: number
  /** Counts refused forks. */
  pidsFile?: string
}

export type GroupLimits = Pick<Limits, "memoryBytes" | "cpu" | "pids">

/** The supervisor sits in the groups too; with what it lets an attempt leave behind (supervisor, LEFT_BYTES). */
const SUPERVISOR_MEMORY_BYTES = 8 * 1024 * 1024
const SUPERVISOR_PIDS = 1

/** Twelve hex digits that stand for an agent's data directory in names on the machine. */
export function agentMark(dataDir: string): string {
  return createHash("sha256").update(dataDir).digest("hex").slice(0, 12)
}

/** Probes every controller by making a group with limits in it. Does not throw: without groups nothing is enforced. */
export function openTaskGroups(dataDir: string): TaskGroups {
  const mark = agentMark(dataDir)
  const hierarchies = mountedHierarchies()
    .map((hierarchy) => openHierarchy(hierarchy, mark))
    .filter((hierarchy) => hierarchy !== null)
  const controllers = new Set(hierarchies.flatMap((hierarchy) => hierarchy.controllers))
  return {
    enforces: (["memory", "cpu", "pids"] as const).filter((controller) => controllers.has(controller)),
    make(name) {
      const group: SupervisedGroup = { directories: [] }
      for (const hierarchy of hierarchies) {
        const directory = join(hierarchy.base, name)
        mkdirSync(directory, { recursive: true })
        for (const controller of hierarchy.controllers)
          CONTROLS[hierarchy.version][controller].files?.(directory, group)
        group.directories.push(directory)
      }
      return group
    },
    limit(name, asked) {
      const limits = {
        ...asked,
        memoryBytes: asked.memoryBytes + SUPERVISOR_MEMORY_BYTES,
        pids: asked.pids + SUPERVISOR_PIDS,
      }
      for (const { version, controllers, base } of hierarchies) {
        for (const controller of controllers) CONTROLS[version][controller].limit?.(join(base, name), limits)
      }
    },
    async remove(name) {
      for (const hierarchy of hierarchies) await removeGroup(join(hierarchy.base, name))
    },
    list() {
      return [...new Set(hierarchies.flatMap((hierarchy) => subgroups(hierarchy.base)))]
    },
    close() {
      for (const { base } of hierarchies) {
        for (const directory of [base, join(base, "..")]) {
          try {
            rmdirSync(directory)
          } catch {
            // Still in use: by an attempt that lives on, or by another agent.
          }
        }
      }
    },
  }
}

type Controller = "memory" | "cpu" | "cpuacct" | "pids"
interface Hierarchy {
  version: "v1" | "v2"
  controllers: Controller[]
  /** Where it is mounted; after opening, this agent's own group in it. */
  base: string
}

interface Control {
  /** Throws where the kernel refuses. */
  limit?(directory: string, limits: GroupLimits): void
  /** Names the files in which the supervisor reads the use. */
  files?(directory: string, group: SupervisedGroup): void
}

const PIDS: Control = {
  limit: (directory, limits) => set(directory, "pids.max", limits.pids),
  files(directory, group) {
    group.pidsFile = join(directory, "pids.events")
  },
}

const CONTROLS: Record<"v1" | "v2", Record<Controller, Control>> = {
  v1: {
    memory: {
      limit(directory, limits) {
        // Swapping would turn the limit into a slow-down of the whole machine. Not every kernel counts swap.
        const countsSwap = existsSync(join(directory, "memory.memsw.limit_in_bytes"))
        // Never below the limit without swap, so it is out of the way while that one changes.
        if (countsSwap) set(directory, "memory.memsw.limit_in_bytes", -1)
        set(directory, "memory.limit_in_bytes", limits.memoryBytes)
        if (countsSwap) set(directory, "memory.memsw.limit_in_bytes", limits.memoryBytes)
      },
      files(directory, group) {
        group.oomFile = join(directory, "memory.oom_control")
        group.peakFile = join(directory, "memory.max_usage_in_bytes")
        group.usageFile = join(directory, "memory.usage_in_bytes")
      },
    },
    // A share, not a quota: never less than asked while others want theirs, more while the node is idle.
    cpu: { limit: (directory, limits) => set(directory, "cpu.shares", Math.max(2, Math.round(limits.cpu * 1024))) },
    cpuacct: {
      files(directory, group) {
        group.cpuFile = join(directory, "cpuacct.usage")
        group.cpuPerMs = 1e6
      },
    },
    pids: PIDS,
  },
  v2: {
    memory: {
      limit(directory, limits) {
        set(directory, "memory.max", limits.memoryBytes)
        if (existsSync(join(directory, "memory.swap.max"))) set(directory, "memory.swap.max", 0)
      },
      files(directory, group) {
        group.oomFile = join(directory, "memory.events")
        group.peakFile = join(directory, "memory.peak")
        group.usageFile = join(directory, "memory.current")
      },
    },
    cpu: {
      limit: (directory, limits) =>
        set(directory, "cpu.weight", Math.min(10_000, Math.max(1, Math.round(limits.cpu * 100)))),
    },
    cpuacct: {
      files(directory, group) {
        group.cpuFile = join(directory, "cpu.stat")
        group.cpuPerMs = 1e3
      },
    },
    pids: PIDS,
  },
}

function mountedHierarchies(): Hierarchy[] {
  const mounts = readText("/proc/self/mountinfo").split("\n")
  return mounts.flatMap((line): Hierarchy[] => {
    const [before, after] = line.split(" - ")
    const base = before?.split(" ")[4]
    const [kind, , options] = after?.split(" ") ?? []
    if (base === undefined) return []
    if (kind === "cgroup2") return [{ version: "v2", controllers: ["memory", "cpu", "pids"], base }]
    if (kind !== "cgroup") return []
    const named = new Set(options?.split(","))
    return [
      {
        version: "v1",
        controllers: (["memory", "cpu", "cpuacct", "pids"] as const).filter((name) => named.has(name)),
        base,
      },
    ]
  })
}

/** This agent's own group in the hierarchy with the controllers that really work there, or null when none does. */
function openHierarchy(mounted: Hierarchy, mark: string): Hierarchy | null {
  const base = join(mounted.base, "computalot", mark)
  const available =
    mounted.version === "v1"
      ? mounted.controllers
      : mounted.controllers.filter((name) =>
          readText(join(mounted.base, "cgroup.controllers")).split(/\s/).includes(name),
        )
  if (available.length === 0) return null
  const probe: Hierarchy = { ...mounted, base, controllers: [] }
  const trial = join(base, "probe")
  try {
    mkdirSync(base, { recursive: true })
    if (mounted.version === "v2") passDown(mounted.base, base, available)
    // Against the rest of the machine the agent's attempts weigh what all its cores together may ask.
    if (mounted.version === "v1" && available.includes("cpu")) {
      for (const directory of [join(base, ".."), base]) set(directory, "cpu.shares", availableParallelism() * 1024)
    }
    mkdirSync(trial, { recursive: true })
  } catch {
    return null
  }
  for (const controller of available) {
    try {
      CONTROLS[mounted.version][controller].limit?.(trial, { memoryBytes: 64 * 1024 * 1024, cpu: 1, pids: 64 })
      probe.controllers.push(controller)
    } catch {
      // This machine does not let us: the attempt's advert will not name it.
    }
  }
  // The second version counts processor time in every group, with or without its controller.
  if (mounted.version === "v2" && probe.controllers.length > 0) probe.controllers.push("cpuacct")
  rmdirSync(trial)
  return probe.controllers.length === 0 ? null : probe
}

function passDown(mount: string, base: string, controllers: Controller[]): void {
  for (const directory of [mount, join(base, ".."), base]) {
    for (const controller of controllers) {
      try {
        set(directory, "cgroup.subtree_control", `+${controller}`)
      } catch {
        // The trial group tells whether the controller arrived.
      }
    }
  }
}

/** A group is busy until the kernel has reaped what was killed in it. */
const REMOVE_TRIES = 200
const REMOVE_PAUSE_MS = 10

async function removeGroup(directory: string): Promise<void> {
  for (let tries = 0; tries < REMOVE_TRIES && existsSync(directory); tries++) {
    for (const pid of pidsBelow(directory)) kill(pid)
    if (removeTree(directory)) return
    await pause(REMOVE_PAUSE_MS)
  }
}

/** Runtimes may nest groups of their own. */
function pidsBelow(directory: string): number[] {
  const own = readText(join(directory, "cgroup.procs")).split("\n").filter(Boolean).map(Number)
  return [...own, ...subgroups(directory).flatMap((name) => pidsBelow(join(directory, name)))]
}

function removeTree(directory: string): boolean {
  try {
    for (const name of subgroups(directory)) if (!removeTree(join(directory, name))) return false
    rmdirSync(directory)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "ENOENT"
  }
}

function subgroups(directory: string): string[] {
  try {
    return readdirSync(directory, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map((entry) => entry.name)
  } catch {
    return []
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, "SIGKILL")
  } catch {
    // Gone already.
  }
}

function set(directory: string, file: string, value: string | number): void {
  writeFileSync(join(directory, file), String(value))
}

function readText(path: string): string {
  try {
    return readFileSync(path, "utf8")
  } catch {
    return ""
  }
}
