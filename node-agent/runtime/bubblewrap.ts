import { readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { openDisks } from "./disk.ts"
import { RuntimeRefusal, type AttemptSpec, type DriverPlace, type RuntimeDriver } from "./driver.ts"
import { findOnHost } from "./find-on-host.ts"
import { openTaskGroups } from "./limits.ts"
import { openTaskNetworks } from "./network.ts"
import { trySandbox } from "./probe.ts"
import { composeSandboxRoot, SANDBOX_ROOT } from "./sandbox-root.ts"
import { refuseDangerousCalls } from "./seccomp.ts"
import { createSupervisedDriver } from "./supervised-driver.ts"
import type { SupervisorEnd } from "./supervision.ts"
import { openTrash } from "./trash.ts"

/** No account of the machine: the program is nobody outside and keeps the number inside. */
const SANDBOX_UID = 64_085

/**
 * Runs attempts in namespaces of their own through bubblewrap, as an unprivileged user without capabilities, user namespaces
 * or dangerous system calls; the machine's own kernel serves them.
 */
export async function createBubblewrapDriver(place: DriverPlace): Promise<RuntimeDriver> {
  const groups = openTaskGroups(place.dataDir)
  const trash = openTrash(place.attemptsDir)
  const disks = await openDisks(place.dataDir, trash)
  const networks = await openTaskNetworks(place.dataDir, place.blockedAddresses)
  const program = findOnHost("bwrap")
  const isRoot = process.getuid?.() === 0
  const filter = writeFilter(join(place.dataDir, "bwrap-seccomp"))
  const driver: RuntimeDriver = createSupervisedDriver(place, {
    name: "bubblewrap",
    groups,
    disks,
    trash,
    networks,
    async probe() {
      const enforces = [
        ...groups.enforces,
        ...(disks.kind === "none" ? [] : ["disk" as const]),
        "network" as const,
        "time" as const,
      ]
      const tried = !isRoot
        ? "bubblewrap with an image needs root here: only root can compose the layers"
        : program === null
          ? "bubblewrap (bwrap) is not installed"
          : await trySandbox(driver, place)
      return {
        available: tried === null,
        problems: [tried, networks.problem].filter((problem) => problem !== null),
        isolation: "namespaces",
        enforces,
        network: networks.problem === null ? "outbound" : "none",
        version: program ?? "",
      }
    },
    async plan(spec, disk, netns) {
      if (program === null) throw new RuntimeRefusal("sandbox_error", "bubblewrap (bwrap) is not installed")
      const root = composeSandboxRoot(spec, disk, SANDBOX_UID, netns === null ? "" : networks.resolvConf)
      const files = { args: join(spec.attemptDir, "bwrap-args"), status: join(spec.attemptDir, "bwrap-status") }
      const options = [
        ...bubblewrapOptions(spec),
        ...(netns === null ? [] : ["--share-net"]),
        "--json-status-fd",
        "4",
        ...(filter === null ? [] : ["--seccomp", "5"]),
      ]
      // In a file, not in the arguments: those are for every user of the machine to read, and variables hold secrets.
      writeFileSync(files.args, options.map((option) => `${option}\0`).join(""), { mode: 0o600 })
      writeFileSync(files.status, "", { mode: 0o600 })
      const passed = [files.args, files.status]
      if (filter !== null) passed.push(filter)
      return {
        program,
        argv: ["bwrap", "--args", "3", "--", root.program, ...spec.command.slice(1)],
        env: {},
        cwd: "/",
        mounts: root.mounts,
        files: passed,
        uid: SANDBOX_UID,
      }
    },
    // bubblewrap itself is two processes.
    groupLimits: (spec) => ({ ...spec.limits, pids: spec.limits.pids + 2 }),
    signs: (attemptDir) => ({
      refused(end: SupervisorEnd) {
        // bubblewrap tells the exit code of what it ran; without that line nothing of the user's ran.
        if (end.exit_code !== 1 || statusText(attemptDir).includes("exit-code")) return null
        const said = tailOf(join(attemptDir, "stderr")).replace(/^bwrap: /, "")
        const missing = said.startsWith("execvp")
        return missing
          ? {
              failureKind: "preparation_failed",
              message: `the command could not be executed: ${said.replace(/^execvp /, "")}`,
            }
          : { failureKind: "sandbox_error", message: `bubblewrap failed: ${said}` }
      },
    }),
    leftovers: ["bwrap-args", "bwrap-status"],
  })
  return driver
}

/** The same for all attempts: written once. Null where this machine's kind of processor has none. */
function writeFilter(path: string): string | null {
  const filter = refuseDangerousCalls(process.arch)
  if (filter === null) return null
  writeFileSync(path, filter, { mode: 0o600 })
  return path
}

function bubblewrapOptions(spec: AttemptSpec): string[] {
  return [
    "--unshare-all",
    "--unshare-user",
    "--disable-userns",
    "--die-with-parent",
    "--new-session",
    "--cap-drop",
    "ALL",
    "--clearenv",
    "--hostname",
    spec.rootfs?.hostname ?? "task",
    "--bind",
    SANDBOX_ROOT,
    "/",
    "--proc",
    "/proc",
    "--dev",
    "/dev",
    "--chdir",
    spec.workdir,
    ...Object.entries(spec.env).flatMap(([name, value]) => ["--setenv", name, value]),
  ]
}

function statusText(attemptDir: string): string {
  return tailOf(join(attemptDir, "bwrap-status"))
}

function tailOf(path: string): string {
  try {
    return readFileSync(path, "utf8").slice(-1_000).trim()
  } catch {
    return ""
  }
}
