import type { AccountId } from "../../protocol/domain/ids.ts"
import type { SqlValue, View } from "./store.ts"

export interface QueuedFilter {
  account: AccountId
  project: string
  /** Null: whatever their tags. */
  tag: string | null
}

/** How many jobs of a project are planning or queued, and the newest of them; 0 where there is none. */
export async function countQueued(view: View, filter: QueuedFilter): Promise<{ count: number; newest: number }> {
  const { where, parameters } = conditionsOf(filter)
  const row = await view.get<{ count: number; newest: number | null }>(
    `SELECT count(*) AS count, max(seq) AS newest FROM jobs WHERE ${where}`,
    ...parameters,
  )
  return { count: row?.count ?? 0, newest: row?.newest ?? 0 }
}

/** The next of them below `below`, the newest first. */
export async function queuedJobs(view: View, filter: QueuedFilter, below: number, limit: number): Promise<number[]> {
  const { where, parameters } = conditionsOf(filter)
  const rows = await view.all<{ seq: number }>(
    `SELECT seq FROM jobs WHERE ${where} AND seq < ? ORDER BY seq DESC LIMIT ?`,
    ...parameters,
    below,
    limit,
  )
  return rows.map(({ seq }) => seq)
}

/** The statuses written out as in the index `jobs_in_queue`: only then it serves. */
function conditionsOf({ account, project, tag }: QueuedFilter): { where: string; parameters: SqlValue[] } {
  const where = "account = ? AND project = ? AND status IN ('planning', 'queued')"
  if (tag === null) return { where, parameters: [account, project] }
  const tagged = "EXISTS (SELECT 1 FROM job_tags t WHERE t.account = jobs.account AND t.tag = ? AND t.job = jobs.seq)"
  return { where: `${where} AND ${tagged}`, parameters: [account, project, tag] }
}
