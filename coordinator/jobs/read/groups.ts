import type { Instant } from "../../../protocol/base/clock.ts"
import { firstEndAfter, groupJobs, type JobFilter } from "../../store/jobs.ts"
import type { Store } from "../../store/store.ts"
import { expiredUpto, type RetentionParts } from "../retention.ts"

type GroupParts = RetentionParts & { store: Store }
type GroupBy = Parameters<typeof groupJobs>[2]

interface Group {
  key: string | null
  count: number
  statuses: Record<string, number>
}

interface Counted {
  groups: readonly Group[]
  /** The earliest end of a job that is there: once that one expires the groups are others. */
  firstEnd: Instant | null
}

/** How many of the matching jobs have each value, by status; over all matches, not the page (GAP-58). */
export async function countGroups(parts: GroupParts, filter: JobFilter, by: GroupBy): Promise<Counted> {
  const upto = expiredUpto(parts)
  const { rows, firstEnd } = await parts.store.read(async (view) => ({
    rows: await groupJobs(view, { ...filter, expiredUpto: upto }, by),
    firstEnd: await firstEndAfter(view, upto),
  }))
  const groups = new Map<string | null, Group>()
  for (const { key, status, jobs } of rows) {
    const group = groups.get(key) ?? { key, count: 0, statuses: {} }
    group.count += jobs
    group.statuses[status] = jobs
    groups.set(key, group)
  }
  return { groups: [...groups.values()], firstEnd }
}

/** Counting reads an index entry of every matching job: it is done once until some job is submitted, changes or expires. */
export interface GroupCache {
  groups(filter: JobFilter, by: GroupBy): Promise<readonly Group[]>
}

/** Questions whose answer is kept, and groups of one of them at the most. */
const MOST_QUESTIONS = 100
const MOST_GROUPS = 1_000

export function createGroupCache(parts: GroupParts): GroupCache {
  const counted = new Map<string, Counted>()
  let changes = 0
  parts.store.onJobsChanged(() => {
    changes += 1
    counted.clear()
  })
  return {
    async groups(filter, by) {
      const question = JSON.stringify([filter, by])
      const known = counted.get(question)
      if (known && (known.firstEnd === null || known.firstEnd > expiredUpto(parts))) return known.groups
      const before = changes
      const answer = await countGroups(parts, filter, by)
      if (counted.size >= MOST_QUESTIONS) counted.clear()
      if (changes === before && answer.groups.length <= MOST_GROUPS) counted.set(question, answer)
      return answer.groups
    },
  }
}
