import { join } from "node:path"
import { systemClock } from "../../protocol/base/clock.ts"
import { createJsonLog } from "../../protocol/base/json-log.ts"
import { openStore } from "../../coordinator/store/open-store.ts"
import type { Store } from "../../coordinator/store/store.ts"
import type { BenchFleet } from "./bench-fleet.ts"

/**
 * Fills a coordinator's database, while it is stopped, with copies of jobs that it ran itself: rows as the product writes them,
 * a million tasks within a minute. Copies are `everyMs` apart, the newest `everyMs` ago, and take turns. Of the event log they have
 * what tells of the jobs; what their tasks were charged stands in their holds alone, as no list reads the ledger.
 *
 * @param jobs as many copies in all
 */
export async function copyJobs(
  fleet: BenchFleet,
  templates: readonly string[],
  { jobs, everyMs }: { jobs: number; everyMs: number },
): Promise<void> {
  await using store = await openStore({
    dataDir: join(fleet.folder, "coordinator"),
    clock: systemClock,
    log: createJsonLog("history"),
    onFatal: (error) => {
      throw error
    },
  })
  const copies = await columnsOf(store)
  const found = await store.read(async (view) => ({
    templates: await view.all<{ seq: number; created_at: number }>(
      `SELECT seq, created_at FROM jobs WHERE id IN (${templates.map(() => "?").join(", ")}) ORDER BY seq`,
      ...templates,
    ),
    last: await view.get<{ seq: number }>("SELECT max(seq) AS seq FROM jobs"),
  }))
  const first = 1 + (found.last?.seq ?? 0)
  const now = Date.now()
  for (const [at, template] of found.templates.entries()) {
    for (let from = at; from < jobs; from += found.templates.length * JOBS_AT_ONCE) {
      const upto = Math.min(jobs, from + found.templates.length * JOBS_AT_ONCE)
      await store.write(async (tx) => {
        for (const sql of copies) {
          await tx.run(sql, from, found.templates.length, upto, template.seq, first, now - jobs * everyMs, everyMs)
        }
      })
    }
  }
}

/** One transaction's worth. */
const JOBS_AT_ONCE = 200

/** Copies lie apart from what the coordinator numbers. */
const FIRST_CLAIM = 1e12

const TASK = "c.seq * 131072 + t.TASK % 131072"

/** What is another in each copy; `t` is the template's row, `c` the copy's job: its seq, and when it was submitted. */
const TABLES: { table: string; job: string; others: Record<string, string> }[] = [
  {
    table: "jobs",
    job: "t.seq = c.template",
    others: {
      seq: "c.seq",
      id: "c.id",
      hold: "c.hold",
      created_at: "c.at",
      queued_at: "t.queued_at - t.created_at + c.at",
      started_at: "t.started_at - t.created_at + c.at",
      completed_at: "t.completed_at - t.created_at + c.at",
    },
  },
  { table: "job_tags", job: "t.job = c.template", others: { job: "c.seq" } },
  { table: "holds", job: "t.id = c.its_hold", others: { id: "c.hold", job_id: "c.id", created_at: "c.at" } },
  {
    table: "events",
    job: "t.job = c.template AND t.task_index IS NULL",
    others: { id: "NULL", job: "c.seq", at: "c.at" },
  },
  {
    table: "tasks",
    job: "t.id >= c.template * 131072 AND t.id < (c.template + 1) * 131072",
    others: { id: TASK.replace("TASK", "id"), claim: `${FIRST_CLAIM} + ${TASK.replace("TASK", "id")}` },
  },
  {
    table: "task_results",
    job: "t.task >= c.template * 131072 AND t.task < (c.template + 1) * 131072",
    others: { task: TASK.replace("TASK", "task"), claim: `${FIRST_CLAIM} + ${TASK.replace("TASK", "task")}` },
  },
  {
    // Of each task the last attempt: others have the same task.
    table: "attempts",
    job: "t.claim IN (SELECT claim FROM tasks WHERE id >= c.template * 131072 AND id < (c.template + 1) * 131072)",
    others: { task: TASK.replace("TASK", "task"), claim: `${FIRST_CLAIM} + ${TASK.replace("TASK", "task")}` },
  },
]

/** One statement for each table, with all columns that it has in this version. */
async function columnsOf(store: Store): Promise<string[]> {
  return await store.read(async (view) => {
    const statements: string[] = []
    for (const { table, job, others } of TABLES) {
      const columns = (await view.all<{ name: string }>("SELECT name FROM pragma_table_info(?)", table)).map(
        ({ name }) => name,
      )
      statements.push(`
        INSERT INTO ${table} (${columns.join(", ")})
        WITH RECURSIVE
          n(i, step, upto) AS (SELECT ?, ?, ? UNION ALL SELECT i + step, step, upto FROM n WHERE i + step < upto),
          g(template, first, since, every) AS (SELECT ?, ?, ?, ?),
          c(template, its_hold, seq, id, hold, at) AS (
            SELECT g.template, j.hold, g.first + n.i, 'job_20260101_000000_' || printf('%06d', n.i),
              'hold_history' || n.i, g.since + n.i * g.every
            FROM n CROSS JOIN g CROSS JOIN jobs j WHERE j.seq = g.template)
        SELECT ${columns.map((name) => others[name] ?? `t.${name}`).join(", ")} FROM c CROSS JOIN ${table} t WHERE ${job}`)
    }
    return statements
  })
}
