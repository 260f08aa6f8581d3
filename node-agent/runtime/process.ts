import { accessSync, constants, statSync } from "node:fs"
import { resolve } from "node:path"
import { plainDisks } from "./disk.ts"
import { RuntimeRefusal, type DriverPlace, type RuntimeDriver } from "./driver.ts"
import { openTaskGroups } from "./limits.ts"
import { openSpareTrees } from "./spare-trees.ts"
import { createSupervisedDriver } from "./supervised-driver.ts"
import { openTrash } from "./trash.ts"

/**
 * Runs attempts as plain processes of the machine: no isolation, the machine's own files, PATH and network. For development,
 * simulations and trusted fleets; offered only where the operator opted in (interfaces.md, `--runtime process`).
 */
export function createProcessDriver(place: DriverPlace): RuntimeDriver {
  const groups = openTaskGroups(place.dataDir)
  const trash = openTrash(place.attemptsDir)
  return createSupervisedDriver(place, {
    name: "process",
    groups,
    disks: plainDisks(trash, openSpareTrees(place.attemptsDir, trash)),
    trash,
    async probe() {
      const problems = groups.enforces.includes("memory")
        ? []
        : ["no control groups can be made here: memory, cpu and process limits are not enforced"]
      const enforces = [...groups.enforces, "time" as const]
      return { available: true, problems, isolation: "none", enforces, network: "none", version: "process" }
    },
    async plan(spec) {
      const command = spec.command[0] ?? ""
      const program = findProgram(command, spec.env["PATH"], spec.workdir)
      if (program === null) {
        throw new RuntimeRefusal(
          "preparation_failed",
          `this machine has no command ${command} in the PATH of the attempt`,
        )
      }
      return { program, argv: spec.command, env: spec.env, cwd: spec.workdir }
    },
    groupLimits: (spec) => spec.limits,
    signs: () => ({}),
    leftovers: [],
  })
}

/** Looks a command up as execvp does: names with a slash as they are, others in each directory of PATH. */
function findProgram(command: string, path: string | undefined, workdir: string): string | null {
  if (command === "") return null
  const candidates = command.includes("/")
    ? [resolve(workdir, command)]
    : (path ?? "").split(":").map((directory) => resolve(workdir, directory, command))
  return candidates.find(isProgram) ?? null
}

function isProgram(path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return statSync(path).isFile()
  } catch {
    return false
  }
}
