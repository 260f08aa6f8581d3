import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
import { homedir, tmpdir } from "node:os"
import { join } from "node:path"
import { createBubblewrapDriver } from "../../node-agent/runtime/bubblewrap.ts"
import type { AttemptExit, AttemptSpec, DriverPlace, RuntimeDriver } from "../../node-agent/runtime/driver.ts"
import { createGvisorDriver } from "../../node-agent/runtime/gvisor.ts"
import { agentMark, openTaskGroups } from "../../node-agent/runtime/limits.ts"
import { tailOutput } from "../../node-agent/runtime/output-files.ts"
import { createProcessDriver } from "../../node-agent/runtime/process.ts"

export interface TestedRuntime {
  title: string
  create(place: DriverPlace): Promise<RuntimeDriver>
}

/** Every driver, and gVisor a second time with a current runsc where one has been built (scripts/install-runsc). */
export function testedRuntimes(): TestedRuntime[] {
  const current = currentRunsc()
  return [
    { title: "process", create: async (place) => createProcessDriver(place) },
    { title: "bubblewrap", create: createBubblewrapDriver },
    { title: "gvisor", create: createGvisorDriver },
    ...(current === null
      ? []
      : [
          {
            title: "gvisor (current)",
            create: (place: DriverPlace) => createGvisorDriver(place, { runscPath: current }),
          },
        ]),
  ]
}

export function currentRunsc(): string | null {
  const named = process.env["COMPUTALOT_TEST_RUNSC"]
  if (named !== undefined) return named
  const cache = join(process.env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache"), "computalot", "runsc")
  if (!existsSync(cache)) return null
  const built = readdirSync(cache).map((version) => join(cache, version, "runsc"))
  return built.findLast((path) => existsSync(path)) ?? null
}

/** An image out of the machine's own /usr, so that no image has to be built: one layer of links and two bind mounts. */
export interface HostImage {
  layers: string[]
  mounts: AttemptSpec["mounts"]
}

function hostUsrImage(home: string): HostImage {
  const layer = join(home, "host-usr")
  for (const path of ["usr", "etc", "app", "tmp", "root"]) mkdirSync(join(layer, path), { recursive: true })
  for (const name of ["bin", "lib", "lib64", "sbin"])
    if (existsSync(`/${name}`)) symlinkSync(`usr/${name}`, join(layer, name))
  writeFileSync(join(layer, "etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")
  writeFileSync(join(layer, "app/from-image"), "image\n")
  return { layers: [layer], mounts: [{ hostPath: "/usr", path: "/usr", readonly: true }] }
}

export interface Bench extends AsyncDisposable {
  place: DriverPlace
  driver: RuntimeDriver
  image: HostImage
  sandboxed: boolean
  spec(changes?: SpecChanges): Promise<AttemptSpec>
  /** Runs to the end and releases. `output` holds the last 64 KiB of each stream. */
  run(changes: SpecChanges): Promise<{ end: AttemptExit; stdout: string; stderr: string; spec: AttemptSpec }>
}

export type SpecChanges = Partial<Omit<AttemptSpec, "limits">> & { limits?: Partial<AttemptSpec["limits"]> }

const MEBIBYTE = 1024 * 1024

export async function openBench(runtime: TestedRuntime): Promise<Bench> {
  const dataDir = mkdtempSync(join(tmpdir(), "computalot-runtime-"))
  const place = { dataDir, attemptsDir: join(dataDir, "attempts") }
  mkdirSync(place.attemptsDir)
  const driver = await runtime.create(place)
  const image = hostUsrImage(dataDir)
  const sandboxed = driver.name !== "process"
  let made = 0
  const bench: Bench = {
    place,
    driver,
    image,
    sandboxed,
    async spec(changes = {}) {
      const attemptDir = changes.attemptDir ?? join(place.attemptsDir, `${process.pid}-${++made}`)
      mkdirSync(attemptDir, { recursive: true })
      const limits = {
        memoryBytes: 256 * MEBIBYTE,
        cpu: 1,
        pids: 64,
        diskBytes: 64 * MEBIBYTE,
        timeoutMs: 30_000,
        deadline: Date.now() + 60_000,
        ...changes.limits,
      }
      const disk = await driver.prepare(attemptDir, limits.diskBytes)
      const work = join(disk, "work")
      mkdirSync(work, { recursive: true })
      return {
        name: `c${process.pid}${made}`,
        attemptDir,
        command: ["true"],
        env: { PATH: "/usr/bin:/bin" },
        workdir: sandboxed ? "/app" : work,
        network: "none",
        ...(sandboxed ? { rootfs: { layers: image.layers, hostname: "task" } } : {}),
        ...changes,
        mounts: sandboxed ? [...image.mounts, ...(changes.mounts ?? [])] : [],
        limits,
      }
    },
    async run(changes) {
      const spec = await bench.spec(changes)
      const text = { stdout: "", stderr: "" }
      try {
        const attempt = await driver.start(spec)
        await tailOutput(attempt, (stream, bytes) => {
          text[stream] = (text[stream] + Buffer.from(bytes).toString("latin1")).slice(-65_536)
        })
        return { end: await attempt.done, ...text, spec }
      } finally {
        await driver.release(spec.attemptDir)
      }
    },
    async [Symbol.asyncDispose]() {
      await driver.sweep(new Set())
      await driver[Symbol.asyncDispose]()
      rmSync(dataDir, { recursive: true, force: true })
    },
  }
  return bench
}

/** Ends what runs in the control groups of an agent that was killed, and removes them: no agent will come back for them. */
export async function removeGroupsOf(dataDir: string): Promise<void> {
  const groups = openTaskGroups(dataDir)
  for (const name of groups.list()) await groups.remove(name)
  groups.close()
}

/** The control groups of an agent, its own and those of its attempts. */
export function groupsOf(dataDir: string): string[] {
  return ["memory", "cpu", "pids", "cpuacct", "unified", "."].flatMap((name) => {
    const base = `/sys/fs/cgroup/${name}/computalot/${agentMark(dataDir)}`
    if (!existsSync(base)) return []
    const subgroups = readdirSync(base, { withFileTypes: true }).filter((entry) => entry.isDirectory())
    return [base, ...subgroups.map((entry) => join(base, entry.name))]
  })
}

/** What of an agent is still on the machine: mounts, loop devices, control groups and processes that name its directory. */
export function leftOnMachine(place: DriverPlace): string[] {
  const mounts = readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .filter((line) => line.includes(place.dataDir))
  const loops = readdirSync("/sys/block")
    .filter((name) => name.startsWith("loop"))
    .map((name) => textOf(`/sys/block/${name}/loop/backing_file`))
    .filter((file) => file.includes(place.dataDir))
  // The agent's own group stays as long as it runs.
  const groups = groupsOf(place.dataDir).filter((path) => !path.endsWith(agentMark(place.dataDir)))
  const processes = readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map((pid) => `${pid} ${textOf(`/proc/${pid}/cmdline`).replaceAll("\0", " ")}`)
    .filter((line) => line.includes(place.dataDir))
  return [...mounts, ...loops, ...groups, ...processes]
}

function textOf(path: string): string {
  try {
    return readFileSync(path, "utf8")
  } catch {
    return ""
  }
}
