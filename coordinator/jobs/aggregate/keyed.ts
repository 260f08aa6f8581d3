import { JsonText, splitJsonArray } from "../../../protocol/base/json-text.ts"
import type { Plan } from "../plan/plan.ts"
import { Budget, type Merge } from "./merged.ts"

/**
 * Results by the key of their item (SR-014). A pack's result that is a list as long as the pack is split among its items,
 * any other stands under each of them (GAP-35); a task that failed leaves its keys with null (rulings).
 */
export function keyResults(plan: Plan, warn: (warning: string) => void): Merge {
  const budget = new Budget(warn)
  let members: string[] = []
  const put = (item: number, text: string): void => {
    const member = `${JSON.stringify(plan.keys[item])}:${text}`
    if (budget.spend(member)) members.push(member)
    else members = []
  }
  return {
    takeResult(index, resultText) {
      const { first, count } = plan.itemsOf(index)
      const parts = plan.batched && resultText !== null ? splitJsonArray(resultText) : null
      for (let at = 0; at < count; at++) {
        put(first + at, (parts?.length === count ? parts[at] : resultText) ?? "null")
      }
    },
    takeGap(index, ended) {
      if (!ended) return
      const { first, count } = plan.itemsOf(index)
      for (let at = 0; at < count; at++) put(first + at, "null")
    },
    merged() {
      const result = budget.holds ? new JsonText(`{${members.join(",")}}`) : null
      return { result, summary: { results: result }, aliases: {}, weights: null }
    },
  }
}
