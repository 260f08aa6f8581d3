import type { SubmitJobBody } from "../../../protocol/api/jobs.ts"
import { isJsonObject, type JsonValue } from "../../../protocol/base/json-text.ts"
import type { FieldProblem } from "../../../protocol/domain/errors.ts"
import {
  MOST_PUBLISHED,
  outcomePath,
  PATH_RULE,
  STATE_KEY_PATTERN,
  STATE_KEY_RULE,
} from "../../../protocol/domain/shared-state.ts"
import type { Publish, Submission } from "./submission.ts"

/** `state.publish`: keys of the project's shared state, each with a `path` into the job's outcome or a `value` (SS-004). */
export function publish(fields: SubmitJobBody, problems: FieldProblem[]): Pick<Submission, "publish"> {
  const asked = Object.entries(fields.state?.publish ?? {})
  if (asked.length === 0) return {}
  if (asked.length > MOST_PUBLISHED) {
    problems.push({
      path: "state.publish",
      problem: `names ${asked.length} keys: must name at most ${MOST_PUBLISHED}; publish an object instead`,
    })
    return {}
  }
  const found = asked.flatMap(([key, entry]): Publish[] => {
    const at = `state.publish.${key.slice(0, LONGEST_SHOWN)}`
    if (!STATE_KEY_PATTERN.test(key)) problems.push({ path: at, problem: STATE_KEY_RULE })
    const one = entryOf(key, entry)
    if (typeof one !== "string") return [one]
    problems.push({ path: at, problem: one })
    return []
  })
  return { publish: found }
}

/** Or what is wrong with it. `{value: null}` publishes null; a null beside the other field is left out. */
function entryOf(key: string, entry: JsonValue): Publish | string {
  const rule = 'must be {path: "results.0.score"} or {value: any JSON}'
  if (!isJsonObject(entry)) return rule
  const path = Object.hasOwn(entry, "path") ? entry["path"] : null
  const value = Object.hasOwn(entry, "value") ? entry["value"] : undefined
  if (path === null || path === undefined) return value === undefined ? rule : { key, value }
  if (value !== undefined && value !== null) return "has both path and value: keep one of them"
  if (typeof path !== "string" || outcomePath(path) === null) return `has a path that is none: it ${PATH_RULE}`
  return { key, path }
}

const LONGEST_SHOWN = 140
