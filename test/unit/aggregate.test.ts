import fc from "fast-check"
import { expect, test } from "vitest"
import { aggregateOnWire, createFold, type Aggregate, type TaskOutcome } from "../../coordinator/jobs/aggregate/fold.ts"
import { planTasks } from "../../coordinator/jobs/plan/plan.ts"
import { parseSubmission } from "../../coordinator/jobs/submission/parse-submission.ts"
import { completeness } from "../../protocol/api/jobs.ts"
import { stringifyJson } from "../../protocol/base/json-text.ts"

const least = { project: "p", runner_command: ["python", "x.py"] }

/** A result that a program wrote, or how the task ended without one; undefined: has not ended. */
type Ending = { wrote: unknown } | { text: string } | "failed" | "cancelled" | "nothing" | undefined

function outcomesOf(endings: Ending[]): TaskOutcome[] {
  return endings.flatMap((ending, index): TaskOutcome[] => {
    if (ending === undefined) return []
    if (ending === "failed" || ending === "cancelled") return [{ index, status: ending, resultText: null }]
    if (ending === "nothing") return [{ index, status: "completed", resultText: null }]
    return [{ index, status: "completed", resultText: "text" in ending ? ending.text : JSON.stringify(ending.wrote) }]
  })
}

function aggregate(fields: object, endings: Ending[]): Aggregate {
  const { submission } = parseSubmission({ type: "structured_runner", ...least, ...fields })
  const fold = createFold(submission, planTasks(submission))
  for (const outcome of outcomesOf(endings)) fold.add(outcome)
  return fold.finish()
}

/** As a client reads it. */
function read(fields: object, endings: Ending[]): Record<string, unknown> & { aggregate_result: unknown } {
  return JSON.parse(stringifyJson(aggregateOnWire(aggregate(fields, endings)))) as Record<string, unknown> & {
    aggregate_result: unknown
  }
}

const chunks = (count: number): object => ({ fan_out: { chunks: count, total: 10 * count } })
const wrote = (value: unknown): Ending => ({ wrote: value })

test("SR-013, GAP-36: collect lists all results in task order, null for failed ones", () => {
  const {
    aggregate_result,
    results,
    completeness: coverage,
  } = read(chunks(4), [wrote({ a: 1 }), "failed", wrote([2]), "cancelled"])
  expect(aggregate_result).toEqual([{ a: 1 }, null, [2], null])
  expect(results).toEqual(aggregate_result)
  expect(coverage).toEqual({
    complete: false,
    total_tasks: 4,
    completed_tasks: 2,
    failed_tasks: 1,
    cancelled_tasks: 1,
    pending_tasks: 0,
    total_items: 4,
    completed_items: 2,
  })
})

test("RS-007: while the job runs, the results so far stand at their indexes", () => {
  const { aggregate_result, completeness: coverage } = read(chunks(5), [
    undefined,
    wrote(1),
    undefined,
    wrote(3),
    undefined,
  ])
  expect(aggregate_result).toEqual([null, 1, null, 3])
  expect(coverage).toMatchObject({ complete: false, pending_tasks: 3 })
})

test("results keep the text their program wrote", () => {
  const text = '{"b":9007199254740993,"a":1.50}'
  expect(aggregate(chunks(1), [{ text }]).result?.text).toBe(`[${text}]`)
  const keyed = aggregate({ payload: { m: ["k"] }, fan_out: { by: "m" }, merge_strategy: "keyed" }, [{ text }])
  expect(keyed.result?.text).toBe(`{"k":${text}}`)
})

test("SR-014: keyed puts each result under its element, null where the task failed", () => {
  const keyed = { payload: { m: ["a", "b", "a", "__proto__"] }, fan_out: { by: "m" }, merge_strategy: "keyed" }
  const { result } = aggregate(keyed, [wrote(1), "failed", wrote(3), "nothing"])
  expect(result?.text).toBe('{"a":1,"b":null,"a#2":3,"__proto__":null}')
  expect(aggregate(keyed, [undefined, wrote(2)]).result?.text).toBe('{"b":2}')
})

test("GAP-35: a pack's list is split among its items, any other result stands under each", () => {
  const keyed = {
    payload: { m: ["a", "b", "c", "d", "e"] },
    fan_out: { by: "m", batch_size: 2 },
    merge_strategy: "keyed",
  }
  const { aggregate_result, completeness: coverage } = read(keyed, [
    wrote([{ s: 1 }, { s: 2 }]),
    wrote([1, 2, 3]),
    "failed",
  ])
  expect(aggregate_result).toEqual({ a: { s: 1 }, b: { s: 2 }, c: [1, 2, 3], d: [1, 2, 3], e: null })
  expect(coverage).toMatchObject({ total_items: 5, completed_items: 4, total_tasks: 3 })
})

test("a list that one item of an unbatched keyed job wrote stays its result", () => {
  const keyed = { payload: { m: ["a"] }, fan_out: { by: "m" }, merge_strategy: "keyed" }
  expect(aggregate(keyed, [wrote([7])]).result?.text).toBe('{"a":[7]}')
})

const weighted = { merge_strategy: "weighted_avg", value_field: "edge", weight_field: "count" }

test("SR-015, SR-016, RS-005: weighted_avg over chunk counts, with aliases and coverage", () => {
  const fields = { ...weighted, fan_out: { chunks: 3, total: 10 } } // counts 4, 3, 3
  const half = read(fields, [wrote({ edge: 1 }), undefined, wrote({ edge: 8 })])
  const coverage = { weight_field: "count", expected_weight: 10, completed_weight: 7, pending_weight: 3 }
  expect(half.aggregate_result).toEqual({ value: 4, value_field: "edge", ...coverage })
  expect(half).toMatchObject({ avg_edge: 4, aggregate_aliases: { avg_edge: 4 }, completeness: coverage, ...coverage })
})

test("GAP-37: a weight in the result wins over the payload's, and avg_ is not doubled", () => {
  const fields = { ...weighted, value_field: "avg_edge", fan_out: { chunks: 2, total: 4 } }
  const { aggregate_aliases, completeness: coverage } = read(fields, [
    wrote({ avg_edge: 1, count: 3 }),
    wrote({ avg_edge: 5, count: 1 }),
  ])
  expect(aggregate_aliases).toEqual({ avg_edge: 2 })
  expect(coverage).toMatchObject({ expected_weight: 4, completed_weight: 4, pending_weight: 0 })
})

test("weights known from results alone count once their tasks have ended", () => {
  const fields = { ...weighted, weight_field: "n", fan_out: { items: [{}, {}, {}] } }
  const { completeness: coverage } = read(fields, [wrote({ edge: 2, n: 5 }), "failed"])
  expect(coverage).toMatchObject({ expected_weight: 5, completed_weight: 5, pending_weight: 0 })
})

test("a task without a usable value or weight is left out with a warning, its weight pending", () => {
  const fields = { ...weighted, fan_out: { chunks: 5, total: 10 } }
  const {
    aggregate_aliases,
    completeness: coverage,
    aggregate_warnings,
  } = read(fields, [wrote({ edge: 3 }), wrote({ edge: "3" }), "nothing", wrote({ edge: 1, count: -1 }), "failed"])
  expect(aggregate_aliases).toEqual({ avg_edge: 3 })
  expect(coverage).toMatchObject({ expected_weight: 10, completed_weight: 2, pending_weight: 8 })
  expect(aggregate_warnings).toEqual([
    "task 1 is left out of the weighted average: it has no number edge",
    "task 2 is left out of the weighted average: it has no number edge",
    "task 3 is left out of the weighted average: it has no number count of at least 0",
  ])
})

test("weighted_avg at zero weight is null, and so is its alias", () => {
  const fields = { ...weighted, weight_field: "n", fan_out: { items: [{}] } }
  expect(read(fields, [wrote({ edge: 1, n: 0 })])).toMatchObject({
    value: null,
    avg_edge: null,
    aggregate_result: { value: null },
  })
  expect(read(fields, ["failed"])).toMatchObject({ aggregate_aliases: { avg_edge: null } })
})

test("a pack's list counts item by item in a weighted average, else as a whole", () => {
  const fields = {
    ...weighted,
    weight_field: "w",
    fan_out: { items: [{ w: 1 }, { w: 3 }, { w: 4 }, { w: 4 }], batch_size: 2 },
  }
  const { aggregate_aliases } = read(fields, [wrote([{ edge: 4 }, { edge: 8 }]), wrote({ edge: 1 })])
  expect(aggregate_aliases).toEqual({ avg_edge: (4 * 1 + 8 * 3 + 1 * 8) / 12 })
})

function reduced(
  reduce: Record<string, string>,
  endings: Ending[],
  payload = {},
): { reduced: unknown; warnings: string[] } {
  const fields = { type: "map_reduce", payload, split: { field: "s", total: 100, chunks: endings.length }, reduce }
  const wire = read(fields, endings)
  expect(wire.aggregate_result).toEqual({ reduced: wire["reduced"] })
  return { reduced: wire["reduced"], warnings: (wire["aggregate_warnings"] ?? []) as string[] }
}

test("MR-004, MR-005: each operator over known inputs", () => {
  const operators = {
    s: "sum",
    m: "mean",
    hi: "max",
    lo: "min",
    w: "weighted_avg:n",
    text: "concat",
    list: "concat",
    c: "count",
    all: "collect",
  }
  const row = (s: number, n: number): Ending =>
    wrote({ s, m: s, hi: s, lo: s, w: s, n, text: `t${s}`, list: [s, n], c: null, all: { s } })
  expect(reduced(operators, [row(1, 1), "failed", row(-4, 3), row(6, 1)]).reduced).toEqual({
    s: 3,
    m: 1,
    hi: 6,
    lo: -4,
    w: -1,
    text: "t1t-4t6",
    list: [1, 1, -4, 3, 6, 1],
    c: 3,
    all: [{ s: 1 }, { s: -4 }, { s: 6 }],
  })
})

test("GAP-39: reduced over nothing: null, but 0 for sum and count, [] for concat and collect", () => {
  const operators = {
    a: "sum",
    b: "mean",
    c: "max",
    d: "min",
    e: "weighted_avg:n",
    f: "concat",
    g: "count",
    h: "collect",
  }
  const nothing = { a: 0, b: null, c: null, d: null, e: null, f: [], g: 0, h: [] }
  expect(reduced(operators, ["failed", wrote({}), wrote("text"), "nothing"])).toEqual({
    reduced: nothing,
    warnings: [],
  })
})

test("GAP-39: values that an operator cannot use are left out with a warning", () => {
  const { reduced: values, warnings } = reduced({ a: "sum", f: "concat", w: "weighted_avg:n" }, [
    wrote({ a: 1, f: "x", w: 1, n: 1 }),
    wrote({ a: "2", f: 5, w: 1, n: "many" }),
    { text: '{"a":1e999,"w":null,"n":1}' },
  ])
  expect(values).toEqual({ a: 1, f: "x", w: 1 })
  expect(warnings).toEqual([
    "task 1 is left out of a: its value is no number",
    "task 1 is left out of f: its value is neither a string nor a list",
    "task 1 is left out of w: its weight n is no number of at least 0",
    "task 2 is left out of a: its value is no number",
    "task 2 is left out of w: its value is no number",
  ])
})

test("concat of strings and lists mixed gives a list; count includes an explicit null; zero weight gives null", () => {
  const { reduced: values } = reduced({ f: "concat", c: "count", w: "weighted_avg:n" }, [
    wrote({ f: "x", c: null, w: 5, n: 0 }),
    wrote({ f: ["y", 1], c: 0, w: 5, n: 0 }),
  ])
  expect(values).toEqual({ f: ["x", "y", 1], c: 2, w: null })
})

test("a reduce weight may stand in the task's payload, and fields may have any name", () => {
  expect(reduced({ v: "weighted_avg:s_count" }, [wrote({ v: 1 }), wrote({ v: 3 })]).reduced).toEqual({ v: 2 })
  expect(
    aggregate(
      {
        type: "map_reduce",
        split: { field: "s", total: 1, chunks: 1 },
        reduce: JSON.parse('{"__proto__":"sum","constructor":"count"}') as object,
      },
      [{ text: '{"__proto__":5}' }],
    ).result?.text,
  ).toBe('{"reduced":{"__proto__":5,"constructor":0}}')
})

test("collected and concatenated values keep the text their program wrote", () => {
  const text = '{"all":9007199254740993,"list":[9007199254740993]}'
  const fields = {
    type: "map_reduce",
    split: { field: "s", total: 1, chunks: 1 },
    reduce: { all: "collect", list: "concat" },
  }
  expect(aggregate(fields, [{ text }]).result?.text).toBe(
    '{"reduced":{"all":[9007199254740993],"list":[9007199254740993]}}',
  )
})

test("a sum that leaves the range of doubles is null, not text that is no JSON", () => {
  expect(
    reduced({ a: "sum", b: "mean" }, [wrote({ a: 1e308, b: 1e308 }), wrote({ a: 1e308, b: 1e308 })]).reduced,
  ).toEqual({ a: null, b: null })
  const fields = { ...weighted, weight_field: "n", fan_out: { items: [{}] } }
  expect(read(fields, [wrote({ edge: 1e308, n: 1e308 })])).toMatchObject({ avg_edge: null })
})

test("an aggregate too large for one reply is left out with a warning, the counts stay", () => {
  const large: Ending = { text: JSON.stringify("x".repeat(6_000_000)) }
  const {
    aggregate_result,
    results,
    aggregate_warnings,
    completeness: coverage,
  } = read(chunks(3), [large, large, large])
  expect([aggregate_result, results]).toEqual([null, null])
  expect(aggregate_warnings).toEqual([expect.stringContaining("read the task rows")])
  expect(coverage).toMatchObject({ complete: true })
})

test("many warnings are cut to some and a count", () => {
  const { warnings } = reduced(
    { a: "sum" },
    Array.from({ length: 50 }, () => wrote({ a: "x" })),
  )
  expect(warnings).toHaveLength(21)
  expect(warnings.at(-1)).toBe("and 30 more")
})

test("outcomes out of order or twice are a bug, and said to be one", () => {
  expect(() => aggregate(chunks(2), [wrote(1)])).not.toThrow()
  const { submission } = parseSubmission({ type: "structured_runner", ...least })
  const fold = createFold(submission, planTasks(submission))
  fold.add({ index: 0, status: "failed", resultText: null })
  expect(() => fold.add({ index: 0, status: "failed", resultText: null })).toThrow("in order")
})

const anyEnding = fc.oneof(
  fc.record({
    wrote: fc.record({
      edge: fc.double({ noNaN: true, noDefaultInfinity: true, min: -1e6, max: 1e6 }),
      n: fc.nat(1000),
    }),
  }),
  fc.record({ wrote: fc.jsonValue({ maxDepth: 2 }) }),
  fc.constantFrom<Ending>("failed", "cancelled", "nothing", undefined),
)
const anyJob = fc.constantFrom<(count: number) => object>(
  (count) => chunks(count),
  (count) => ({
    payload: { m: Array.from({ length: count }, (_, index) => index % 3) },
    fan_out: { by: "m" },
    merge_strategy: "keyed",
  }),
  (count) => ({ ...chunks(count), ...weighted, weight_field: "n" }),
  (count) => ({ ...chunks(count), ...weighted }),
  (count) => ({
    type: "map_reduce",
    split: { field: "s", total: count, chunks: count },
    reduce: { edge: "mean", n: "sum", a: "collect", b: "concat" },
  }),
)

test("the aggregate is the same however it is sliced, and looking at it changes nothing", () => {
  fc.assert(
    fc.property(anyJob, fc.array(anyEnding, { minLength: 1, maxLength: 12 }), (job, endings) => {
      const fields = { type: "structured_runner", ...least, ...job(endings.length) }
      const { submission } = parseSubmission(fields)
      const fold = createFold(submission, planTasks(submission))
      for (const outcome of outcomesOf(endings)) {
        fold.add(outcome)
        fold.finish()
      }
      expect(stringifyJson(aggregateOnWire(fold.finish()))).toBe(
        stringifyJson(aggregateOnWire(aggregate(job(endings.length), endings))),
      )
    }),
  )
})

test("whatever programs write, the aggregate is valid JSON whose counts and weights agree", () => {
  fc.assert(
    fc.property(anyJob, fc.array(anyEnding, { minLength: 1, maxLength: 12 }), (job, endings) => {
      const wire = read(job(endings.length), endings)
      const coverage = completeness.parse(wire["completeness"])
      const ended = coverage.completed_tasks + coverage.failed_tasks + coverage.cancelled_tasks
      expect(ended + coverage.pending_tasks).toBe(endings.length)
      expect(coverage.complete).toBe(coverage.completed_tasks === endings.length)
      if (coverage.expected_weight === undefined) return
      expect((coverage.completed_weight ?? 0) + (coverage.pending_weight ?? 0)).toBeCloseTo(coverage.expected_weight, 6)
    }),
  )
})

test("SR-015: a weighted average is exact to 1e-9 and lies between the least and the largest value", () => {
  const row = fc.record({
    edge: fc.double({ noNaN: true, min: -1e6, max: 1e6 }),
    n: fc.integer({ min: 1, max: 1_000_000 }),
  })
  fc.assert(
    fc.property(fc.array(row, { minLength: 1, maxLength: 50 }), (rows) => {
      const { aliases } = aggregate({ ...chunks(rows.length), ...weighted, weight_field: "n" }, rows.map(wrote))
      const total = rows.reduce((sum, { n }) => sum + n, 0)
      const expected = rows.reduce((sum, { edge, n }) => sum + edge * (n / total), 0)
      const average = aliases["avg_edge"] ?? Number.NaN
      expect(Math.abs(average - expected)).toBeLessThanOrEqual(
        1e-9 * Math.max(1, ...rows.map(({ edge }) => Math.abs(edge))),
      )
      expect(average).toBeGreaterThanOrEqual(Math.min(...rows.map(({ edge }) => edge)) - 1e-6)
      expect(average).toBeLessThanOrEqual(Math.max(...rows.map(({ edge }) => edge)) + 1e-6)
    }),
  )
})

test("sums over many tasks lose nothing that a double can hold", () => {
  const tenths = Array.from({ length: 1000 }, () => wrote({ a: 0.1 }))
  expect(reduced({ a: "sum" }, tenths.slice(0, 100)).reduced).toEqual({ a: 10 })
  expect(reduced({ a: "sum" }, [wrote({ a: 1e16 }), wrote({ a: 1 }), wrote({ a: -1e16 })]).reduced).toEqual({ a: 1 })
})
