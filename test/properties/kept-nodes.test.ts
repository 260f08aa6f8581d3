import fc from "fast-check"
import { expect, test } from "vitest"
import { mostKept } from "../../coordinator/scheduler/kept-nodes.ts"
import { createPlacing, machineOf } from "../support/placing.ts"

const AGEING_MS = 10_000
const CORES = 4
const LARGE = [1, 2, 3]

interface Fleet {
  nodes: number
  /** How long small tasks run, one after another, over and over. */
  runMs: number[]
  /** Tasks that need a whole node, each of an account of its own, all waiting from the start. */
  large: number
}

interface Run {
  /** When each large task started; absent: never. */
  startedAtMs: Map<number, number>
  /** Small tasks that started while a node was kept. */
  startedBeside: number
  longestMs: number
}

const fleet: fc.Arbitrary<Fleet> = fc
  .record({
    nodes: fc.integer({ min: 1, max: 13 }),
    runMs: fc.array(fc.integer({ min: 50, max: 4_000 }), { minLength: 1, maxLength: 12 }),
    large: fc.integer({ min: 1, max: 3 }),
  })
  .map((one) => ({ ...one, large: Math.min(one.large, mostKept(one.nodes)) }))

/** Small tasks of another account never stop coming; every end leads to a look, as in the coordinator. */
function run({ nodes: count, runMs, large }: Fleet, ageingMs: number, untilMs: number): Run {
  const placing = createPlacing(ageingMs)
  const used = Array.from({ length: count }, () => 0)
  const ends: { atMs: number; node: number; cpu: number }[] = []
  const result: Run = { startedAtMs: new Map(), startedBeside: 0, longestMs: Math.max(...runMs) }
  let next = 0
  let nowMs = 0

  function look(): void {
    placing.put({ seq: 100, account: 100, cpu: 1, tasks: 500 })
    const nodes = used.map((cpu, n) => machineOf(`n${n}`, CORES, cpu))
    const { places, kept } = placing.look(nodes, nowMs)
    expect(kept.size).toBeLessThanOrEqual(mostKept(count))
    for (const { job, node } of places) {
      const keptFor = kept.get(node)
      expect(keptFor === undefined || keptFor === job).toBe(true)
      const at = nodes.indexOf(node)
      const isLarge = job !== 100
      used[at] = (used[at] ?? 0) + (isLarge ? CORES : 1)
      if (isLarge) result.startedAtMs.set(job, nowMs)
      else if (kept.size > 0) result.startedBeside += 1
      const runsMs = isLarge ? 1_000 : (runMs[next++ % runMs.length] ?? 1)
      ends.push({ atMs: nowMs + runsMs, node: at, cpu: isLarge ? CORES : 1 })
    }
    for (const cpu of used) expect(cpu).toBeLessThanOrEqual(CORES)
  }

  look()
  for (const seq of LARGE.slice(0, large)) placing.put({ seq, account: seq, cpu: CORES })
  look()
  while (nowMs < untilMs && result.startedAtMs.size < large) {
    ends.sort((a, b) => a.atMs - b.atMs)
    const end = ends.shift()
    if (!end) throw new Error("something always runs")
    nowMs = end.atMs
    used[end.node] = (used[end.node] ?? 0) - end.cpu
    look()
  }
  return result
}

/** Ends of small tasks never fall together: without keeping, no node is ever free of them. */
const STAGGERED: Fleet = { nodes: 5, runMs: [900, 1_000, 1_100, 1_300], large: 1 }

test("architecture §5.4: a large task that is first starts within one ageing interval and the longest running task", () => {
  fc.assert(
    fc.property(fleet, (one) => {
      const { startedAtMs, longestMs } = run(one, AGEING_MS, 10 * AGEING_MS)
      for (const seq of LARGE.slice(0, one.large)) {
        expect(startedAtMs.get(seq) ?? Number.POSITIVE_INFINITY).toBeLessThanOrEqual(AGEING_MS + longestMs)
      }
    }),
    { numRuns: 80 },
  )
})

test("without room kept for it, it would wait for ever; with it, small tasks still run elsewhere", () => {
  expect(run(STAGGERED, Number.POSITIVE_INFINITY, 100_000).startedAtMs.size).toBe(0)
  const kept = run(STAGGERED, AGEING_MS, 100_000)
  expect(kept.startedAtMs.get(1)).toBeGreaterThanOrEqual(AGEING_MS)
  expect(kept.startedBeside).toBeGreaterThan(5)
})
