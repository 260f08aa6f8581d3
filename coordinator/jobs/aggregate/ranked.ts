import { JsonText } from "../../../protocol/base/json-text.ts"
import { combinationAt } from "../plan/sweep.ts"
import type { Work } from "../submission/submission.ts"
import { Budget, type Merge } from "./merged.ts"
import { isBetter, ranked, scoreIn } from "./score.ts"

interface Row {
  score: number | null
  /** `"params":…,"result":…` */
  members: string
}

/**
 * The completed tasks of a sweep, the best first, and the best by itself (SW-006). A result without the number stands behind
 * the ranked ones without a rank; where none has it there is no best (rulings, Sweep).
 */
export function rankCombinations(
  { parameters, ranking }: Extract<Work, { type: "sweep" }>,
  warn: (warning: string) => void,
): Merge {
  const budget = new Budget(warn)
  let rows: Row[] = []
  let best: Row | null = null
  return {
    takeResult(index, resultText) {
      const score = scoreIn(resultText, ranking.by)
      if (score === null) warn(`task ${index} is not ranked: its result has no number ${ranking.by}`)
      const params = JSON.stringify(combinationAt(parameters, index))
      const row = { score, members: `"params":${params},"result":${resultText ?? "null"}` }
      if (score !== null && (best?.score == null || isBetter(ranking.order, score, best.score))) best = row
      if (budget.spend(row.members)) rows.push(row)
      else rows = []
    },
    takeGap() {},
    merged() {
      const texts = ranked(ranking.order, rows).map((row, at) => rowText(row, at + 1))
      const summary = {
        results: new JsonText(budget.holds ? `[${texts.join(",")}]` : "null"),
        // Small enough also where all together are not.
        best: new JsonText(best === null ? "null" : rowText(best, 1)),
      }
      const result = new JsonText(`{"results":${summary.results.text},"best":${summary.best.text}}`)
      return { result, summary, aliases: {}, weights: null }
    },
  }
}

const rowText = ({ members, score }: Row, rank: number): string =>
  `{${members},"rank":${score === null ? "null" : rank}}`
