import { execFile, execFileSync } from "node:child_process"
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { expect } from "vitest"
import { commandOf, killWithTasks, processesOf, signalTo } from "../../scripts/lib/processes.ts"
import { startProgram, type Program } from "../../scripts/lib/programs.ts"
import { send, type PlainReply } from "./http-door.ts"
import { leftOnMachine, removeGroupsOf } from "./runtimes.ts"
import { tarballOf } from "./tarball.ts"

/** A coordinator and its nodes as programs of their own, below one temporary folder. */
export interface Fleet extends AsyncDisposable {
  readonly folder: string
  readonly origin: string
  readonly adminToken: string
  readonly coordinator: Program
  readonly nodes: FleetNode[]
  /** What clients were answered so far, in whole: for the search of what must not be in there. */
  readonly replies: { request: string; text: string }[]
  admin(method: string, path: string, body?: unknown): Promise<PlainReply>
  /** A user of an account of its own, with this much credit. */
  member(creditUsd?: number): Promise<Client>
  addNode(options?: NodeOptions): Promise<FleetNode>
  /** Ends the coordinator; the next start has the same directory and ports. */
  endCoordinator(signal: NodeJS.Signals): Promise<number | null>
  startCoordinator(): Promise<void>
  /** `GET /admin/audit` said yes. */
  expectAudit(): Promise<void>
}

export interface FleetNode {
  readonly name: string
  readonly dataDir: string
  readonly logFile: string
  readonly id: string
  readonly program: Program
  end(signal: NodeJS.Signals): Promise<number | null>
  /** The agent and all that its tasks started, at one moment: as if the machine had lost its power. */
  loseAll(): Promise<void>
  start(): Promise<void>
}

export interface Client {
  readonly token: string
  readonly account: number
  call(method: string, path: string, body?: unknown, headers?: Record<string, string>): Promise<PlainReply>
  /** A project of these files beside the documents' Dockerfile and manifest. */
  project(name: string, files: Record<string, string>, settings?: Json): Promise<void>
  push(name: string, files: Record<string, string>): Promise<PlainReply>
  /** Submits a job that must be accepted; resolves with its id. */
  submit(job: Json): Promise<string>
  /** The job once it has ended. */
  ended(id: string): Promise<Json>
  /** The job once it fits. */
  until(id: string, fits: (job: Json) => boolean): Promise<Json>
  tasks(id: string): Promise<Json[]>
  results(id: string): Promise<Json>
  balance(): Promise<Json>
}

export type Json = Record<string, unknown>

export interface FleetOptions {
  /** Null for no node yet. */
  nodes?: NodeOptions[]
  coordinatorFlags?: string[]
}

export interface NodeOptions {
  /** Added last, so that they win. */
  flags?: string[]
  runtime?: "process" | "bubblewrap" | "gvisor"
  roles?: string
  bases?: string
}

/** The documents' minimal Dockerfile and manifest; with the process runtime only their shape matters. */
export const PROJECT_FILES: Readonly<Record<string, string>> = {
  Dockerfile: "FROM python:3.11-slim\nWORKDIR /workspace\nCOPY . .\n",
  "computalot.project.json": JSON.stringify({
    version: 1,
    runtime: { kind: "oci", sandbox: "gvisor", workdir: "/workspace" },
    entrypoint: { command: ["python", "job.py"] },
  }),
}

/** Machines are shared and slow; what hangs is still noticed. */
const ENDS_WITHIN_MS = 50_000
const LOOK_AGAIN_MS = 40

export async function startFleet(options: FleetOptions = {}): Promise<Fleet> {
  const folder = mkdtempSync(join(tmpdir(), "computalot-fleet-"))
  const path = `${pythonFolder(folder)}:${process.env["PATH"] ?? ""}`
  const dataDir = join(folder, "coordinator")
  const ports = { http: 0, mesh: 0 }
  const nodes: FleetNode[] = []
  const programs: Program[] = []
  const replies: Fleet["replies"] = []
  let coordinator = await launchCoordinator().catch((error: unknown) => {
    rmSync(folder, { recursive: true, force: true })
    throw error
  })
  const origin = String(coordinator.ready["http"])
  ports.http = Number(new URL(origin).port)
  ports.mesh = Number(/\/tcp\/(\d+)/.exec(String((coordinator.ready["mesh"] as string[])[0]))?.[1])
  const adminToken = readFileSync(join(dataDir, "admin-token"), "utf8").trim()

  async function launchCoordinator(): Promise<Program> {
    const flags = [`--data-dir=${dataDir}`, `--http-port=${ports.http}`, `--mesh-port=${ports.mesh}`]
    const trusting = ["--allow-unsandboxed=1", "--allow-unenforced=1"]
    const program = await startProgram(
      "coordinator/main.ts",
      [...flags, ...trusting, ...(options.coordinatorFlags ?? [])],
      { logFile: join(folder, "coordinator.log") },
    )
    programs.push(program)
    return program
  }

  const admin: Fleet["admin"] = (method, where, body) =>
    send(origin, method, where, { token: adminToken, ...(body === undefined ? {} : { body }) })

  async function addNode(node: NodeOptions = {}): Promise<FleetNode> {
    const name = `node-${nodes.length + 1}`
    const issued = await admin("POST", "/api/v1/admin/nodes/tokens", {
      max_uses: 1,
      roles: ["worker", "builder", "sealed"],
    })
    const home = join(folder, name)
    const logFile = join(folder, `${name}.log`)
    const runtime = node.runtime ?? "process"
    const args = [
      `--data-dir=${home}`,
      `--coordinator=${origin}`,
      `--token=${String(issued.get("token"))}`,
      `--name=${name}`,
      `--runtime=${runtime}`,
      ...(runtime === "process" ? ["--allow-unsandboxed"] : []),
      `--roles=${node.roles ?? "worker"}`,
      ...(node.bases === undefined ? [] : [`--bases=${node.bases}`]),
      "--listen=/ip4/127.0.0.1/tcp/0",
      // What is enforced must be there; the process runtime may say more than the machine has.
      ...(runtime === "process"
        ? ["--cpus=4", "--memory-mb=4096", "--storage-gb=16"]
        : ["--cpus=1", "--memory-mb=1024", "--storage-gb=4"]),
      "--task-network=none",
      "--build-network=none",
      "--drain=now",
      ...(node.flags ?? []),
    ]
    const launch = async (): Promise<Program> => {
      const started = await startProgram("node-agent/main.ts", args, { logFile, env: { PATH: path } })
      programs.push(started)
      return started
    }
    let program = await launch()
    const added: FleetNode = {
      name,
      dataDir: home,
      logFile,
      id: String(program.ready["node_id"]),
      get program() {
        return program
      },
      end: (signal) => program.stop(signal),
      async loseAll() {
        killWithTasks(home, program.process.pid ?? 0)
        await program.ended
      },
      async start() {
        program = await launch()
      },
    }
    nodes.push(added)
    return added
  }

  async function member(creditUsd = 20): Promise<Client> {
    const made = await admin("POST", "/api/v1/admin/users", { name: "someone", role: "member" })
    const account = Number(made.get("user", "account_id"))
    const issued = await admin("POST", `/api/v1/admin/users/${String(made.get("user", "id"))}/keys`, {})
    if (creditUsd > 0) await admin("POST", `/api/v1/admin/accounts/${account}/credits`, { amount_usd: creditUsd })
    return clientOf(origin, String(issued.get("token")), account, replies)
  }

  async function cleanUp(): Promise<void> {
    await Promise.all(nodes.map((node) => node.end("SIGTERM")))
    await Promise.all(programs.map((program) => program.stop("SIGTERM")))
    const processes = processesOf(folder)
    const left = nodes.flatMap(({ dataDir: home }) =>
      leftOnMachine({ dataDir: home, attemptsDir: join(home, "attempts") }),
    )
    for (const pid of processes) {
      left.push(commandOf(pid))
      // What a failed test left must not slow the next one down.
      signalTo(pid, "SIGKILL")
    }
    // Of a node that was killed and not started again.
    await Promise.all(nodes.map(({ dataDir: home }) => removeGroupsOf(home)))
    if (process.env["COMPUTALOT_TEST_KEEP"] === undefined) rmSync(folder, { recursive: true, force: true })
    else console.log(`kept: ${folder}`)
    expect(left).toEqual([])
  }

  const fleet: Fleet = {
    folder,
    origin,
    adminToken,
    get coordinator() {
      return coordinator
    },
    nodes,
    replies,
    admin,
    member,
    addNode,
    endCoordinator: (signal) => coordinator.stop(signal),
    async startCoordinator() {
      coordinator = await launchCoordinator()
    },
    async expectAudit() {
      const audit = await admin("GET", "/api/v1/admin/audit")
      expect(audit.json, audit.text).toMatchObject({ ok: true })
    },
    [Symbol.asyncDispose]: cleanUp,
  }
  try {
    for (const node of options.nodes ?? [{}]) await addNode(node)
  } catch (error) {
    await cleanUp()
    throw error
  }
  return fleet
}

function clientOf(origin: string, token: string, account: number, replies: Fleet["replies"]): Client {
  const call: Client["call"] = async (method, path, body, headers) => {
    const options = { token, ...(body === undefined ? {} : { body }), ...(headers && { headers }) }
    const reply = await send(origin, method, path, options)
    replies.push({ request: `${method} ${path}`, text: reply.text })
    return reply
  }
  const found = async (path: string): Promise<Json> => {
    const reply = await call("GET", path)
    expect(reply.status, reply.text).toBe(200)
    return reply.json
  }
  const until: Client["until"] = async (id, fits) => {
    const giveUpAt = Date.now() + ENDS_WITHIN_MS
    for (;;) {
      const job = await found(`/api/v1/jobs/${id}`)
      if (fits(job)) return job
      if (Date.now() > giveUpAt) throw new Error(`the job did not come to it: ${JSON.stringify(brief(job))}`)
      await new Promise((resolve) => setTimeout(resolve, LOOK_AGAIN_MS))
    }
  }
  const push: Client["push"] = async (name, files) => {
    const members = Object.entries({ ...PROJECT_FILES, ...files }).map(([path, content]) => ({
      name: path,
      content,
      mode: path.includes("/bin/") ? 0o755 : 0o644,
    }))
    return call(
      "POST",
      `/api/v1/projects/${name}/push`,
      await tarballOf(members.filter(({ content }) => content !== "")),
    )
  }
  return {
    token,
    account,
    call,
    push,
    async project(name, files, settings = {}) {
      const made = await call("POST", "/api/v1/projects", { name, remote_dir: `/root/${name}`, ...settings })
      expect(made.status, made.text).toBe(201)
      const pushed = await push(name, files)
      expect(pushed.status, pushed.text).toBe(200)
    },
    async submit(job) {
      const body = { type: "structured_runner", timeout_s: 60, requirements: { memory_mb: 128 }, ...job }
      const reply = await call("POST", "/api/v1/jobs", body)
      expect(reply.status, reply.text).toBe(201)
      return String(reply.get("id"))
    },
    until,
    ended: (id) => until(id, ({ status }) => TERMINAL.includes(String(status))),
    tasks: async (id) => (await found(`/api/v1/jobs/${id}/tasks`))["tasks"] as Json[],
    results: (id) => found(`/api/v1/results/${id}`),
    balance: () => found("/api/v1/account/balance"),
  }
}

const TERMINAL = ["completed", "partial", "failed", "cancelled"]

function brief(job: Json): Json {
  const { status, error, task_counts, queue_reason, output } = job
  return { status, error, task_counts, queue_reason, output: String(output).slice(-500) }
}

/** A folder with `python` and `python3`, the interpreter itself: wrappers on the PATH take longer than the tasks. */
function pythonFolder(folder: string): string {
  const executable = execFileSync("python3", ["-c", "import sys; print(sys.executable)"], { encoding: "utf8" }).trim()
  const bin = join(folder, "bin")
  mkdirSync(bin)
  for (const name of ["python", "python3"]) symlinkSync(executable, join(bin, name))
  return bin
}

export interface ShellReply {
  stdout: string
  /** Of the last curl in the script, 0 where none was answered. */
  status: number
}

/** Runs lines of the documents in a shell as they stand: `$TOKEN` and `$BASE_URL` are set, curl tells its status aside. */
export async function shell(
  script: string,
  { token, origin, cwd, folder }: { token: string; origin: string; cwd: string; folder: string },
): Promise<ShellReply> {
  const statusFile = join(folder, "statuses")
  rmSync(statusFile, { force: true })
  const env = {
    PATH: `${join(folder, "bin")}:${process.env["PATH"] ?? ""}`,
    TOKEN: token,
    BASE_URL: origin,
    STATUSES: statusFile,
  }
  const curl = `curl() { command curl -w '%{stderr}%{http_code}\\n' "$@" 2>> "$STATUSES"; }\n`
  return await new Promise((resolve, reject) => {
    execFile("bash", ["-c", `set -o pipefail\n${curl}${script}`], { cwd, env, maxBuffer: 2 ** 26 }, (error, stdout) => {
      const told = existingText(statusFile)
      // A non-zero exit: the line of the documents did not work.
      if (error) reject(new Error(`${script}\n${error.message}\n${told}`))
      else resolve({ stdout, status: Number(/(\d{3})\s*$/.exec(told)?.[1] ?? 0) })
    })
  })
}

function existingText(file: string): string {
  try {
    return readFileSync(file, "utf8")
  } catch {
    return ""
  }
}
