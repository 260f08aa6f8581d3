import { isJsonObject, type JsonValue } from "../../../protocol/base/json-text.ts"

/** The number that a result is ranked by; null where it has none that can be compared. */
export function scoreIn(resultText: string | null, field: string): number | null {
  const result = resultText === null ? null : (JSON.parse(resultText) as JsonValue)
  const value = isJsonObject(result) && Object.hasOwn(result, field) ? result[field] : null
  return typeof value === "number" && Number.isFinite(value) ? value : null
}

/** Is `a` the better one? Equal ones are not: whoever came first stays first. */
export function isBetter(order: "desc" | "asc", a: number, b: number): boolean {
  return order === "desc" ? a > b : a < b
}

/**
 * The best first; equal ones in the order they came, and those without a score last, in that order too (rulings, Sweep and
 * Benchmark). The position of a row that has a score is its rank.
 */
export function ranked<Row extends { score: number | null }>(order: "desc" | "asc", rows: readonly Row[]): Row[] {
  return rows.toSorted((a, b) => {
    if (a.score === null || b.score === null) return Number(a.score === null) - Number(b.score === null)
    return isBetter(order, a.score, b.score) ? -1 : isBetter(order, b.score, a.score) ? 1 : 0
  })
}
