import type { FailureKind } from "../../protocol/domain/statuses.ts"
import { Chance } from "./chance.ts"
import type { CoordinatorSettings } from "./coordinator-machine.ts"
import type { Script } from "./scripted-runner.ts"

/** Everything that will be done in one world and to it, before it begins: what a seed stands for, and what can be shortened. */
export interface Plan {
  seed: number
  /** Work and faults come within this; then everything is mended and must come to its end. */
  busyMs: number
  nodes: NodePlan[]
  coordinator: CoordinatorSettings
  weather: { leastDelayMs: number; mostDelayMs: number; gossipLoss: number; gossipTwice: number; answerLoss: number }
  actions: Action[]
  faults: Fault[]
}

export interface NodePlan {
  cpu: number
  gpus: number
  images: boolean
  memoryMb: number
  keepRunningMs: number
  startMs: number
  rate: number
  wallOffsetMs: number
}

export type Action = { atMs: number } &
  /** `after`: jobs that it depends on, by name; those that are not there are left out. */
  (
    | { kind: "submit"; client: number; name: string; body: Record<string, unknown>; after: string[] }
    | { kind: "cancel"; client: number; job: string }
    | { kind: "read"; client: number; job: string; what: "job" | "tasks" | "events" | "results" | "output" }
    | { kind: "follow"; client: number; job: string }
    /** Should it have ended by then. */
    | { kind: "retry"; client: number; job: string; body: Record<string, unknown> }
    | { kind: "push"; client: number; text: string }
    /** The admin's word. */
    | { kind: "set node"; node: number; state: "active" | "draining" | "revoked" }
  )

/** Node −1 is the coordinator. */
export type Fault = { atMs: number } & (
  | { kind: "cut"; node: number; other: number; way: "both" | "to node" | "from node"; forMs: number }
  | { kind: "break"; node: number; other: number }
  | { kind: "kill agent"; node: number; downMs: number }
  | { kind: "power cut"; node: number; downMs: number; disk: "same" | "fresh" }
  | { kind: "kill coordinator"; hangsUp: boolean; downMs: number }
  | { kind: "stop coordinator"; downMs: number }
  | { kind: "crash at commit"; commits: number; when: "before" | "after"; downMs: number }
  | { kind: "crash at outbox write"; node: number; writes: number; when: "before" | "after"; downMs: number }
  | { kind: "restore backup"; ageMs: number; downMs: number }
  /** An older copy of the data is started beside a later one, on a machine whose clock is behind. */
  | { kind: "take over"; ageMs: number; behindMs: number; downMs: number }
  | { kind: "freeze"; node: number; forMs: number }
  | { kind: "clock step"; node: number; byMs: number }
  | { kind: "slow disk"; node: number; actMs: number; forMs: number }
  | { kind: "full disk"; forMs: number }
  | { kind: "clone disk"; node: number; from: number; forMs: number }
  | { kind: "lie"; node: number; how: Lie }
)

export const LIES = [
  "old claim",
  "foreign claim",
  "claim never granted",
  "result twice",
  "other result",
  "hours of work",
  "result too large",
  "garbage",
  "hello again",
] as const
export type Lie = (typeof LIES)[number]

/** One among others; the rest is drawn by itself. */
type DrawnKind = Exclude<Fault["kind"], "take over">

const DRAWN_KINDS: readonly DrawnKind[] = [
  "cut",
  "break",
  "kill agent",
  "power cut",
  "kill coordinator",
  "stop coordinator",
  "crash at commit",
  "crash at outbox write",
  "restore backup",
  "freeze",
  "clock step",
  "slow disk",
  "full disk",
  "clone disk",
  "lie",
]
export const FAULT_KINDS: readonly Fault["kind"][] = [...DRAWN_KINDS, "take over"]

export function planOf(seed: number): Plan {
  const chance = new Chance(`seed ${seed}`)
  const busyMs = chance.pick([15_000, 30_000, 60_000])
  // On every machine or on none: who has them may be gone for long.
  const gpus = chance.of("gpus").pick([0, 0, 0, 1, 2])
  const images = chance.of("images").happens(0.25)
  const nodes = Array.from({ length: chance.pick([1, 2, 2, 3, 3, 4]) }, (_, index) => ({
    cpu: chance.pick([1, 2, 4]),
    gpus,
    images,
    memoryMb: 4096,
    keepRunningMs: chance.pick([2_000, 10_000, 60_000]),
    startMs: index === 0 ? 10 : chance.between(10, 4_000),
    rate: chance.between(0.9998, 1.0002),
    wallOffsetMs: chance.happens(0.3) ? chance.between(-20_000, 20_000) : 0,
  }))
  return {
    seed,
    busyMs,
    nodes,
    coordinator: {
      claimLifetimeMs: chance.pick([8_000, 15_000, 30_000]),
      lostAfterMs: chance.pick([1_000, 3_000, 5_000]),
      heartbeatMs: 1_000,
      resultSpillBytes: chance.pick([300, 262_144]),
    },
    weather: {
      leastDelayMs: 0.2,
      mostDelayMs: chance.pick([2, 20, 120]),
      gossipLoss: chance.pick([0, 0.1, 0.5]),
      gossipTwice: 0.05,
      answerLoss: chance.pick([0, 0.05]),
    },
    actions: [
      ...actionsOf(chance.of("actions"), busyMs, gpus),
      ...pushesOf(chance.of("pushes"), busyMs),
      ...adminActionsOf(chance.of("admin"), busyMs, nodes.length),
    ].toSorted(byTime),
    faults: withTakeOver(faultsOf(chance.of("faults"), busyMs, nodes.length), chance.of("take over"), busyMs),
  }
}

const byTime = (left: { atMs: number }, right: { atMs: number }): number => left.atMs - right.atMs

function actionsOf(chance: Chance, busyMs: number, gpus: number): Action[] {
  const actions: Action[] = []
  const submitted: { name: string; client: number; atMs: number }[] = []
  const jobs = chance.whole(2, 7)
  for (let n = 0; n < jobs; n++) {
    const name = `job-${n}`
    const client = chance.happens(0.75) ? 0 : chance.whole(1, 2)
    const atMs = chance.between(100, busyMs * 0.8)
    const body = jobBody(chance, name)
    leaveCheckpoints(body, chance.of(`${name} checkpoints`))
    reserveCapacity(body, chance.of(`${name} reservation`))
    leaveFiles(body, chance.of(`${name} files`))
    if (gpus > 0 && chance.of(`${name} gpus`).happens(0.5)) wantGpus(body, chance.of(`${name} gpus`).whole(1, gpus))
    const before = submitted.filter((other) => other.client === client && other.atMs < atMs)
    const after = upstreamsOf(chance.of(`${name} after`), before)
    actions.push({ atMs, client, kind: "submit", name, body, after })
    submitted.push({ name, client, atMs })
    if (body["project"] === UNPREPARED) {
      // What is known of it from the first one must not be forgotten.
      const again = { ...body, client_ref: `${name}-again` }
      const laterMs = Math.min(busyMs, atMs + chance.of(`${name} again`).between(500, 20_000))
      actions.push({ atMs: laterMs, client, kind: "submit", name: `${name}-again`, body: again, after: [] })
    }
    if (chance.happens(0.01)) {
      // More tasks than one slice of planning takes: it is gone before they all run.
      Object.assign(body, { type: "structured_runner", fan_out: { chunks: MANY_TASKS, total: MANY_TASKS } })
      for (const field of ["split", "reduce"]) delete body[field]
      actions.push({ atMs: atMs + chance.pick([5, 40, 400]), client, kind: "cancel", job: name })
    }
    if (chance.happens(0.25)) {
      actions.push({ atMs: atMs + chance.between(0, 12_000), client, kind: "cancel", job: name })
      if (chance.happens(0.3)) actions.push({ atMs: atMs + 12_500, client, kind: "cancel", job: name })
    }
    if (chance.of(`${name} followed`).happens(0.4)) {
      actions.push({ atMs: atMs + chance.of(`${name} follows`).between(50, 5_000), client, kind: "follow", job: name })
    }
    const again = chance.of(`${name} retried`)
    for (let times = again.pick([0, 1, 2, 3]); times > 0; times--) {
      const one = { filter: "indexes", indexes: [0] }
      const body = again.pick([{ filter: "failed" }, { filter: "low_quality" }, one, one, one])
      const soon = Math.min(busyMs, atMs + again.between(2_000, 40_000))
      actions.push({ atMs: soon, client, kind: "retry", job: name, body })
    }
    for (let look = chance.whole(0, 3); look > 0; look--) {
      const what = chance.pick(["job", "tasks", "events", "results", "output"] as const)
      actions.push({ atMs: atMs + chance.between(50, 20_000), client, kind: "read", job: name, what })
    }
  }
  return actions
}

/** Some jobs depend on one that came before, or on two. */
function upstreamsOf(chance: Chance, before: { name: string }[]): string[] {
  if (before.length === 0 || !chance.happens(0.4)) return []
  const names = Array.from({ length: chance.pick([1, 1, 2]) }, () => chance.pick(before).name)
  return [...new Set(names)]
}

/** Nodes are drained and taken back, and some revoked: their machines begin anew. */
function adminActionsOf(chance: Chance, busyMs: number, nodes: number): Action[] {
  if (!chance.happens(0.3)) return []
  return Array.from({ length: chance.whole(1, 3) }, (): Action[] => {
    const [atMs, node] = [chance.between(1_000, busyMs), chance.integer(nodes)]
    if (chance.happens(0.3)) return [{ atMs, kind: "set node", node, state: "revoked" }]
    const back: Action = { atMs: atMs + chance.between(10, 15_000), kind: "set node", node, state: "active" }
    return [{ atMs, kind: "set node", node, state: "draining" }, back]
  }).flat()
}

/** Some projects get new code while they are at work. */
function pushesOf(chance: Chance, busyMs: number): Action[] {
  if (!chance.happens(0.25)) return []
  return Array.from({ length: chance.whole(1, 4) }, (_, n) => ({
    atMs: chance.between(500, busyMs),
    kind: "push" as const,
    client: chance.happens(0.75) ? 0 : chance.whole(1, 2),
    text: `code ${chance.happens(0.2) ? 0 : n}`,
  }))
}

const MANY_TASKS = 3_000

function jobBody(chance: Chance, name: string): Record<string, unknown> {
  const kind = chance.pick<FailureKind>(["exit_code", "signal", "oom", "sandbox_error"])
  const script: Script = {
    runMs: chance.pick([20, 300, 1_500, 6_000, 10_000]),
    failures: chance.happens(0.3) ? chance.whole(1, 3) : 0,
    failureKind: kind,
    fillBytes: chance.pick([0, 0, 0, 500, 70_000]),
    progress: chance.happens(0.4),
  }
  const common = {
    project: chance.happens(0.06) ? UNPREPARED : "p",
    runner_command: ["python3", "job.py"],
    payload: { script },
    timeout_s: chance.pick([2, 20, 60]),
    max_retries: chance.whole(0, 3),
    requirements: { cpu: chance.pick([0.5, 1]), memory_mb: 256 },
    client_ref: name,
    ...(chance.happens(0.3) ? { reliability_mode: "strict_complete" } : {}),
    ...(chance.happens(0.3) ? { priority: chance.pick(["high", "low"]) } : {}),
    ...(chance.happens(0.2) ? { result_schema: { required_fields: [chance.pick(["value", "absent"])] } } : {}),
  }
  const tasks = chance.pick([1, 1, 2, 5, 12])
  if (chance.happens(0.4)) {
    const reduce = { value: chance.pick(["sum", "max", "mean", "count", "collect"]) }
    return { ...common, type: "map_reduce", split: { field: "part", total: tasks * 3, chunks: tasks }, reduce }
  }
  const fanOut = tasks === 1 ? {} : { fan_out: { chunks: tasks, total: tasks * 2 } }
  return { ...common, type: "structured_runner", ...fanOut }
}

/** Some jobs leave checkpoints and go on from them. */
function leaveCheckpoints(body: Record<string, unknown>, chance: Chance): void {
  const { script } = body["payload"] as { script: Script }
  if (body["type"] !== "structured_runner" || !chance.happens(0.4)) return
  script.steps = chance.pick([2, 5, 20])
  body["checkpointing"] = { enabled: true, resume_from_latest: true }
}

/** Some jobs have capacity of their own; what cannot be had is refused, and that is fine. */
function reserveCapacity(body: Record<string, unknown>, chance: Chance): void {
  if (chance.happens(0.12)) {
    const guaranteed_for_s = chance.pick([3, 20, 3600])
    body["reservation"] = { mode: "guaranteed", parallelism: chance.pick([1, 1, 2, 3]), guaranteed_for_s }
  }
  if (chance.happens(0.08)) body["placement_policy"] = "dedicated"
}

/** Some leave files, with their checkpoints or at their end. */
function leaveFiles(body: Record<string, unknown>, chance: Chance): void {
  const { script } = body["payload"] as { script: Script }
  if (chance.happens(0.2)) script.artifactBytes = chance.pick([100, 5_000, 100_000])
  if (script.steps !== undefined && chance.happens(0.5)) script.fileBytes = chance.pick([50, 3_000, 100_000])
}

function wantGpus(body: Record<string, unknown>, gpus: number): void {
  const { script } = body["payload"] as { script: Script }
  script.gpus = gpus
  body["requirements"] = { ...(body["requirements"] as object), gpu_count: gpus }
}

/** A project that no machine can prepare. */
const UNPREPARED = "unprepared"

/** In few worlds: it needs a machine whose clock was behind, and nothing else is done to that clock. */
function withTakeOver(faults: Fault[], chance: Chance, busyMs: number): Fault[] {
  if (!chance.happens(0.05)) return faults
  const atMs = chance.between(500, busyMs)
  const takeOver: Fault = {
    atMs,
    kind: "take over",
    ageMs: chance.between(10, 5_000),
    behindMs: chance.between(10_000, 20_000),
    downMs: chance.pick([100, 1_000, 5_000]),
  }
  const isKept = (one: Fault): boolean => !(one.kind === "clock step" && one.node === -1)
  return [...faults.filter(isKept), takeOver].toSorted(byTime)
}

function faultsOf(chance: Chance, busyMs: number, nodes: number): Fault[] {
  const faults: Fault[] = []
  // Some worlds see one kind of trouble only, so that others do not hide what it does.
  const kinds = chance.happens(0.3) ? [chance.pick(DRAWN_KINDS)] : [...DRAWN_KINDS, ...OFTEN]
  for (let left = chance.whole(0, 14); left > 0; left--) faults.push(fault(chance, chance.pick(kinds), busyMs, nodes))
  // A restored copy relies on a clock that went on: numbers begin at its time.
  const isRestored = faults.some(({ kind }) => kind === "restore backup")
  const mayCome = (one: Fault): boolean => !(isRestored && one.kind === "clock step" && one.node === -1)
  return faults.filter(mayCome).toSorted(byTime)
}

/** Lost contact is what most rests on, and lies are cheap. */
const OFTEN: readonly DrawnKind[] = [
  "cut",
  "cut",
  "cut",
  "cut",
  "power cut",
  "kill agent",
  "freeze",
  "lie",
  "lie",
  "lie",
]

function fault(chance: Chance, kind: DrawnKind, busyMs: number, nodes: number): Fault {
  const atMs = chance.between(500, busyMs)
  const node = chance.integer(nodes)
  const other = nodes === 1 || chance.happens(0.7) ? -1 : (node + 1 + chance.integer(nodes - 1)) % nodes
  const soon = (): number => chance.pick([50, 1_000, 5_000, 8_000, 20_000]) * chance.between(0.5, 1.5)
  switch (kind) {
    case "cut":
      return { atMs, kind, node, other, way: chance.pick(["both", "to node", "from node"]), forMs: soon() }
    case "break":
      return { atMs, kind, node, other }
    case "kill agent":
      return { atMs, kind, node, downMs: soon() }
    case "power cut":
      return { atMs, kind, node, downMs: soon(), disk: chance.happens(0.3) ? "fresh" : "same" }
    case "kill coordinator":
      return { atMs, kind, hangsUp: chance.happens(0.7), downMs: soon() }
    case "stop coordinator":
      return { atMs, kind, downMs: soon() }
    case "crash at commit": {
      const when = chance.pick(["before", "after"] as const)
      return { atMs, kind, commits: chance.whole(1, 6), when, downMs: soon() }
    }
    case "crash at outbox write": {
      const when = chance.pick(["before", "after"] as const)
      return { atMs, kind, node, writes: chance.whole(1, 6), when, downMs: soon() }
    }
    case "restore backup":
      return { atMs, kind, ageMs: chance.between(10, 8_000), downMs: soon() }
    case "freeze":
      return { atMs, kind, node: chance.happens(0.3) ? -1 : node, forMs: soon() }
    case "clock step":
      return { atMs, kind, node: chance.happens(0.3) ? -1 : node, byMs: chance.between(-60_000, 60_000) }
    case "slow disk":
      return { atMs, kind, node: chance.happens(0.7) ? -1 : node, actMs: chance.between(5, 400), forMs: soon() }
    case "full disk":
      return { atMs, kind, forMs: soon() }
    case "clone disk":
      return { atMs, kind, node, from: (node + 1) % nodes, forMs: soon() }
    case "lie":
      return { atMs, kind, node, how: chance.pick(LIES) }
  }
}
