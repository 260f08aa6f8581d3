import { Chance } from "./chance.ts"
import type { Action, Fault, Plan } from "./plan.ts"
import type { Script } from "./scripted-runner.ts"

const BUSY_MS = 10 * 60_000
/** Nodes come within this. */
const JOINING_MS = 60_000
const TASKS_OF_A_JOB = 500

/** A large fleet at work for ten minutes, in which a fifth of the machines is lost and replaced by strangers. */
export function fleetPlan(seed: number, nodes: number, tasks: number): Plan {
  const chance = new Chance(`fleet ${seed}`)
  const actions = Array.from({ length: Math.ceil(tasks / TASKS_OF_A_JOB) }, (_, index): Action => {
    const chunks = Math.min(TASKS_OF_A_JOB, tasks - index * TASKS_OF_A_JOB)
    const script: Script = { runMs: 10_000, failures: 0, failureKind: null, fillBytes: 0, progress: false }
    const name = `job-${index}`
    const body = {
      project: "p",
      type: "structured_runner",
      runner_command: ["python3", "job.py"],
      payload: { script },
      timeout_s: 60,
      requirements: { cpu: 1, memory_mb: 256 },
      client_ref: name,
      fan_out: { chunks, total: chunks },
    }
    return { atMs: chance.between(1_000, BUSY_MS * 0.9), client: 0, kind: "submit", name, body, after: [] }
  })
  const faults = Array.from({ length: Math.ceil(nodes / 5) }, (_, index): Fault => {
    const atMs = chance.between(JOINING_MS, BUSY_MS)
    return { atMs, kind: "power cut", node: index * 5, downMs: chance.between(1_000, 30_000), disk: "fresh" }
  })
  const byTime = (left: { atMs: number }, right: { atMs: number }): number => left.atMs - right.atMs
  return {
    seed,
    busyMs: BUSY_MS,
    nodes: Array.from({ length: nodes }, () => ({
      cpu: 2,
      gpus: 0,
      images: false,
      memoryMb: 4096,
      keepRunningMs: 60_000,
      startMs: chance.between(10, JOINING_MS),
      rate: chance.between(0.9998, 1.0002),
      wallOffsetMs: 0,
    })),
    coordinator: { claimLifetimeMs: 60_000, lostAfterMs: 5_000, heartbeatMs: null, resultSpillBytes: 262_144 },
    // Each word reaches every member: only some of that is worth the time, and no task depends on it.
    weather: { leastDelayMs: 0.2, mostDelayMs: 20, gossipLoss: 0.998, gossipTwice: 0, answerLoss: 0 },
    actions: actions.toSorted(byTime),
    faults: faults.toSorted(byTime),
  }
}
