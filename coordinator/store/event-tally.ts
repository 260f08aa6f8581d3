import type { AsideRead, View } from "./store.ts"

/** What the log says that happened behind a position of it. */
export interface EventTally {
  /** Where to go on next time. */
  upto: number
  /** Events by their type. */
  events: Record<string, number>
  /** Of the jobs that were submitted in that time. */
  tasksPlanned: number
  /** Of the jobs that ended in that time. */
  tasksCancelled: number
}

/** Counts on another thread: between two questions there may be millions of events. */
export const tallyRead: AsideRead<EventTally, [after: number]> = {
  module: import.meta.url,
  name: "tallyRead",
  run: tallyEvents,
}

async function tallyEvents(view: View, after: number): Promise<EventTally> {
  const upto = Math.max(after, await newestEventId(view))
  const types = await view.all<{ type: string; events: number }>(
    "SELECT type, count(*) AS events FROM events WHERE id > ? AND id <= ? GROUP BY type",
    after,
    upto,
  )
  const ofJobs = await view.all<{ type: string; tasks: number; cancelled: number }>(
    `SELECT events.type AS type, sum(jobs.task_count) AS tasks, sum(jobs.cancelled) AS cancelled
     FROM events JOIN jobs ON jobs.seq = events.job
     WHERE events.id > ? AND events.id <= ?
       AND events.type IN ('job.planning', 'job.completed', 'job.partial', 'job.failed', 'job.cancelled')
     GROUP BY events.type`,
    after,
    upto,
  )
  return {
    upto,
    events: Object.fromEntries(types.map(({ type, events }) => [type, events])),
    tasksPlanned: ofJobs.find(({ type }) => type === "job.planning")?.tasks ?? 0,
    tasksCancelled: ofJobs.reduce((sum, { type, cancelled }) => sum + (type === "job.planning" ? 0 : cancelled), 0),
  }
}

/** The end of the log, 0 while it is empty. */
export async function newestEventId(view: View): Promise<number> {
  const row = await view.get<{ id: number | null }>("SELECT max(id) AS id FROM events")
  return row?.id ?? 0
}
