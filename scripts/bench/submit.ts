import { spawn, type ChildProcess } from "node:child_process"
import { once } from "node:events"
import { parseArgs } from "node:util"
import { documentEndpoints } from "../../protocol/api/documents.ts"
import { cpuSeconds, pushProject, quantile, startBenchFleet, type BenchFleet, type Json } from "./bench-fleet.ts"
import { NOOP_JOB, NOOP_NODE, NOOP_PROJECT } from "./noop-work.ts"
import { runParts, type Outcome } from "./parts.ts"
import { keepAliveClient, type KeepAliveClient } from "./keep-alive.ts"

/**
 * The submission lane: what it costs to take jobs in, one by one, in batches and as sweeps, and what reading documents and
 * polling costs beside it. The coordinator is a process of its own, the clients are in this one. Each part prints a line; the
 * last line is all of them as JSON. CPU times are the coordinator's: they hold also where others keep the machine busy.
 */
const PARTS: Record<string, () => Promise<Outcome>> = { submissions, batch, sweep, documents, pollers }
const { values } = parseArgs({
  options: {
    /** May be given several times; default: all. */
    part: { type: "string", multiple: true, default: Object.keys(PARTS) },
    /** Submissions a second; 0: each client sends the next one as soon as it has its answer. */
    rate: { type: "string", default: "1000" },
    seconds: { type: "string", default: "20" },
    clients: { type: "string", default: "50" },
    /** Of batches, sweeps, and of each document. */
    rounds: { type: "string", default: "30" },
    /** Writes CPU profiles of the coordinator into this folder. */
    profile: { type: "string" },
  },
})
const rounds = Number(values.rounds)
const POLLERS = 200
const POLL_EVERY_MS = 2_000
const POLL_ROUNDS = 3
const POLL_ROUND_MS = 20_000
const WARM_UP_MS = 20_000
const TARGETS = { submissionsMs: 100, batchMs: 150, sweepMs: 200, documentMs: 2, pollersShare: 0.05 }

await runParts("submit", PARTS, values.part)

async function openFleet(): Promise<BenchFleet> {
  const fleet = await startBenchFleet({
    nodeArgs: values.profile === undefined ? [] : ["--cpu-prof", `--cpu-prof-dir=${values.profile}`],
    credit: 1_000_000,
  })
  await pushProject(fleet, "noop", NOOP_PROJECT)
  return fleet
}

/** Single jobs at a steady rate. A submission that waits for its client's earlier one counts from when it was due. */
async function submissions(): Promise<Outcome> {
  await using fleet = await openFleet()
  const [rate, count] = [Number(values.rate), Number(values.clients)]
  const clients = Array.from({ length: count }, () => keepAliveClient(fleet.origin, fleet.bearer))
  const betweenMs = rate === 0 ? 0 : (1000 * count) / rate
  let sent = 0
  const body = (): string =>
    JSON.stringify({
      ...NOOP_JOB,
      payload: { learning_rate: 0.001, seed: sent++, data: "train-2026-11.parquet" },
      tags: ["bench", `batch-${sent % 100}`],
      client_ref: `run-${sent}`,
    })
  const submit = async (each: (typeof clients)[number]): Promise<void> =>
    void (await each.ask("POST", "/api/v1/jobs", { body: body(), expected: 201 }))
  // What is measured is compiled code: a coordinator runs for days.
  await Promise.all(clients.map(async (client) => repeated(20, () => submit(client))))

  const { pid } = fleet.coordinator.process
  const [cpu, ours] = [cpuSeconds(pid), cpuSeconds(process.pid)]
  const before = sent
  const start = performance.now()
  const end = start + 1000 * Number(values.seconds)
  const latencies: number[] = []
  await Promise.all(
    clients.map(async (client, at) => {
      for (let dueAt = start + (betweenMs * at) / count; dueAt < end; dueAt += betweenMs) {
        if (betweenMs === 0) dueAt = performance.now()
        await pause(dueAt - performance.now())
        await submit(client)
        latencies.push(performance.now() - dueAt)
      }
    }),
  )
  const seconds = (performance.now() - start) / 1000
  const [used, usedHere] = [cpuSeconds(pid) - cpu, cpuSeconds(process.pid) - ours]
  for (const client of clients) client[Symbol.dispose]()
  const { total } = await fleet.call("GET", "/api/v1/jobs?limit=1")
  const holds = await activeHolds(fleet)
  if (total !== sent || holds !== sent) {
    throw new Error(`${sent} were answered, ${String(total)} are stored, ${holds} have a hold`)
  }
  const done = sent - before
  const [p50, p99] = [quantile(latencies, 0.5), quantile(latencies, 0.99)]
  const reached = done / seconds
  return {
    figure: `${done} from ${count} clients in ${seconds.toFixed(1)} s = ${Math.round(reached)}/s, p50 ${ms(p50)}, p99 ${ms(p99)}, at most ${ms(Math.max(...latencies))}; cpu of the coordinator ${ms((1000 * used) / done)} each, ${share(used / seconds)}; of the clients ${share(usedHere / seconds)}; all are stored and hold money`,
    facts: { per_second: reached, p50_ms: p50, p99_ms: p99, cpu_ms_each: (1000 * used) / done },
    target: `${rate === 0 ? 1000 : rate}/s, p99 ≤ ${TARGETS.submissionsMs} ms`,
    // A stream that is as long as it was to be: its last answers come a moment after its end.
    met: p99 <= TARGETS.submissionsMs && reached >= 0.99 * (rate === 0 ? 1000 : rate),
  }
}

async function activeHolds(fleet: BenchFleet): Promise<number> {
  for (let offset = 0; ; offset += 500) {
    const { count } = await fleet.call("GET", `/api/v1/account/holds?status=active&limit=500&offset=${offset}`)
    if (Number(count) < 500) return offset + Number(count)
  }
}

async function batch(): Promise<Outcome> {
  await using fleet = await openFleet()
  const jobs = Array.from({ length: 200 }, (_, n) => ({ ...NOOP_JOB, payload: { seed: n }, tags: ["bench"] }))
  return await posted(fleet, "batch of 200", "/api/v1/jobs/batch", { jobs }, TARGETS.batchMs)
}

async function sweep(): Promise<Outcome> {
  await using fleet = await openFleet()
  const ten = Array.from({ length: 10 }, (_, n) => n / 10)
  const body = { ...NOOP_JOB, type: "sweep", parameters: { alpha: ten, beta: ten, gamma: ten }, rank_by: "value" }
  return await posted(fleet, "sweep of 1,000", "/api/v1/jobs", body, TARGETS.sweepMs)
}

async function posted(fleet: BenchFleet, what: string, path: string, json: Json, mostMs: number): Promise<Outcome> {
  using client = keepAliveClient(fleet.origin, fleet.bearer)
  const body = JSON.stringify(json)
  const post = async (): Promise<number> => (await client.ask("POST", path, { body, expected: 201 })).ms
  await repeated(5, post)
  const { pid } = fleet.coordinator.process
  const cpu = cpuSeconds(pid)
  const took = await repeated(rounds, post)
  const cpuMs = (1000 * (cpuSeconds(pid) - cpu)) / rounds
  const p50 = quantile(took, 0.5)
  return {
    figure: `${what}: p50 ${ms(p50)}, p95 ${ms(quantile(took, 0.95))}, cpu of the coordinator ${ms(cpuMs)} each`,
    facts: { p50_ms: p50, p95_ms: quantile(took, 0.95), cpu_ms_each: cpuMs },
    target: `p50 ≤ ${mostMs} ms`,
    met: p50 <= mostMs,
  }
}

async function documents(): Promise<Outcome> {
  await using fleet = await openFleet()
  using client = keepAliveClient(fleet.origin, fleet.bearer)
  const { pid } = fleet.coordinator.process
  const pages: { path: string; p50: number; cpuMs: number }[] = []
  for (const { path } of documentEndpoints) {
    const read = async (): Promise<number> => (await client.ask("GET", path)).ms
    await repeated(50, read)
    const cpu = cpuSeconds(pid)
    // The clock of CPU time ticks every 10 ms.
    const took = await repeated(10 * rounds, read)
    const p50 = quantile(took, 0.5)
    pages.push({ path, p50, cpuMs: (1000 * (cpuSeconds(pid) - cpu)) / took.length })
  }
  for (const { path, p50, cpuMs } of pages)
    console.log(`  ${path}: p50 ${p50.toFixed(2)} ms, cpu ${cpuMs.toFixed(2)} ms`)
  const slowest = pages.reduce((most, page) => (page.p50 > most.p50 ? page : most))
  return {
    figure: `${pages.length} pages, the slowest ${slowest.path} with p50 ${slowest.p50.toFixed(2)} ms`,
    facts: { slowest: slowest.path, p50_ms: slowest.p50 },
    target: `p50 ≤ ${TARGETS.documentMs} ms`,
    met: slowest.p50 <= TARGETS.documentMs,
  }
}

/**
 * Each asks for a job of its own; of 64 a task runs, the others wait. Beside it stands what the same fleet costs unasked, and what
 * Node's bare server costs under the same requests: a machine whose cores others share takes twice as long for both.
 */
async function pollers(): Promise<Outcome> {
  await using fleet = await openFleet()
  await fleet.addNode("scripts/bench/noop-agent.ts", "noop", [...NOOP_NODE, "--drain=now"])
  const ids: string[] = []
  const job = { ...NOOP_JOB, timeout_s: 3_600, payload: { bench_sleep_ms: 3_600_000 } }
  while (ids.length < POLLERS) ids.push(await fleet.submit(job))
  const bare = await startBareServer()
  try {
    const { pid } = fleet.coordinator.process
    // Connections are kept over all rounds: to open one is no poll.
    using asked = keptClients(fleet.origin, fleet.bearer)
    using askedBare = keptClients(bare.origin, fleet.bearer)
    const latencies: number[] = []
    for (const { clients } of [asked, askedBare]) await polled(clients, ids, WARM_UP_MS, [])
    const costs: number[] = []
    const bareCosts: number[] = []
    for (let round = 0; round < POLL_ROUNDS; round++) {
      const without = await shareOf(pid, () => pause(POLL_ROUND_MS / 2))
      const with_ = await shareOf(pid, () => polled(asked.clients, ids, POLL_ROUND_MS, latencies))
      bareCosts.push(await shareOf(bare.pid, () => polled(askedBare.clients, ids, POLL_ROUND_MS, [])))
      costs.push(with_ - without)
      console.log(`  ${share(with_)}, without them ${share(without)}; a bare server ${share(bareCosts.at(-1) ?? 0)}`)
    }
    const [cost, bareCost] = [quantile(costs, 0.5), quantile(bareCosts, 0.5)]
    const each = (cost * POLL_EVERY_MS) / POLLERS
    return {
      figure: `${POLLERS} pollers at ${POLL_EVERY_MS / 1000} s cost ${share(cost)}, ${each.toFixed(2)} ms of cpu a request, ${(cost / bareCost).toFixed(1)} × a bare server; p50 ${ms(quantile(latencies, 0.5))}`,
      facts: { share: cost, shares: costs, bare_shares: bareCosts, cpu_ms_each: each },
      target: `≤ ${share(TARGETS.pollersShare)}`,
      met: cost <= TARGETS.pollersShare,
    }
  } finally {
    bare.process.kill("SIGKILL")
  }
}

/** All of them for so long, evenly spread over each interval. */
async function polled(
  clients: readonly KeepAliveClient[],
  ids: readonly string[],
  lastMs: number,
  latencies: number[],
): Promise<void> {
  const start = performance.now()
  await Promise.all(
    clients.map(async (client, at) => {
      const first = start + (POLL_EVERY_MS * at) / POLLERS
      for (let dueAt = first; dueAt < start + lastMs; dueAt += POLL_EVERY_MS) {
        await pause(dueAt - performance.now())
        latencies.push((await client.ask("GET", `/api/v1/jobs/${ids[at]}`)).ms)
      }
    }),
  )
}

function keptClients(origin: string, bearer: string): Disposable & { clients: KeepAliveClient[] } {
  const clients = Array.from({ length: POLLERS }, () => keepAliveClient(origin, bearer))
  return {
    clients,
    [Symbol.dispose]() {
      for (const client of clients) client[Symbol.dispose]()
    },
  }
}

async function startBareServer(): Promise<{ process: ChildProcess; pid: number | undefined; origin: string }> {
  const child = spawn(process.execPath, ["scripts/bench/bare-http.ts"], { stdio: ["pipe", "pipe", "inherit"] })
  const [line] = (await once(child.stdout, "data")) as [Buffer]
  return { process: child, pid: child.pid, origin: line.toString().trim() }
}

/** How much of a core the process takes while `run` runs. */
async function shareOf(pid: number | undefined, run: () => Promise<unknown>): Promise<number> {
  const [cpu, start] = [cpuSeconds(pid), performance.now()]
  await run()
  return (1000 * (cpuSeconds(pid) - cpu)) / (performance.now() - start)
}

async function repeated<T>(times: number, act: () => Promise<T>): Promise<T[]> {
  const results: T[] = []
  while (results.length < times) results.push(await act())
  return results
}

async function pause(forMs: number): Promise<void> {
  if (forMs > 0) await new Promise((resolve) => setTimeout(resolve, forMs))
}

function ms(value: number): string {
  return `${value.toFixed(value < 10 ? 2 : 0)} ms`
}

function share(value: number): string {
  return `${(100 * value).toFixed(1)} % of a core`
}
