import type { SqlValue, Store, Tx, View } from "../../coordinator/store/store.ts"

/** What was asked of a store: each statement once, with the parameters and the longest time it took. */
export type Statements = Map<string, { parameters: SqlValue[]; longestMs: number; runs: number }>

/** The same store; every statement that passes is noted. */
export function watchStatements<S extends Store>(store: S, statements: Statements): S {
  const note = async <T>(sql: string, parameters: SqlValue[], run: () => Promise<T>): Promise<T> => {
    const start = performance.now()
    const result = await run()
    const ms = performance.now() - start
    const known = statements.get(sql)
    statements.set(sql, {
      parameters,
      longestMs: Math.max(ms, known?.longestMs ?? 0),
      runs: (known?.runs ?? 0) + 1,
    })
    return result
  }
  const watchedView = (view: View): View => ({
    all: (sql, ...parameters) => note(sql, parameters, () => view.all(sql, ...parameters)),
    get: (sql, ...parameters) => note(sql, parameters, () => view.get(sql, ...parameters)),
  })
  const watchedTx = (tx: Tx): Tx => ({
    ...watchedView(tx),
    run: (sql, ...parameters) => note(sql, parameters, () => tx.run(sql, ...parameters)),
  })
  return {
    ...store,
    write: (act) => store.write((tx) => act(watchedTx(tx))),
    read: (look) => store.read((view) => look(watchedView(view))),
  }
}

/** Tables that grow with work: no statement may read one of them from end to end. */
const GROWING =
  /\bSCAN (jobs|tasks|task_results|attempts|events|charges|holds|ledger_entries|artifacts|job_tags|job_dependencies|blob_references|webhook_calls)\b(.*)/

/** The steps of the statement's plan that read a growing table whole; a partial index that holds only live rows is fine. */
export async function wholeReads(store: Store, sql: string, parameters: readonly SqlValue[]): Promise<string[]> {
  const plan = await store.read((view) => view.all<{ detail: string }>(`EXPLAIN QUERY PLAN ${sql}`, ...parameters))
  return plan.map(({ detail }) => detail).filter((detail) => GROWING.test(detail) && !LIVE_INDEXES.test(detail))
}

const LIVE_INDEXES =
  /USING (COVERING )?INDEX (tasks_waiting|attempts_live|attempts_live_by_node|jobs_active|jobs_without_outcome|holds_active)/

/** Fills the tables as a deployment that has done much work would have them: old jobs of another account, all ended. */
export async function fillWithHistory(
  store: Store,
  account: number,
  rows: { tasks: number; others: number },
): Promise<void> {
  const tasksPerJob = 100
  const jobs = Math.ceil(rows.tasks / tasksPerJob)
  const numbers = (count: number): string =>
    `WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ${count})`
  await store.write(async (tx) => {
    await tx.run(
      `${numbers(jobs)} INSERT INTO jobs (seq, id, account, project, revision, content_hash, type, status, priority, request,
         submission, tags, task_count, planned_upto, completed, hold, reserve_micro, billing, outcome, created_at, queued_at,
         started_at, completed_at)
       SELECT 1000000 + i, 'job_20250101_000000_h' || i, ?, 'old', 'rev_old', 'x', 'structured_runner', 'completed', 'normal',
         '{}', '{}', '[]', ${tasksPerJob}, ${tasksPerJob}, ${tasksPerJob}, 'hold_h' || i, 1, '{}', '{}', i, i, i, i FROM n`,
      account,
    )
    await tx.run(
      `${numbers(rows.tasks)} INSERT INTO tasks (id, state, attempt, claim, started_at, completed_at)
       SELECT (1000000 + i / ${tasksPerJob}) * 131072 + i % ${tasksPerJob}, 'completed', 1, i + 1, i, i FROM n`,
    )
    await tx.run(
      `${numbers(rows.others)} INSERT INTO task_results (task, claim, output, quality)
       SELECT (1000000 + i / ${tasksPerJob}) * 131072 + i % ${tasksPerJob}, i + 1, 'some output', 1 FROM n`,
    )
    await tx.run(
      `${numbers(rows.others)} INSERT INTO attempts (claim, task, number, node, state, granted_at, ended_at)
       SELECT i + 1, (1000000 + i / ${tasksPerJob}) * 131072 + i % ${tasksPerJob}, 1, (SELECT id FROM nodes LIMIT 1),
         'completed', i, i FROM n`,
    )
    await tx.run(
      `${numbers(rows.others)} INSERT INTO events (job, type, task_index, message, data, at)
       SELECT 1000000 + i / ${tasksPerJob}, 'task.completed', i % ${tasksPerJob}, 'the task completed', '{}', i FROM n`,
    )
  })
}
