import { describe, expect, test } from "vitest"
import { aggregateOnWire, createFold } from "../../coordinator/jobs/aggregate/fold.ts"
import { planTasks } from "../../coordinator/jobs/plan/plan.ts"
import { isSuspect, qualitySchema, scoreResult } from "../../coordinator/jobs/quality.ts"
import { parseSubmission, type ParsedSubmission } from "../../coordinator/jobs/submission/parse-submission.ts"
import { stringifyJson, type JsonObject, type JsonValue } from "../../protocol/base/json-text.ts"
import { ComputalotError, type FieldProblem } from "../../protocol/domain/errors.ts"

const SWEEP = {
  type: "sweep",
  runner_command: ["python", "evaluate.py"],
  project: "p",
  parameters: { learning_rate: [0.001, 0.01, 0.1], batch_size: [32, 64, 128] },
  fixed_payload: { dataset: "cifar10", epochs: 5 },
  rank_by: "accuracy",
}
const BENCHMARK = {
  type: "benchmark",
  runner_command: ["python", "evaluate.py"],
  project: "p",
  candidates: { strategy_a: { model: "gpt4", temperature: 0.7 }, baseline: { model: "random" } },
  shared_payload: { dataset: "v3", n_trials: 100 },
  replicas: 3,
  rank_by: "score",
}

function problemsOf(body: object): FieldProblem[] {
  try {
    planTasks(parseSubmission(body).submission)
  } catch (error) {
    expect(error).toBeInstanceOf(ComputalotError)
    expect((error as ComputalotError).status).toBe(422)
    return (error as ComputalotError).details as FieldProblem[]
  }
  throw new Error(`was accepted: ${JSON.stringify(body).slice(0, 200)}`)
}
const pathsOf = (body: object): string[] => problemsOf(body).map(({ path }) => path)

function payloadsOf(body: object): JsonObject[] {
  const plan = planTasks(parseSubmission(body).submission)
  return Array.from({ length: plan.count }, (_, index) => JSON.parse(plan.payloadText(index)) as JsonObject)
}

/** What the summary says once tasks have left these; "failed" ones left nothing, undefined ones have not ended. */
function aggregated(body: object, results: (JsonValue | undefined)[]): Record<string, unknown> {
  const { submission } = parseSubmission(body)
  const fold = createFold(submission, planTasks(submission))
  for (const [index, result] of results.entries()) {
    if (result === undefined) continue
    if (result === "failed") fold.add({ index, status: "failed", resultText: null })
    else fold.add({ index, status: "completed", resultText: JSON.stringify(result) })
  }
  return JSON.parse(stringifyJson(aggregateOnWire(fold.finish()))) as Record<string, unknown>
}

const warnedFields = ({ warnings }: ParsedSubmission): string[] => warnings.map(({ field }) => field)

describe("sweep", () => {
  test("SW-001, SW-003, SW-004: every combination once, the last name varying fastest, with index and parameters", () => {
    const payloads = payloadsOf(SWEEP)
    expect(payloads).toHaveLength(9)
    expect(payloads[0]).toEqual({
      learning_rate: 0.001,
      batch_size: 32,
      dataset: "cifar10",
      epochs: 5,
      _sweep_idx: 0,
      _sweep_params: { learning_rate: 0.001, batch_size: 32 },
    })
    expect(payloads.map(({ _sweep_idx: index }) => index)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8])
    expect(payloads.map(({ learning_rate: rate, batch_size: size }) => [rate, size])).toEqual(
      [0.001, 0.01, 0.1].flatMap((rate) => [32, 64, 128].map((size) => [rate, size])),
    )
  })

  test("GAP-38: a parameter beats a fixed field of its name; values may be of any kind, names too", () => {
    const parameters = JSON.parse('{"epochs":[null,{"a":1}],"__proto__":[[1,2]]}') as JsonObject
    const payloads = payloadsOf({ ...SWEEP, parameters })
    expect(payloads.map(({ epochs }) => epochs)).toEqual([null, { a: 1 }])
    expect(Object.getOwnPropertyDescriptor(payloads[0], "__proto__")?.value).toEqual([1, 2])
    expect(JSON.stringify(payloads[0]?.["_sweep_params"])).toBe('{"epochs":null,"__proto__":[1,2]}')
  })

  test("SW-002: 1000 combinations are accepted, 1001 are refused with what there are", () => {
    const values = (count: number): number[] => Array.from({ length: count }, (_, n) => n)
    expect(payloadsOf({ ...SWEEP, parameters: { a: values(10), b: values(100) } })).toHaveLength(1000)
    const [problem] = problemsOf({ ...SWEEP, parameters: { a: values(7), b: values(11), c: values(13) } })
    expect(problem).toMatchObject({ path: "parameters", problem: expect.stringContaining("1001") as string })
    expect(pathsOf({ ...SWEEP, parameters: Object.fromEntries(values(400).map((n) => [`p${n}`, [0, 1]])) })).toEqual([
      "parameters",
    ])
  })

  test("SW-005: rank_by is required, rank_order is desc unless it says asc", () => {
    expect(pathsOf({ ...SWEEP, rank_by: undefined })).toEqual(["rank_by"])
    expect(pathsOf({ ...SWEEP, rank_by: "" })).toEqual(["rank_by"])
    expect(pathsOf({ ...SWEEP, rank_order: "up" })).toEqual(["rank_order"])
    expect(parseSubmission(SWEEP).submission.work).toMatchObject({ ranking: { by: "accuracy", order: "desc" } })
    expect(parseSubmission({ ...SWEEP, rank_order: "asc" }).submission.work).toMatchObject({
      ranking: { order: "asc" },
    })
  })

  test("SW-008: no parameters, and a parameter without values, are refused by their names", () => {
    expect(pathsOf({ ...SWEEP, parameters: undefined })).toEqual(["parameters"])
    expect(pathsOf({ ...SWEEP, parameters: {} })).toEqual(["parameters"])
    expect(pathsOf({ ...SWEEP, parameters: [1] })).toEqual(["parameters"])
    expect(pathsOf({ ...SWEEP, parameters: { a: [], b: 5, c: [1] } })).toEqual(["parameters.a", "parameters.b"])
    expect(pathsOf({ ...SWEEP, parameters: { _sweep_idx: [1] } })).toEqual(["parameters._sweep_idx"])
  })

  test("SR-004, GAP-23: fields that would change what another type does are refused, a plain payload is named", () => {
    expect(pathsOf({ ...SWEEP, fan_out: { items: [{}] }, split: { field: "s" }, candidates: {} })).toEqual([
      "fan_out",
      "split",
      "candidates",
    ])
    expect(pathsOf({ ...SWEEP, checkpointing: { enabled: true } })).toEqual(["checkpointing"])
    const ignored = parseSubmission({ ...SWEEP, payload: { seed: 1 }, replicas: 2, merge_strategy: "collect" })
    expect(warnedFields(ignored)).toEqual(["merge_strategy", "payload", "replicas"])
    expect(ignored.warnings[1]).toMatchObject({ did_you_mean: "fixed_payload" })
    expect(payloadsOf({ ...SWEEP, payload: { seed: 1 } })[0]).not.toHaveProperty("seed")
    expect(warnedFields(parseSubmission(SWEEP))).toEqual([])
    const plain = { type: "structured_runner", project: "p", runner_command: ["python", "x.py"] }
    expect(warnedFields(parseSubmission({ ...plain, rank_by: "a", fixed_payload: {} }))).toEqual([
      "fixed_payload",
      "rank_by",
    ])
  })

  const parameters = { a: [1, 2, 3, 4] }

  test("SW-006: results are ranked, the best is the first", () => {
    const results = [{ accuracy: 0.2 }, { accuracy: 0.9, more: [1] }, "failed", { accuracy: 0.5 }]
    const ranked = aggregated({ ...SWEEP, parameters }, results)
    const rows = [
      { params: { a: 2 }, result: { accuracy: 0.9, more: [1] }, rank: 1 },
      { params: { a: 4 }, result: { accuracy: 0.5 }, rank: 2 },
      { params: { a: 1 }, result: { accuracy: 0.2 }, rank: 3 },
    ]
    expect(ranked["results"]).toEqual(rows)
    expect(ranked["best"]).toEqual(rows[0])
    expect(ranked["aggregate_result"]).toEqual({ results: rows, best: rows[0] })
    const upward = aggregated({ ...SWEEP, parameters, rank_order: "asc" }, results)
    expect(upward["best"]).toEqual({ params: { a: 1 }, result: { accuracy: 0.2 }, rank: 1 })
    expect((upward["results"] as JsonObject[]).map(({ params }) => params)).toEqual([{ a: 1 }, { a: 4 }, { a: 2 }])
  })

  test("rulings, Sweep: ties rank one after the other by index; rows without the number come last, unranked", () => {
    const results = [{ accuracy: "high" }, { accuracy: 1 }, null, { accuracy: 1 }]
    const { results: rows, best, aggregate_warnings: warnings } = aggregated({ ...SWEEP, parameters }, results)
    expect((rows as JsonObject[]).map(({ params, rank }) => [params, rank])).toEqual([
      [{ a: 2 }, 1],
      [{ a: 4 }, 2],
      [{ a: 1 }, null],
      [{ a: 3 }, null],
    ])
    expect(best).toMatchObject({ params: { a: 2 }, rank: 1 })
    expect(warnings).toEqual([
      "task 0 is not ranked: its result has no number accuracy",
      "task 2 is not ranked: its result has no number accuracy",
    ])
    expect(aggregated({ ...SWEEP, parameters }, [{}, "failed", "failed", "failed"])).toMatchObject({
      results: [{ params: { a: 1 }, result: {}, rank: null }],
      best: null,
    })
  })

  test("RS-007: a running sweep ranks what it has; nothing yet is an empty list", () => {
    expect(aggregated({ ...SWEEP, parameters }, [])).toMatchObject({ results: [], best: null })
    expect(aggregated({ ...SWEEP, parameters }, [undefined, { accuracy: 1 }])).toMatchObject({
      results: [{ params: { a: 2 }, rank: 1 }],
      completeness: { total_tasks: 4, completed_tasks: 1, pending_tasks: 3 },
    })
  })

  test("results too large for one reply are left out with a warning; the best stays", () => {
    const { submission } = parseSubmission({ ...SWEEP, parameters })
    const fold = createFold(submission, planTasks(submission))
    const large = "x".repeat(6 * 1024 * 1024)
    for (const [index, accuracy] of [1, 3, 2, 0].entries())
      fold.add({ index, status: "completed", resultText: JSON.stringify({ accuracy, large }) })
    const { summary, result, warnings } = fold.finish()
    expect(JSON.stringify(summary["results"])).toContain("null")
    expect(result?.text.startsWith('{"results":null,"best":{"params":{"a":2}')).toBe(true)
    expect(warnings).toEqual([expect.stringContaining("left out") as string])
  })

  test("SW-007, Q-003: without the number a task is suspect; another type for it cannot be asked", () => {
    const schema = qualitySchema(parseSubmission(SWEEP).submission)
    const score = (value: JsonValue): number => scoreResult(schema, { left: "value", value }).score
    expect(score({ accuracy: 0.5 })).toBe(1)
    for (const value of [{}, { accuracy: "0.5" }, { accuracy: null }]) expect(isSuspect(score(value))).toBe(true)
    expect(scoreResult(schema, { left: "nothing" }).score).toBe(0)
    const whole = { ...SWEEP, result_schema: { field_types: { accuracy: "integer", name: "string" } } }
    const strict = qualitySchema(parseSubmission(whole).submission)
    expect(isSuspect(scoreResult(strict, { left: "value", value: { accuracy: 0.5 } }).score)).toBe(true)
    expect(pathsOf({ ...SWEEP, result_schema: { field_types: { accuracy: "string" } } })).toEqual([
      "result_schema.field_types.accuracy",
    ])
  })
})

describe("benchmark", () => {
  test("BM-002, BM-003: candidates × replicas; shared fields, the candidate's own, its name and the replica from 1", () => {
    const payloads = payloadsOf(BENCHMARK)
    expect(payloads).toHaveLength(6)
    const first = { dataset: "v3", n_trials: 100, model: "gpt4", temperature: 0.7, _candidate: "strategy_a" }
    expect(payloads.slice(0, 3)).toEqual([1, 2, 3].map((replica) => ({ ...first, _replica: replica })))
    expect(payloads[3]).toEqual({ dataset: "v3", n_trials: 100, model: "random", _candidate: "baseline", _replica: 1 })
    expect(payloadsOf({ ...BENCHMARK, replicas: undefined })).toHaveLength(2)
  })

  test("rulings, Benchmark: the candidate's fields beat the shared ones", () => {
    const [first, second] = payloadsOf({
      ...BENCHMARK,
      replicas: 1,
      shared_payload: { model: "shared", temperature: 0 },
    })
    expect(first).toMatchObject({ model: "gpt4", temperature: 0.7 })
    expect(second).toMatchObject({ model: "random", temperature: 0 })
  })

  test("BM-001: two candidates at least, each an object", () => {
    expect(pathsOf({ ...BENCHMARK, candidates: undefined })).toEqual(["candidates"])
    expect(pathsOf({ ...BENCHMARK, candidates: {} })).toEqual(["candidates"])
    expect(pathsOf({ ...BENCHMARK, candidates: { a: {} } })).toEqual(["candidates"])
    expect(pathsOf({ ...BENCHMARK, candidates: { a: {}, b: 5 } })).toEqual(["candidates.b"])
    expect(pathsOf({ ...BENCHMARK, candidates: { a: {}, b: { _replica: 5 } } })).toEqual(["candidates.b._replica"])
    expect(payloadsOf({ ...BENCHMARK, replicas: 1, candidates: { a: {}, b: {} } })).toHaveLength(2)
  })

  test("BM-002: 1 to 100 replicas", () => {
    for (const replicas of [0, 101, 1.5, "3"]) expect(pathsOf({ ...BENCHMARK, replicas })).toEqual(["replicas"])
    expect(payloadsOf({ ...BENCHMARK, replicas: 100 })).toHaveLength(200)
  })

  test("GAP-33: no more than 100,000 tasks", () => {
    const many = (count: number): JsonObject =>
      Object.fromEntries(Array.from({ length: count }, (_, n) => [`c${n}`, {}]))
    expect(pathsOf({ ...BENCHMARK, candidates: many(1001), replicas: 100 })).toEqual(["candidates"])
    expect(planTasks(parseSubmission({ ...BENCHMARK, candidates: many(1000), replicas: 100 }).submission).count).toBe(
      100_000,
    )
  })

  test("BM-004, GAP-40: replica_vary counts from the candidate's value, else the shared one, else 0", () => {
    const varied = {
      ...BENCHMARK,
      candidates: { a: { seed_base: 5 }, b: {} },
      replica_vary: { field: "seed_base", stride: 1000 },
    }
    const seeds = (body: object): unknown[] => payloadsOf(body).map(({ seed_base: seed }) => seed)
    expect(seeds(varied)).toEqual([5, 1005, 2005, 0, 1000, 2000])
    expect(seeds({ ...varied, shared_payload: { seed_base: 7 } })).toEqual([5, 1005, 2005, 7, 1007, 2007])
    expect(seeds({ ...varied, replica_vary: { field: "seed_base", stride: -0.5 } }).slice(0, 3)).toEqual([5, 4.5, 4])
  })

  test("rulings, Benchmark: a base that is no number is refused, and so is half of replica_vary", () => {
    const vary = { field: "seed", stride: 1 }
    expect(pathsOf({ ...BENCHMARK, shared_payload: { seed: "one" }, replica_vary: vary })).toEqual([
      "shared_payload.seed",
    ])
    expect(pathsOf({ ...BENCHMARK, candidates: { a: { seed: null }, b: {} }, replica_vary: vary })).toEqual([
      "candidates.a.seed",
    ])
    expect(pathsOf({ ...BENCHMARK, replica_vary: {} })).toEqual(["replica_vary.field", "replica_vary.stride"])
    expect(pathsOf({ ...BENCHMARK, replica_vary: { field: "_replica", stride: 1 } })).toEqual(["replica_vary.field"])
    const far = { ...vary, stride: Number.MAX_SAFE_INTEGER }
    expect(pathsOf({ ...BENCHMARK, replica_vary: far })).toEqual(["shared_payload.seed"])
    const typo = parseSubmission({ ...BENCHMARK, replica_vary: { ...vary, strid: 1 } })
    expect(typo.warnings).toMatchObject([{ field: "replica_vary.strid", did_you_mean: "replica_vary.stride" }])
  })

  test("BM-005: rank_by is required, rank_order one of two", () => {
    expect(pathsOf({ ...BENCHMARK, rank_by: undefined })).toEqual(["rank_by"])
    expect(pathsOf({ ...BENCHMARK, rank_order: "best" })).toEqual(["rank_order"])
    expect(pathsOf({ ...BENCHMARK, parameters: { a: [1] } })).toEqual(["parameters"])
  })

  const scores = (...values: (number | "failed")[]): JsonValue[] =>
    values.map((score) => (score === "failed" ? score : { score }))
  const candidates = { a: {}, b: {}, c: {} }

  test("BM-006, BM-007: the leaderboard, with the spread of the sample", () => {
    const results = scores(0.83, 0.85, 0.87, 0.89, 0.92, 0.95, 0.45, 0.5, 0.55)
    const { leaderboard, aggregate_result: whole } = aggregated({ ...BENCHMARK, candidates }, results)
    const near = (value: number): number => expect.closeTo(value, 12) as number
    expect(leaderboard).toEqual([
      { candidate: "b", mean: near(0.92), std: near(0.03), min: 0.89, max: 0.95, count: 3, rank: 1 },
      { candidate: "a", mean: near(0.85), std: near(0.02), min: 0.83, max: 0.87, count: 3, rank: 2 },
      { candidate: "c", mean: near(0.5), std: near(0.05), min: 0.45, max: 0.55, count: 3, rank: 3 },
    ])
    expect(whole).toEqual({ leaderboard })
    const upward = aggregated({ ...BENCHMARK, candidates, rank_order: "asc" }, results)["leaderboard"] as JsonObject[]
    expect(upward.map(({ candidate }) => candidate)).toEqual(["c", "a", "b"])
  })

  test("GAP-40: the spread of one value is 0, and ties keep the order of the candidates", () => {
    const rows = aggregated({ ...BENCHMARK, candidates, replicas: 1 }, scores(2, 1, 2))["leaderboard"]
    expect(rows).toMatchObject([
      { candidate: "a", mean: 2, std: 0, count: 1, rank: 1 },
      { candidate: "c", mean: 2, std: 0, count: 1, rank: 2 },
      { candidate: "b", mean: 1, rank: 3 },
    ])
  })

  test("rulings, Benchmark: a candidate without a usable replica stands last, with nothing but its count", () => {
    const results = ["failed", { score: "n/a" }, { score: 1 }, null, { score: -5 }, "failed"]
    const { leaderboard, aggregate_warnings: warnings } = aggregated({ ...BENCHMARK, candidates, replicas: 2 }, results)
    expect(leaderboard).toEqual([
      { candidate: "b", mean: 1, std: 0, min: 1, max: 1, count: 1, rank: 1 },
      { candidate: "c", mean: -5, std: 0, min: -5, max: -5, count: 1, rank: 2 },
      { candidate: "a", mean: null, std: null, min: null, max: null, count: 0, rank: null },
    ])
    expect(warnings).toEqual([
      "task 1 does not count: its result has no number score",
      "task 3 does not count: its result has no number score",
    ])
  })

  test("BM-008, Q-003: without the number a task is suspect", () => {
    const schema = qualitySchema(parseSubmission(BENCHMARK).submission)
    expect(scoreResult(schema, { left: "value", value: { score: 1 } }).score).toBe(1)
    expect(isSuspect(scoreResult(schema, { left: "value", value: { score: "1" } }).score)).toBe(true)
  })
})

test("a payload that the platform reads is not varied: it belongs to the whole job", () => {
  expect(pathsOf({ ...SWEEP, parameters: { _artifacts: [{}], _shared: [{}] } })).toEqual([
    "parameters._artifacts",
    "parameters._shared",
  ])
  expect(pathsOf({ ...BENCHMARK, candidates: { a: { _shared: {} }, b: {} } })).toEqual(["candidates.a._shared"])
})
