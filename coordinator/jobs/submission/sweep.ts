import type { SubmitJobBody } from "../../../protocol/api/jobs.ts"
import type { JsonValue } from "../../../protocol/base/json-text.ts"
import type { FieldProblem } from "../../../protocol/domain/errors.ts"
import { missing } from "./missing.ts"
import { ranking } from "./ranking.ts"
import type { Work } from "./submission.ts"

/** The fields of a sweep (SW-001 … SW-005, SW-008). */
export function sweep(fields: SubmitJobBody, problems: FieldProblem[]): Extract<Work, { type: "sweep" }> {
  return { type: "sweep", parameters: parameters(fields, problems), ranking: ranking(fields, problems) }
}

/** SW-002. */
const MOST_COMBINATIONS = 1000
/** What the platform writes into a sweep's payloads, or reads there once for the whole job. */
const PLATFORM_KEYS = ["_sweep_idx", "_sweep_params", "_artifacts", "_shared"]

function parameters(fields: SubmitJobBody, problems: FieldProblem[]): [string, JsonValue[]][] {
  const asked = fields.parameters
  if (asked === undefined) return missing(problems, "parameters", "an object {name: [values]}", [])
  const named: [string, JsonValue[]][] = []
  for (const [name, values] of Object.entries(asked)) {
    const problem = PLATFORM_KEYS.includes(name) ? "is a name that the platform uses itself" : listProblem(values)
    if (problem !== null) problems.push({ path: `parameters.${name}`, problem })
    else if (Array.isArray(values)) named.push([name, values])
  }
  if (Object.keys(asked).length === 0)
    problems.push({ path: "parameters", problem: "is empty: must map at least one name to a list of values" })
  const combinations = named.reduce((product, [, { length }]) => product * length, 1)
  if (combinations > MOST_COMBINATIONS) {
    problems.push({
      path: "parameters",
      problem: `makes ${combinations} combinations: must make at most ${MOST_COMBINATIONS}; split the sweep, or thin out a list`,
    })
  }
  return named
}

function listProblem(values: JsonValue): string | null {
  if (!Array.isArray(values)) return "must be a list of values"
  return values.length === 0 ? "is empty: must have at least one value" : null
}
