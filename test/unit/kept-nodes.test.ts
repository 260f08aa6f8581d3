import { expect, test } from "vitest"
import { accountId } from "../../protocol/domain/ids.ts"
import { firstSince, keepNodes, mostKept, type DueTask } from "../../coordinator/scheduler/kept-nodes.ts"
import type { PlaceableNode } from "../../coordinator/scheduler/place.ts"
import { createPlacing, machineOf, needs } from "../support/placing.ts"

const AGEING_MS = 300_000
const due = (job: number, cpu: number, sinceMs = 0): DueTask => ({
  job,
  sinceMs,
  wanted: { requirements: needs(cpu), paceMs: null, isWarm: () => false, mayRun: () => true },
})
const keep = (tasks: DueTask[], nodes: PlaceableNode[], before: [string, number][] = []): object =>
  Object.fromEntries(keepNodes(new Map(before), tasks, nodes))
const four = (busy: number[]): PlaceableNode[] => busy.map((cpu, n) => machineOf(`n${n}`, 4, cpu))

test("the wait counts from when a task became first, and starts anew when it was not", () => {
  const [a, b] = [accountId(1), accountId(2)]
  const first = firstSince(new Map(), [{ account: a, job: 1 }], 100)
  const later = firstSince(
    first,
    [
      { account: a, job: 1 },
      { account: b, job: 7 },
    ],
    200,
  )
  expect([later.get(a), later.get(b)]).toEqual([
    { job: 1, sinceMs: 100 },
    { job: 7, sinceMs: 200 },
  ])
  const behind = firstSince(later, [{ account: a, job: 2 }], 300)
  expect([behind.get(a), behind.has(b)]).toEqual([{ job: 2, sinceMs: 300 }, false])
  expect(firstSince(behind, [{ account: a, job: 1 }], 400).get(a)).toEqual({ job: 1, sinceMs: 400 })
})

test("the node on which least has to end is kept, one for each task, none that is too small", () => {
  expect(keep([due(1, 4)], four([4, 2, 3]))).toEqual({ n1: 1 })
  expect(keep([due(1, 4), due(2, 4, 5)], four([4, 2, 3, 4, 4, 4, 4, 4]))).toEqual({ n1: 1, n2: 2 })
  expect(keep([due(1, 5)], four([0, 0]))).toEqual({})
})

test("at most a quarter of the fleet is kept, at least one node, for those who waited longest", () => {
  expect([1, 4, 7, 8, 11, 12].map(mostKept)).toEqual([1, 1, 1, 2, 2, 3])
  expect(keep([due(1, 4, 9), due(2, 4, 3), due(3, 4, 7)], four([1, 2, 3, 4, 4, 4, 4, 4]))).toEqual({ n0: 2, n1: 3 })
})

test("a task keeps its node while others are nearer to free; a node that left or shrank is replaced", () => {
  expect(keep([due(1, 4)], four([4, 1]), [["n0", 1]])).toEqual({ n0: 1 })
  expect(keep([due(1, 4)], four([4, 1]).slice(1), [["n0", 1]])).toEqual({ n1: 1 })
  expect(keep([due(1, 4)], [machineOf("n0", 2), machineOf("n1", 4, 3)], [["n0", 1]])).toEqual({ n1: 1 })
  expect(keep([], four([4, 1]), [["n0", 1]])).toEqual({})
})

test("a kept node takes nothing but its task, and is open again once that is granted", () => {
  const placing = createPlacing(AGEING_MS)
  placing.put({ seq: 1, account: 1, cpu: 4 })
  placing.put({ seq: 2, account: 2, cpu: 1, tasks: 100 })
  const on = (busy: number, atMs: number): [number[], number] => {
    const { places, kept } = placing.look([machineOf("n0", 4, busy)], atMs)
    return [places.map(({ job }) => job), kept.size]
  }
  expect(on(3, 0)).toEqual([[2], 0])
  expect(on(2, AGEING_MS - 1)).toEqual([[2, 2], 0])
  expect(on(2, AGEING_MS)).toEqual([[], 1])
  expect(placing.kept.jobOn("n0" as never)).toBe(1)
  expect([placing.kept.isWaitingFor(1), placing.kept.isWaitingFor(2)]).toEqual([true, false])
  expect(on(0, AGEING_MS + 1)).toEqual([[1], 0])
  expect(on(3, AGEING_MS + 2)).toEqual([[2], 0])
})

test("keeping ends with the job, and when another of its account comes first", () => {
  const placing = createPlacing(AGEING_MS)
  const look = (atMs: number): number => placing.look([machineOf("n0", 4, 4)], atMs).kept.size
  placing.put({ seq: 1, account: 1, cpu: 4 })
  expect([look(0), look(AGEING_MS)]).toEqual([0, 1])
  placing.put({ seq: 2, account: 1, cpu: 3, priority: "high", readySince: AGEING_MS })
  // By then the first has risen to the same rank, and has waited longer.
  expect(look(AGEING_MS + 60_000)).toBe(1)
  placing.queue.remove(1)
  expect(look(AGEING_MS + 60_001)).toBe(0)
  expect(look(2 * AGEING_MS + 60_001)).toBe(1)
  placing.queue.block(2, 0)
  expect(look(2 * AGEING_MS + 60_002)).toBe(0)
  const other = createPlacing(AGEING_MS)
  other.put({ seq: 1, account: 1, cpu: 4, priority: "low" })
  other.look([machineOf("n0", 4, 4)], 0)
  other.put({ seq: 2, account: 1, cpu: 4, priority: "high" })
  other.look([machineOf("n0", 4, 4)], AGEING_MS - 1)
  expect(other.look([machineOf("n0", 4, 4)], AGEING_MS).kept.size).toBe(0)
})

test("what no live node could ever hold is not waited for: the next of its account is first", () => {
  const placing = createPlacing(AGEING_MS)
  placing.put({ seq: 1, account: 1, cpu: 64 })
  placing.put({ seq: 2, account: 1, cpu: 4 })
  placing.look([machineOf("n0", 4, 4)], 0)
  expect([...placing.look([machineOf("n0", 4, 4)], AGEING_MS).kept.values()]).toEqual([2])
})
