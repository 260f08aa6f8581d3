import { assert, unreachable } from "../../../protocol/base/assert.ts"
import type { Plan } from "../plan/plan.ts"
import type { Merge as MergeStrategy, Submission } from "../submission/submission.ts"
import { collectResults } from "./collect.ts"
import { keyResults } from "./keyed.ts"
import { rankCandidates } from "./leaderboard.ts"
import type { Merge, Merged, Weights } from "./merged.ts"
import { rankCombinations } from "./ranked.ts"
import { reduceResults } from "./reduce.ts"
import { averageByWeight } from "./weighted-average.ts"

/** A task that has ended. */
export interface TaskOutcome {
  index: number
  status: "completed" | "failed" | "cancelled"
  /**
   * What a completed task's program wrote, as valid JSON text; null where it wrote nothing readable. Of a spilled result: the
   * content, not the record that stands for it (GAP-55).
   */
  resultText: string | null
}

export interface Aggregate extends Merged {
  completeness: Completeness
  /** What was left out and why, in order; the rest of many is counted in the last one. */
  warnings: string[]
}

export interface Completeness {
  complete: boolean
  totalTasks: number
  completedTasks: number
  failedTasks: number
  cancelledTasks: number
  pendingTasks: number
  totalItems: number
  completedItems: number
  weights: Weights | null
}

export interface Fold {
  /** Takes ended tasks in order of their indexes; those not ended yet are skipped. Any number per turn of the event loop. */
  add(outcome: TaskOutcome): void
  /** What the tasks so far add up to. May be called again and in between: a running job shows its results so far. */
  finish(): Aggregate
}

/** Merges a job's results as its type and merge strategy say. The same tasks give the same aggregate, however sliced. */
export function createFold(submission: Submission, plan: Plan): Fold {
  const warnings: string[] = []
  const counts = { completed: 0, failed: 0, cancelled: 0 }
  let nextIndex = 0
  let completedItems = 0
  let moreWarnings = 0
  const merge = mergeFor(submission, plan, (warning) => {
    if (warnings.includes(warning)) return
    if (warnings.length < MOST_WARNINGS) warnings.push(warning)
    else moreWarnings++
  })
  return {
    add(outcome) {
      assert(outcome.index >= nextIndex && outcome.index < plan.count, "outcomes are added in order, each once")
      for (; nextIndex < outcome.index; nextIndex++) merge.takeGap(nextIndex, false)
      nextIndex++
      counts[outcome.status]++
      if (outcome.status !== "completed") return merge.takeGap(outcome.index, true)
      completedItems += plan.itemsOf(outcome.index).count
      merge.takeResult(outcome.index, outcome.resultText)
    },
    finish() {
      const merged = merge.merged()
      return {
        ...merged,
        completeness: {
          complete: counts.completed === plan.count,
          totalTasks: plan.count,
          completedTasks: counts.completed,
          failedTasks: counts.failed,
          cancelledTasks: counts.cancelled,
          pendingTasks: plan.count - counts.completed - counts.failed - counts.cancelled,
          totalItems: plan.logicalItems,
          completedItems,
          weights: merged.weights,
        },
        warnings: moreWarnings === 0 ? [...warnings] : [...warnings, `and ${moreWarnings} more`],
      }
    },
  }
}

/** They are read by people; a job of 100,000 tasks may have one for each. */
const MOST_WARNINGS = 20

function mergeFor({ work }: Submission, plan: Plan, warn: (warning: string) => void): Merge {
  switch (work.type) {
    case "structured_runner":
      return mergeForFanOut(work.merge, plan, warn)
    case "map_reduce":
      return reduceResults(plan, work.reduce, warn)
    case "sweep":
      return rankCombinations(work, warn)
    case "benchmark":
      return rankCandidates(work, warn)
    default:
      return unreachable(work)
  }
}

function mergeForFanOut(merge: MergeStrategy, plan: Plan, warn: (warning: string) => void): Merge {
  switch (merge.strategy) {
    case "collect":
      return collectResults(warn)
    case "keyed":
      return keyResults(plan, warn)
    case "weighted_avg":
      return averageByWeight(plan, merge, warn)
    default:
      return unreachable(merge)
  }
}

/** The aggregate as `summary` carries it beside its other blocks (RS-004); write it with `stringifyJson`. */
export function aggregateOnWire(aggregate: Aggregate): Record<string, unknown> {
  const { completeness } = aggregate
  return {
    ...aggregate.summary,
    aggregate_result: aggregate.result,
    aggregate_aliases: aggregate.aliases,
    completeness: {
      complete: completeness.complete,
      total_tasks: completeness.totalTasks,
      completed_tasks: completeness.completedTasks,
      failed_tasks: completeness.failedTasks,
      cancelled_tasks: completeness.cancelledTasks,
      pending_tasks: completeness.pendingTasks,
      total_items: completeness.totalItems,
      completed_items: completeness.completedItems,
      ...(completeness.weights && {
        weight_field: completeness.weights.weightField,
        expected_weight: completeness.weights.expected,
        completed_weight: completeness.weights.completed,
        pending_weight: completeness.weights.pending,
      }),
    },
    logical_items: completeness.totalItems,
    ...(aggregate.warnings.length > 0 && { aggregate_warnings: aggregate.warnings }),
  }
}
