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
  if (body.reservation?.mode === "guaranteed") yield "reservation.mode guaranteed"
  if (body.execution_policy === "sealed") yield "execution_policy sealed"
  if (body.placement_policy === "dedicated") yield "placement_policy dedicated"
  if (body.state && Object.values(body.state).some(asksForSomething)) yield "state"
  yield* laterPayloadFields(body.payload, "payload")
  yield* laterPayloadFields(body.fixed_payload, "fixed_payload")
  yield* laterPayloadFields(body.shared_payload, "shared_payload")
  for (const [index, item] of (body.fan_out?.items ?? []).entries()) {
    const first = laterPayloadFields(item, `fan_out.items[${index}]`).next()
    // One is enough: a list of thousands of items would repeat it.
    if (!first.done) return yield first.value
  }
}

function* laterPayloadFields(payload: unknown, path: string): Generator<string> {
  if (!isJsonObject(payload)) return
  for (const name of ["_artifacts", "_shared"]) {
    const value = Object.hasOwn(payload, name) ? payload[name] : undefined
    if (value !== undefined && asksForSomething(value)) yield `${path}.${name}`
  }
}

function asksForSomething(value: JsonValue): boolean {
  return value !== null && !(typeof value === "object" && Object.keys(value).length === 0)
}
