import { request, type ClientRequest } from "node:http"
import { parseArgs } from "node:util"
import {
  calibrate,
  cpuSeconds,
  pushProject,
  quantile,
  residentBytes,
  startBenchFleet,
  type Json,
} from "./bench-fleet.ts"
import { NOOP_JOB, NOOP_NODE, NOOP_PROJECT } from "./noop-work.ts"

/**
 * The stream lane: what 2,000 idle event streams cost in memory and time, and how soon a watch of 100 jobs tells of what their
 * tasks do while these run through the real API, store and mesh. Each task's end counts, from its event's time to the first
 * frame that includes it; each change of status likewise.
 */
const { values } = parseArgs({
  options: {
    streams: { type: "string", default: "2000" },
    jobs: { type: "string", default: "100" },
    /** Of each job. */
    tasks: { type: "string", default: "150" },
    /** How long a task holds its slot: 64 slots ÷ this is the most there can be. */
    "task-ms": { type: "string", default: "50" },
    /** Further watches of the same jobs. */
    watchers: { type: "string", default: "0" },
    /** Writes a CPU profile of the coordinator into this folder. */
    profile: { type: "string" },
  },
})
const MOST_BYTES = 40 * 1024
const MOST_DELAY_MS = 100

console.log(calibrate())
await using fleet = await startBenchFleet({
  nodeArgs: values.profile === undefined ? [] : ["--cpu-prof", `--cpu-prof-dir=${values.profile}`],
})
await pushProject(fleet, "noop", NOOP_PROJECT)
const ids: string[] = []
for (let n = 0; n < Number(values.jobs); n++) {
  ids.push(
    await fleet.submit({
      ...NOOP_JOB,
      payload: { bench_sleep_ms: Number(values["task-ms"]) },
      fan_out: { chunks: Number(values.tasks), total: Number(values.tasks) },
    }),
  )
}
await idleStreams(Number(values.streams))
await watchedJobs()
console.log(calibrate())

/** Opens an event stream and gives its frames, each with the time of its arrival. */
function open(path: string, heard: (event: string, data: string, atMs: number) => void): Promise<ClientRequest> {
  return new Promise((resolve, reject) => {
    const headers = { authorization: `Bearer ${fleet.bearer}` }
    const sent = request(`${fleet.origin}${path}`, { headers, agent: false }, (response) => {
      if (response.statusCode !== 200) reject(new Error(`${path}: ${response.statusCode}`))
      let text = ""
      response.setEncoding("utf8")
      response.on("data", (chunk: string) => {
        const atMs = performance.timeOrigin + performance.now()
        text += chunk
        const frames = text.split("\n\n")
        text = frames.pop() ?? ""
        for (const frame of frames) {
          const event = /^event: (.+)$/m.exec(frame)?.[1]
          if (event !== undefined) heard(event, /^data: (.+)$/m.exec(frame)?.[1] ?? "", atMs)
          if (event === "snapshot") resolve(sent)
        }
      })
    })
    sent.on("error", reject)
    sent.end()
  })
}

async function idleStreams(count: number): Promise<void> {
  const { pid } = fleet.coordinator.process
  const open100 = async (): Promise<ClientRequest[]> =>
    await Promise.all(
      Array.from({ length: 100 }, (_, n) => open(`/api/v1/jobs/${ids[n % ids.length]}/stream`, () => {})),
    )
  // What the first ones make once belongs to nobody.
  const first = await open100()
  await settled()
  const before = residentBytes(pid)
  const streams: ClientRequest[] = []
  while (streams.length < count) streams.push(...(await open100()))
  await settled()
  const each = (residentBytes(pid) - before) / streams.length
  const cpu = cpuSeconds(pid)
  await new Promise((resolve) => setTimeout(resolve, 20_000))
  const share = (cpuSeconds(pid) - cpu) / 20
  console.log(
    `idle: ${streams.length} open streams, ${(each / 1024).toFixed(1)} KiB resident each (target ≤ ${MOST_BYTES / 1024}), ${(share * 100).toFixed(1)} % of a core`,
  )
  for (const stream of [...first, ...streams]) stream.destroy()
}

function settled(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 3_000))
}

async function watchedJobs(): Promise<void> {
  /** When each job's number of completed tasks was first told, and its statuses. */
  const told = new Map<string, { completed: [count: number, atMs: number][]; ended: number }>(
    ids.map((id) => [id, { completed: [], ended: 0 }]),
  )
  let frames = 0
  const { promise: done, resolve } = Promise.withResolvers<void>()
  const watch = `/api/v1/jobs/watch?ids=${ids.join(",")}`
  const main = await open(watch, (event, data, atMs) => {
    if (event === "done") resolve()
    if (event !== "job") return
    frames += 1
    const {
      id,
      status,
      task_counts: counts,
    } = (JSON.parse(data) as { job: Json }).job as {
      id: string
      status: string
      task_counts: { completed: number }
    }
    const of = told.get(id)
    of?.completed.push([counts.completed, atMs])
    if (of && status === "completed") of.ended = atMs
  })
  const others = await Promise.all(Array.from({ length: Number(values.watchers) }, () => open(watch, () => {})))
  await fleet.addNode("scripts/bench/noop-agent.ts", "noop", [...NOOP_NODE])
  const start = performance.now()
  const cpu = cpuSeconds(fleet.coordinator.process.pid)
  await done
  const seconds = (performance.now() - start) / 1000
  const used = cpuSeconds(fleet.coordinator.process.pid) - cpu
  const ends: number[] = []
  const changes: number[] = []
  for (const [id, { completed, ended }] of told) {
    const times = await endsOf(id)
    for (const [index, at] of times.tasks.entries()) {
      const first = completed.find(([count]) => count > index)
      if (first) ends.push(first[1] - at)
    }
    changes.push(ended - times.job)
  }
  const tasks = ids.length * Number(values.tasks)
  console.log(
    `watch: ${ids.length} jobs, ${Math.round(tasks / seconds)} tasks/s, ${Math.round(frames / seconds)} frames/s, ${1 + others.length} watchers, coordinator ${Math.round((100 * used) / seconds)} % of a core`,
  )
  console.log(
    `a task's end → frame: p50 ${quantile(ends, 0.5).toFixed(0)} ms, p95 ${quantile(ends, 0.95).toFixed(0)} ms (target ≤ ${MOST_DELAY_MS}); a job's end → frame: p50 ${quantile(changes, 0.5).toFixed(0)} ms, p95 ${quantile(changes, 0.95).toFixed(0)} ms`,
  )
  for (const stream of [main, ...others]) stream.destroy()
}

/** When the job's tasks ended, in order, and when it did, by its log. */
async function endsOf(id: string): Promise<{ tasks: number[]; job: number }> {
  const ends = { tasks: [] as number[], job: 0 }
  for (let after = 0; ;) {
    const { events } = (await fleet.call("GET", `/api/v1/jobs/${id}/events?limit=1000&after=${after}`)) as {
      events: { id: number; type: string; inserted_at: string }[]
    }
    for (const { type, inserted_at: at } of events) {
      if (type === "task.completed") ends.tasks.push(Date.parse(at))
      if (type === "job.completed") ends.job = Date.parse(at)
    }
    const last = events.at(-1)
    if (!last || events.length < 1000) return ends
    after = last.id
  }
}
