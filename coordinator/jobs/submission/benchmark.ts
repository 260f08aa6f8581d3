import type { SubmitJobBody } from "../../../protocol/api/jobs.ts"
import { isJsonObject, type JsonObject, type JsonValue } from "../../../protocol/base/json-text.ts"
import type { FieldProblem } from "../../../protocol/domain/errors.ts"
import { missing } from "./missing.ts"
import { ranking } from "./ranking.ts"
import type { Candidate, Work } from "./submission.ts"

/** The fields of a benchmark (BM-001 … BM-005). */
export function benchmark(fields: SubmitJobBody, problems: FieldProblem[]): Extract<Work, { type: "benchmark" }> {
  const replicas = fields.replicas ?? 1
  const step = stepOf(fields, problems)
  const candidates: Candidate[] = []
  for (const [name, config] of configs(fields, problems)) {
    candidates.push({ name, config, vary: step && varied({ name, config }, fields, { ...step, replicas }, problems) })
  }
  return { type: "benchmark", candidates, replicas, ranking: ranking(fields, problems) }
}

/** BM-001. */
const FEWEST_CANDIDATES = 2
/** What the platform writes into a benchmark's payloads, or reads there once for the whole job. */
const PLATFORM_KEYS = ["_candidate", "_replica", "_artifacts", "_shared"]

function configs(fields: SubmitJobBody, problems: FieldProblem[]): [string, JsonObject][] {
  const asked = fields.candidates
  if (asked === undefined) return missing(problems, "candidates", "an object {name: {…}} of at least two", [])
  const entries = Object.entries(asked)
  if (entries.length < FEWEST_CANDIDATES) {
    problems.push({ path: "candidates", problem: `names ${entries.length}: must name at least ${FEWEST_CANDIDATES}` })
  }
  const named: [string, JsonObject][] = []
  for (const [name, config] of entries) {
    const taken = isJsonObject(config) ? Object.keys(config).find((key) => PLATFORM_KEYS.includes(key)) : undefined
    if (!isJsonObject(config)) problems.push({ path: `candidates.${name}`, problem: "must be an object" })
    else if (taken !== undefined)
      problems.push({ path: `candidates.${name}.${taken}`, problem: "is a name that the platform uses itself" })
    else named.push([name, config])
  }
  return named
}

interface Step {
  field: string
  stride: number
}

function stepOf({ replica_vary: asked }: SubmitJobBody, problems: FieldProblem[]): Step | null {
  if (asked === undefined) return null
  const field = asked.field ?? missing(problems, "replica_vary.field", "the payload field that differs", "")
  const stride = asked.stride ?? missing(problems, "replica_vary.stride", "a number", 0)
  if (PLATFORM_KEYS.includes(field))
    problems.push({ path: "replica_vary.field", problem: `is ${field}, which the platform writes itself` })
  return { field, stride }
}

/** The base is the candidate's, else the shared payload's, else 0 (GAP-40); one that is no number is refused (rulings). */
function varied(
  { name, config }: { name: string; config: JsonObject },
  fields: SubmitJobBody,
  { field, stride, replicas }: Step & { replicas: number },
  problems: FieldProblem[],
): Candidate["vary"] {
  const shared = fields.shared_payload ?? {}
  const [path, found]: [string, JsonValue] = Object.hasOwn(config, field)
    ? [`candidates.${name}.${field}`, config[field] ?? null]
    : [`shared_payload.${field}`, Object.hasOwn(shared, field) ? (shared[field] ?? null) : 0]
  const problem =
    typeof found !== "number"
      ? "must be a number: replica_vary counts from it"
      : reachesTooFar(found, stride, replicas)
        ? "leaves the range of exact numbers with replica_vary: must stay below 2^53"
        : null
  if (problem !== null && !problems.some((known) => known.path === path)) problems.push({ path, problem })
  return { field, base: typeof found === "number" ? found : 0, stride }
}

function reachesTooFar(base: number, stride: number, replicas: number): boolean {
  const last = base + (replicas - 1) * stride
  return Number.isInteger(base) && Number.isInteger(stride) ? !Number.isSafeInteger(last) : !Number.isFinite(last)
}
