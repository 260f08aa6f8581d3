import fc from "fast-check"
import { describe, expect, test } from "vitest"
import { fairTimeMs, FAIRNESS_TEXT, promisedEndMs } from "../../coordinator/scheduler/fairness.ts"
import { runFleet, type Fleet } from "../support/scripted-fleet.ts"

/** What fairness.ts promises, on the real queue, placing and taking back over a fleet of numbers. */

const BIG = 1
const SMALL = 2

interface Workload {
  fleet: Fleet
  runMs: number
  /** How far the big one's tasks are apart at their starts, in parts of a run time. */
  spread: number
  /** How long the big one has been alone. */
  aloneMs: number
  bigTasks?: number
  smallTasks?: number
  bigCpu?: number
  bigRunMs?: (task: number) => number
}

/** When the small one's last task ended, from its submission on. */
function smallEnds(load: Workload): number {
  const { fleet, runMs, aloneMs, bigCpu = 1 } = load
  const slots = fleet.nodes * fleet.coresEach
  // The first tasks end early, so that later ones do not end together.
  const staggered = (task: number): number =>
    task < slots ? Math.max(1, Math.round(runMs * (1 - load.spread * (task / slots)))) : runMs
  const ran = runFleet(
    fleet,
    [
      {
        seq: BIG,
        account: 1,
        submittedMs: 0,
        tasks: load.bigTasks ?? 10_000,
        cpu: bigCpu,
        runMs: load.bigRunMs ?? staggered,
        rate: 0.003 * bigCpu,
      },
      {
        seq: SMALL,
        account: 2,
        submittedMs: aloneMs,
        tasks: load.smallTasks ?? 10,
        cpu: 1,
        runMs: () => runMs,
        rate: 0.003,
      },
    ],
    SMALL,
  )
  return (ran.get(SMALL)?.spans.at(-1)?.endedMs ?? Number.POSITIVE_INFINITY) - aloneMs
}

const fleets = fc.record({ nodes: fc.integer({ min: 1, max: 6 }), coresEach: fc.integer({ min: 1, max: 9 }) })
const spread = fc.constantFrom(0, 0.3, 1)

describe("SC-003, GAP-64: two accounts, 10,000 and 10 tasks", () => {
  test("GAP-64: the small one's last task ends within its fair time and two task run times, on fleets of every size", () => {
    const workload = fc.record({
      fleet: fleets,
      runMs: fc.constantFrom(500, 1_000, 2_000, 5_000, 30_000, 600_000),
      spread,
      alone: fc.double({ min: 0, max: 12, noNaN: true }),
    })
    fc.assert(
      fc.property(workload, ({ alone, ...load }) => {
        const { nodes, coresEach } = load.fleet
        const promised = promisedEndMs({ tasks: 10, runMs: load.runMs, slots: nodes * coresEach, accounts: 2 })
        expect(promised).toBe(
          fairTimeMs({ tasks: 10, runMs: load.runMs, slots: nodes * coresEach, accounts: 2 }) + 2 * load.runMs,
        )
        expect(smallEnds({ ...load, aloneMs: Math.round(alone * load.runMs) })).toBeLessThanOrEqual(promised)
      }),
      { numRuns: 60 },
    )
  })

  test("tasks so short that many are handed ahead of slots add no more than what is told", () => {
    const small = fc.record({ nodes: fc.integer({ min: 1, max: 4 }), coresEach: fc.integer({ min: 1, max: 4 }) })
    const workload = fc.record({ fleet: small, runMs: fc.constantFrom(50, 100, 250), spread })
    fc.assert(
      fc.property(workload, (load) => {
        const slots = load.fleet.nodes * load.fleet.coresEach
        const promised = promisedEndMs({ tasks: 10, runMs: load.runMs, slots, accounts: 2 })
        expect(smallEnds({ ...load, aloneMs: 2_500 })).toBeLessThanOrEqual(promised)
      }),
      { numRuns: 20 },
    )
  })

  test("mixed costs: tasks of two cores beside those of one, slots counted for the small one's", () => {
    const workload = fc.record({
      fleet: fc.record({ nodes: fc.integer({ min: 1, max: 5 }), coresEach: fc.constantFrom(2, 4, 6, 8) }),
      runMs: fc.constantFrom(6_000, 60_000),
      spread,
    })
    fc.assert(
      fc.property(workload, (load) => {
        const slots = load.fleet.nodes * load.fleet.coresEach
        const promised = promisedEndMs({ tasks: 10, runMs: load.runMs, slots, accounts: 2 })
        expect(smallEnds({ ...load, bigCpu: 2, aloneMs: 7 * load.runMs + 1 })).toBeLessThanOrEqual(promised)
      }),
      { numRuns: 40 },
    )
  })

  test("mixed run times: the bound stands with the longest of them", () => {
    const workload = fc.record({ fleet: fleets, seed: fc.nat(1000) })
    fc.assert(
      fc.property(workload, ({ fleet, seed }) => {
        const bigRunMs = (task: number): number => 1_000 + ((task * 7919 + seed * 104_729) % 29_000)
        const slots = fleet.nodes * fleet.coresEach
        const promised = promisedEndMs({ tasks: 10, runMs: 30_000, slots, accounts: 2 })
        const ends = smallEnds({ fleet, runMs: 30_000, spread: 0, bigRunMs, aloneMs: 45_000 })
        expect(ends).toBeLessThanOrEqual(promised)
      }),
      { numRuns: 40 },
    )
  })

  test("what a day of work has used costs the large account nothing when the small one is done", () => {
    const fleet = { nodes: 2, coresEach: 4 }
    const ran = runFleet(
      fleet,
      [
        { seq: BIG, account: 1, submittedMs: 0, tasks: 2_000, cpu: 1, runMs: () => 60_000, rate: 0.003 },
        { seq: SMALL, account: 2, submittedMs: 3600_000, tasks: 10, cpu: 1, runMs: () => 60_000, rate: 0.003 },
      ],
      BIG,
    )
    const ends = (ran.get(BIG)?.spans ?? []).map(({ endedMs }) => endedMs)
    // 2,010 tasks on eight slots that are never idle.
    expect(Math.max(...ends)).toBeLessThanOrEqual(Math.ceil(2_010 / 8) * 60_000)
  })
})

test("the printed formula is the checked one", () => {
  expect(fairTimeMs({ tasks: 10, runMs: 1_000, slots: 8, accounts: 2 })).toBe(2_500)
  expect(fairTimeMs({ tasks: 10, runMs: 1_000, slots: 100, accounts: 2 })).toBe(1_000)
  expect(promisedEndMs({ tasks: 10, runMs: 1_000, slots: 8, accounts: 2 })).toBe(4_500)
  expect(promisedEndMs({ tasks: 10, runMs: 100, slots: 8, accounts: 2 })).toBe(950)
  expect(FAIRNESS_TEXT).toContain("n × d ÷ (slots ÷ accounts)")
})
