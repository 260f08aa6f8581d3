import { present } from "../../protocol/base/assert.ts"
import { jobBySeq } from "../store/jobs.ts"
import type { Store } from "../store/store.ts"
import { planTasks, type Plan } from "./plan/plan.ts"
import type { Submission } from "./submission/submission.ts"

/** Plans of jobs by seq, made again from their submissions: payloads are never stored task by task. */
export interface Plans {
  of(seq: number): Promise<Plan>
}

/** Submissions kept in memory, in characters of their JSON; at least the last one, whatever it weighs. */
const KEPT_CHARACTERS = 32 * 1024 * 1024

export function createPlans(store: Store): Plans {
  const kept = new Map<number, { plan: Plan; characters: number }>()
  let characters = 0

  function keep(seq: number, entry: { plan: Plan; characters: number }): void {
    kept.set(seq, entry)
    characters += entry.characters
    for (const [oldest, { characters: freed }] of kept) {
      if (characters <= KEPT_CHARACTERS || oldest === seq) return
      kept.delete(oldest)
      characters -= freed
    }
  }

  return {
    async of(seq) {
      const known = kept.get(seq)
      if (known) {
        // The most recently used stands last.
        kept.delete(seq)
        kept.set(seq, known)
        return known.plan
      }
      const job = present(await store.read((view) => jobBySeq(view, seq)), "a job whose plan is asked for")
      const plan = planTasks(JSON.parse(job.submission) as Submission)
      if (!kept.has(seq)) keep(seq, { plan, characters: job.submission.length })
      return plan
    },
  }
}
