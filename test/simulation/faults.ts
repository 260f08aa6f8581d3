import { sha256Hex } from "../../protocol/base/digest.ts"
import type { ResultItem, ToCoordinator } from "../../protocol/wire/control.ts"
import type { Chance } from "./chance.ts"
import type { CoordinatorMachine } from "./coordinator-machine.ts"
import type { Machine } from "./machine.ts"
import type { Network } from "./network.ts"
import type { NodeMachine } from "./node-machine.ts"
import type { Fault, Lie } from "./plan.ts"
import type { SimMesh } from "./sim-mesh.ts"
import type { Watch } from "./watch.ts"

/** What faults are done to. */
export interface FaultyWorld {
  readonly chance: Chance
  readonly network: Network
  readonly mesh: SimMesh
  readonly watch: Watch
  readonly coordinator: CoordinatorMachine
  readonly nodes: readonly NodeMachine[]
  /** Mending has begun: no fault comes about any more. */
  readonly isMended: boolean
  /** Calls `act` after `delayMs` unless everything was mended before. */
  unlessMended(delayMs: number, act: () => void): void
  /** The fault came about. */
  count(kind: Fault["kind"]): void
  /** The coordinator's directory is a copy of that time from now on. */
  restored(copyMs: number): void
  /** Its clock is behind until somebody looks after it. */
  fellBehind(byMs: number): void
}

/** Does to the world what the plan says; what cannot be done to it as it is now is left out. */
export function applyFault(world: FaultyWorld, fault: Fault): void {
  const isOfCoordinator = !("node" in fault) || fault.node === -1
  // What ends it is told by its machine.
  if (isOfCoordinator && "forMs" in fault) world.watch.disturbed(world.network.time.nowMs + fault.forMs)
  if (bringAbout(world, fault)) world.count(fault.kind)
}

function bringAbout(world: FaultyWorld, fault: Fault): boolean {
  const { coordinator, mesh } = world
  const machineOf = (index: number): Machine => world.nodes[index]?.machine ?? coordinator.machine
  switch (fault.kind) {
    case "cut":
      return cut(world, machineOf(fault.node), machineOf(fault.other), fault)
    case "break":
      return mesh.breakBetween(machineOf(fault.node), machineOf(fault.other)) > 0
    case "kill coordinator":
      if (!coordinator.program) return false
      coordinator.kill({ hangsUp: fault.hangsUp })
      world.unlessMended(fault.downMs, () => coordinator.start())
      return true
    case "stop coordinator":
      if (!coordinator.running) return false
      // It may take until after the mending, and is then started at once.
      coordinator.stop(() => {
        if (world.isMended) coordinator.start()
        else world.unlessMended(fault.downMs, () => coordinator.start())
      })
      return true
    case "crash at commit":
      if (!coordinator.program) return false
      coordinator.crashAtCommit = { commits: fault.commits, when: fault.when, downMs: fault.downMs }
      return true
    case "restore backup":
      return restore(world, fault)
    case "take over":
      return startOlderCopy(world, fault)
    case "freeze":
      machineOf(fault.node).freeze(fault.forMs)
      return true
    case "clock step":
      machineOf(fault.node).wallOffsetMs += fault.byMs
      if (fault.node === -1) world.watch.clockStepped = true
      return true
    case "slow disk":
      machineOf(fault.node).diskMs = fault.actMs
      world.unlessMended(fault.forMs, () => {
        machineOf(fault.node).diskMs = 0
      })
      return true
    case "full disk":
      coordinator.isDiskFull = true
      world.unlessMended(fault.forMs, () => {
        coordinator.isDiskFull = false
      })
      return true
    case "kill agent":
    case "power cut":
    case "crash at outbox write":
    case "clone disk":
    case "lie": {
      const node = world.nodes[fault.node]
      return node !== undefined && trouble(world, node, fault)
    }
  }
}

type NodeFault = Extract<Fault, { kind: "kill agent" | "power cut" | "crash at outbox write" | "clone disk" | "lie" }>

function trouble(world: FaultyWorld, node: NodeMachine, fault: NodeFault): boolean {
  if (!node.program) return false
  switch (fault.kind) {
    case "kill agent":
      node.kill({ power: false })
      world.unlessMended(fault.downMs, () => node.start())
      return true
    case "power cut":
      node.kill({ power: true })
      if (fault.disk === "fresh") node.wipe()
      world.unlessMended(fault.downMs, () => {
        node.powerOn()
        node.start()
      })
      return true
    case "crash at outbox write":
      node.crashAtWrite = { writes: fault.writes, when: fault.when, downMs: fault.downMs }
      return true
    case "clone disk":
      return clone(world, node, fault)
    case "lie":
      return lie(world, node, fault.how)
  }
}

function cut(
  world: FaultyWorld,
  node: Machine,
  other: Machine,
  { way, forMs }: Extract<Fault, { kind: "cut" }>,
): boolean {
  const ways: [Machine, Machine][] = []
  if (way !== "to node") ways.push([node, other])
  if (way !== "from node") ways.push([other, node])
  for (const [from, to] of ways) world.network.cut(from, to)
  world.unlessMended(forMs, () => {
    for (const [from, to] of ways) world.network.mend(from, to)
  })
  return true
}

/** A copy now; a while later the machine is lost, and its successor starts from the copy. */
function restore(world: FaultyWorld, { ageMs, downMs }: Extract<Fault, { kind: "restore backup" }>): boolean {
  const { coordinator, network } = world
  if (!coordinator.program) return false
  const copy = coordinator.backUp()
  const copyMs = network.time.nowMs
  world.unlessMended(ageMs, () => {
    if (!coordinator.mayRestore(copy)) return
    coordinator.kill({ hangsUp: false })
    coordinator.restore(copy)
    world.restored(copyMs)
    world.unlessMended(downMs, () => coordinator.start())
  })
  return true
}

/**
 * A copy now; later the data goes on by a start that welcomes nodes, and is lost. Its successor starts from the copy with a
 * clock that is behind: nodes prove to it that it is older, it ends, and starts only once it is told to take over.
 */
function startOlderCopy(
  world: FaultyWorld,
  { ageMs, behindMs, downMs }: Extract<Fault, { kind: "take over" }>,
): boolean {
  const { coordinator, network } = world
  if (!coordinator.program) return false
  const copy = coordinator.backUp()
  const copyMs = network.time.nowMs
  world.unlessMended(ageMs, () => {
    coordinator.kill({ hangsUp: true })
    coordinator.start()
    world.unlessMended(WELCOMING_MS, () => {
      if (!coordinator.mayRestore(copy)) return
      coordinator.kill({ hangsUp: false })
      coordinator.restore(copy)
      world.restored(copyMs)
      world.fellBehind(behindMs)
      world.unlessMended(downMs, () => coordinator.start())
    })
  })
  return true
}

/** By then nodes that can have come to a coordinator that has started. */
const WELCOMING_MS = 3_000

/** A machine gets the disk of another, and both run; later it gets a fresh one. */
function clone(world: FaultyWorld, node: NodeMachine, fault: Extract<Fault, { kind: "clone disk" }>): boolean {
  const from = world.nodes[fault.from]
  if (!from || from === node || !from.hasJoined()) return false
  node.kill({ power: true })
  node.cloneFrom(from)
  for (const claim of from.heldClaims()) world.watch.cloned.add(claim)
  for (const twin of [node, from]) world.watch.twins.add(twin.machine.name)
  node.powerOn()
  node.start()
  world.unlessMended(fault.forMs, () => node.makeStranger())
  return true
}

// ── lies ────────────────────────────────────────────────────────────────────────────────────────────────────────────

/** Says what no honest agent would, on the node's own control stream. */
function lie(world: FaultyWorld, node: NodeMachine, how: Lie): boolean {
  const spoken = node.program && world.mesh.spoken.get(node.program)
  // Before its hello a stream is closed whatever it says.
  if (!spoken || spoken.stream.ended.aborted || spoken.frames.length === 0) return false
  const words = lieOf(world, node, how, spoken.frames)
  if (words === null) return false
  const frame = words instanceof Uint8Array ? words : Buffer.from(JSON.stringify(words))
  spoken.stream.send(frame).catch(() => {})
  return true
}

function lieOf(
  world: FaultyWorld,
  { machine }: NodeMachine,
  how: Lie,
  frames: readonly Uint8Array[],
): Uint8Array | ToCoordinator | null {
  const { watch, chance } = world
  const messages = frames.flatMap(readable)
  const reported = messages.findLast((message) => message.type === "report")
  const started = (own: boolean): number[] =>
    [...watch.starts].flatMap(([claim, machines]) => (machines.includes(machine.name) === own ? [claim] : []))
  switch (how) {
    case "old claim": {
      const [oldest] = started(true).filter((claim) => watch.stored.has(claim))
      return oldest === undefined ? null : reportOf(oldest)
    }
    case "foreign claim": {
      const others = started(false)
      if (others.length === 0) return null
      const claim = chance.pick(others)
      // With the key of the node that holds it it is no stranger's word.
      if (watch.twins.has(machine.name)) watch.lied.add(claim)
      return reportOf(claim)
    }
    case "claim never granted":
      return reportOf(1 + chance.integer(2 ** 31))
    case "result twice":
      return reported === undefined ? null : { type: "report", items: [...reported.items, ...reported.items] }
    case "other result": {
      const last = reported?.items.at(-1)
      if (last === undefined) return null
      watch.lied.add(last.claim)
      return reportOf(last.claim)
    }
    case "hours of work": {
      const last = reported?.items.at(-1)
      if (last === undefined) return null
      const [live] = started(true).filter((claim) => !watch.stored.has(claim) && claim !== last.claim)
      if (live === undefined) return null
      watch.lied.add(live)
      return reportOf(live)
    }
    case "result too large": {
      const [own] = started(true).filter((claim) => watch.stored.has(claim))
      return own === undefined ? null : reportOf(own, `"${"x".repeat(200 * 1024)}"`)
    }
    case "garbage":
      return chance.bytes(chance.whole(1, 2_000))
    case "hello again":
      return messages.find(({ type }) => type === "hello") ?? null
  }
}

/** Its own garbage was overheard too. */
function readable(frame: Uint8Array): ToCoordinator[] {
  try {
    return [JSON.parse(Buffer.from(frame).toString()) as ToCoordinator]
  } catch {
    return []
  }
}

function reportOf(claim: number, text = '{"value":"a lie"}'): ToCoordinator {
  const item: ResultItem = {
    claim,
    digest: sha256Hex(`a lie about ${claim}`),
    failure_kind: null,
    exit_code: 0,
    signal: null,
    message: null,
    runtime_ms: 3_600_000,
    cpu_ms: null,
    peak_memory_bytes: null,
    output: "",
    error_tail: "",
    result: { text },
    result_problem: null,
    artifacts: [],
  }
  return { type: "report", items: [item] }
}
