import { unreachable } from "../../protocol/base/assert.ts"
import type { FieldType } from "../../protocol/api/jobs.ts"
import { isJsonObject, type JsonObject, type JsonValue } from "../../protocol/base/json-text.ts"
import type { ResultSchema, Submission } from "./submission/submission.ts"

/** What a completed task left as its result. */
export type LeftResult = { left: "nothing" } | { left: "unreadable" } | { left: "value"; value: JsonValue }

export interface Quality {
  /** 0 to 1. Below 0.5 the task is suspect and its job ends `partial`; nothing is discarded or retried. */
  score: number
  warnings: string[]
}

/** Exactly 0.5 is not suspect. */
const SUSPECT_BELOW = 0.5
/** A missing required field always makes the task suspect (GAP-59, Q-004). */
const MOST_WITH_MISSING_FIELD = 0.4
/** Exit 0 without a result file, where nothing says that there should be one (GAP-45). */
const SCORE_WITHOUT_RESULT = 0.5

export const isSuspect = (score: number): boolean => score < SUSPECT_BELOW

/** What the job's results are measured by: the type's own demands and those of the submission. */
export function qualitySchema({ work, resultSchema }: Submission): ResultSchema {
  if (work.type === "structured_runner") return resultSchema
  const ofType = work.type === "map_reduce" ? work.reduce.map(([field]) => field) : [work.ranking.by]
  const requiredFields = [...new Set([...ofType, ...resultSchema.requiredFields])]
  if (work.type === "map_reduce") return { ...resultSchema, requiredFields }
  // SW-007, BM-008: what is ranked by is a number; a submission may ask for a whole one.
  const isTyped = resultSchema.fieldTypes.some(([field]) => field === work.ranking.by)
  const fieldTypes: ResultSchema["fieldTypes"] = isTyped
    ? resultSchema.fieldTypes
    : [[work.ranking.by, "number"], ...resultSchema.fieldTypes]
  return { ...resultSchema, requiredFields, fieldTypes }
}

/** Scores a completed task's result: each check that fails costs its share (GAP-59, rulings). */
export function scoreResult(schema: ResultSchema, result: LeftResult): Quality {
  switch (result.left) {
    case "nothing":
      return {
        score: schema.requiredFields.length > 0 ? 0 : SCORE_WITHOUT_RESULT,
        warnings: ["the program wrote no result file"],
      }
    case "unreadable":
      return { score: 0, warnings: ["the result file is not valid JSON"] }
    case "value":
      return scoreValue(schema, result.value)
    default:
      return unreachable(result)
  }
}

function scoreValue(schema: ResultSchema, value: JsonValue): Quality {
  const checks = schema.requiredFields.length + schema.fieldTypes.length + schema.fieldRanges.length
  if (checks === 0) return { score: 1, warnings: [] }
  if (!isJsonObject(value)) return { score: 0, warnings: [`the result is ${nameOf(value)}, not an object`] }

  const missing = missingFields(schema, value)
  const wrong = [...wrongFields(schema, value)]
  const failed = missing.length + wrong.length
  // Never below 0: a required field of the wrong type fails its own check only once, as missing.
  const share = (checks - failed) / checks
  return {
    score: missing.length > 0 ? Math.min(share, MOST_WITH_MISSING_FIELD) : share,
    warnings: [...missing, ...wrong],
  }
}

/** One sentence for each required field that is not there, or of the wrong type, which counts as missing (rulings). */
function missingFields(schema: ResultSchema, value: JsonObject): string[] {
  const types = new Map(schema.fieldTypes)
  return schema.requiredFields.flatMap((field) => {
    const found = fieldOf(value, field)
    if (found === undefined) return [`required field ${field} is missing`]
    const type = types.get(field)
    return type === undefined || isOfType(found, type)
      ? []
      : [`required field ${field} is ${nameOf(found)}, not ${type}`]
  })
}

/** One sentence for each present field of the wrong type or outside its range; an absent optional one costs nothing. */
function* wrongFields(schema: ResultSchema, value: JsonObject): Generator<string> {
  const required = new Set(schema.requiredFields)
  for (const [field, type] of schema.fieldTypes) {
    const found = fieldOf(value, field)
    if (found === undefined || required.has(field) || isOfType(found, type)) continue
    yield `field ${field} is ${nameOf(found)}, not ${type}`
  }
  for (const [field, least, most] of schema.fieldRanges) {
    const found = fieldOf(value, field)
    if (found === undefined) continue
    if (typeof found !== "number") yield `field ${field} is ${nameOf(found)}, not a number from ${least} to ${most}`
    else if (found < least || found > most) yield `field ${field} is ${found}, outside ${least} to ${most}`
  }
}

function fieldOf(value: JsonObject, field: string): JsonValue | undefined {
  return Object.hasOwn(value, field) ? value[field] : undefined
}

function isOfType(value: JsonValue, type: FieldType): boolean {
  switch (type) {
    case "number":
      return typeof value === "number" && Number.isFinite(value)
    case "integer":
      return Number.isInteger(value)
    case "string":
    case "boolean":
      return typeof value === type
    case "array":
      return Array.isArray(value)
    case "object":
      return isJsonObject(value)
    case "null":
      return value === null
    default:
      return unreachable(type)
  }
}

function nameOf(value: JsonValue): string {
  if (value === null) return "null"
  if (Array.isArray(value)) return "an array"
  return typeof value === "object" ? "an object" : `a ${typeof value}`
}
