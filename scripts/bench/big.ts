import { readFileSync } from "node:fs"
import { join } from "node:path"
import { parseArgs } from "node:util"
import {
  calibrate,
  cpuSeconds,
  pushProject,
  quantile,
  residentBytes,
  startBenchFleet,
  type BenchFleet,
  type Json,
} from "./bench-fleet.ts"

/**
 * One very large job. First it runs through, with agents whose tasks do nothing, while other requests go on: how soon the
 * submit answers, what the others wait, what the coordinator weighs. Then as many tasks wait: how long until a single urgent
 * task starts, against the same with a short queue.
 */
const { values } = parseArgs({
  options: {
    tasks: { type: "string", default: "100000" },
    /** The short queue that the long one is compared with. */
    few: { type: "string", default: "1000" },
    rounds: { type: "string", default: "3" },
    singles: { type: "string", default: "60" },
    /** Writes a CPU profile of the coordinator into this folder. */
    profile: { type: "string" },
  },
})
const tasks = Number(values.tasks)
const TARGETS = { submitMs: 5_000, othersMs: 100, residentBytes: 300e6, latencyRatio: 1.5 }
const JOB = {
  type: "structured_runner",
  project: "noop",
  runner_command: ["python3", "job.py"],
  timeout_s: 60,
  runtime_hint_s: 1,
}
const NODE = ["--runtime=process", "--allow-unsandboxed", "--memory-mb=65536", "--storage-gb=64"]

console.log(calibrate())
const through = await oneJob()
console.log(calibrate())
const waiting = await manyWaiting()
console.log(calibrate())
console.log(
  [
    `big: ${tasks} tasks: submit answered after ${through.submitMs.toFixed(0)} ms (target ≤ ${TARGETS.submitMs})`,
    `other requests p99 ${through.othersMs.toFixed(0)} ms (≤ ${TARGETS.othersMs})`,
    `coordinator at most ${megabytes(Math.max(through.residentBytes, waiting.residentBytes))} resident (≤ ${megabytes(TARGETS.residentBytes)})`,
    `submit → start with ${tasks} waiting ${waiting.ratio.toFixed(2)} × that with ${values.few} (≤ ${TARGETS.latencyRatio})`,
  ].join("; "),
)

async function oneJob(): Promise<{ submitMs: number; othersMs: number; residentBytes: number }> {
  await using fleet = await openFleet()
  for (const name of ["noop-0", "noop-1"])
    await fleet.addNode("scripts/bench/noop-agent.ts", name, [...NODE, "--cpus=64"])
  await fleet.ended(await fleet.submit(job(1)))
  using weight = watchWeight(fleet)
  const others = askOthers(fleet)
  const start = performance.now()
  const id = await fleet.submit(job(tasks))
  const submitMs = performance.now() - start
  others.begin(id)
  await until(async () => (await fleet.call("GET", `/api/v1/jobs/${id}`))["status"] !== "planning")
  const plannedMs = performance.now() - start
  const end = await fleet.ended(id, 200)
  const seconds = (performance.now() - start) / 1000
  if (end["status"] !== "completed") throw new Error(`the job ended ${String(end["status"])}`)
  const waits = await others.end()
  for (const [name, ms] of waits) console.log(`  ${name}: ${line(ms)}`)
  const all = [...waits.values()].flat()
  console.log(
    `${tasks} tasks: submit answered after ${submitMs.toFixed(0)} ms, expanded after ${(plannedMs / 1000).toFixed(1)} s, all done and the job ended after ${seconds.toFixed(1)} s = ${Math.round(tasks / seconds)} tasks/s; others ${line(all)}; coordinator ${megabytes(weight.most())} at most, ${cpuSeconds(fleet.coordinator.process.pid).toFixed(1)} s cpu`,
  )
  return { submitMs, othersMs: quantile(all, 0.99), residentBytes: weight.most() }
}

/**
 * The node has room for one waiting task of eight cores at a time, which holds it for 200 ms, and one core that none of them
 * fits in: the queue stays as long as it is and is served all the time, and an urgent task of one core can start at once.
 */
async function manyWaiting(): Promise<{ ratio: number; residentBytes: number }> {
  await using fleet = await openFleet()
  await fleet.addNode("scripts/bench/noop-agent.ts", "noop-0", [...NODE, "--cpus=9"])
  await fleet.ended(await fleet.submit(job(1)))
  using weight = watchWeight(fleet)
  const ratios: number[] = []
  for (let round = 1; round <= Number(values.rounds); round++) {
    const few = await latencies(fleet, Number(values.few), `few-${round}`)
    const many = await latencies(fleet, tasks, `many-${round}`)
    ratios.push(quantile(many, 0.5) / quantile(few, 0.5))
    console.log(
      `round ${round}: submit → start with ${values.few} waiting ${line(few)}; with ${tasks} waiting ${line(many)}`,
    )
  }
  return { ratio: quantile(ratios, 0.5), residentBytes: weight.most() }
}

async function latencies(fleet: BenchFleet, backlog: number, name: string): Promise<number[]> {
  const id = await fleet.submit({
    ...job(backlog),
    payload: { bench_sleep_ms: 200 },
    requirements: { cpu: 8, memory_mb: 64 },
    timeout_s: 3_600,
    runtime_hint_s: 3_600,
  })
  await until(async () => (await fleet.call("GET", `/api/v1/jobs/${id}`))["status"] === "running")
  const found: number[] = []
  for (let n = 0; n < Number(values.singles); n++) {
    const mark = `${name}-${n}`
    const submitted = performance.timeOrigin + performance.now()
    await fleet.submit({ ...job(1), payload: { bench_mark: mark }, priority: "high" })
    let started: number | null = null
    await until(() => (started = startOf(fleet, mark)) !== null, 5)
    found.push((started ?? Number.NaN) - submitted)
  }
  await fleet.call("PUT", `/api/v1/jobs/${id}/cancel`, {})
  await until(async () => (await fleet.call("GET", `/api/v1/jobs/${id}`))["status"] === "cancelled")
  return found
}

function startOf(fleet: BenchFleet, mark: string): number | null {
  const started = readFileSync(join(fleet.folder, "noop-0.starts"), "utf8")
  const found = started.split("\n").find((each) => each.endsWith(` ${mark}`))
  return found === undefined ? null : Number(found.split(" ")[1])
}

async function openFleet(): Promise<BenchFleet> {
  const profile = values.profile === undefined ? [] : ["--cpu-prof", `--cpu-prof-dir=${values.profile}`]
  const fleet = await startBenchFleet({ nodeArgs: profile, credit: 1_000_000 })
  await pushProject(fleet, "noop", { Dockerfile: "FROM scratch\n", "job.py": "pass\n" })
  return fleet
}

function job(count: number): Json {
  const fanOut = count === 1 ? {} : { fan_out: { chunks: count, total: count } }
  return { ...JOB, payload: { note: "x".repeat(60) }, requirements: { cpu: 1, memory_mb: 64 }, ...fanOut }
}

/** Asks the coordinator other things all the while, one after the other, and keeps how long each took. */
function askOthers(fleet: BenchFleet): { begin(id: string): void; end(): Promise<Map<string, number[]>> } {
  const waits = new Map<string, number[]>()
  let id = ""
  let over = false
  const asks: [string, () => Promise<unknown>][] = [
    ["GET /jobs", () => fleet.call("GET", "/api/v1/jobs?limit=20")],
    ["GET /account/balance", () => fleet.call("GET", "/api/v1/account/balance")],
    ["GET /jobs/:id", () => (id === "" ? Promise.resolve() : fleet.call("GET", `/api/v1/jobs/${id}`))],
    ["POST /jobs, one task", () => fleet.submit(job(1))],
  ]
  const asked = (async () => {
    while (!over) {
      for (const [name, ask] of asks) {
        const start = performance.now()
        await ask()
        const of = waits.get(name) ?? []
        waits.set(name, of)
        of.push(performance.now() - start)
        await pause(10)
      }
    }
  })()
  return {
    begin: (job) => (id = job),
    async end() {
      over = true
      await asked
      return waits
    },
  }
}

function watchWeight(fleet: BenchFleet): { most(): number } & Disposable {
  let most = 0
  const look = (): void => {
    most = Math.max(most, residentBytes(fleet.coordinator.process.pid))
  }
  const timer = setInterval(look, 100)
  return { most: () => most, [Symbol.dispose]: () => clearInterval(timer) }
}

async function until(found: () => boolean | Promise<boolean>, everyMs = 20): Promise<void> {
  while (!(await found())) await pause(everyMs)
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms))
}

function line(ms: readonly number[]): string {
  return `p50 ${quantile(ms, 0.5).toFixed(1)} ms, p99 ${quantile(ms, 0.99).toFixed(1)} ms, most ${Math.max(...ms).toFixed(0)} ms (${ms.length})`
}

function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(0)} MB`
}
