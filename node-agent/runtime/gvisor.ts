import { readFileSync, writeFileSync } from "node:fs"
import { mkdir } from "node:fs/promises"
import { basename, join } from "node:path"
import { openDisks } from "./disk.ts"
import { RuntimeRefusal, type AttemptSpec, type DriverPlace, type DriverProbe, type RuntimeDriver } from "./driver.ts"
import { findOnHost } from "./find-on-host.ts"
import { agentMark, openTaskGroups } from "./limits.ts"
import { openTaskNetworks } from "./network.ts"
import { trySandbox } from "./probe.ts"
import { composeSandboxRoot, SANDBOX_ROOT, SANDBOX_TMP } from "./sandbox-root.ts"
import { createSupervisedDriver } from "./supervised-driver.ts"
import type { SupervisorEnd } from "./supervision.ts"
import { openTrash } from "./trash.ts"

/** The user-space kernel and its file server live in the attempt's memory group; this is theirs (measured: 40 MB). */
const SANDBOX_MEMORY_BYTES = 64 * 1024 * 1024
/** Host processes of the sandbox itself, and for each of the guest's (systrap: 25 + 2, ptrace more at times). */
const SANDBOX_PIDS = 64
const PIDS_PER_PROCESS = 3

/**
 * Runs attempts in gVisor through a foreground `runsc run`, as root, one sandbox each. Old and current builds differ; which
 * flags this one needs is found by running it.
 */
export async function createGvisorDriver(
  place: DriverPlace,
  options: { runscPath?: string } = {},
): Promise<RuntimeDriver> {
  const groups = openTaskGroups(place.dataDir)
  const trash = openTrash(place.attemptsDir)
  const disks = await openDisks(place.dataDir, trash)
  const networks = await openTaskNetworks(place.dataDir, place.blockedAddresses)
  const program = options.runscPath ?? findOnHost("runsc")
  const mark = agentMark(place.dataDir)
  let flags = FLAG_CHOICES[0] ?? []
  let probed: Promise<DriverProbe> | null = null

  async function probe(): Promise<DriverProbe> {
    const enforces = [
      ...groups.enforces,
      ...(disks.kind === "none" ? [] : ["disk" as const]),
      "network" as const,
      "time" as const,
    ]
    const problems: string[] = []
    let available = false
    if (process.getuid?.() !== 0)
      problems.push("gVisor with an image needs root here: only root can compose the layers")
    else if (program === null) problems.push("gVisor (runsc) is not installed")
    else {
      for (const choice of FLAG_CHOICES) {
        flags = choice
        const problem = await trySandbox(driver, place)
        available = problem === null
        if (available) break
        problems.splice(0, problems.length, problem ?? "")
      }
      if (available) problems.length = 0
      if (networks.problem !== null) problems.push(networks.problem)
    }
    return {
      available,
      problems,
      isolation: "gvisor",
      enforces,
      network: networks.problem === null ? "outbound" : "none",
      version: program ?? "",
    }
  }

  const driver: RuntimeDriver = createSupervisedDriver(place, {
    name: "gvisor",
    groups,
    disks,
    trash,
    networks,
    probe: () => (probed ??= probe()),
    async plan(spec, disk, netns) {
      if (program === null) throw new RuntimeRefusal("sandbox_error", "gVisor (runsc) is not installed")
      const root = composeSandboxRoot(spec, disk, 0, netns === null ? "" : networks.resolvConf)
      const bundle = join(spec.attemptDir, "bundle")
      await mkdir(bundle, { recursive: true })
      writeFileSync(join(bundle, "config.json"), JSON.stringify(ociConfig(spec, netns)), { mode: 0o600 })
      // Names are global to the machine whatever the state root is, and are never used twice.
      const id = `${mark}-${spec.name}-${Date.now().toString(36)}`
      const global = [
        "--root",
        join(spec.attemptDir, "runsc"),
        "--log",
        join(spec.attemptDir, "runsc.log"),
        "--log-format",
        "json",
      ]
      return {
        program,
        argv: [
          basename(program),
          ...global,
          "--ignore-cgroups",
          "--network",
          netns === null ? "none" : "host",
          ...flags,
          "run",
          "--bundle",
          bundle,
          id,
        ],
        env: { PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" },
        cwd: "/",
        mounts: root.mounts,
      }
    },
    groupLimits: ({ limits }) => ({
      cpu: limits.cpu,
      memoryBytes: limits.memoryBytes + SANDBOX_MEMORY_BYTES,
      pids: SANDBOX_PIDS + PIDS_PER_PROCESS * limits.pids,
    }),
    signs: (attemptDir) => ({
      refused(end: SupervisorEnd) {
        if (end.exit_code === 2 && end.pids_refused > 0) {
          return {
            failureKind: "exit_code",
            message: "exit_code 2: the sandbox ended because it needed more processes than its limit",
          }
        }
        if (end.exit_code !== 128) return null
        // The log is written by runsc alone: a program that exits with 128 leaves no error in it.
        const said = runscError(join(attemptDir, "runsc.log"))
        if (said === null) return null
        return /failed to load|finding executable/.test(said)
          ? { failureKind: "preparation_failed", message: `the command could not be executed: ${said}` }
          : { failureKind: "sandbox_error", message: `gVisor failed: ${said}` }
      },
    }),
    leftovers: ["bundle", "runsc", "runsc.log"],
  })
  return driver
}

/**
 * A current runsc hides writes to the root in an overlay of its own unless told not to, and those would not count on the
 * attempt's disk; an old one does not know the flag.
 */
const FLAG_CHOICES: string[][] = [["--overlay2=none"], []]

/** Inside gVisor capabilities concern its own kernel; what package managers need is given, as container engines do. */
const CAPABILITIES = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID"].map(
  (name) => `CAP_${name}`,
)

function ociConfig(spec: AttemptSpec, netns: string | null): unknown {
  return {
    ociVersion: "1.0.0",
    process: {
      terminal: false,
      user: { uid: 0, gid: 0 },
      args: spec.command,
      env: Object.entries(spec.env).map(([name, value]) => `${name}=${value}`),
      cwd: spec.workdir,
      capabilities: { bounding: CAPABILITIES, effective: CAPABILITIES, permitted: CAPABILITIES },
      noNewPrivileges: true,
    },
    root: { path: SANDBOX_ROOT, readonly: false },
    hostname: spec.rootfs?.hostname ?? "task",
    mounts: [
      { destination: "/proc", type: "proc", source: "proc" },
      { destination: "/dev", type: "tmpfs", source: "tmpfs" },
      // Named, or runsc puts a memory-backed one there.
      { destination: "/tmp", type: "bind", source: SANDBOX_TMP, options: ["rw"] },
    ],
    linux: {
      namespaces: [
        ...["pid", "ipc", "uts", "mount"].map((type) => ({ type })),
        { type: "network", ...(netns === null ? {} : { path: netns }) },
      ],
    },
  }
}

function runscError(path: string): string | null {
  try {
    const lines = readFileSync(path, "utf8").trim().split("\n")
    const last = lines.findLast((line) => /"level":"(error|fatal)"|FATAL/.test(line))
    if (last === undefined) return null
    const parsed: unknown = JSON.parse(last)
    return typeof parsed === "object" && parsed !== null && "msg" in parsed ? String(parsed.msg) : last
  } catch {
    return null
  }
}
