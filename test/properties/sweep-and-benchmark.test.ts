import fc from "fast-check"
import { expect, test } from "vitest"
import { aggregateOnWire, createFold } from "../../coordinator/jobs/aggregate/fold.ts"
import { planTasks } from "../../coordinator/jobs/plan/plan.ts"
import { parseSubmission } from "../../coordinator/jobs/submission/parse-submission.ts"
import type { Submission } from "../../coordinator/jobs/submission/submission.ts"
import { stringifyJson } from "../../protocol/base/json-text.ts"

const LEAST = { project: "p", runner_command: ["python", "x.py"], rank_by: "s" }

const parameters = fc
  .dictionary(
    fc.string({ minLength: 1, maxLength: 8 }).filter((name) => !name.startsWith("_") && !/^\d+$/.test(name)),
    fc.uniqueArray(fc.oneof(fc.integer(), fc.string()), { minLength: 1, maxLength: 6 }),
    { minKeys: 1, maxKeys: 4 },
  )
  .filter((lists) => Object.values(lists).reduce((product, { length }) => product * length, 1) <= 1000)

test("SW-001, SW-004: any sweep has each combination exactly once, under its own index", () => {
  fc.assert(
    fc.property(parameters, fc.dictionary(fc.string(), fc.jsonValue()), (lists, fixed) => {
      const { submission } = parseSubmission({ ...LEAST, type: "sweep", parameters: lists, fixed_payload: fixed })
      const plan = planTasks(submission)
      const size = Object.values(lists).reduce((product, { length }) => product * length, 1)
      expect(plan.count).toBe(size)
      const seen = new Set<string>()
      for (let index = 0; index < plan.count; index++) {
        const text = plan.payloadText(index)
        expect(Buffer.byteLength(text)).toBe(plan.payloadBytes(index))
        const payload = JSON.parse(text) as Record<string, unknown>
        const params = payload["_sweep_params"] as Record<string, unknown>
        expect(payload["_sweep_idx"]).toBe(index)
        expect(Object.keys(params)).toEqual(Object.keys(lists))
        for (const [name, values] of Object.entries(lists)) {
          expect(values).toContain(params[name])
          expect(payload[name]).toBe(params[name])
        }
        seen.add(JSON.stringify(params))
      }
      expect(seen.size).toBe(size)
    }),
    { numRuns: 100 },
  )
})

/** What tasks left: a number, something else, or nothing because they failed. */
const outcomes = (count: number): fc.Arbitrary<(number | "text" | "failed")[]> =>
  fc.array(
    fc.oneof(
      { weight: 6, arbitrary: fc.integer({ min: -5, max: 5 }) },
      { weight: 1, arbitrary: fc.constant("text" as const) },
      { weight: 1, arbitrary: fc.constant("failed" as const) },
    ),
    { minLength: count, maxLength: count },
  )

function summaryOf(submission: Submission, left: (number | "text" | "failed")[]): Record<string, unknown> {
  const fold = createFold(submission, planTasks(submission))
  for (const [index, value] of left.entries()) {
    if (value === "failed") fold.add({ index, status: "failed", resultText: null })
    else fold.add({ index, status: "completed", resultText: JSON.stringify({ s: value }) })
    // Asking in between changes nothing: running jobs show what they have.
    if (index % 3 === 0) fold.finish()
  }
  return JSON.parse(stringifyJson(aggregateOnWire(fold.finish()))) as Record<string, unknown>
}

test("SW-006: any sweep's rows are its completed tasks in order, with ranks 1, 2, … and then none", () => {
  const sweep = fc
    .integer({ min: 1, max: 30 })
    .chain((count) => fc.record({ rankOrder: fc.constantFrom("asc" as const, "desc" as const), left: outcomes(count) }))
  fc.assert(
    fc.property(sweep, ({ rankOrder, left }) => {
      const sent = { ...LEAST, type: "sweep", parameters: { n: left.map((_, n) => n) }, rank_order: rankOrder }
      const { results, best } = summaryOf(parseSubmission(sent).submission, left) as {
        results: { params: { n: number }; result: { s: unknown }; rank: number | null }[]
        best: unknown
      }
      const completed = left.flatMap((value, n) => (value === "failed" ? [] : [n]))
      expect(results.map(({ params }) => params.n).toSorted((a, b) => a - b)).toEqual(completed)
      const numbers = left.filter((value) => typeof value === "number").length
      expect(results.map(({ rank }) => rank)).toEqual(results.map((_, at) => (at < numbers ? at + 1 : null)))
      const places = results.map(({ params, result: { s: score } }): [number, number] => [
        typeof score === "number" ? (rankOrder === "asc" ? score : -score) : Number.POSITIVE_INFINITY,
        params.n,
      ])
      expect(places).toEqual(places.toSorted((a, b) => (a[0] === b[0] ? a[1] - b[1] : a[0] - b[0])))
      expect(best).toEqual(numbers === 0 ? null : results[0])
    }),
    { numRuns: 150 },
  )
})

test("BM-006, BM-007: any leaderboard has the mean and the spread of what its candidates' replicas left", () => {
  const shape = fc.record({ candidates: fc.integer({ min: 2, max: 6 }), replicas: fc.integer({ min: 1, max: 8 }) })
  const board = shape.chain(({ candidates, replicas }) =>
    fc.record({
      candidates: fc.constant(candidates),
      replicas: fc.constant(replicas),
      left: outcomes(candidates * replicas),
    }),
  )
  fc.assert(
    fc.property(board, ({ candidates, replicas, left }) => {
      const configs = Object.fromEntries(Array.from({ length: candidates }, (_, n) => [`c${n}`, { n }]))
      const { submission } = parseSubmission({ ...LEAST, type: "benchmark", candidates: configs, replicas })
      const { leaderboard } = summaryOf(submission, left) as { leaderboard: Row[] }
      expect(leaderboard.map(({ candidate }) => candidate).toSorted()).toEqual(Object.keys(configs).toSorted())
      let last: Row | undefined
      for (const row of leaderboard) {
        const at = Number(row.candidate.slice(1)) * replicas
        const usable = left.slice(at, at + replicas).filter((value) => typeof value === "number")
        const mean = usable.reduce((sum, value) => sum + value, 0) / usable.length
        expect(row.count).toBe(usable.length)
        if (usable.length === 0) {
          expect(row).toMatchObject({ mean: null, std: null, min: null, max: null, rank: null })
          continue
        }
        const squares = usable.reduce((sum, value) => sum + (value - mean) ** 2, 0)
        expect(row.mean).toBeCloseTo(mean, 9)
        expect(row.std).toBeCloseTo(usable.length === 1 ? 0 : Math.sqrt(squares / (usable.length - 1)), 9)
        expect([row.min, row.max]).toEqual([Math.min(...usable), Math.max(...usable)])
        expect(row.rank).toBe((last?.rank ?? 0) + 1)
        if (last) expect(last.mean ?? 0).toBeGreaterThanOrEqual(row.mean ?? 0)
        last = row
      }
    }),
    { numRuns: 100 },
  )
})

interface Row {
  candidate: string
  mean: number | null
  std: number | null
  min: number | null
  max: number | null
  count: number
  rank: number | null
}
