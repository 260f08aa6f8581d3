import { spawnSync } from "node:child_process"
import { parseArgs } from "node:util"
import {
  calibrate,
  cpuSeconds,
  cpuSecondsOfChildren,
  cpuSecondsOfTree,
  pushProject,
  quantile,
  startBenchFleet,
  usePythonItself,
} from "./bench-fleet.ts"

/**
 * The process lane: tasks that start Python and end, through API, store, mesh and the process driver on one node of two cores,
 * against `xargs -P2` of the same program. Rounds of both take turns, so that a busy moment of the machine meets both.
 */
const { values } = parseArgs({
  options: {
    tasks: { type: "string", default: "1000" },
    rounds: { type: "string", default: "5" },
    /** Writes CPU profiles of coordinator and agent into this folder. */
    profile: { type: "string" },
  },
})
const tasks = Number(values.tasks)
const PROGRAM = ["python3", "-c", "pass"]
const TARGET = 0.8

usePythonItself()
console.log(calibrate())
const nodeArgs = values.profile === undefined ? [] : ["--cpu-prof", `--cpu-prof-dir=${values.profile}`]
await using fleet = await startBenchFleet({ nodeArgs })
await pushProject(fleet, "nothing", { Dockerfile: "FROM scratch\n" })
const node = await fleet.addNode(
  "node-agent/main.ts",
  "worker",
  ["--runtime=process", "--allow-unsandboxed", "--cpus=2", "--memory-mb=4096", "--storage-gb=8"],
  { nodeArgs },
)
await ours(20)

const rates: number[] = []
const costs: number[] = []
for (let round = 1; round <= Number(values.rounds); round++) {
  const bareFirst = round % 2 === 1
  const first = bareFirst ? xargs(tasks) : null
  const cpu = {
    coordinator: cpuSeconds(fleet.coordinator.process.pid),
    node: cpuSecondsOfTree(node.process.pid),
    agent: cpuSeconds(node.process.pid),
  }
  const seconds = await ours(tasks)
  const coordinator = cpuSeconds(fleet.coordinator.process.pid) - cpu.coordinator
  const ofNode = cpuSecondsOfTree(node.process.pid) - cpu.node
  const agent = cpuSeconds(node.process.pid) - cpu.agent
  const bare = first ?? xargs(tasks)
  rates.push(bare.seconds / seconds)
  costs.push(bare.cpu / (coordinator + ofNode))
  console.log(
    `round ${round}: xargs ${bare.seconds.toFixed(2)} s, Computalot ${seconds.toFixed(2)} s, ratio ${(bare.seconds / seconds).toFixed(2)}; cpu ms a task: xargs ${perTask(bare.cpu)}, coordinator ${perTask(coordinator)}, agent ${perTask(agent)}, all else on the node ${perTask(ofNode - agent)}`,
  )
}
console.log(calibrate())
console.log(
  `tasks: ${tasks} × \`${PROGRAM.join(" ")}\` run at ${quantile(rates, 0.5).toFixed(2)} of the rate of xargs -P2 (median of ${rates.length}, ${Math.min(...rates).toFixed(2)} to ${Math.max(...rates).toFixed(2)}; target ≥ ${TARGET}), by CPU time at ${quantile(costs, 0.5).toFixed(2)}`,
)

function perTask(seconds: number): string {
  return ((1000 * seconds) / tasks).toFixed(2)
}

function xargs(count: number): { seconds: number; cpu: number } {
  const before = cpuSecondsOfChildren()
  const start = performance.now()
  const { status } = spawnSync("sh", ["-c", `seq ${count} | xargs -P2 -n1 ${PROGRAM.join(" ")}`], { stdio: "ignore" })
  if (status !== 0) throw new Error(`xargs ended with ${status}`)
  return { seconds: (performance.now() - start) / 1000, cpu: cpuSecondsOfChildren() - before }
}

/** Seconds from submit to the job's last write. */
async function ours(count: number): Promise<number> {
  const start = performance.now()
  const id = await fleet.submit({
    type: "structured_runner",
    project: "nothing",
    runner_command: PROGRAM,
    payload: {},
    fan_out: { chunks: count, total: count },
    requirements: { cpu: 1, memory_mb: 256 },
    timeout_s: 60,
    runtime_hint_s: 1,
  })
  const end = await fleet.ended(id, 200)
  if (end["status"] !== "completed") throw new Error(`the job ended ${String(end["status"])}`)
  return (performance.now() - start) / 1000
}
