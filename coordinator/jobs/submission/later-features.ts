import type { SubmitJobBody } from "../../../protocol/api/jobs.ts"
import { isJsonObject, type JsonValue } from "../../../protocol/base/json-text.ts"
import { ComputalotError } from "../../../protocol/domain/errors.ts"

/**
 * Refuses what the documents promise and this version does not do yet: such a field is never accepted and ignored. Values
 * that ask for nothing (`state: {}`) pass.
 */
export function refuseLaterFeatures(body: SubmitJobBody): void {
  const fields = [...laterFields(body)]
  if (fields.length === 0) return
  throw new ComputalotError("not_available_yet", `not available yet: ${fields.join(", ")}`, {
    recommendedAction: "Leave these fields out, or keep their defaults, until this deployment offers them.",
    details: fields.map((path) => ({ path, problem: "is not available yet" })),
  })
}

function* laterFields(body: SubmitJobBody): Generator<string> {
  if (body.recipe !== undefined) yield "recipe"
  yield* uploadsElsewhere(body.payload, "payload")
  yield* uploadsElsewhere(body.fixed_payload, "fixed_payload")
  yield* uploadsElsewhere(body.shared_payload, "shared_payload")
  for (const [index, item] of (body.fan_out?.items ?? []).entries()) {
    const first = uploadsElsewhere(item, `fan_out.items[${index}]`).next()
    // One is enough: a list of thousands of items would repeat it.
    if (!first.done) return yield first.value
  }
}

/** AW-002's other form: it comes with external artifacts. */
function* uploadsElsewhere(payload: unknown, path: string): Generator<string> {
  for (const [name, entry] of Object.entries(member(member(payload, "_artifacts"), "upload") ?? {})) {
    if ((member(entry, "url") ?? null) !== null) yield `${path}._artifacts.upload.${name.slice(0, 80)}.url`
  }
}

const member = (object: unknown, name: string): JsonValue | undefined =>
  isJsonObject(object) && Object.hasOwn(object, name) ? object[name] : undefined
