import { unreachable } from "../../../protocol/base/assert.ts"
import {
  isJsonObject,
  JsonText,
  splitJsonArray,
  splitJsonObject,
  type JsonValue,
} from "../../../protocol/base/json-text.ts"
import type { Plan } from "../plan/plan.ts"
import type { ReduceOperator } from "../submission/submission.ts"
import { ExactSum } from "./exact-sum.ts"
import { Budget, type Merge } from "./merged.ts"

/**
 * One value per reduce field over the completed tasks that have the field (MR-004, MR-005, GAP-39). Values an operator
 * cannot use are left out with a warning.
 */
export function reduceResults(plan: Plan, reduce: [string, ReduceOperator][], warn: (warning: string) => void): Merge {
  const budget = new Budget(warn)
  const folds = reduce.map(([field, operator]) => ({ field, fold: foldFor(operator, budget) }))
  return {
    takeResult(index, resultText) {
      const texts = resultText === null ? null : splitJsonObject(resultText)
      if (texts === null) return
      const result = JSON.parse(resultText ?? "null") as JsonValue
      const value = (name: string): JsonValue | undefined =>
        isJsonObject(result) && Object.hasOwn(result, name) ? result[name] : undefined
      for (const { field, fold } of folds) {
        const own = value(field)
        if (own === undefined) continue
        const item = plan.itemsOf(index).first
        const weight = (name: string): JsonValue | undefined => value(name) ?? plan.itemField(item, name)
        const problem = fold.take(own, texts.get(field) ?? "null", weight)
        if (problem !== null) warn(`task ${index} is left out of ${field}: ${problem}`)
      }
    },
    takeGap() {},
    merged() {
      if (!budget.holds) return { result: null, summary: { reduced: null }, aliases: {}, weights: null }
      const members = folds.map(({ field, fold }) => `${JSON.stringify(field)}:${fold.text()}`)
      const reduced = `{${members.join(",")}}`
      return {
        result: new JsonText(`{"reduced":${reduced}}`),
        summary: { reduced: new JsonText(reduced) },
        aliases: {},
        weights: null,
      }
    },
  }
}

interface FieldFold {
  /** Takes a present value (null included) with its JSON text; answers why it could not be used, or null. */
  take(value: JsonValue, text: string, weight: (name: string) => JsonValue | undefined): string | null
  /** What has been folded so far, as JSON text. */
  text(): string
}

function foldFor(operator: ReduceOperator, budget: Budget): FieldFold {
  switch (operator.kind) {
    case "sum":
      return numbers((values) => values.sum.total)
    case "mean":
      return numbers((values) => (values.count === 0 ? null : values.sum.total / values.count))
    case "max":
      return numbers((values) => (values.count === 0 ? null : values.most))
    case "min":
      return numbers((values) => (values.count === 0 ? null : values.least))
    case "weighted_avg":
      return weightedAverage(operator.weightField)
    case "count":
      return count()
    case "collect":
      return collect(budget)
    case "concat":
      return concat(budget)
    default:
      return unreachable(operator)
  }
}

interface Seen {
  count: number
  sum: ExactSum
  least: number
  most: number
}

function numbers(outcome: (values: Seen) => number | null): FieldFold {
  const values: Seen = {
    count: 0,
    sum: new ExactSum(),
    least: Number.POSITIVE_INFINITY,
    most: Number.NEGATIVE_INFINITY,
  }
  return {
    take(value) {
      if (!isFiniteNumber(value)) return "its value is no number"
      values.count++
      values.sum.add(value)
      values.least = Math.min(values.least, value)
      values.most = Math.max(values.most, value)
      return null
    },
    text: () => numberText(outcome(values)),
  }
}

function weightedAverage(weightField: string): FieldFold {
  const products = new ExactSum()
  const weights = new ExactSum()
  return {
    take(value, _, weightOf) {
      const weight = weightOf(weightField)
      if (!isFiniteNumber(value)) return "its value is no number"
      if (!isFiniteNumber(weight) || weight < 0) return `its weight ${weightField} is no number of at least 0`
      products.add(value * weight)
      weights.add(weight)
      return null
    },
    text: () => numberText(weights.total > 0 ? products.total / weights.total : null),
  }
}

function count(): FieldFold {
  let present = 0
  return {
    take() {
      present++
      return null
    },
    text: () => String(present),
  }
}

function collect(budget: Budget): FieldFold {
  let texts: string[] = []
  return {
    take(_, text) {
      if (budget.spend(text)) texts.push(text)
      else texts = []
      return null
    },
    text: () => `[${texts.join(",")}]`,
  }
}

/** Strings alone become one string, lists one list; mixed, a list with the strings as elements (rulings). */
function concat(budget: Budget): FieldFold {
  let texts: string[] = []
  let onlyStrings = true
  return {
    take(value, text) {
      const parts = typeof value === "string" ? [text] : splitJsonArray(text)
      if (parts === null) return "its value is neither a string nor a list"
      onlyStrings &&= typeof value === "string"
      for (const part of parts) {
        if (budget.spend(part)) texts.push(part)
        else texts = []
      }
      return null
    },
    text() {
      if (!onlyStrings || texts.length === 0) return `[${texts.join(",")}]`
      return JSON.stringify(texts.map((text) => JSON.parse(text) as string).join(""))
    },
  }
}

const isFiniteNumber = (value: JsonValue | undefined): value is number =>
  typeof value === "number" && Number.isFinite(value)

/** Null for what left the range of doubles: JSON has no word for it. */
const numberText = (value: number | null): string =>
  value !== null && Number.isFinite(value) ? JSON.stringify(value) : "null"
