import { readFileSync } from "node:fs"
import { join } from "node:path"
import { parseArgs } from "node:util"
import { calibrate, cpuSeconds, pushProject, quantile, startBenchFleet } from "./bench-fleet.ts"
import { NOOP_JOB, NOOP_NODE, NOOP_PROJECT } from "./noop-work.ts"

/**
 * The queue lane: no-op tasks through the real API, store and mesh, with agents in other processes. Prints durable tasks a
 * second from submit to the job's last write, and submit → start on an idle fleet.
 */
const { values } = parseArgs({
  options: {
    tasks: { type: "string", default: "10000" },
    nodes: { type: "string", default: "1" },
    rounds: { type: "string", default: "3" },
    singles: { type: "string", default: "200" },
    /** Writes a CPU profile of the coordinator into this folder. */
    profile: { type: "string" },
  },
})
const tasks = Number(values.tasks)

console.log(calibrate())
await using fleet = await startBenchFleet({
  nodeArgs: values.profile === undefined ? [] : ["--cpu-prof", `--cpu-prof-dir=${values.profile}`],
})
const used = (): string => {
  const coordinator = cpuSeconds(fleet.coordinator.process.pid)
  const nodes = fleet.nodes.map(({ process }) => cpuSeconds(process.pid))
  return `cpu: coordinator ${coordinator.toFixed(1)} s, nodes ${nodes.map((each) => each.toFixed(1)).join(" ")} s`
}
await pushProject(fleet, "noop", NOOP_PROJECT)
for (let n = 0; n < Number(values.nodes); n++) {
  await fleet.addNode("scripts/bench/noop-agent.ts", `noop-${n}`, [...NOOP_NODE])
}

const rates: number[] = []
for (let round = 0; round < Number(values.rounds); round++) {
  const start = performance.now()
  const id = await fleet.submit({
    ...NOOP_JOB,
    payload: { note: "x".repeat(60) },
    fan_out: { chunks: tasks, total: tasks },
  })
  const answered = performance.now()
  const end = await fleet.ended(id)
  const seconds = (performance.now() - start) / 1000
  if (end["status"] !== "completed") throw new Error(`the job ended ${String(end["status"])}`)
  rates.push(tasks / seconds)
  console.log(
    `round ${round + 1}: ${tasks} tasks in ${seconds.toFixed(2)} s = ${Math.round(tasks / seconds)} tasks/s (submit answered after ${(answered - start).toFixed(0)} ms); ${used()}`,
  )
}
console.log(`queue: median ${Math.round(quantile(rates, 0.5))} tasks/s, best ${Math.round(Math.max(...rates))}`)

const latencies: number[] = []
const answers: number[] = []
for (let n = 0; n < Number(values.singles); n++) {
  const before = startCount()
  const submitted = performance.timeOrigin + performance.now()
  const id = await fleet.submit({ ...NOOP_JOB, payload: { n } })
  answers.push(performance.timeOrigin + performance.now() - submitted)
  let started = startTimes()[before]
  while (started === undefined) {
    await new Promise((resolve) => setTimeout(resolve, 5))
    started = startTimes()[before]
  }
  latencies.push(started - submitted)
  // Only now: asking for the job's state would keep the coordinator busy while it starts.
  await fleet.ended(id, 5)
}
console.log(
  `submit → start on an idle fleet: p50 ${quantile(latencies, 0.5).toFixed(1)} ms, p99 ${quantile(latencies, 0.99).toFixed(1)} ms (submit answered p50 ${quantile(answers, 0.5).toFixed(1)} ms)`,
)
console.log(calibrate())

function startTimes(): number[] {
  const lines: number[] = []
  for (let n = 0; n < Number(values.nodes); n++) {
    for (const line of readFileSync(join(fleet.folder, `noop-${n}.starts`), "utf8").split("\n")) {
      if (line !== "") lines.push(Number(line.split(" ")[1]))
    }
  }
  return lines.toSorted((a, b) => a - b)
}

function startCount(): number {
  return startTimes().length
}
