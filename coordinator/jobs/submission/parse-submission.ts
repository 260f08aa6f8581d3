import {
  FIELD_TYPES,
  submitJobBody,
  type FieldType,
  type SubmissionWarning,
  type SubmitJobBody,
} from "../../../protocol/api/jobs.ts"
import { parseFields } from "../../../protocol/api/parse.ts"
import { isJsonObject, type JsonObject, type JsonValue } from "../../../protocol/base/json-text.ts"
import { ComputalotError, invalidField, invalidRequest, type FieldProblem } from "../../../protocol/domain/errors.ts"
import { JOB_TYPES } from "../../../protocol/domain/statuses.ts"
import { benchmark } from "./benchmark.ts"
import { callbackUrlProblem } from "../../webhooks/callback-url.ts"
import { parseUsd, usd } from "../../../protocol/domain/money.ts"
import { commandProblem } from "./command.ts"
import { dependencies } from "./depends-on.ts"
import { fieldWarnings } from "./field-warnings.ts"
import { refuseLaterFeatures } from "./later-features.ts"
import { missing } from "./missing.ts"
import { publish } from "./publish.ts"
import { resolveRequirements } from "./requirements.ts"
import { sweep } from "./sweep.ts"
import type {
  FanOut,
  Merge,
  Range,
  ReduceOperator,
  Reservation,
  ResultSchema,
  Split,
  Submission,
  Work,
} from "./submission.ts"

export interface ParsedSubmission {
  submission: Submission
  /** For the reply: fields that had no effect. */
  warnings: SubmissionWarning[]
}

/**
 * Checks the body of POST /jobs and resolves its defaults. Throws a `ComputalotError` (422): `invalid_request` naming every
 * wrong field, `command_not_allowed` when only the command is wrong, `not_available_yet` for what a later version brings.
 * How many tasks it makes, and how large, is checked by the plan.
 */
export function parseSubmission(body: unknown): ParsedSubmission {
  if (!isJsonObject(body)) throw invalidField("", "must be a JSON object")
  const fields = parseFields(submitJobBody, body)
  refuseLaterFeatures(fields)

  const problems: FieldProblem[] = []
  const project = fields.project ?? missing(problems, "project", "the name of one of your projects", "")
  const command =
    fields.runner_command ?? missing(problems, "runner_command", 'a list such as ["python3", "job.py"]', [])
  const timeoutSeconds = fields.timeout_s ?? DEFAULT_TIMEOUT_S
  if (fields.runtime_hint_s !== undefined && fields.runtime_hint_s > timeoutSeconds) {
    problems.push({ path: "runtime_hint_s", problem: `is longer than timeout_s: must be at most ${timeoutSeconds}` })
  }
  const submission: Submission = {
    project,
    command,
    payload: commonPayload(fields),
    work: work(fields, problems),
    timeoutSeconds,
    runtimeHintSeconds: fields.runtime_hint_s ?? null,
    maxRetries: fields.max_retries ?? 0,
    priority: fields.priority ?? "normal",
    reliabilityMode: fields.reliability_mode ?? "best_effort",
    requirements: resolveRequirements(fields, problems),
    reservation: reservation(fields, problems),
    executionPolicy: executionPolicy(fields, problems),
    placementPolicy: fields.placement_policy ?? "shared",
    tags: fields.tags ?? [],
    clientRef: fields.client_ref ?? null,
    meta: meta(fields, problems),
    variant: variant(fields, problems),
    resultSchema: resultSchema(fields, problems),
    ...checkpointing(fields, problems),
    ...dependencies(fields, problems),
    ...callbackUrl(fields, problems),
    ...mostItMayCost(fields, problems),
    ...publish(fields, problems),
  }
  const wrongCommand = fields.runner_command && commandProblem(fields.runner_command)
  if (wrongCommand && problems.length === 0) throw commandRefused(wrongCommand)
  if (wrongCommand) problems.push(wrongCommand)
  if (problems.length > 0) throw invalidRequest(problems)
  return { submission, warnings: fieldWarnings(fields, body) }
}

/** J-007. */
const DEFAULT_TIMEOUT_S = 3600
/** Rulings, Reservations. */
const DEFAULT_GUARANTEE_S = 3600
/** GAP-25. */
const LARGEST_META_BYTES = 16 * 1024

function commandRefused(wrong: FieldProblem): ComputalotError {
  return new ComputalotError("command_not_allowed", `${wrong.path}: ${wrong.problem}`, {
    recommendedAction:
      "Start an interpreter or tool of the list directly; put shell steps into a script of the project.",
    details: [wrong],
  })
}

/** What goes into every task. A plain payload is another type's on sweeps and benchmarks: a warning says so (rulings). */
function commonPayload(fields: SubmitJobBody): JsonObject {
  if (fields.type === "sweep") return fields.fixed_payload ?? {}
  if (fields.type === "benchmark") return fields.shared_payload ?? {}
  return fields.payload ?? {}
}

function work(fields: SubmitJobBody, problems: FieldProblem[]): Work {
  refuseFieldsOfOtherTypes(fields, problems)
  if (fields.type === "sweep") return sweep(fields, problems)
  if (fields.type === "benchmark") return benchmark(fields, problems)
  if (fields.type === "map_reduce") {
    return { type: "map_reduce", split: split(fields, problems), reduce: reduce(fields, problems) }
  }
  if (fields.type === undefined) missing(problems, "type", `one of ${JOB_TYPES.join(", ")}`, null)
  const fanOutOrNull = fanOut(fields, problems)
  return { type: "structured_runner", fanOut: fanOutOrNull, merge: merge(fields, fanOutOrNull, problems) }
}

/** These would change what the job does, so on another type they are refused (GAP-23). */
function refuseFieldsOfOtherTypes(fields: SubmitJobBody, problems: FieldProblem[]): void {
  if (fields.type === undefined) return
  const owners = {
    fan_out: "structured_runner",
    checkpointing: "structured_runner",
    split: "map_reduce",
    reduce: "map_reduce",
    parameters: "sweep",
    candidates: "benchmark",
  } as const
  for (const [field, type] of Object.entries(owners)) {
    if (fields[field] !== undefined && fields.type !== type) {
      problems.push({ path: field, problem: `belongs to jobs of type ${type}: leave it out, or change the type` })
    }
  }
}

function fanOut(fields: SubmitJobBody, problems: FieldProblem[]): FanOut | null {
  const asked = fields.fan_out
  if (asked === undefined || fields.type === "map_reduce") return null
  const batchSize = asked.batch_size ?? asked.batch_per_task ?? null
  if (asked.batch_per_task !== undefined && asked.batch_per_task !== batchSize) {
    problems.push({
      path: "fan_out.batch_per_task",
      problem: "differs from batch_size: it is another name of it, keep one",
    })
  }
  const chunkField = (["chunks", "total", "range_field", "start"] as const).find((name) => asked[name] !== undefined)
  const shapes = [asked.by !== undefined && "by", asked.items !== undefined && "items", chunkField].filter(Boolean)
  if (shapes.length !== 1) {
    const found = shapes.length === 0 ? "has none of the three shapes" : `mixes ${shapes.join(" and ")}`
    problems.push({ path: "fan_out", problem: `${found}: must be exactly one of {by}, {items} or {chunks, total}` })
    return null
  }
  if (asked.by !== undefined)
    return { shape: "by", field: asked.by, elements: elements(fields, asked.by, problems), batchSize }
  if (asked.items !== undefined) return { shape: "items", items: items(asked.items, problems), batchSize }
  const total = asked.total ?? namedTotal(fields, problems)
  const chunks = asked.chunks ?? missing(problems, "fan_out.chunks", "the number of tasks", 1)
  const start = asked.start ?? 0
  checkRange("fan_out", start, total, problems)
  return { shape: "chunks", chunks: Math.min(chunks, total), total, start, batchSize }
}

function elements(fields: SubmitJobBody, by: string, problems: FieldProblem[]): JsonValue[] {
  const list = fields.payload && Object.hasOwn(fields.payload, by) ? fields.payload[by] : undefined
  if (Array.isArray(list) && list.length > 0) return list
  const found = list === undefined ? "is missing" : Array.isArray(list) ? "is empty" : "is no list"
  problems.push({ path: `payload.${by}`, problem: `${found}: fan_out.by needs a list with at least one element there` })
  return []
}

function items(list: unknown[], problems: FieldProblem[]): JsonObject[] {
  const wrong = list.findIndex((item) => !isJsonObject(item))
  if (wrong >= 0)
    problems.push({ path: `fan_out.items[${wrong}]`, problem: "must be an object: it is the payload of a task" })
  if (list.length === 0) problems.push({ path: "fan_out.items", problem: "is empty: must have at least one item" })
  return list.filter(isJsonObject)
}

/** Without `total`, the payload field that `range_field` names may tell it (GAP-34). */
function namedTotal(fields: SubmitJobBody, problems: FieldProblem[]): number {
  const name = fields.fan_out?.range_field
  const value =
    name !== undefined && fields.payload && Object.hasOwn(fields.payload, name) ? fields.payload[name] : undefined
  if (typeof value === "number" && Number.isSafeInteger(value) && value >= 1) return value
  const or = name === undefined ? "" : `, or payload.${name} must be one`
  return missing(problems, "fan_out.total", `a whole number of at least 1${or}`, 1)
}

function checkRange(path: string, start: number, count: number, problems: FieldProblem[]): void {
  if (Number.isSafeInteger(start + count)) return
  problems.push({ path, problem: "reaches beyond 2^53: start + count must stay a safe whole number" })
}

function merge(fields: SubmitJobBody, asked: FanOut | null, problems: FieldProblem[]): Merge {
  const strategy = fields.merge_strategy ?? "collect"
  if (fields.type === "map_reduce" || strategy === "collect") return { strategy: "collect" }
  if (strategy === "keyed") {
    if (asked?.shape !== "by")
      problems.push({ path: "merge_strategy", problem: "keyed needs fan_out.by: its elements are the keys" })
    return { strategy }
  }
  const valueField = fields.value_field ?? fields.fan_out?.value_field
  const weightField = fields.weight_field ?? fields.fan_out?.weight_field
  return {
    strategy,
    valueField: valueField ?? missing(problems, "value_field", "the result field that weighted_avg averages", ""),
    weightField: weightField ?? missing(problems, "weight_field", "the field that holds each result's weight", ""),
  }
}

function split(fields: SubmitJobBody, problems: FieldProblem[]): Split {
  const nothing: Split = { field: "", shape: "ranges", ranges: [] }
  const asked = fields.split
  if (asked === undefined)
    return missing(problems, "split", "an object: {field, start, total, chunks} or {field, ranges}", nothing)
  const field = asked.field ?? missing(problems, "split.field", "the name of the range, such as seed", "")
  if (asked.ranges !== undefined) return { field, shape: "ranges", ranges: ranges(asked, asked.ranges, problems) }
  const total = asked.total ?? missing(problems, "split.total", "a whole number of at least 1", 1)
  const chunks = asked.chunks ?? missing(problems, "split.chunks", "the number of tasks", 1)
  const start = asked.start ?? 0
  checkRange("split", start, total, problems)
  return { field, shape: "chunks", chunks: Math.min(chunks, total), total, start }
}

function ranges(asked: NonNullable<SubmitJobBody["split"]>, list: Range[], problems: FieldProblem[]): Range[] {
  const mixed = (["start", "total", "chunks"] as const).find((name) => asked[name] !== undefined)
  if (mixed) problems.push({ path: `split.${mixed}`, problem: "cannot stand beside ranges: keep one of the two forms" })
  if (list.length === 0)
    problems.push({ path: "split.ranges", problem: "is empty: must have at least one {start, count}" })
  const beyond = list.findIndex(({ start, count }) => !Number.isSafeInteger(start + count))
  const reaching = list[beyond]
  if (reaching) checkRange(`split.ranges[${beyond}]`, reaching.start, reaching.count, problems)
  return list
}

function reduce(fields: SubmitJobBody, problems: FieldProblem[]): [string, ReduceOperator][] {
  const asked = fields.reduce
  if (asked === undefined)
    return missing(problems, "reduce", `an object {field: operator}; operators: ${OPERATORS}`, [])
  const entries = Object.entries(asked)
  if (entries.length === 0)
    problems.push({ path: "reduce", problem: `is empty: must name at least one field; operators: ${OPERATORS}` })
  if (entries.length > MOST_REDUCE_FIELDS) {
    problems.push({ path: "reduce", problem: `has ${entries.length} fields: must have at most ${MOST_REDUCE_FIELDS}` })
  }
  return entries.flatMap(([field, text]): [string, ReduceOperator][] => {
    const operator = reduceOperator(text)
    if (operator) return [[field, operator]]
    problems.push({ path: `reduce.${field}`, problem: `must be one of ${OPERATORS}` })
    return []
  })
}

function reduceOperator(text: JsonValue): ReduceOperator | null {
  if (typeof text !== "string") return null
  if (text.startsWith("weighted_avg:")) {
    const weightField = text.slice("weighted_avg:".length)
    return weightField === "" ? null : { kind: "weighted_avg", weightField }
  }
  const kind = PLAIN_OPERATORS.find((name) => name === text)
  return kind ? { kind } : null
}

const PLAIN_OPERATORS = ["sum", "mean", "max", "min", "concat", "count", "collect"] as const
const OPERATORS = `${PLAIN_OPERATORS.join(", ")}, weighted_avg:<weight_field>`
/** Each costs work for every task. */
const MOST_REDUCE_FIELDS = 1000

/** SC-005: sealed work is a recipe's. */
function executionPolicy(fields: SubmitJobBody, problems: FieldProblem[]): "sandboxed" {
  if (fields.execution_policy === "sealed") {
    problems.push({ path: "execution_policy", problem: "is sealed, which only recipes are: leave it out for projects" })
  }
  return "sandboxed"
}

/** V-001, V-002 and the defaults of rulings, Reservations. */
function reservation(fields: SubmitJobBody, problems: FieldProblem[]): Reservation {
  const asked = fields.reservation ?? {}
  if (asked.mode === "guaranteed") {
    return {
      mode: "guaranteed",
      parallelism:
        asked.parallelism ?? missing(problems, "reservation.parallelism", "how many tasks run side by side", 1),
      guaranteedForSeconds: asked.guaranteed_for_s ?? DEFAULT_GUARANTEE_S,
      maxWaitSeconds: asked.max_wait_s ?? 0,
    }
  }
  return {
    mode: "best_effort",
    ...(asked.parallelism !== undefined && { parallelism: asked.parallelism }),
    ...(asked.guaranteed_for_s !== undefined && { guaranteedForSeconds: asked.guaranteed_for_s }),
    ...(asked.max_wait_s !== undefined && { maxWaitSeconds: asked.max_wait_s }),
  }
}

function checkpointing(fields: SubmitJobBody, problems: FieldProblem[]): Pick<Submission, "checkpointing"> {
  const asked = fields.checkpointing
  if (asked === undefined) return {}
  const payloadKey = asked.payload_key
  if (payloadKey !== undefined && PLATFORM_KEYS.includes(payloadKey)) {
    problems.push({ path: "checkpointing.payload_key", problem: `is ${payloadKey}, which the platform writes itself` })
  }
  return {
    checkpointing: {
      enabled: asked.enabled ?? false,
      resumeFromLatest: asked.resume_from_latest ?? false,
      ...(payloadKey !== undefined && { payloadKey }),
    },
  }
}

/** Whether this deployment would call it is checked by the submit: it depends on its settings. */
function callbackUrl({ callback_url: url }: SubmitJobBody, problems: FieldProblem[]): Pick<Submission, "callbackUrl"> {
  if (url === undefined) return {}
  const problem = callbackUrlProblem(url)
  if (problem !== null) problems.push({ path: "callback_url", problem })
  return { callbackUrl: url }
}
function mostItMayCost(
  { max_cost_usd: amount }: SubmitJobBody,
  problems: FieldProblem[],
): Pick<Submission, "maxCostUsd"> {
  if (amount === undefined) return {}
  const micro = parseUsd(amount)
  if (micro === null || micro > LARGEST_COST) {
    problems.push({
      path: "max_cost_usd",
      problem: `must have at most six decimals, and be at most ${usd(LARGEST_COST)}`,
    })
  }
  return { maxCostUsd: amount }
}
/** More than can be held (coordinator/billing/holds.ts). */
const LARGEST_COST = 1_000_000_000_000_000n

/** Members of a payload that have a meaning of their own. */
const PLATFORM_KEYS = ["_artifacts", "_shared", "_batch"]

function meta(fields: SubmitJobBody, problems: FieldProblem[]): JsonObject | null {
  if (fields.meta === undefined) return null
  const bytes = Buffer.byteLength(JSON.stringify(fields.meta))
  if (bytes > LARGEST_META_BYTES) {
    problems.push({ path: "meta", problem: `has ${bytes} bytes as JSON: must have at most ${LARGEST_META_BYTES}` })
  }
  const env = Object.hasOwn(fields.meta, "env") ? fields.meta["env"] : undefined
  if (env === undefined || env === null) return fields.meta
  if (!isJsonObject(env)) problems.push({ path: "meta.env", problem: "must be an object of strings" })
  else {
    for (const [name, value] of Object.entries(env)) {
      if (name === "" || /[=\0]/.test(name))
        problems.push({ path: "meta.env", problem: "has a name that is empty or contains = or NUL" })
      else if (typeof value !== "string" || value.includes("\0")) {
        problems.push({ path: `meta.env.${name}`, problem: "must be a string without NUL" })
      }
    }
  }
  return fields.meta
}

function variant(fields: SubmitJobBody, problems: FieldProblem[]): JsonValue {
  // Came out of JSON.parse, so it is a JSON value.
  const value = (fields.variant ?? null) as JsonValue
  if (Array.isArray(value))
    problems.push({ path: "variant", problem: "must be a string, number, boolean or object, not a list" })
  return value
}

function resultSchema(fields: SubmitJobBody, problems: FieldProblem[]): ResultSchema {
  const asked = fields.result_schema
  const rankedBy = fields.type === "sweep" || fields.type === "benchmark" ? fields.rank_by : undefined
  const checked: ResultSchema = {
    requiredFields: [...new Set(asked?.required_fields)],
    fieldTypes: [],
    fieldRanges: [],
  }
  for (const [field, name] of Object.entries(asked?.field_types ?? {})) {
    const type: FieldType | undefined = FIELD_TYPES.find((known) => known === name)
    if (type && field === rankedBy && type !== "number" && type !== "integer")
      problems.push({
        path: `result_schema.field_types.${field}`,
        problem: "must be number or integer: rank_by ranks by it",
      })
    else if (type) checked.fieldTypes.push([field, type])
    else
      problems.push({ path: `result_schema.field_types.${field}`, problem: `must be one of ${FIELD_TYPES.join(", ")}` })
  }
  for (const [field, range] of Object.entries(asked?.field_ranges ?? {})) {
    const [least, most] = Array.isArray(range) && range.length === 2 ? range : []
    if (typeof least === "number" && typeof most === "number" && least <= most)
      checked.fieldRanges.push([field, least, most])
    else
      problems.push({
        path: `result_schema.field_ranges.${field}`,
        problem: "must be [least, most], two numbers in order",
      })
  }
  return checked
}
