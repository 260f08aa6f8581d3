import { JsonText } from "../../../protocol/base/json-text.ts"
import { Budget, type Merge } from "./merged.ts"

/** All results in the order of tasks, null where there is none (SR-013, GAP-36). */
export function collectResults(warn: (warning: string) => void): Merge {
  const budget = new Budget(warn)
  let texts: string[] = []
  const take = (text: string): void => {
    if (budget.spend(text)) texts.push(text)
    else texts = []
  }
  return {
    takeResult: (_, resultText) => take(resultText ?? "null"),
    takeGap: () => take("null"),
    merged() {
      const result = budget.holds ? new JsonText(`[${texts.join(",")}]`) : null
      return { result, summary: { results: result }, aliases: {}, weights: null }
    },
  }
}
