import { isJsonObject, JsonText, stringifyJson, type JsonValue } from "../../../protocol/base/json-text.ts"
import type { Plan } from "../plan/plan.ts"
import { ExactSum } from "./exact-sum.ts"
import type { Merge } from "./merged.ts"

/**
 * Σ(value × weight) ÷ Σ weight over completed tasks (SR-015). The weight stands in the result, else in the task's payload; a
 * task without a usable pair is left out with a warning, and its weight stays pending (rulings). A pack's result that is a
 * list as long as the pack counts item by item.
 */
export function averageByWeight(
  plan: Plan,
  { valueField, weightField }: { valueField: string; weightField: string },
  warn: (warning: string) => void,
): Merge {
  const products = new ExactSum()
  const completed = new ExactSum()
  const pending = new ExactSum()
  let nextTask = 0

  const plannedWeight = (item: number): number | null => weightIn(plan.itemField(item, weightField))
  const plannedTaskWeight = (index: number): number | null => {
    const { first, count } = plan.itemsOf(index)
    let sum = 0
    // No list: a reader of a running job of 100,000 tasks asks for all of them.
    for (let item = first; item < first + count; item++) {
      const weight = plannedWeight(item)
      if (weight === null) return null
      sum += weight
    }
    return sum
  }
  const take = (index: number, result: JsonValue, planned: number | null): void => {
    const value = fieldOf(result, valueField)
    const own = fieldOf(result, weightField)
    const weight = own === undefined ? planned : weightIn(own)
    if (typeof value === "number" && Number.isFinite(value) && weight !== null) {
      products.add(value * weight)
      completed.add(weight)
      return
    }
    const lacking = weight === null ? `${weightField} of at least 0` : valueField
    warn(`task ${index} is left out of the weighted average: it has no number ${lacking}`)
    pending.add(weight ?? planned ?? 0)
  }
  return {
    takeResult(index, resultText) {
      nextTask = index + 1
      const result = resultText === null ? null : (JSON.parse(resultText) as JsonValue)
      const { first, count } = plan.itemsOf(index)
      if (plan.batched && Array.isArray(result) && result.length === count) {
        for (const [at, part] of result.entries()) take(index, part, plannedWeight(first + at))
      } else take(index, result, plannedTaskWeight(index))
    },
    takeGap(index) {
      nextTask = index + 1
      pending.add(plannedTaskWeight(index) ?? 0)
    },
    merged() {
      const waiting = new ExactSum()
      waiting.add(pending.total)
      for (let index = nextTask; index < plan.count; index++) waiting.add(plannedTaskWeight(index) ?? 0)
      const average = products.total / completed.total
      const value = completed.total > 0 && Number.isFinite(average) ? average : null
      if (completed.total > 0 && value === null) warn("the weighted average left the range of numbers")
      const weights = {
        weightField,
        expected: completed.total + waiting.total,
        completed: completed.total,
        pending: waiting.total,
      }
      const coverage = {
        weight_field: weightField,
        expected_weight: weights.expected,
        completed_weight: weights.completed,
        pending_weight: weights.pending,
      }
      const aliases = { [valueField.startsWith("avg_") ? valueField : `avg_${valueField}`]: value }
      return {
        result: new JsonText(stringifyJson({ value, value_field: valueField, ...coverage })),
        summary: { value, ...coverage, ...aliases },
        aliases,
        weights,
      }
    },
  }
}

function fieldOf(result: JsonValue, field: string): JsonValue | undefined {
  return isJsonObject(result) && Object.hasOwn(result, field) ? result[field] : undefined
}

/** A negative weight means nothing in an average. */
function weightIn(value: JsonValue | undefined): number | null {
  return typeof value === "number" && Number.isFinite(value) && value >= 0 ? value : null
}
