import type { JsonObject, JsonValue } from "../../../protocol/base/json-text.ts"
import type { Items } from "./items.ts"

/** One item per combination of the values, in the order of the names; the last one varies fastest (SW-001, GAP-38). */
export function sweepItems(parameters: readonly [name: string, values: JsonValue[]][]): Items {
  return {
    count: parameters.reduce((product, [, values]) => product * values.length, 1),
    fieldsOf: (item) => {
      const combination = combinationAt(parameters, item)
      return { ...combination, _sweep_idx: item, _sweep_params: combination }
    },
  }
}

/** The values of combination `index` by their names. */
export function combinationAt(parameters: readonly [name: string, values: JsonValue[]][], index: number): JsonObject {
  let rest = index
  const chosen = parameters.toReversed().map(([name, values]): [string, JsonValue] => {
    const value = values[rest % values.length] ?? null
    rest = Math.floor(rest / values.length)
    return [name, value]
  })
  return Object.fromEntries(chosen.toReversed())
}
