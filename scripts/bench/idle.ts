import { existsSync } from "node:fs"
import { join } from "node:path"
import { homedir } from "node:os"
import { parseArgs } from "node:util"
import { calibrate, cpuSecondsOfTree, residentBytes, startBenchFleet } from "./bench-fleet.ts"

/** What a coordinator and three agents cost that have nothing to do: processor time of all together, and what each weighs. */
const { values } = parseArgs({
  options: {
    nodes: { type: "string", default: "3" },
    seconds: { type: "string", default: "60" },
    /** `process`, `gvisor` or `bubblewrap`; given twice: one after the other. */
    runtime: { type: "string", multiple: true, default: ["process", "gvisor"] },
    /** Base images, for builders. */
    bases: { type: "string", default: join(homedir(), ".cache", "computalot", "demo-bases") },
  },
})
const TARGETS = { percent: 3, agentBytes: 150e6 }
/** What starting costs does not count: connections, adverts and the first collections are over by then. */
const SETTLE_MS = 10_000

console.log(calibrate())
const lines: string[] = []
for (const runtime of values.runtime) lines.push(await idle(runtime))
console.log(calibrate())
for (const line of lines) console.log(line)

async function idle(runtime: string): Promise<string> {
  await using fleet = await startBenchFleet()
  for (let n = 0; n < Number(values.nodes); n++) {
    await fleet.addNode("node-agent/main.ts", `node-${n}`, [
      `--runtime=${runtime}`,
      "--allow-unsandboxed",
      ...(existsSync(values.bases) ? [`--bases=${values.bases}`] : []),
    ])
  }
  const coordinator = fleet.coordinator.process.pid
  const agents = fleet.nodes.map(({ process }) => process.pid)
  await pause(SETTLE_MS)
  const before = [coordinator, ...agents].map(cpuSecondsOfTree)
  const start = performance.now()
  await pause(Number(values.seconds) * 1000)
  const elapsed = (performance.now() - start) / 1000
  const percents = [coordinator, ...agents].map(
    (pid, at) => (100 * (cpuSecondsOfTree(pid) - (before[at] ?? 0))) / elapsed,
  )
  const all = percents.reduce((sum, percent) => sum + percent, 0)
  const heaviest = Math.max(...agents.map(residentBytes))
  const [ofCoordinator, ...ofAgents] = percents.map((percent) => percent.toFixed(2))
  return `idle (${runtime}): coordinator and ${agents.length} nodes use ${all.toFixed(2)} % of one core (target < ${TARGETS.percent} %; coordinator ${ofCoordinator}, nodes ${ofAgents.join(" ")}); the heaviest agent ${megabytes(heaviest)} resident (≤ ${megabytes(TARGETS.agentBytes)}), the coordinator ${megabytes(residentBytes(coordinator))}`
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms))
}

function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(0)} MB`
}
