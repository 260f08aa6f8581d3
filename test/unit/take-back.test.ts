import { expect, test } from "vitest"
import type { Clock } from "../../protocol/base/clock.ts"
import { claimNumber } from "../../protocol/domain/ids.ts"
import type { Wanted } from "../../coordinator/scheduler/place.ts"
import {
  createTakeBacks,
  type HeldTask,
  type HoldingNode,
  type TakeBackFacts,
} from "../../coordinator/scheduler/take-back.ts"
import { tasksAhead, usedBeside } from "../../coordinator/scheduler/tasks-ahead.ts"
import { machineOf, needs } from "../support/placing.ts"

const PACE_MS = 1_000

const held = (claim: number, state: HeldTask["state"], job = 1, cpu = 1, grantedAtMs = 0): HeldTask => ({
  claim: claimNumber(claim),
  job,
  task: claim,
  state,
  requirements: needs(cpu),
  grantedAtMs,
})

/** A machine that holds these, whatever its cores. */
function holding(id: string, cpu: number, tasks: HeldTask[]): HoldingNode {
  const busy = tasks.reduce((sum, { requirements }) => sum + requirements.cpu, 0)
  return { ...machineOf(id, cpu, busy), attempts: new Map(tasks.map((task) => [task.claim, task])) }
}

const wanted = (more: Partial<Wanted> = {}): Wanted => ({
  requirements: needs(1),
  paceMs: PACE_MS,
  isWarm: () => true,
  mayRun: () => true,
  ...more,
})

/** Two slots, both taken, and three tasks ahead of them. */
const full = (job = 1): HoldingNode =>
  holding("full", 2, [
    held(11, "running"),
    held(12, "accepted", job),
    held(13, "accepted", job),
    held(14, "offered", job),
    held(15, "accepted", job),
  ])

let nowMs = 0
const clock: Clock = {
  now: () => nowMs,
  monotonicMs: () => nowMs,
  after() {
    throw new Error("nothing here waits for time: it is asked when something changes")
  },
}

function asker() {
  const backs = createTakeBacks(clock)
  return (nodes: HoldingNode[], more: Partial<TakeBackFacts> = {}): string[] =>
    backs
      .choose({
        nodes,
        awaited: new Map(),
        kept: new Map(),
        wanted: () => wanted(),
        precedes: () => false,
        isHeld: (claim) => nodes.some(({ attempts }) => attempts.has(claim)),
        ...more,
      })
      .map(({ from, task, to }) => `${task.claim} from ${from.id} ${to ? `to ${to.id}` : "for another"}`)
}

test("what stands ahead of slots is what cannot have started for want of room, in the order of its grants", () => {
  expect(tasksAhead(full().capacity, full().attempts.values()).map(({ claim }) => claim)).toEqual([13, 14, 15])
  // A small one passes a large one that does not fit: the node starts tasks in this order too.
  const mixed = [held(1, "running", 1, 1.5), held(2, "accepted", 1, 1), held(3, "accepted", 1, 0.5)]
  expect(tasksAhead(machineOf("n", 2).capacity, mixed).map(({ claim }) => claim)).toEqual([2])
  expect(tasksAhead(machineOf("n", 2).capacity, [held(9, "accepted"), held(8, "accepted")])).toEqual([])
})

test("what is free beside a task stays free where all that stands ahead is of its size, and only there", () => {
  const capacity = machineOf("n", 9).capacity
  const running = held(1, "running", 1, 8)
  expect(usedBeside(capacity, [running, held(2, "accepted", 1, 8), held(3, "offered", 1, 8)])?.cpu).toBe(8)
  expect(usedBeside(capacity, [running, held(2, "accepted", 1, 8), held(3, "offered", 2, 1)])?.cpu).toBe(9)
  // The larger one would need the core that is free now.
  expect(usedBeside(capacity, [running, held(2, "accepted", 2, 9)])).toBeNull()
  expect(usedBeside(capacity, [running])).toBeNull()
})

test("architecture §5.4: a free slot elsewhere takes the last in line, as many as it has slots", () => {
  expect(asker()([full(), holding("free", 1, [])])).toEqual(["15 from full to free"])
  expect(asker()([full(), holding("free", 9, [])])).toEqual(["15 from full to free", "14 from full to free"])
  expect(asker()([full()])).toEqual([])
})

test("who starts sooner than a move takes is left alone", () => {
  const quick = { wanted: () => wanted({ paceMs: 300 }) }
  expect(asker()([full(), holding("free", 9, [])], quick)).toEqual([])
})

test("who should have started long ago by the pace of its job is asked back: the pace was wrong", () => {
  const quick = { wanted: () => wanted({ paceMs: 0.1 }) }
  const node = full()
  const awaiting = { ...quick, awaited: new Map([[node, 7]]), precedes: () => true }
  const since = nowMs
  expect(asker()([node], awaiting)).toEqual([])
  nowMs = since + 4_001
  expect(asker()([node], awaiting)).toEqual(["15", "14", "13"].map((claim) => `${claim} from full for another`))
  nowMs = since
})

test("a slot counts only where the runtime is ready, the task fits and may run, and nothing else is kept", () => {
  const only = (more: Partial<Wanted>) => ({ wanted: () => wanted(more) })
  const free = holding("free", 9, [])
  expect(asker()([full(), free], only({ isWarm: () => false }))).toEqual([])
  expect(asker()([full(), free], only({ mayRun: () => false }))).toEqual([])
  expect(asker()([full(), holding("small", 0.5, [])])).toEqual([])
  expect(asker()([full(), free], { kept: new Map([[free, 9]]) })).toEqual([])
})

test("a task of higher order gets the room that others stand ahead in; one of lower order does not", () => {
  const node = full()
  const awaited = new Map([[node, 7]])
  const all = ["15", "14", "13"].map((claim) => `${claim} from full for another`)
  expect(asker()([node], { awaited, precedes: (job, other) => job === 7 && other === 1 })).toEqual(all)
  expect(asker()([node], { awaited, precedes: () => false })).toEqual([])
  expect(asker()([node], { awaited: new Map([[node, 1]]), precedes: () => true })).toEqual([])
  expect(asker()([node], { kept: new Map([[node, 7]]) })).toEqual(all)
})

test("a number is asked for once, whatever is answered, and its slot is not promised twice meanwhile", () => {
  const ask = asker()
  expect(ask([full(), holding("free", 1, [])])).toHaveLength(1)
  for (let look = 0; look < 5; look++) expect(ask([full(), holding("free", 1, [])])).toEqual([])
  nowMs += 60_000
  // The first was started after all: the slot may be offered to the next in line, and then to none.
  expect(ask([full(), holding("free", 1, [])])).toEqual(["14 from full to free"])
  nowMs += 60_000
  expect(ask([full(), holding("free", 1, [])])).toEqual(["13 from full to free"])
  nowMs += 60_000
  expect(ask([full(), holding("free", 1, [])])).toEqual([])
})

test("a task that came back rests: it is not passed round, though its number is a new one", () => {
  const ask = asker()
  const line = (claim: number): HoldingNode =>
    holding("full", 1, [held(1, "running"), { ...held(claim, "accepted"), task: 5 }])
  const seen: number[] = []
  for (let claim = 100; claim < 200; claim++) {
    nowMs += 100
    if (ask([line(claim), holding("free", 1, [])]).length > 0) seen.push(nowMs)
  }
  expect(seen.length).toBeLessThanOrEqual(2)
})

test("a fleet in which nobody stands ahead asks for nothing", () => {
  const ask = asker()
  const busy = holding("busy", 2, [held(1, "running"), held(2, "accepted")])
  const free = holding("free", 2, [])
  expect(ask([busy, free], { awaited: new Map([[busy, 7]]), precedes: () => true })).toEqual([])
})
