import type { Plan } from "./plan.ts"
import type { Outcome } from "./world.ts"

/** One thing of a plan that can be left out: `f3` is its fourth fault, `a0` its first action. */
type Part = string

/** The plan with these parts alone; all of it without a list. */
export function shortened(plan: Plan, keep: string | undefined): Plan {
  if (keep === undefined) return plan
  const kept = new Set(keep.split(","))
  return {
    ...plan,
    actions: plan.actions.filter((_, index) => kept.has(`a${index}`)),
    faults: plan.faults.filter((_, index) => kept.has(`f${index}`)),
  }
}

/** What to pass to `--keep`. */
export function keepOf(whole: Plan, least: Plan): string {
  return partsOf(whole)
    .filter((part) => {
      const list = part.startsWith("f") ? whole.faults : whole.actions
      const one = list[Number(part.slice(1))]
      return [...least.faults, ...least.actions].some((other) => other === one)
    })
    .join(",")
}

/**
 * Delta debugging (Zeller): leaves out halves, then quarters and so on, as long as the same number of the list stays broken.
 * Another promise that breaks on the way is another fault.
 */
export async function shorten(
  plan: Plan,
  outcome: Outcome,
  run: (plan: Plan) => Promise<Outcome>,
): Promise<{ plan: Plan; outcome: Outcome }> {
  const wanted = kindOf(outcome)
  let best = { plan, outcome }
  let parts = partsOf(plan)
  let pieces = 2
  const endMs = performance.now() + LONGEST_MS
  while (parts.length > 1 && performance.now() < endMs) {
    const size = Math.ceil(parts.length / pieces)
    let shorter = false
    for (let from = 0; from < parts.length && performance.now() < endMs; from += size) {
      const rest = [...parts.slice(0, from), ...parts.slice(from + size)]
      const tried = shortened(plan, rest.join(","))
      const outcome = await run(tried)
      if (kindOf(outcome) !== wanted) continue
      best = { plan: tried, outcome }
      parts = rest
      pieces = Math.max(pieces - 1, 2)
      shorter = true
      break
    }
    if (shorter) continue
    if (pieces >= parts.length) break
    pieces = Math.min(pieces * 2, parts.length)
  }
  return best
}

/** A world that does not come to rest takes seconds each time. */
const LONGEST_MS = 60_000

const partsOf = ({ faults, actions }: Plan): Part[] => [
  ...faults.map((_, index) => `f${index}`),
  ...actions.map((_, index) => `a${index}`),
]

/** The number of the broken promise, with words but without names and numbers. */
function kindOf({ problems: [first] }: Outcome): string | null {
  return first === undefined ? null : first.replaceAll(/[\w-]*\d[\w-]*/g, "#").slice(0, 60)
}
