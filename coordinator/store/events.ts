import type { Instant } from "../../protocol/base/clock.ts"
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
    "SELECT id, job, type, task_index, message, data, at FROM events WHERE job = ? AND id > ? ORDER BY id LIMIT ?",
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
