import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { parseArgs } from "node:util"
import { killWithTasks, processesOfTasks, signalTo } from "../lib/processes.ts"
import {
  pushProject,
  quantile,
  startBenchFleet,
  usePythonItself,
  type BenchFleet,
  type BenchNode,
  type Json,
} from "./bench-fleet.ts"
import { NOOP_PROJECT } from "./noop-work.ts"
import { runParts, type Outcome } from "./parts.ts"

/**
 * What crashes and stalls cost: programs are killed and stopped under running tasks, and the tasks' own marks tell what ran
 * where and when. Each part prints a line; the last line is all of them as JSON.
 */
const PARTS: Record<string, () => Promise<Outcome>> = {
  lost,
  adopted,
  "false-alarms": falseAlarms,
  restart,
  "first-claim": firstClaim,
  checkpoints,
}
const { values } = parseArgs({
  options: {
    /** May be given several times; default: all. */
    part: { type: "string", multiple: true, default: Object.keys(PARTS) },
    /** Of `lost` and `first-claim`. */
    rounds: { type: "string", default: "3" },
    /** How long the coordinator of `restart` is away. */
    "away-s": { type: "string", default: "60" },
    /** Stored tasks of `first-claim`. */
    tasks: { type: "string", default: "100000" },
  },
})
const rounds = Number(values.rounds)
const TARGETS = { elsewhereMs: 10_000, firstClaimMs: 3_000, stepsTwice: 3 }
const NODE = ["--runtime=process", "--allow-unsandboxed", "--memory-mb=65536", "--storage-gb=1024", "--drain=now"]
const JOB = { type: "structured_runner", requirements: { cpu: 1, memory_mb: 64 }, timeout_s: 600, runtime_hint_s: 5 }

/** Says in MARKS/NAME when and where it starts and ends; works for so many seconds, or until MARKS/GO is there. */
const WORK_PY = `import json, os, time
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
marks = os.environ["MARKS"]
def mark(what):
    with open(os.path.join(marks, payload["name"]), "a") as file:
        file.write("%s %f %s\\n" % (what, time.time() * 1000, os.getcwd()))
mark("start")
if "seconds" in payload:
    time.sleep(payload["seconds"])
while "go" in payload and not os.path.exists(os.path.join(marks, payload["go"])):
    time.sleep(0.5)
mark("end")
json.dump({"ok": True}, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))
`

/** Counts to 60, a step a second, each with a checkpoint; says in MARKS/NAME which step it begins, and where. */
const COUNT_PY = `import json, os, time
payload = json.load(open(os.environ["COMPUTALOT_TASK_PAYLOAD"]))
mark = os.path.join(os.environ["MARKS"], payload["name"])
file = os.path.join(os.environ["COMPUTALOT_ARTIFACT_DIR"], "step-%d.txt")
for step in range(payload.get("_resume", {}).get("step", -1) + 1, 60):
    with open(mark, "a") as steps:
        steps.write("%d %f %s\\n" % (step, time.time() * 1000, os.getcwd()))
    time.sleep(1)
    open(file % step, "w").write(str(step).ljust(100000))
    told = {"step": step, "checkpoint": {"path": "step-%d.txt" % step}}
    print("COMPUTALOT_PROGRESS:" + json.dumps(told), flush=True)
json.dump({"ok": True}, open(os.environ["COMPUTALOT_TASK_RESULT"], "w"))
`

usePythonItself()
await runParts("recovery", PARTS, values.part)

/** A machine lost with 50 of 100 tasks of 5 s, 2 s after the last of them began: when does each run elsewhere? */
async function lost(): Promise<Outcome> {
  const all: number[] = []
  let neverAgain = 0
  for (let round = 1; round <= rounds; round++) {
    await using fleet = await openFleet({ nodes: 2, cpus: 50 })
    const names = namesOf("task", 100)
    const id = await submit(fleet, names, { seconds: 5 })
    await until(() => names.every((name) => marksOf(fleet, name).length > 0))
    const began = names.map((name) => marksOf(fleet, name)[0]?.atMs ?? Number.NaN)
    const last = Math.max(...began)
    const spreadMs = last - Math.min(...began)
    await pause(last + 2_000 - Date.now())
    const [victim] = fleet.nodes as [BenchNode]
    const killedAt = Date.now()
    await loseAll(victim)
    const cut = names.filter((name) => {
      const marks = marksOf(fleet, name)
      return marks.some(({ node }) => node === victim.name) && !marks.some(({ what }) => what === "end")
    })
    const end = await fleet.ended(id, 200)
    if (end["status"] !== "completed") throw new Error(`the job ended ${String(end["status"])}`)
    const took = cut.flatMap((name) => {
      const again = marksOf(fleet, name).find(({ what, node }) => what === "start" && node !== victim.name)
      return again === undefined ? [] : [again.atMs - killedAt]
    })
    neverAgain += cut.length - took.length
    all.push(...took)
    console.log(
      `  round ${round}: 100 tasks began within ${seconds(spreadMs)}${spreadMs > 3_000 ? " (slow: what preparing took is waited for too)" : ""}; ${cut.length} lost, they run elsewhere after ${line(took)}`,
    )
  }
  const p95 = quantile(all, 0.95)
  return {
    figure: `${all.length} lost tasks in ${rounds} rounds run elsewhere after ${line(all)}${neverAgain > 0 ? `; ${neverAgain} ended without a second run` : ""}`,
    facts: { lost_tasks: all.length, p50_ms: quantile(all, 0.5), p95_ms: p95, most_ms: Math.max(...all) },
    target: `p95 ≤ ${seconds(TARGETS.elsewhereMs)}`,
    met: p95 <= TARGETS.elsewhereMs && all.length > 0,
  }
}

/** The agent alone dies, and is back before its tasks may be given to the other node, which has room for all of them. */
async function adopted(): Promise<Outcome> {
  const lostAfterMs = 15_000
  await using fleet = await openFleet({ nodes: 2, cpus: 40, coordinatorArgs: [`--lost-after-s=${lostAfterMs / 1000}`] })
  const names = namesOf("task", 40)
  const id = await submit(fleet, names, { go: "go" })
  await until(() => names.every((name) => marksOf(fleet, name).length > 0))
  const victim = busiestNode(fleet, names)
  const here = names.filter((name) => marksOf(fleet, name)[0]?.node === victim.name)
  const killedAt = Date.now()
  await victim.end("SIGKILL")
  await pause(5_000)
  await victim.start()
  const awayMs = Date.now() - killedAt
  // By then they would be running elsewhere.
  await pause(killedAt + 2 * lostAfterMs - Date.now())
  const found = await endAll(fleet, [id], names)
  return {
    figure: `the agent of ${here.length} tasks was away for ${seconds(awayMs)}: ${found.text}`,
    facts: { tasks: here.length, away_ms: awayMs, ...found.facts },
    target: "away < 10 s, none runs twice, none is lost",
    met: found.unharmed && awayMs < 10_000,
  }
}

/** A machine stands still for 3 s, then the coordinator for 5 s. Both nodes have room for all tasks. */
async function falseAlarms(): Promise<Outcome> {
  await using fleet = await openFleet({ nodes: 2, cpus: 40 })
  const names = namesOf("task", 40)
  const id = await submit(fleet, names, { go: "go" })
  await until(() => names.every((name) => marksOf(fleet, name).length > 0))
  const victim = busiestNode(fleet, names)
  const agent = victim.process.pid ?? 0
  await standStill([agent, ...processesOfTasks(victim.dataDir, agent)], 3_000)
  await pause(10_000)
  await standStill([fleet.coordinator.process.pid ?? 0], 5_000)
  await pause(10_000)
  const found = await endAll(fleet, [id], names)
  return {
    figure: `a node stood still for 3 s and the coordinator for 5 s: ${found.text}`,
    facts: found.facts,
    target: "nothing restarts",
    met: found.unharmed,
  }
}

/** The coordinator is away under 200 running tasks, and half of them end meanwhile. */
async function restart(): Promise<Outcome> {
  const awayMs = Number(values["away-s"]) * 1000
  await using fleet = await openFleet({ nodes: 2, cpus: 100 })
  const [ending, staying] = [namesOf("ending", 100), namesOf("staying", 100)]
  const names = [...ending, ...staying]
  const ids = [await submit(fleet, ending, { go: "go-ending" }), await submit(fleet, staying, { go: "go" })]
  await until(() => names.every((name) => marksOf(fleet, name).length > 0))
  await fleet.coordinator.stop("SIGKILL")
  await pause(awayMs / 2)
  writeFileSync(join(marksFolder(fleet), "go-ending"), "")
  await pause(awayMs / 2)
  const endedAway = ending.filter((name) => marksOf(fleet, name).some(({ what }) => what === "end")).length
  await fleet.startCoordinator()
  await pause(20_000)
  const found = await endAll(fleet, ids, names)
  return {
    figure: `the coordinator was away for ${seconds(awayMs)} under 200 running tasks, of which ${endedAway} ended meanwhile: ${found.text}`,
    facts: { away_ms: awayMs, ended_meanwhile: endedAway, ...found.facts },
    target: "0 run twice, 0 lost",
    met: found.unharmed,
  }
}

/** The coordinator starts again over a large job: how soon does a node that found it work for it? */
async function firstClaim(): Promise<Outcome> {
  await using fleet = await startBenchFleet({ credit: 1_000_000 })
  await pushProject(fleet, "noop", NOOP_PROJECT)
  await fleet.addNode("scripts/bench/noop-agent.ts", "noop-0", [...NODE, "--cpus=2"])
  const id = await fleet.submit({
    ...JOB,
    project: "noop",
    runner_command: ["python3", "job.py"],
    payload: { bench_sleep_ms: 200 },
    fan_out: { chunks: Number(values.tasks), total: Number(values.tasks) },
  })
  const begun = (): number[] =>
    readFileSync(join(fleet.folder, "noop-0.starts"), "utf8")
      .split("\n")
      .slice(0, -1)
      .map((start) => Number(start.split(" ")[1]))
  await until(async () => (await fleet.call("GET", `/api/v1/jobs/${id}`))["status"] !== "planning")
  await until(() => begun().length > 10)
  const claims: number[] = []
  const readies: number[] = []
  for (let round = 1; round <= rounds; round++) {
    await fleet.coordinator.stop("SIGKILL")
    // Nodes are handed up to 2 s of short tasks ahead: what begins after these was granted by the next coordinator.
    await until(() => Date.now() - (begun().at(-1) ?? 0) > 4_000, 100)
    const before = begun().length
    const startedAt = Date.now()
    await fleet.startCoordinator()
    const readyMs = Date.now() - startedAt
    await until(() => begun().length > before)
    const claimMs = (begun()[before] ?? Number.NaN) - startedAt
    readies.push(readyMs)
    claims.push(claimMs)
    console.log(
      `  round ${round}: ready after ${seconds(readyMs)}, first task of a new claim after ${seconds(claimMs)}`,
    )
  }
  const worst = Math.max(...claims)
  return {
    figure: `with ${values.tasks} tasks stored, first claim at most ${seconds(worst)} after the process start (median ${seconds(quantile(claims, 0.5))}; ready line median ${seconds(quantile(readies, 0.5))}; ${rounds} rounds)`,
    facts: { tasks: Number(values.tasks), claim_ms: claims, ready_ms: readies },
    target: `≤ ${seconds(TARGETS.firstClaimMs)}`,
    met: worst <= TARGETS.firstClaimMs,
  }
}

/** A machine is lost in the middle of a task of 60 s that leaves a checkpoint each second. */
async function checkpoints(): Promise<Outcome> {
  await using fleet = await openFleet({ nodes: 2, cpus: 1 })
  const id = await fleet.submit({
    ...JOB,
    project: "recovery",
    runner_command: ["python3", "count.py"],
    payload: { name: "count" },
    timeout_s: 300,
    checkpointing: { enabled: true, resume_from_latest: true },
  })
  await until(() => marksOf(fleet, "count").length >= 30)
  const [{ node }] = marksOf(fleet, "count") as [Mark]
  const victim = fleet.nodes.find(({ name }) => name === node)
  if (!victim) throw new Error(`no node ${node}`)
  // In the middle of a step.
  await pause(500)
  await loseAll(victim)
  const end = await fleet.ended(id, 200)
  if (end["status"] !== "completed") throw new Error(`the job ended ${String(end["status"])}`)
  const steps = marksOf(fleet, "count").map(({ what }) => Number(what))
  const twice = steps.length - new Set(steps).size
  const again = marksOf(fleet, "count").find((mark) => mark.node !== node)
  return {
    figure: `a task of 60 steps of 1 s lost its machine in step ${steps.findLast((_, at) => marksOf(fleet, "count")[at]?.node === node)} and went on elsewhere with step ${again?.what}: ${twice} steps began twice, of ${new Set(steps).size}`,
    facts: { steps: new Set(steps).size, steps_twice: twice },
    target: `≤ ${TARGETS.stepsTwice}`,
    met: twice <= TARGETS.stepsTwice && again !== undefined && new Set(steps).size === 60,
  }
}

async function openFleet(options: { nodes: number; cpus: number; coordinatorArgs?: string[] }): Promise<BenchFleet> {
  const fleet = await startBenchFleet({ coordinatorArgs: options.coordinatorArgs ?? [] })
  try {
    mkdirSync(marksFolder(fleet))
    const files = { Dockerfile: "FROM scratch\n", "work.py": WORK_PY, "count.py": COUNT_PY }
    await pushProject(fleet, "recovery", files, { env: { MARKS: marksFolder(fleet) } })
    for (let n = 0; n < options.nodes; n++) {
      await fleet.addNode("node-agent/main.ts", `node-${n}`, [...NODE, `--cpus=${options.cpus}`])
    }
    return fleet
  } catch (error) {
    await fleet[Symbol.asyncDispose]()
    throw error
  }
}

function namesOf(kind: string, count: number): string[] {
  return Array.from({ length: count }, (_, n) => `${kind}-${n}`)
}

async function submit(fleet: BenchFleet, names: string[], work: Json): Promise<string> {
  return await fleet.submit({
    ...JOB,
    project: "recovery",
    runner_command: ["python3", "work.py"],
    payload: { name: names, ...work },
    fan_out: { by: "name" },
  })
}

interface Mark {
  what: string
  atMs: number
  node: string
}

function marksFolder(fleet: BenchFleet): string {
  return join(fleet.folder, "marks")
}

/** What a task has said of itself, in all its attempts. */
function marksOf(fleet: BenchFleet, name: string): Mark[] {
  const file = join(marksFolder(fleet), name)
  const lines = existsSync(file) ? readFileSync(file, "utf8").split("\n").slice(0, -1) : []
  return lines.map((each) => {
    const [what = "", atMs, folder = ""] = each.split(" ")
    const node = fleet.nodes.find(({ dataDir }) => folder.startsWith(`${dataDir}/`))
    return { what, atMs: Number(atMs), node: node?.name ?? "" }
  })
}

function busiestNode(fleet: BenchFleet, names: string[]): BenchNode {
  const runs = (node: BenchNode): number => names.filter((name) => marksOf(fleet, name)[0]?.node === node.name).length
  const [busiest] = fleet.nodes.toSorted((a, b) => runs(b) - runs(a))
  if (!busiest) throw new Error("no node")
  return busiest
}

/** The agent and all that its tasks started, as if the machine had lost its power. */
async function loseAll(node: BenchNode): Promise<void> {
  killWithTasks(node.dataDir, node.process.pid ?? 0)
  await node.end("SIGKILL")
}

async function standStill(pids: number[], ms: number): Promise<void> {
  for (const pid of pids) signalTo(pid, "SIGSTOP")
  await pause(ms)
  for (const pid of pids) signalTo(pid, "SIGCONT")
}

/** Lets the waiting tasks end, and counts what ran more than once, what was lost and what did not complete. */
async function endAll(
  fleet: BenchFleet,
  ids: string[],
  names: string[],
): Promise<{ text: string; facts: Json; unharmed: boolean }> {
  writeFileSync(join(marksFolder(fleet), "go"), "")
  let completed = 0
  let attempts = 0
  const events: string[] = []
  for (const id of ids) {
    await fleet.ended(id, 200)
    const metrics = await fleet.call("GET", `/api/v1/jobs/${id}/metrics`)
    attempts += Number(metrics["attempts"])
    completed += Number(((metrics["tasks"] as Json)["by_status"] as Json)["completed"] ?? 0)
    events.push(...(await eventsOf(fleet, id)))
  }
  const count = (type: string): number => events.filter((each) => each === type).length
  const twice = names.filter((name) => marksOf(fleet, name).filter(({ what }) => what === "start").length !== 1).length
  const facts = {
    tasks: names.length,
    completed,
    attempts,
    ran_twice: twice,
    lost: count("task.lost"),
    contact_lost: count("task.contact_lost"),
  }
  return {
    text: `${completed} of ${names.length} tasks completed, ${twice} ran twice, ${facts.lost} were lost, ${attempts} attempts (contact was lost to ${facts.contact_lost})`,
    facts,
    unharmed: completed === names.length && attempts === names.length && twice === 0 && facts.lost === 0,
  }
}

/** The types of all events of a job. */
async function eventsOf(fleet: BenchFleet, id: string): Promise<string[]> {
  const types: string[] = []
  for (let after = 0; ;) {
    const { events } = (await fleet.call("GET", `/api/v1/jobs/${id}/events?limit=1000&after=${after}`)) as {
      events: { id: number; type: string }[]
    }
    types.push(...events.map(({ type }) => type))
    const last = events.at(-1)
    if (last === undefined) return types
    after = last.id
  }
}

async function until(found: () => boolean | Promise<boolean>, everyMs = 20): Promise<void> {
  while (!(await found())) await pause(everyMs)
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, Math.max(0, ms)))
}

function line(ms: readonly number[]): string {
  return `p50 ${seconds(quantile(ms, 0.5))}, p95 ${seconds(quantile(ms, 0.95))}, at most ${seconds(Math.max(...ms))}`
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(2)} s`
}
