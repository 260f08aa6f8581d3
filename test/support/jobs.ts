import { systemRandom } from "../../protocol/base/random.ts"
import { newHoldId, newJobId, type AccountId, type JobId } from "../../protocol/domain/ids.ts"
import type { JobStatus } from "../../protocol/domain/statuses.ts"
import type { SqlValue, Store, Tx } from "../../coordinator/store/store.ts"

/** A job that is nothing but its row: for tests of what refers to jobs. */
export async function insertBareJob(
  store: Store,
  facts: {
    account: AccountId
    project?: string
    revision?: string
    status?: JobStatus
    queued?: number
    running?: number
  },
): Promise<JobId> {
  const { account, project = "project", revision = "rev_none", status = "queued", queued = 1, running = 0 } = facts
  const id = newJobId(systemRandom, Date.now())
  const ended = ["completed", "partial", "failed", "cancelled"].includes(status) ? Date.now() : null
  const known = {
    id,
    account,
    project,
    revision,
    status,
    queued,
    running,
    completed_at: ended,
    task_count: 10,
    planned_upto: 10,
  }
  await store.write(async (tx) => {
    const row: Record<string, SqlValue> = { ...(await emptyRow(tx)), ...known, hold: newHoldId(systemRandom) }
    const columns = Object.keys(row)
    const values = columns.map(() => "?").join(", ")
    await tx.run(`INSERT INTO jobs (${columns.join(", ")}) VALUES (${values})`, ...Object.values(row))
  })
  return id
}

/** Something for every column that must have something, so that this file needs not know them all. */
async function emptyRow(tx: Tx): Promise<Record<string, SqlValue>> {
  const columns = await tx.all<{ name: string; type: string }>(
    `SELECT name, type FROM pragma_table_info('jobs') WHERE "notnull" = 1 AND dflt_value IS NULL`,
  )
  return Object.fromEntries(columns.map(({ name, type }) => [name, type === "TEXT" ? "{}" : 1]))
}
