import { accessSync, constants, mkdirSync, readdirSync, rmSync, statSync } from "node:fs"
import { basename, isAbsolute, join, resolve } from "node:path"
import { readRecord, runningAttempt, writeRecord } from "./attempt.ts"
import { RuntimeRefusal, type DriverPlace, type RuntimeDriver } from "./driver.ts"
import { openTaskGroups } from "./limits.ts"
import { adoptSupervised, createLauncher } from "./supervisor.ts"

/**
 * Runs attempts as plain processes of the machine: no isolation, the machine's own files, PATH and network. For development,
 * simulations and trusted fleets; offered only where the operator opted in (interfaces.md, `--runtime process`).
 */
export function createProcessDriver(place: DriverPlace): RuntimeDriver {
  const groups = openTaskGroups(place.dataDir)
  const launcher = createLauncher(groups)
  const driver: RuntimeDriver = {
    name: "process",
    async probe() {
      const problems = groups.enforces.includes("memory")
        ? []
        : ["no control groups can be made here: memory, cpu and process limits are not enforced"]
      return {
        available: true,
        problems,
        isolation: "none",
        enforces: [...groups.enforces, "time"],
        network: "none",
        version: "1",
      }
    },
    async prepare(attemptDir) {
      const disk = join(attemptDir, "disk")
      mkdirSync(disk, { recursive: true })
      return disk
    },
    async start(spec) {
      const command = spec.command[0] ?? ""
      const program = findProgram(command, spec.env["PATH"], spec.workdir)
      if (program === null) {
        throw new RuntimeRefusal(
          "preparation_failed",
          `this machine has no command ${command} in the PATH of the attempt`,
        )
      }
      await driver.prepare(spec.attemptDir, spec.limits.diskBytes)
      const supervised = await launcher.start(
        {
          attemptDir: spec.attemptDir,
          program,
          argv: spec.command,
          env: spec.env,
          cwd: spec.workdir,
          timeoutMs: spec.limits.timeoutMs,
          deadline: spec.limits.deadline,
        },
        spec.limits,
        (group) => writeRecord(spec, group),
      )
      return runningAttempt(spec.attemptDir, spec.limits, supervised, {})
    },
    async adopt(attemptDir) {
      const record = readRecord(attemptDir)
      const supervised = record && (await adoptSupervised(attemptDir))
      return supervised && runningAttempt(attemptDir, record, supervised, {})
    },
    async release(attemptDir) {
      const record = readRecord(attemptDir)
      if (record === null) return
      const supervised = await adoptSupervised(attemptDir)
      await supervised?.stop()
      await groups.remove(record.group)
      rmSync(join(attemptDir, "attempt.json"), { force: true })
    },
    async sweep(keep) {
      const kept = new Set([...keep].map((path) => resolve(path)))
      const keptGroups = new Set([...kept].map((path) => readRecord(path)?.group))
      for (const path of attemptDirs(place.attemptsDir)) if (!kept.has(path)) await driver.release(path)
      for (const name of groups.list()) if (!keptGroups.has(name)) await groups.remove(name)
    },
    async [Symbol.asyncDispose]() {
      await launcher[Symbol.asyncDispose]()
    },
  }
  return driver
}

export function attemptDirs(attemptsDir: string): string[] {
  try {
    return readdirSync(attemptsDir).map((name) => resolve(attemptsDir, basename(name)))
  } catch {
    return []
  }
}

/** Looks a command up as execvp does: names with a slash as they are, others in each directory of PATH. */
function findProgram(command: string, path: string | undefined, workdir: string): string | null {
  const candidates = command.includes("/")
    ? [resolve(workdir, command)]
    : (path ?? "").split(":").map((directory) => resolve(workdir, directory, command))
  return (command !== "" && candidates.find((candidate) => isAbsolute(candidate) && isProgram(candidate))) || null
}

function isProgram(path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return statSync(path).isFile()
  } catch {
    return false
  }
}
