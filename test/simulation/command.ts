import { execFile } from "node:child_process"
import { existsSync, mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { parseArgs } from "node:util"
import { makeDeployment, type Deployment } from "./deployment.ts"
import { fleetPlan } from "./fleet-plan.ts"
import { MUTANTS } from "./mutants.ts"
import { FAULT_KINDS, planOf, type Plan } from "./plan.ts"
import { keepOf, shorten, shortened } from "./shorten.ts"
import { STEPS } from "./watch.ts"
import { World, type Outcome } from "./world.ts"

/** In memory where the machine gives some as files: nothing here needs to outlive the process. */
const FOLDER = join(existsSync("/dev/shm") ? "/dev/shm" : tmpdir(), "computalot-simulation-")

/**
 * Runs simulated worlds. Prints what was done and seen, and for a broken promise its seed, the least that still breaks it, and
 * the log of that. Exit code 1 when something broke.
 */
export async function command(args: string[]): Promise<number> {
  const { values } = parseArgs({
    args,
    options: {
      seed: { type: "string" },
      keep: { type: "string" },
      seeds: { type: "string" },
      first: { type: "string" },
      minutes: { type: "string" },
      fleet: { type: "string" },
      tasks: { type: "string" },
      mutant: { type: "string" },
      mutants: { type: "boolean", default: false },
      "until-broken": { type: "boolean", default: false },
    },
  })
  if (values.mutants) return await tryMutants(numberOf(values.first, 1), numberOf(values.minutes, 2))
  const folder = mkdtempSync(FOLDER)
  process.on("exit", () => rmSync(folder, { recursive: true, force: true }))
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => process.exit(130))
  try {
    const simulator = new Simulator(await makeDeployment(join(folder, "deployment")), join(folder, "world"))
    if (values.seed !== undefined)
      return await replay(simulator, shortened(planOf(numberOf(values.seed, 0)), values.keep))
    if (values.fleet !== undefined) {
      const [nodes, tasks] = [numberOf(values.fleet, 1_000), numberOf(values.tasks, 10_000)]
      return await runFleet(simulator, fleetPlan(numberOf(values.first, 1), nodes, tasks))
    }
    const most = numberOf(values.seeds, Number.POSITIVE_INFINITY)
    const first = numberOf(values.first, Math.floor(Date.now() / 1000) * 1000)
    return await search(simulator, {
      first,
      most,
      minutes: numberOf(values.minutes, values.seeds === undefined ? 2 : Number.POSITIVE_INFINITY),
      untilBroken: values["until-broken"],
    })
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

function numberOf(text: string | undefined, otherwise: number): number {
  const value = text === undefined ? otherwise : Number(text)
  if (Number.isNaN(value)) throw new Error(`${text} is no number`)
  return value
}

/** One world after another; what is thrown where nobody catches it belongs to the one that runs. */
class Simulator {
  readonly #deployment: Deployment
  readonly #directory: string
  #world: World | null = null

  constructor(deployment: Deployment, directory: string) {
    this.#deployment = deployment
    this.#directory = directory
    const uncaught = (error: unknown): void => this.#world?.uncaught(error)
    process.on("uncaughtException", uncaught)
    process.on("unhandledRejection", uncaught)
  }

  async run(plan: Plan): Promise<Outcome> {
    this.#world = new World(plan, this.#deployment, this.#directory)
    return await this.#world.run()
  }
}

async function replay(simulator: Simulator, plan: Plan): Promise<number> {
  const outcome = await simulator.run(plan)
  for (const line of outcome.log) console.log(line)
  for (const problem of outcome.problems) console.log(`broken: ${problem}`)
  if (outcome.problems.length === 0) console.log(`seed ${plan.seed}: nothing is broken`)
  return outcome.problems.length === 0 ? 0 : 1
}

/** A large fleet at work: one world, told in a few lines. */
async function runFleet(simulator: Simulator, plan: Plan): Promise<number> {
  const startedMs = performance.now()
  const { outcome, ...spent } = await withCpuTime(() => simulator.run(plan))
  const completed = [...outcome.steps].filter(([step]) => step.startsWith("task ") && step.endsWith(" → completed"))
  console.log(
    `${plan.nodes.length} nodes, ${outcome.faults.get("power cut") ?? 0} of them replaced; ` +
      `${completed.reduce((sum, [, count]) => sum + count, 0)} tasks completed by ${outcome.attempts} attempts`,
  )
  console.log(
    `${(outcome.virtualMs / 1000).toFixed(0)} simulated seconds, ${outcome.events} events, ` +
      `${outcome.gossip.sent} words of gossip, of which ${outcome.gossip.sent - outcome.gossip.lost} arrived`,
  )
  const seconds = (performance.now() - startedMs) / 1000
  console.log(
    `${seconds.toFixed(1)} s, ${(spent.cpuMs / 1000).toFixed(1)} s of a core, ${spent.mostMemoryMb} MB at most`,
  )
  for (const problem of outcome.problems) console.log(`broken: ${problem}`)
  console.log(outcome.problems.length === 0 ? "nothing is broken" : "the world is broken")
  return outcome.problems.length === 0 ? 0 : 1
}

async function withCpuTime(
  run: () => Promise<Outcome>,
): Promise<{ outcome: Outcome; cpuMs: number; mostMemoryMb: number }> {
  const before = process.cpuUsage()
  const outcome = await run()
  const { user, system } = process.cpuUsage(before)
  return { outcome, cpuMs: (user + system) / 1000, mostMemoryMb: Math.round(process.resourceUsage().maxRSS / 1024) }
}

interface Search {
  first: number
  most: number
  minutes: number
  /** Ends with the first broken world, as it is. */
  untilBroken: boolean
}

async function search(simulator: Simulator, { first, most, minutes, untilBroken }: Search): Promise<number> {
  const startedMs = performance.now()
  const endMs = startedMs + minutes * 60_000
  const steps = new Map<string, number>()
  const faults = new Map<string, number>()
  const gossip = { sent: 0, lost: 0, twice: 0 }
  const sums = { seeds: 0, broken: 0, virtualMs: 0, events: 0, jobs: 0, attempts: 0 }
  for (let seed = first; sums.seeds < most && performance.now() < endMs; seed++) {
    const plan = planOf(seed)
    const outcome = await simulator.run(plan)
    sums.seeds += 1
    sums.virtualMs += outcome.virtualMs
    sums.events += outcome.events
    sums.jobs += outcome.jobs
    sums.attempts += outcome.attempts
    for (const fate of ["sent", "lost", "twice"] as const) gossip[fate] += outcome.gossip[fate]
    addTo(steps, outcome.steps)
    addTo(faults, outcome.faults)
    if (outcome.problems.length === 0) continue
    sums.broken += 1
    await tellBroken(simulator, plan, outcome, !untilBroken)
    if (untilBroken || sums.broken >= MOST_BROKEN) break
  }
  const seconds = (performance.now() - startedMs) / 1000
  const last = first + sums.seeds - 1
  console.log(
    `seeds ${first} … ${last}: ${sums.seeds} worlds in ${seconds.toFixed(1)} s (${(sums.seeds / seconds).toFixed(2)} a second), ` +
      `${(sums.virtualMs / 3_600_000).toFixed(1)} simulated hours, ${sums.events} events, ${sums.jobs} jobs, ${sums.attempts} attempts`,
  )
  console.log(`faults: ${FAULT_KINDS.map((kind) => `${kind} ${faults.get(kind) ?? 0}`).join(", ")}`)
  console.log(`gossip: ${gossip.sent} words, ${gossip.lost} lost, ${gossip.twice} heard twice`)
  const taken = [...STEPS].filter((step) => steps.has(step))
  console.log(`steps of states: ${taken.length} of ${STEPS.size} taken`)
  for (const kind of ["job", "task", "attempt", "checkpoint"]) {
    const its = taken
      .filter((step) => step.startsWith(kind))
      .map((step) => `${step.slice(kind.length + 1)} ${steps.get(step)}`)
    console.log(`  ${kind}: ${its.join(", ")}`)
  }
  const missing = [...STEPS].filter((step) => !steps.has(step))
  if (missing.length > 0) console.log(`  never: ${missing.join(", ")}`)
  console.log(sums.broken === 0 ? "nothing is broken" : `${sums.broken} worlds are broken`)
  return sums.broken === 0 ? 0 : 1
}

/** More would say the same. */
const MOST_BROKEN = 5

/** Runs worlds against each deliberate fault until one breaks. Exit code 1 when one is not noticed within `minutes`. */
async function tryMutants(first: number, minutes: number): Promise<number> {
  let unnoticed = 0
  for (const { name } of MUTANTS) {
    const { text } = await runSelf([
      "--mutant",
      name,
      "--first",
      `${first}`,
      "--minutes",
      `${minutes}`,
      "--until-broken",
    ])
    const found = /^seed (\d+) is broken:\n {2}(.*)$/m.exec(text)
    if (found === null) unnoticed += 1
    const seen = found
      ? `seed ${found[1]} (${Number(found[1]) - first + 1} worlds): ${found[2]}`
      : `NOT NOTICED: ${text}`
    console.log(`${name}\n  ${seen}`)
  }
  console.log(`${MUTANTS.length - unnoticed} of ${MUTANTS.length} faults were noticed`)
  return unnoticed === 0 ? 0 : 1
}

function runSelf(args: string[]): Promise<{ text: string }> {
  const options = { encoding: "utf8", maxBuffer: 2 ** 26 } as const
  return new Promise((resolve) => {
    execFile(process.execPath, [new URL("main.ts", import.meta.url).pathname, ...args], options, (_, stdout, stderr) =>
      resolve({ text: stdout + stderr }),
    )
  })
}

async function tellBroken(simulator: Simulator, plan: Plan, outcome: Outcome, shortens: boolean): Promise<void> {
  console.log(`seed ${plan.seed} is broken:`)
  for (const problem of outcome.problems) console.log(`  ${problem}`)
  if (!shortens) return
  const least = await shorten(plan, outcome, (shorter) => simulator.run(shorter))
  console.log(`the least that breaks it (scripts/simulate --seed ${plan.seed} --keep ${keepOf(plan, least.plan)}):`)
  for (const action of least.plan.actions) console.log(`  action ${JSON.stringify(action)}`)
  for (const fault of least.plan.faults) console.log(`  fault ${JSON.stringify(fault)}`)
  for (const line of least.outcome.log) console.log(`  ${line}`)
  for (const problem of least.outcome.problems) console.log(`  broken: ${problem}`)
}

function addTo(sums: Map<string, number>, more: ReadonlyMap<string, number>): void {
  for (const [name, count] of more) sums.set(name, (sums.get(name) ?? 0) + count)
}
