import { describe, expect, test } from "vitest"
import {
  isClearlyWorse,
  JOBS_TO_EXPULSION,
  JOBS_TO_PROBATION,
  judgeNode,
  OFFENCES_TO_EXPULSION,
  OFFENCES_TO_PROBATION,
  restMs,
  type NodeRecord,
} from "../../coordinator/fleet/node-rules.ts"
import { createBoots } from "../../coordinator/fleet/boots.ts"
import { nodeId } from "../../protocol/domain/ids.ts"

/** Architecture §5.7 and §5.1; rulings, Losses. */

const NONE = { jobs: 0, toldJobs: 0, jobWitnesses: 0, offences: 0, contentWitnesses: 0, lastOffence: null }
const verdict = (record: Partial<NodeRecord>): string =>
  judgeNode({
    counts: NONE,
    sinceProbation: null,
    own: { ended: 10, blamed: 10 },
    others: { ended: 100, blamed: 0 },
    otherMembers: 10,
    ...record,
  }).verdict

describe("probation", () => {
  test("a node that fails what others complete is put on probation with the third job, not before", () => {
    const counts = (jobs: number): NodeRecord["counts"] => ({ ...NONE, jobs, toldJobs: jobs, jobWitnesses: 2 })
    expect(verdict({ counts: counts(JOBS_TO_PROBATION - 1) })).toBe("good")
    expect(verdict({ counts: counts(JOBS_TO_PROBATION) })).toBe("probation")
  })

  test("a client's flaky program fails everywhere: nobody is put on probation, however many jobs it has", () => {
    const counts = { ...NONE, jobs: 50, toldJobs: 50, jobWitnesses: 10 }
    const own = { ended: 200, blamed: 60 }
    expect(verdict({ counts, own, others: { ended: 2_000, blamed: 600 } })).toBe("good")
    // The same node among others that do well.
    expect(verdict({ counts, own, others: { ended: 2_000, blamed: 20 } })).toBe("probation")
  })

  test("few ends prove nothing: chance makes three of ten out of one of ten", () => {
    expect(isClearlyWorse({ ended: 10, blamed: 3 }, { ended: 10, blamed: 1 })).toBe(false)
    expect(isClearlyWorse({ ended: 3, blamed: 3 }, { ended: 3, blamed: 0 })).toBe(true)
    expect(isClearlyWorse({ ended: 3, blamed: 3 }, { ended: 0, blamed: 0 })).toBe(false)
  })

  test("one node's word alone stands against another only where there is no third", () => {
    const counts = { ...NONE, jobs: 5, toldJobs: 5, jobWitnesses: 1 }
    expect(verdict({ counts })).toBe("good")
    expect(verdict({ counts, otherMembers: 1 })).toBe("probation")
    // What it took and never ran the coordinator saw itself.
    expect(verdict({ counts: { ...counts, toldJobs: 2 } })).toBe("probation")
  })

  test("complaints about content count from three nodes, or from all others where there are fewer", () => {
    const told = (contentWitnesses: number, otherMembers: number): string =>
      verdict({ counts: { ...NONE, contentWitnesses }, otherMembers })
    expect([told(2, 10), told(3, 10), told(1, 2), told(2, 2), told(0, 0)]).toEqual([
      "good",
      "probation",
      "good",
      "probation",
      "good",
    ])
  })

  test("offences against the protocol have a limit of their own, and the last one is the reason", () => {
    const counts = { ...NONE, offences: OFFENCES_TO_PROBATION, lastOffence: "a malformed control frame" }
    expect(verdict({ counts: { ...counts, offences: OFFENCES_TO_PROBATION - 1 } })).toBe("good")
    const judged = judgeNode({
      counts,
      sinceProbation: null,
      own: { ended: 0, blamed: 0 },
      others: { ended: 0, blamed: 0 },
      otherMembers: 0,
    })
    expect(judged).toMatchObject({ verdict: "probation", reason: expect.stringContaining("a malformed control frame") })
  })
})

describe("expulsion", () => {
  const counts = { ...NONE, jobs: 9, jobWitnesses: 3 }

  test("five further jobs on probation expel, as long as others do better", () => {
    const since = (jobs: number): NodeRecord["counts"] => ({ ...NONE, jobs, toldJobs: jobs, jobWitnesses: 2 })
    expect(verdict({ counts, sinceProbation: since(JOBS_TO_EXPULSION - 1) })).toBe("good")
    expect(verdict({ counts, sinceProbation: since(JOBS_TO_EXPULSION) })).toBe("expelled")
    const others = { ended: 100, blamed: 90 }
    expect(verdict({ counts, sinceProbation: since(JOBS_TO_EXPULSION), others })).toBe("good")
  })

  test("offences that go on expel; what others say of its content never does", () => {
    expect(verdict({ counts, sinceProbation: { ...NONE, offences: OFFENCES_TO_EXPULSION } })).toBe("expelled")
    expect(verdict({ counts, sinceProbation: { ...NONE, contentWitnesses: 100 } })).toBe("good")
  })
})

test("one setback costs nothing, unless a claim ended by it; in a row they cost ever longer rests, up to five minutes", () => {
  expect([restMs(1, true), restMs(2, true)]).toEqual([5_000, 5_000])
  expect([1, 2, 3, 4, 100].map((setbacks) => restMs(setbacks))).toEqual([0, 5_000, 10_000, 20_000, 300_000])
})

describe("cloned identity", () => {
  const node = nodeId("node_1")
  const hellos = (...heard: [bootId: string, atMs: number][]): boolean[] => {
    const boots = createBoots()
    return heard.map(([bootId, atMs]) => boots.heard(node, bootId, atMs))
  }

  test("two boot ids that alternate three times within a minute are two machines", () => {
    expect(hellos(["a", 0], ["b", 1_000], ["a", 2_000], ["b", 3_000])).toEqual([false, false, false, true])
  })

  test("an agent that crashes again and again has new boot ids, and one that redials keeps its own", () => {
    expect(hellos(["a", 0], ["b", 1], ["c", 2], ["d", 3], ["e", 4])).not.toContain(true)
    expect(hellos(["a", 0], ["a", 1], ["a", 2], ["b", 3], ["b", 4])).not.toContain(true)
  })

  test("changes that are more than a minute apart say nothing", () => {
    expect(hellos(["a", 0], ["b", 50_000], ["a", 100_000], ["b", 170_000])).not.toContain(true)
  })

  test("the newer is the one that was heard of last", () => {
    const boots = createBoots()
    for (const bootId of ["a", "b", "a"]) boots.heard(node, bootId, 0)
    expect([boots.isNewest(node, "a"), boots.isNewest(node, "b")]).toEqual([false, true])
  })
})
