import type { Instant } from "../../protocol/base/clock.ts"
import type { AccountId } from "../../protocol/domain/ids.ts"
import type { Tx, View } from "./store.ts"

export interface NewEvent {
  /** The job's seq. */
  job: number
  type: string
  taskIndex: number | null
  message: string
  data: Record<string, unknown>
  at: Instant
}

export interface EventRow {
  id: number
  job: number
  type: string
  taskIndex: number | null
  message: string
  data: Record<string, unknown>
  at: Instant
}

export async function insertEvent(tx: Tx, event: NewEvent): Promise<void> {
  await tx.run(
    "INSERT INTO events (job, type, task_index, message, data, at) VALUES (?, ?, ?, ?, ?, ?)",
    event.job,
    event.type,
    event.taskIndex,
    event.message,
    JSON.stringify(event.data),
    event.at,
  )
}

/** A job's events above `after`, oldest first. */
export async function jobEvents(view: View, job: number, after: number, limit: number): Promise<EventRow[]> {
  const rows = await view.all<RawEvent>(
    "SELECT id, job, type, task_index, message, data, at FROM events WHERE job = ? + 0 AND id > ? + 0 ORDER BY id LIMIT ? + 0",
    job,
    after,
    limit,
  )
  return rows.map(fromRow)
}

/** The position of the log: the id of the newest event of the job, 0 without any. */
export async function lastEventId(view: View, job: number): Promise<number> {
  const row = await view.get<{ id: number | null }>("SELECT max(id) AS id FROM events WHERE job = ?", job)
  return row?.id ?? 0
}

/** Is this still a position of the log? */
export async function isEvent(view: View, id: number): Promise<boolean> {
  return (await view.get("SELECT 1 AS found FROM events WHERE id = ?", id)) !== undefined
}

interface RawEvent {
  id: number
  job: number
  type: string
  task_index: number | null
  message: string
  data: string
  at: number
}

function fromRow(row: RawEvent): EventRow {
  return {
    id: row.id,
    job: row.job,
    type: row.type,
    taskIndex: row.task_index,
    message: row.message,
    data: JSON.parse(row.data) as Record<string, unknown>,
    at: row.at,
  }
}

/** The position of the whole log: the id of its newest event, 0 without any. */
export async function logEndId(view: View): Promise<number> {
  const row = await view.get<{ id: number | null }>("SELECT max(id) AS id FROM events")
  return row?.id ?? 0
}

/** What of an event says whom it concerns. */
export interface LogLine {
  id: number
  /** The job's seq. */
  job: number
  type: string
  account: AccountId
  project: string
}

/** Events of all jobs above `after`, oldest first. */
export async function logLines(view: View, after: number, limit: number): Promise<LogLine[]> {
  return await view.all<LogLine>(
    `SELECT events.id, events.job, events.type, jobs.account, jobs.project FROM events JOIN jobs ON jobs.seq = events.job
     WHERE events.id > ? ORDER BY events.id LIMIT ?`,
    after,
    limit,
  )
}

/** When these events were; those that are gone are left out. */
export async function eventTimes(view: View, ids: readonly number[]): Promise<Instant[]> {
  const rows = await view.all<{ at: number }>(
    `SELECT at FROM events WHERE id IN (${ids.map(() => "?").join(", ")})`,
    ...ids,
  )
  return rows.map(({ at }) => at)
}

interface NewsOfJob {
  /** The newest event above `after` that tells of its status or of a task, and the newest of its status alone. */
  any: number | null
  status: number | null
  /** When a task did something last, where nothing came behind that. */
  taskAt: Instant | null
}

export async function newsOfJob(view: View, job: number, after: number): Promise<NewsOfJob> {
  const newest = async (types: string): Promise<number | null> => {
    const row = await view.get<{ id: number }>(
      `SELECT id FROM events WHERE job = ? AND id > ? AND ${types} ORDER BY id DESC LIMIT 1`,
      job,
      after,
    )
    return row?.id ?? null
  }
  const last = await view.get<{ id: number; type: string; at: number }>(
    "SELECT id, type, at FROM events WHERE job = ? ORDER BY id DESC LIMIT 1",
    job,
  )
  const taskAt = last?.type.startsWith("task.") ? last.at : null
  if (!last || last.id <= after) return { any: null, status: null, taskAt }
  const any = await newest("(substr(type, 1, 4) = 'job.' OR substr(type, 1, 5) = 'task.')")
  return { any, status: any === null ? null : await newest("substr(type, 1, 4) = 'job.'"), taskAt }
}
