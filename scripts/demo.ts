import { execFile } from "node:child_process"
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { parseArgs, promisify } from "node:util"
import { readSse } from "../protocol/client/sse.ts"
import { startProgram, type Program } from "./lib/programs.ts"

/**
 * The whole path on one machine: a coordinator, three nodes, a project with real data, a fan-out job, its results, its cost.
 * Everything lives in one temporary directory and is gone afterwards.
 */
const { values: options } = parseArgs({
  options: {
    bases: { type: "string" },
    runtime: { type: "string", default: "auto" },
    keep: { type: "boolean", default: false },
  },
})

const run = promisify(execFile)
const root = new URL("..", import.meta.url).pathname
const NODES = 3
const CHUNKS = 20
const HOURS = Array.from({ length: 24 }, (_, hour) => String(hour).padStart(2, "0"))

const folder = mkdtempSync(join(tmpdir(), "computalot-demo-"))
const programs: Program[] = []
let failed = false
for (const signal of ["SIGINT", "SIGTERM"] as const)
  process.once(signal, () => void cleanUp().then(() => process.exit(130)))
try {
  await demo()
} catch (error) {
  failed = true
  console.error(`\nThe demo failed: ${error instanceof Error ? error.message : String(error)}`)
  console.error(options.keep ? `Its logs are in ${folder}` : "Run it with --keep to keep its logs.")
} finally {
  await cleanUp()
}
process.exit(failed ? 1 : 0)

async function demo(): Promise<void> {
  step("Starting a coordinator")
  const coordinator = await start("coordinator/main.ts", "coordinator", [
    "--http-port=0",
    "--mesh-port=0",
    ...(options.runtime === "process" ? ["--allow-unsandboxed=1", "--allow-unenforced=1"] : []),
  ])
  const origin = String(coordinator.ready["http"])
  const admin = readFileSync(join(folder, "coordinator", "admin-token"), "utf8").trim()
  say(`API at ${origin}`)

  step(`Starting ${NODES} node agents`)
  const roles = ["worker", "builder"]
  const token = await call(origin, admin, "POST", "/api/v1/admin/nodes/tokens", { max_uses: NODES, roles })
  for (let n = 1; n <= NODES; n++) {
    const node = await start("node-agent/main.ts", `node-${n}`, [
      `--coordinator=${origin}`,
      `--token=${String(token["token"])}`,
      `--name=demo-${n}`,
      `--roles=${n === 1 ? "worker,builder" : "worker"}`,
      `--runtime=${options.runtime}`,
      ...(options.runtime === "process" ? ["--allow-unsandboxed"] : []),
      ...(options.bases ? [`--bases=${options.bases}`] : []),
      "--listen=/ip4/127.0.0.1/tcp/0",
      "--cpus=1",
      "--memory-mb=1024",
      "--storage-gb=4",
      "--task-network=none",
      "--build-network=none",
    ])
    say(`node ${n}: runtime ${String(node.ready["runtime"])}, isolation ${String(node.ready["isolation"])}`)
  }

  step("Creating a user with a key and $5 of credit")
  const user = (await call(origin, admin, "POST", "/api/v1/admin/users", { name: "demo" }))["user"] as Json
  const key = await call(origin, admin, "POST", `/api/v1/admin/users/${String(user["id"])}/keys`, {})
  const bearer = String(key["token"])
  await call(origin, admin, "POST", `/api/v1/admin/accounts/${String(user["account_id"])}/credits`, { amount_usd: 5 })

  const flights = JSON.parse(readFileSync(flightsFile(), "utf8")) as Flight[]
  step(`Pushing the example project: ${flights.length} real flights and a Python program`)
  await call(origin, bearer, "POST", "/api/v1/projects", { name: "flights", remote_dir: "/root/flights" })
  const pushed = await push(origin, bearer)
  say(
    `content hash ${String(pushed["content_hash"]).slice(0, 16)}…, ${Math.round(Number(pushed["size_bytes"]) / 1024)} KiB`,
  )

  step(`Submitting one job: mean delay by hour of the day, in ${CHUNKS} tasks`)
  const job = await call(origin, bearer, "POST", "/api/v1/jobs", {
    type: "map_reduce",
    project: "flights",
    runner_command: ["python3", "delays.py"],
    payload: {},
    split: { field: "row", start: 0, total: flights.length, chunks: CHUNKS },
    reduce: {
      flights: "sum",
      ...Object.fromEntries(HOURS.map((hour) => [`delay_${hour}`, `weighted_avg:flights_${hour}`])),
    },
    requirements: { cpu: 1, memory_mb: 512 },
    timeout_s: 120,
    max_retries: 1,
    tags: ["demo"],
  })
  const id = String(job["id"])
  say(`job ${id}, at most $${hold(job)} held`)

  step("Live progress")
  const status = await follow(origin, bearer, id)
  if (status !== "completed") {
    const output = await call(origin, bearer, "GET", `/api/v1/jobs/${id}/output`)
    throw new Error(`the job ended ${status}: ${String(output["error"])} ${String(output["output"]).slice(-2000)}`)
  }

  step("Results: mean departure delay by hour, in minutes")
  const results = await call(origin, bearer, "GET", `/api/v1/results/${id}?limit=1`)
  const reduced = ((results["summary"] as Json)["reduced"] ?? {}) as Record<string, number>
  const expected = expectedDelays(flights)
  for (const [hour, delay] of expected.entries()) {
    const found = reduced[`delay_${HOURS[hour]}`] ?? Number.NaN
    const gap = Math.abs(found - delay)
    if (!(gap <= 1e-9 * Math.max(1, Math.abs(delay)))) throw new Error(`hour ${hour}: ${found} is not ${delay}`)
    say(`${HOURS[hour]}:00  ${found.toFixed(2).padStart(7)}  ${"#".repeat(Math.max(0, Math.round(found)))}`)
  }
  if (reduced["flights"] !== flights.length) throw new Error(`${reduced["flights"]} flights were counted`)
  say(`The same ${flights.length} flights, added up without Computalot, give the same 24 means.`)

  step("What it cost, and where it ran")
  const ledger = (await call(origin, bearer, "GET", "/api/v1/account/ledger"))["entries"] as Json[]
  const debit = ledger.find((entry) => entry["type"] === "debit")
  const balance = await call(origin, bearer, "GET", "/api/v1/account/balance")
  say(`charged $${Number(debit?.["amount_usd"] ?? 0)}, still held $${String(balance["held_usd"])}`)
  const nodes = (await call(origin, admin, "GET", "/api/v1/admin/nodes"))["nodes"] as Json[]
  for (const [level, its] of Map.groupBy(nodes, (node) => String(node["isolation"]))) {
    const tasks = its.map((node) => Number(node["tasks_ended"]))
    const runtimes = [...new Set(its.map((node) => String(node["runtime"])))].join(", ")
    say(`isolation ${level} (${runtimes}): ${sum(tasks)} tasks, ${tasks.join(" + ")} on ${its.length} nodes`)
  }
  const audit = await call(origin, admin, "GET", "/api/v1/admin/audit")
  if (audit["ok"] !== true) throw new Error("the ledger's sums do not agree")
  say("the ledger's sums agree")
}

async function start(source: string, name: string, args: string[]): Promise<Program> {
  const program = await startProgram(source, [`--data-dir=${join(folder, name)}`, ...args], {
    logFile: join(folder, `${name}.log`),
  })
  programs.push(program)
  return program
}

async function push(origin: string, bearer: string): Promise<Json> {
  const project = join(folder, "project")
  mkdirSync(project)
  cpSync(join(root, "scripts", "demo-project"), project, { recursive: true })
  cpSync(flightsFile(), join(project, "flights.json"))
  const tarball = join(folder, "code.tar.gz")
  await run("tar", ["czf", tarball, "-C", project, "."])
  const response = await fetch(`${origin}/api/v1/projects/flights/push`, {
    method: "POST",
    headers: { authorization: `Bearer ${bearer}` },
    body: readFileSync(tarball),
  })
  return await replyOf(response)
}

/** Follows the job's stream to its end: a line for each change of what its tasks do. */
async function follow(origin: string, bearer: string, id: string): Promise<string> {
  const response = await fetch(`${origin}/api/v1/jobs/${id}/stream`, { headers: { authorization: `Bearer ${bearer}` } })
  if (!response.ok || !response.body) throw new Error(`the stream answered ${response.status}`)
  let status = "planning"
  let line = ""
  let reason = ""
  const tasks = new Map<number, string>()
  for await (const frame of readSse(response.body)) {
    const data = JSON.parse(frame.data) as Json
    if (frame.event === "done") return (data["statuses"] as Record<string, string>)[id] ?? status
    if (frame.event === "snapshot" || frame.event === "job") {
      const job = data["job"] as Json
      status = String(job["status"])
      reason = status === "queued" ? ((job["queue_reason"] as { message: string } | null)?.message ?? "") : ""
    }
    const rows =
      frame.event === "snapshot" ? (data["tasks"] as Json[]) : frame.event === "task" ? [data["task"] as Json] : []
    for (const task of rows) tasks.set(Number(task["index"]), String(task["status"]))
    const states = [...tasks.values()]
    const of = (state: string): number => states.filter((each) => each === state).length
    const next = `${status.padEnd(9)} ${of("completed")}/${CHUNKS} done, ${of("running")} running${reason === "" ? "" : ` (${reason})`}`
    if (next !== line) say(next)
    line = next
  }
  return status
}

async function call(origin: string, bearer: string, method: string, path: string, body?: unknown): Promise<Json> {
  const response = await fetch(`${origin}${path}`, {
    method,
    headers: {
      authorization: `Bearer ${bearer}`,
      ...(body === undefined ? {} : { "content-type": "application/json" }),
    },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  })
  return await replyOf(response)
}

async function replyOf(response: Response): Promise<Json> {
  const reply = (await response.json()) as Json
  if (!response.ok) throw new Error(`${response.url}: ${response.status} ${String(reply["error"])}`)
  return reply
}

/** The reference: plain arithmetic over the same file. */
function expectedDelays(flights: readonly Flight[]): number[] {
  return HOURS.map((_, hour) => {
    const delays = flights.filter(({ time }) => Math.trunc(time) % 24 === hour).map(({ delay }) => delay)
    return delays.length === 0 ? 0 : sum(delays) / delays.length
  })
}

function flightsFile(): string {
  return join(root, "node_modules", "vega-datasets", "data", "flights-200k.json")
}

function hold(job: Json): string {
  const summary = job["summary"] as Json
  return String((summary["billing_estimate"] as Json)["estimated_hold_usd"])
}

async function cleanUp(): Promise<void> {
  if (programs.length > 0) step("Stopping")
  for (const program of programs.splice(0).toReversed()) await program.stop()
  if (options.keep) return
  rmSync(folder, { recursive: true, force: true })
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, next) => total + next, 0)
}

function step(text: string): void {
  console.log(`\n== ${text}`)
}

function say(text: string): void {
  console.log(`   ${text}`)
}

type Json = Record<string, unknown>
interface Flight {
  delay: number
  time: number
}
