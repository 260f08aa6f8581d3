import { parseArgs } from "node:util"
import { calibrate, cpuSeconds, pushProject, quantile, startBenchFleet, type Json } from "./bench-fleet.ts"
import { NOOP_JOB, NOOP_NODE, NOOP_PROJECT } from "./noop-work.ts"
import { copyJobs } from "./history.ts"
import { keepAliveClient } from "./keep-alive.ts"

/**
 * The reading lane: lists and results of a coordinator that has done much. It runs some jobs, its database is filled with
 * copies of them, and it starts again over that. Clients are in this process. Each request prints what it took and what it cost
 * the coordinator; the last line is all of them as JSON.
 */
const { values } = parseArgs({
  options: {
    jobs: { type: "string", default: "20000" },
    /** Of each job. */
    tasks: { type: "string", default: "50" },
    /** Of each kind. */
    requests: { type: "string", default: "200" },
    clients: { type: "string", default: "1" },
    /** Only kinds whose path includes it. */
    only: { type: "string", default: "" },
    /** Writes CPU profiles of the coordinator into this folder. */
    profile: { type: "string" },
  },
})
const [jobs, tasks, requests] = [Number(values.jobs), Number(values.tasks), Number(values.requests)]
const MOST_MS = 30
/** Jobs that have not ended, at the beginning of every list: there is no node for them. */
const WAITING = 40
const DAY_MS = 24 * 60 * 60 * 1000

console.log(calibrate())
await using fleet = await startBenchFleet({
  nodeArgs: values.profile === undefined ? [] : ["--cpu-prof", `--cpu-prof-dir=${values.profile}`],
  credit: 1_000_000,
})
const templates = await runTemplates()
const filling = performance.now()
await fleet.coordinator.stop()
// Younger than what retention removes.
await copyJobs(fleet, templates, { jobs: jobs - templates.length - WAITING, everyMs: (25 * DAY_MS) / jobs })
const filled = performance.now()
await fleet.startCoordinator()
for (let n = 0; n < WAITING; n++) await fleet.submit(jobOf({ tags: ["waiting"], payload: { n } }))
const { total } = (await fleet.call("GET", "/api/v1/jobs?limit=1")) as { total: number }
console.log(
  `${total} jobs of ${tasks} tasks stored in ${seconds(filled - filling)} s, the coordinator ready after ${seconds(performance.now() - filled)} s more`,
)
const known = (
  (await fleet.call("GET", "/api/v1/jobs?limit=500&status=completed")) as { jobs: { id: string }[] }
).jobs.map(({ id }) => id)

/** Rows of tasks that a request of this many may give belong to no list's figure: they are measured, not judged. */
const KINDS: { path: string; isHeavy?: boolean }[] = [
  { path: "/jobs" },
  { path: "/jobs?limit=100" },
  { path: "/jobs?limit=100&status=completed" },
  { path: "/jobs?limit=100&status=queued" },
  { path: "/jobs?limit=100&project=other" },
  { path: "/jobs?limit=100&type=sweep" },
  { path: "/jobs?limit=100&tag=every" },
  { path: "/jobs?limit=100&tag=some" },
  { path: "/jobs?limit=100&client_ref=run-7" },
  { path: "/jobs?limit=100&offset=10000" },
  { path: "/jobs?limit=500", isHeavy: true },
  { path: "/jobs/:id" },
  { path: "/jobs/:id/tasks" },
  { path: "/jobs/:id/tasks?limit=20&status=completed" },
  { path: "/results/:id" },
  { path: "/results" },
  { path: "/results?limit=100" },
  { path: "/results?limit=100&status=completed&project=noop" },
  { path: "/results?limit=100&tag=some" },
  { path: "/results?group_by=project" },
  { path: "/results?group_by=tag" },
  { path: "/results?group_by=status&type=sweep" },
  { path: "/results?include_tasks=true&job_id=:id" },
  { path: "/results?include_tasks=true", isHeavy: true },
  { path: "/results?include_tasks=true&limit=100", isHeavy: true },
]

const found: Json[] = []
for (const { path, isHeavy = false } of KINDS) {
  if (!path.includes(values.only)) continue
  const { took, cpuMs, bytes } = await ask(`/api/v1${path}`, isHeavy ? Math.ceil(requests / 10) : requests)
  const [p50, p99] = [quantile(took, 0.5), quantile(took, 0.99)]
  found.push({ path, p50_ms: p50, p99_ms: p99, cpu_ms: cpuMs, bytes, judged: !isHeavy })
  console.log(
    `  ${path}: p50 ${p50.toFixed(1)} ms, p99 ${p99.toFixed(1)} ms, cpu ${cpuMs.toFixed(1)} ms, ${(bytes / 1024).toFixed(0)} KiB${isHeavy ? " (not judged)" : ""}`,
  )
}
console.log(calibrate())
const judged = found.filter((each) => each["judged"] === true)
const slowest = judged.reduce((most, each) => (Number(each["p99_ms"]) > Number(most["p99_ms"]) ? each : most))
console.log(
  `lists: ${judged.length} kinds of requests over ${total} jobs, the slowest ${String(slowest["path"])} with p99 ${Number(slowest["p99_ms"]).toFixed(1)} ms (target p99 ≤ ${MOST_MS} ms: ${Number(slowest["p99_ms"]) <= MOST_MS ? "met" : "NOT met"})`,
)
console.log(JSON.stringify({ bench: "lists", jobs: total, tasks, kinds: found }))

/** Jobs of several kinds, run by an agent whose tasks do nothing, and one that was cancelled. */
async function runTemplates(): Promise<string[]> {
  for (const name of ["noop", "other"]) await pushProject(fleet, name, NOOP_PROJECT)
  const node = await fleet.addNode("scripts/bench/noop-agent.ts", "noop", [...NOOP_NODE, "--drain=now"])
  const payload = { bench_output: "a line that the program printed\n".repeat(4) }
  const sweep = { type: "sweep", parameters: { seed: numbers(tasks) }, rank_by: "value", fixed_payload: payload }
  const bodies: Json[] = [
    jobOf({ payload, tags: ["every"] }),
    jobOf({ payload, tags: ["every", "some"], project: "other", client_ref: "run-7", meta: { note: "x".repeat(200) } }),
    { ...jobOf({ tags: ["every"] }), ...sweep, fan_out: undefined },
    jobOf({ payload, tags: ["every"] }),
  ]
  const ids: string[] = []
  for (const body of bodies) {
    const id = await fleet.submit(body)
    const { status } = await fleet.ended(id)
    if (status !== "completed") throw new Error(`the job ended ${String(status)}`)
    ids.push(id)
  }
  await node.end("SIGTERM")
  const cancelled = await fleet.submit(jobOf({ payload, tags: ["every"] }))
  await fleet.call("PUT", `/api/v1/jobs/${cancelled}/cancel`, {})
  await fleet.ended(cancelled)
  return [...ids, cancelled]
}

function jobOf(fields: Json): Json {
  return {
    ...NOOP_JOB,
    fan_out: { chunks: tasks, total: tasks },
    ...fields,
  }
}

async function ask(path: string, count: number): Promise<{ took: number[]; cpuMs: number; bytes: number }> {
  const clients = Array.from({ length: Number(values.clients) }, () => keepAliveClient(fleet.origin, fleet.bearer))
  let [asked, bytes] = [0, 0]
  const next = async (client: (typeof clients)[number]): Promise<number> => {
    const { ms, text } = await client.ask("GET", path.replace(":id", known[asked++ % known.length] ?? ""))
    bytes = text.length
    return ms
  }
  const [client] = clients
  for (let n = 0; client && n < Math.min(50, count); n++) await next(client)
  const { pid } = fleet.coordinator.process
  const cpu = cpuSeconds(pid)
  const took: number[] = []
  await Promise.all(
    clients.map(async (each) => {
      while (took.length < count) took.push(await next(each))
    }),
  )
  const cpuMs = (1000 * (cpuSeconds(pid) - cpu)) / took.length
  for (const each of clients) each[Symbol.dispose]()
  return { took, cpuMs, bytes }
}

function numbers(count: number): number[] {
  return Array.from({ length: count }, (_, n) => n)
}

function seconds(ms: number): string {
  return (ms / 1000).toFixed(1)
}
