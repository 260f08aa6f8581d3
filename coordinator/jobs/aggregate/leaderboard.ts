import { JsonText } from "../../../protocol/base/json-text.ts"
import { candidateOf } from "../plan/benchmark.ts"
import type { Work } from "../submission/submission.ts"
import { ExactSum } from "./exact-sum.ts"
import { Budget, type Merge } from "./merged.ts"
import { ranked, scoreIn } from "./score.ts"

/**
 * Candidates by the mean of their replicas, with its spread (BM-006). One without a usable replica stands last, without
 * numbers and rank (rulings, Benchmark).
 */
export function rankCandidates(
  { candidates, replicas, ranking }: Extract<Work, { type: "benchmark" }>,
  warn: (warning: string) => void,
): Merge {
  const scores = candidates.map((): number[] => [])
  return {
    takeResult(index, resultText) {
      const score = scoreIn(resultText, ranking.by)
      if (score === null) warn(`task ${index} does not count: its result has no number ${ranking.by}`)
      else scores[candidateOf(index, replicas)]?.push(score)
    },
    takeGap() {},
    merged() {
      const rows = candidates.map(({ name }, at) => ({ candidate: name, ...statistics(scores[at] ?? []) }))
      const budget = new Budget(warn)
      const texts: string[] = []
      for (const [at, { score, candidate, ...row }] of ranked(ranking.order, rows).entries()) {
        const text = JSON.stringify({ candidate, ...row, rank: score === null ? null : at + 1 })
        if (!budget.spend(text)) break
        texts.push(text)
      }
      const leaderboard = new JsonText(budget.holds ? `[${texts.join(",")}]` : "null")
      return {
        result: new JsonText(`{"leaderboard":${leaderboard.text}}`),
        summary: { leaderboard },
        aliases: {},
        weights: null,
      }
    },
  }
}

interface Statistics {
  mean: number | null
  /** Of the sample, n − 1 (BM-007); 0 for a single value (GAP-40). */
  std: number | null
  min: number | null
  max: number | null
  count: number
  /** What the candidate is ranked by: its mean. */
  score: number | null
}

function statistics(values: readonly number[]): Statistics {
  if (values.length === 0) return { mean: null, std: null, min: null, max: null, count: 0, score: null }
  const mean = sumOf(values) / values.length
  const squares = sumOf(values.map((value) => (value - mean) ** 2))
  const std = values.length === 1 ? 0 : Math.sqrt(squares / (values.length - 1))
  const least = values.reduce((a, b) => Math.min(a, b))
  const most = values.reduce((a, b) => Math.max(a, b))
  const score = finite(mean)
  return { mean: score, std: finite(std), min: least, max: most, count: values.length, score }
}

function sumOf(values: readonly number[]): number {
  const sum = new ExactSum()
  for (const value of values) sum.add(value)
  return sum.total
}

/** Null for what left the range of doubles: JSON has no word for it. */
const finite = (value: number): number | null => (Number.isFinite(value) ? value : null)
