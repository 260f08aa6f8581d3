import { readdirSync } from "node:fs"
import { rm } from "node:fs/promises"
import { join, resolve } from "node:path"
import { readRecord, recordOf, runningAttempt, type EndSigns } from "./attempt.ts"
import type { AttemptSpec, DriverPlace, DriverProbe, RuntimeDriver } from "./driver.ts"
import type { AttemptDisks } from "./disk.ts"
import type { GroupLimits, TaskGroups } from "./limits.ts"
import type { TaskNetworks } from "./network.ts"
import { readSupervision } from "./supervision.ts"
import { createLauncher, type SupervisedCommand } from "./supervisor.ts"
import type { Trash } from "./trash.ts"

/** What one driver does in its own way; everything else is the same for all. */
export interface DriverWays {
  name: string
  groups: TaskGroups
  disks: AttemptDisks
  trash: Trash
  /** Absent: attempts share the machine's. */
  networks?: TaskNetworks
  probe(): Promise<DriverProbe>
  /** What the supervisor is to run. Rejects with a `RuntimeRefusal` where the attempt cannot be started. */
  plan(spec: AttemptSpec, disk: string, netns: string | null): Promise<Plan>
  /** The limits of the control groups: those of the attempt and what the sandbox itself needs. */
  groupLimits(spec: AttemptSpec): GroupLimits
  /** Reads the signs of an end that only this driver can read. */
  signs(attemptDir: string): Pick<EndSigns, "refused">
  /** What the plan made in the attempt's directory. */
  leftovers: string[]
}

export type Plan = Omit<SupervisedCommand, "attemptDir" | "timeoutMs" | "deadline">

export function createSupervisedDriver(place: DriverPlace, ways: DriverWays): RuntimeDriver {
  const { groups, disks, networks, trash } = ways
  const launcher = createLauncher(groups)
  const leftovers = [...(networks ? ["network"] : []), ...ways.leftovers]
  const signs = (attemptDir: string): EndSigns => ({
    ...ways.signs(attemptDir),
    diskFull: () => disks.isFull(attemptDir),
  })
  const driver: RuntimeDriver = {
    name: ways.name,
    probe: () => ways.probe(),
    prepare: (attemptDir, diskBytes) => disks.make(attemptDir, diskBytes),
    async start(spec) {
      const { attemptDir, limits } = spec
      const disk = await disks.make(attemptDir, limits.diskBytes)
      // The driver without networks of its own (process) shares the machine's.
      const netns = spec.network === "outbound" && networks ? await networks.make(attemptDir) : null
      const plan = await ways.plan(spec, disk, netns)
      const command = {
        ...plan,
        ...(netns === null ? {} : { netns }),
        attemptDir,
        timeoutMs: limits.timeoutMs,
        deadline: limits.deadline,
      }
      const supervised = await launcher.start(command, ways.groupLimits(spec), recordOf(spec))
      void supervised.done.then(({ cause, exit_code: exitCode, left_over: leftOver }) => {
        if (leftOver || cause !== "program" || exitCode !== 0) disks.keepApart?.(attemptDir)
      })
      return runningAttempt(attemptDir, limits, supervised, signs(attemptDir))
    },
    async adopt(attemptDir) {
      const record = readRecord(attemptDir)
      const supervised = record && launcher.adopt(attemptDir)
      return supervised && runningAttempt(attemptDir, record, supervised, signs(attemptDir))
    },
    async release(attemptDir) {
      await launcher.release(attemptDir)
      await networks?.remove(attemptDir)
      await disks.remove(attemptDir)
      for (const name of leftovers) await rm(join(attemptDir, name), { recursive: true, force: true })
    },
    remove: (attemptDir) => trash.put(attemptDir),
    async sweep(keep) {
      const kept = new Set([...keep].map((path) => resolve(path)))
      const keptGroups = new Set([...kept].map((path) => readSupervision(path)?.group))
      for (const path of attemptDirs(place.attemptsDir)) if (!kept.has(path)) await driver.release(path)
      await launcher.rest()
      for (const name of groups.list()) if (!keptGroups.has(name) && !launcher.uses(name)) await groups.remove(name)
      await networks?.sweep(kept)
      await disks.sweep(kept)
    },
    async [Symbol.asyncDispose]() {
      await launcher[Symbol.asyncDispose]()
      await networks?.close()
      await disks.close()
      await trash[Symbol.asyncDispose]()
      groups.close()
    },
  }
  return driver
}

function attemptDirs(attemptsDir: string): string[] {
  try {
    return readdirSync(attemptsDir).map((name) => resolve(attemptsDir, name))
  } catch {
    return []
  }
}
