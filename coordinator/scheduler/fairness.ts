import { costOf, type Rate } from "../billing/pricing.ts"

/**
 * Fair share, as the documents print it. What it says is shown by test/properties/fairness.test.ts.
 *
 * An account's share is what its tasks that ended have used, and for each task that it has in use now the price of an hour: the
 * account with the least share is served next. So accounts that all want something hold the same amount of capacity at any
 * moment, whatever their tasks' time limits and however many they submitted; only between equals it counts who used more
 * before. A task's time limit does not count: nobody knows how long it will run, and a careful limit must cost no turn.
 */
export const FAIRNESS_TEXT =
  "Accounts share the slots that fit their tasks equally, whatever they submitted before and whatever their priorities. " +
  "Fair time is the time that n tasks of run time d take on an equal part of the slots: n × d ÷ (slots ÷ accounts), and " +
  "at least d. The last of n tasks of an account ends no later than its fair time and two task run times after they were " +
  "submitted, with accounts of equal weight that want everything there is. Nothing that runs is stopped for it: one task " +
  "run time is the wait for slots to become free, and one is for slots that do not divide evenly. Tasks far below a " +
  "second are handed to machines a little ahead: they add at most half a second. With tasks of different run times d is " +
  "the longest of them that runs."

export interface FairWork {
  tasks: number
  /** Of one task. */
  runMs: number
  /** That fit the tasks, in the whole fleet. */
  slots: number
  /** That want something at the time, this one among them. */
  accounts: number
}

/** The time in which the work ends on an equal part of the slots. */
export function fairTimeMs({ tasks, runMs, slots, accounts }: FairWork): number {
  return Math.max(runMs, (tasks * runMs) / (slots / accounts))
}

/** When the account's last task has ended at the latest, from its submission on (`FAIRNESS_TEXT`). */
export function promisedEndMs(work: FairWork): number {
  return fairTimeMs(work) + 2 * work.runMs + (work.runMs < SHORT_TASK_MS ? HANDED_AHEAD_MS : 0)
}

/** Below this what was handed ahead of slots takes longer than a task: moving it takes half a second (`take-back.ts`). */
const SHORT_TASK_MS = 500
const HANDED_AHEAD_MS = 500

/** What a task in use counts, in micro-dollars: the price of an hour. Long against most tasks, so that what is in use decides. */
export function shareInUse(rate: Rate): number {
  return Math.max(1, Number(costOf(rate, IN_USE_MS)))
}

const IN_USE_MS = 3600_000
