import { execFileSync, spawnSync, type ChildProcess } from "node:child_process"
import {
  closeSync,
  fdatasyncSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { removeGroupsOf } from "../../test/support/runtimes.ts"
import { processesOf, signalTo } from "../lib/processes.ts"
import { startProgram, type Program } from "../lib/programs.ts"

/** A coordinator and nodes in processes of their own, in a temporary folder that goes with them, also on Ctrl-C. */
export interface BenchFleet extends AsyncDisposable {
  readonly folder: string
  readonly origin: string
  readonly coordinator: Program
  readonly nodes: BenchNode[]
  /** A member's key with credit. */
  readonly bearer: string
  readonly admin: string
  call(method: string, path: string, body?: unknown): Promise<Json>
  /** Submits and gives the id. */
  submit(body: Json): Promise<string>
  /** Polls until the job has ended. */
  ended(job: string, everyMs?: number): Promise<Json>
  addNode(
    source: string,
    name: string,
    args?: readonly string[],
    options?: { nodeArgs?: readonly string[] },
  ): Promise<BenchNode>
  /** After it was ended: on the same data and ports. */
  startCoordinator(): Promise<void>
}

export interface BenchNode {
  readonly name: string
  readonly dataDir: string
  /** The agent. */
  readonly process: ChildProcess
  end(signal: NodeJS.Signals): Promise<number | null>
  /** After it was ended: on the same data. */
  start(): Promise<void>
}

export type Json = Record<string, unknown>

export async function startBenchFleet(
  options: { coordinatorArgs?: readonly string[]; nodeArgs?: readonly string[]; credit?: number } = {},
): Promise<BenchFleet> {
  const folder = mkdtempSync(join(tmpdir(), "computalot-bench-"))
  const nodes: BenchNode[] = []
  const ports = { http: 0, mesh: 0 }
  let coordinator: Program | null = null
  let cleaned: Promise<void> | null = null
  const clean = (): Promise<void> => (cleaned ??= cleanUp())
  const interrupted = (): void => void clean().finally(() => process.exit(130))
  process.on("SIGINT", interrupted).on("SIGTERM", interrupted)

  async function launch(...program: Parameters<typeof startProgram>): Promise<Program> {
    if (cleaned !== null) throw new Error("the benchmark is over")
    return await startProgram(...program)
  }

  const launchCoordinator = (): Promise<Program> =>
    launch(
      "coordinator/main.ts",
      [
        `--data-dir=${join(folder, "coordinator")}`,
        `--http-port=${ports.http}`,
        `--mesh-port=${ports.mesh}`,
        "--allow-unsandboxed=1",
        "--allow-unenforced=1",
        ...(options.coordinatorArgs ?? []),
      ],
      { logFile: join(folder, "coordinator.log"), nodeArgs: options.nodeArgs ?? [] },
    )

  async function cleanUp(): Promise<void> {
    // What a benchmark has stopped cannot end.
    for (const pid of processesOf(folder)) signalTo(pid, "SIGCONT")
    for (const node of nodes) await node.end("SIGTERM")
    await coordinator?.stop()
    // Tasks of agents that were killed, and a program that was still starting.
    for (const pid of processesOf(folder)) signalTo(pid, "SIGKILL")
    for (const { dataDir } of nodes) await removeGroupsOf(dataDir)
    rmSync(folder, { recursive: true, force: true, maxRetries: 5 })
    process.off("SIGINT", interrupted).off("SIGTERM", interrupted)
  }

  try {
    return await open()
  } catch (error) {
    await clean()
    throw error
  }

  async function open(): Promise<BenchFleet> {
    const launched = (coordinator = await launchCoordinator())
    const origin = String(launched.ready["http"])
    ports.http = Number(new URL(origin).port)
    ports.mesh = Number(/\/tcp\/(\d+)/.exec(String((launched.ready["mesh"] as string[])[0]))?.[1])
    const admin = readFileSync(join(folder, "coordinator", "admin-token"), "utf8").trim()
    const issued = { max_uses: 100, roles: ["worker", "builder"] }
    const token = String((await send(origin, admin, "POST", "/api/v1/admin/nodes/tokens", issued))["token"])
    const user = (await send(origin, admin, "POST", "/api/v1/admin/users", { name: "bench" }))["user"] as Json
    const key = await send(origin, admin, "POST", `/api/v1/admin/users/${String(user["id"])}/keys`, {})
    const bearer = String(key["token"])
    await send(origin, admin, "POST", `/api/v1/admin/accounts/${String(user["account_id"])}/credits`, {
      amount_usd: options.credit ?? 100_000,
    })
    const call: BenchFleet["call"] = (method, path, body) => send(origin, bearer, method, path, body)

    return {
      folder,
      origin,
      get coordinator() {
        return coordinator ?? launched
      },
      nodes,
      bearer,
      admin,
      call,
      async submit(body) {
        return String((await call("POST", "/api/v1/jobs", body))["id"])
      },
      async ended(job, everyMs = 20) {
        for (;;) {
          const { jobs } = (await call("GET", `/api/v1/jobs?limit=1&status=completed`)) as { jobs: Json[] }
          if (jobs[0]?.["id"] === job) return jobs[0]
          const now = await call("GET", `/api/v1/jobs/${job}`)
          if (["completed", "partial", "failed", "cancelled"].includes(String(now["status"]))) return now
          await new Promise((resolve) => setTimeout(resolve, everyMs))
        }
      },
      async addNode(source, name, args = [], { nodeArgs = [] } = {}) {
        const dataDir = join(folder, name)
        mkdirSync(dataDir, { recursive: true })
        const start = (): Promise<Program> =>
          launch(
            source,
            [
              `--coordinator=${origin}`,
              `--token=${token}`,
              `--data-dir=${dataDir}`,
              `--name=${name}`,
              "--listen=/ip4/127.0.0.1/tcp/0",
              ...args,
            ],
            { logFile: join(folder, `${name}.log`), nodeArgs },
          )
        let agent = await start()
        const node: BenchNode = {
          name,
          dataDir,
          get process() {
            return agent.process
          },
          end: (signal) => agent.stop(signal),
          async start() {
            agent = await start()
          },
        }
        nodes.push(node)
        return node
      },
      async startCoordinator() {
        coordinator = await launchCoordinator()
      },
      [Symbol.asyncDispose]: clean,
    }
  }
}

/** A project whose tree is these files; with the process runtime nothing is built. */
export async function pushProject(
  fleet: BenchFleet,
  name: string,
  files: Record<string, string>,
  settings: Json = {},
): Promise<void> {
  await fleet.call("POST", "/api/v1/projects", { name, remote_dir: `/root/${name}`, ...settings })
  const tree = join(fleet.folder, `project-${name}`)
  mkdirSync(tree, { recursive: true })
  for (const [file, text] of Object.entries(files)) writeFileSync(join(tree, file), text)
  const tarball = join(fleet.folder, `${name}.tar.gz`)
  execFileSync("tar", ["czf", tarball, "-C", tree, "."])
  const response = await fetch(`${fleet.origin}/api/v1/projects/${name}/push`, {
    method: "POST",
    headers: { authorization: `Bearer ${fleet.bearer}` },
    body: readFileSync(tarball),
  })
  if (!response.ok) throw new Error(`push: ${response.status} ${await response.text()}`)
}

async function send(origin: string, bearer: string, method: string, path: string, body?: unknown): Promise<Json> {
  const response = await fetch(`${origin}${path}`, {
    method,
    headers: { authorization: `Bearer ${bearer}`, "content-type": "application/json" },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  })
  const reply = (await response.json()) as Json
  if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${String(reply["error"])}`)
  return reply
}

/** Puts the interpreter itself on the PATH: a version manager's `python3` is a shell script that takes longer than what is measured. */
export function usePythonItself(): void {
  const interpreter = execFileSync("python3", ["-c", "import sys; print(sys.executable)"], { encoding: "utf8" }).trim()
  process.env["PATH"] = `${dirname(interpreter)}:${process.env["PATH"]}`
}

/** CPU seconds a process has used so far. */
export function cpuSeconds(pid: number | undefined): number {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.split(" ") ?? []
  return (Number(fields[11]) + Number(fields[12])) / 100
}

/** CPU seconds of a process, of what it started and still runs, and of all of these that have ended and been waited for. */
export function cpuSecondsOfTree(pid: number | undefined): number {
  const parents = new Map<number, number>()
  const used = new Map<number, number>()
  for (const name of readdirSync("/proc")) {
    if (!/^\d+$/.test(name)) continue
    const stat = readText(`/proc/${name}/stat`)
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ")
    parents.set(Number(name), Number(fields[1]))
    used.set(Number(name), fields.slice(11, 15).reduce((sum, ticks) => sum + Number(ticks), 0) / 100)
  }
  const isBelow = (at: number | undefined): boolean =>
    at === pid || (at !== undefined && at > 1 && isBelow(parents.get(at)))
  let sum = 0
  for (const [each, seconds] of used) if (isBelow(each)) sum += seconds
  return sum
}

/** CPU seconds of the programs that this process has run to their end. */
export function cpuSecondsOfChildren(): number {
  const fields = readText("/proc/self/stat").split(") ")[1]?.split(" ") ?? []
  return (Number(fields[13]) + Number(fields[14])) / 100
}

/** Resident bytes of a process (VmRSS); NaN once it is gone. */
export function residentBytes(pid: number | undefined): number {
  const kib = /VmRSS:\s+(\d+) kB/.exec(readText(`/proc/${pid}/status`))?.[1]
  return kib === undefined ? Number.NaN : Number(kib) * 1024
}

function readText(path: string): string {
  try {
    return readFileSync(path, "utf8")
  } catch {
    return ""
  }
}

/** The value below which the share `q` of the numbers lies. */
export function quantile(numbers: readonly number[], q: number): number {
  const sorted = numbers.toSorted((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? Number.NaN
}

/** What the machine gives at this moment: a fixed loop, small synced writes, process starts. Figures hold beside it. */
export function calibrate(): string {
  const loopMs = timed(() => {
    let x = 0
    for (let i = 0; i < 3e7; i++) x = (x * 1103515245 + 12345) & 0x7fffffff
    return x
  })
  const file = join(mkdtempSync(join(tmpdir(), "computalot-calibrate-")), "f")
  const fd = openSync(file, "w")
  const block = Buffer.alloc(4096)
  const syncMs = timed(() => {
    for (let i = 0; i < 100; i++) {
      writeSync(fd, block)
      fdatasyncSync(fd)
    }
  })
  closeSync(fd)
  rmSync(join(file, ".."), { recursive: true })
  const spawnMs = timed(() => {
    for (let i = 0; i < 20; i++) spawnSync("true")
  })
  return `calibration: loop ${loopMs.toFixed(0)} ms, fdatasync ${(syncMs / 100).toFixed(2)} ms, spawn ${(spawnMs / 20).toFixed(2)} ms`
}

function timed(run: () => unknown): number {
  const start = performance.now()
  run()
  return performance.now() - start
}
