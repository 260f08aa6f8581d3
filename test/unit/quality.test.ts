import fc from "fast-check"
import { expect, test } from "vitest"
import { isSuspect, qualitySchema, scoreResult } from "../../coordinator/jobs/quality.ts"
import { parseSubmission } from "../../coordinator/jobs/submission/parse-submission.ts"
import type { ResultSchema } from "../../coordinator/jobs/submission/submission.ts"
import type { JsonValue } from "../../protocol/base/json-text.ts"

const none: ResultSchema = { requiredFields: [], fieldTypes: [], fieldRanges: [] }
const score: ResultSchema = {
  requiredFields: ["score"],
  fieldTypes: [["score", "number"]],
  fieldRanges: [["score", 0, 1]],
}
const of = (value: JsonValue): { left: "value"; value: JsonValue } => ({ left: "value", value })

test("Q-003, MR-006: map_reduce demands every reduce field, structured_runner nothing; result_schema adds to it", () => {
  const least = {
    project: "p",
    runner_command: ["python"],
    result_schema: { required_fields: ["a", "x"], field_types: { x: "string" } },
  }
  const mapReduce = {
    ...least,
    type: "map_reduce",
    split: { field: "s", total: 1, chunks: 1 },
    reduce: { a: "sum", b: "weighted_avg:n" },
  }
  const types: [string, string][] = [["x", "string"]]
  expect(qualitySchema(parseSubmission(mapReduce).submission)).toEqual({
    requiredFields: ["a", "b", "x"],
    fieldTypes: types,
    fieldRanges: [],
  })
  expect(qualitySchema(parseSubmission({ ...least, type: "structured_runner" }).submission).requiredFields).toEqual([
    "a",
    "x",
  ])
})

test("without a schema every readable result is whole", () => {
  for (const value of [{ a: 1 }, [], null, 5, "x"])
    expect(scoreResult(none, of(value))).toEqual({ score: 1, warnings: [] })
})

test("GAP-45: no result file, and one that cannot be read", () => {
  expect(scoreResult(none, { left: "nothing" })).toMatchObject({ score: 0.5 })
  expect(isSuspect(scoreResult(none, { left: "nothing" }).score)).toBe(false)
  expect(scoreResult(score, { left: "nothing" })).toMatchObject({ score: 0, warnings: [expect.any(String)] })
  expect(scoreResult(none, { left: "unreadable" })).toMatchObject({ score: 0, warnings: [expect.any(String)] })
})

test("Q-002, Q-004: a missing or wrongly typed required field makes the task suspect", () => {
  expect(scoreResult(score, of({ score: 0.5 }))).toEqual({ score: 1, warnings: [] })
  for (const value of [{}, { score: "0.5" }, { score: null }]) {
    const quality = scoreResult(score, of(value))
    expect(quality.score).toBeLessThanOrEqual(0.4)
    expect(quality.warnings[0]).toContain("score")
  }
  expect(scoreResult({ ...none, requiredFields: ["a"] }, of({}))).toMatchObject({ score: 0 })
  const two: ResultSchema = { requiredFields: ["a", "b"], fieldTypes: [["a", "number"]], fieldRanges: [] }
  expect(scoreResult(two, of({ a: "1", b: 1 }))).toEqual({
    score: 0.4,
    warnings: ["required field a is a string, not number"],
  })
})

test("GAP-59: each failed check costs its share; ends of a range belong to it", () => {
  const schema: ResultSchema = {
    requiredFields: ["a"],
    fieldTypes: [["b", "string"]],
    fieldRanges: [
      ["a", 0, 1],
      ["c", 5, 5],
    ],
  }
  expect(scoreResult(schema, of({ a: 1, b: "x", c: 5 })).score).toBe(1)
  expect(scoreResult(schema, of({ a: 0 })).score).toBe(1)
  expect(scoreResult(schema, of({ a: 2 }))).toEqual({ score: 0.75, warnings: ["field a is 2, outside 0 to 1"] })
  expect(scoreResult(schema, of({ a: 2, b: 1, c: "5" })).score).toBe(0.25)
  expect(scoreResult({ ...none, requiredFields: ["a"], fieldRanges: [["a", 0, 1]] }, of({ a: 2 })).score).toBe(0.5)
})

test("GAP-59: with a schema, a result that is no object scores 0", () => {
  for (const value of [[], null, 5, "x", true]) expect(scoreResult(score, of(value)).score).toBe(0)
})

test("each type name means what it says", () => {
  const fits = (type: ResultSchema["fieldTypes"][number][1], value: JsonValue): boolean =>
    scoreResult({ ...none, fieldTypes: [["f", type]] }, of({ f: value })).score === 1
  const examples = {
    number: 1.5,
    integer: 2,
    string: "x",
    boolean: false,
    array: [1],
    object: { a: 1 },
    null: null,
  } as const
  for (const [type, example] of Object.entries(examples)) {
    expect(fits(type as "number", example as JsonValue)).toBe(true)
    for (const [otherType, other] of Object.entries(examples)) {
      if (otherType === type || (type === "number" && otherType === "integer")) continue
      expect(fits(type as "number", other as JsonValue)).toBe(false)
    }
  }
  expect(fits("number", JSON.parse("1e999") as JsonValue)).toBe(false)
})

test("inherited names are not fields", () => {
  expect(scoreResult({ ...none, requiredFields: ["constructor"] }, of({})).score).toBe(0)
})

test("Q-001, Q-006: a score is between 0 and 1, below 1 says why, and exactly 0.5 is not suspect", () => {
  const field = fc.constantFrom("a", "b", "c")
  const schemas = fc.record({
    requiredFields: fc.uniqueArray(field),
    fieldTypes: fc.uniqueArray(fc.tuple(field, fc.constantFrom("number" as const, "string" as const)), {
      selector: ([name]) => name,
    }),
    fieldRanges: fc.uniqueArray(fc.tuple(field, fc.constant(0), fc.constant(1)), { selector: ([name]) => name }),
  })
  fc.assert(
    fc.property(
      schemas,
      fc.dictionary(field, fc.oneof(fc.double(), fc.string(), fc.constant(null))),
      (schema, value) => {
        const quality = scoreResult(schema, of(value))
        expect(quality.score).toBeGreaterThanOrEqual(0)
        expect(quality.score).toBeLessThanOrEqual(1)
        expect(quality.score < 1).toBe(quality.warnings.length > 0)
        if (schema.requiredFields.some((name) => !Object.hasOwn(value, name)))
          expect(isSuspect(quality.score)).toBe(true)
      },
    ),
  )
  expect([isSuspect(0.5), isSuspect(0.49999)]).toEqual([false, true])
})
