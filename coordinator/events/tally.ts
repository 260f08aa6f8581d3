import { errorText } from "../../protocol/base/error-text.ts"
import type { Log } from "../../protocol/base/log.ts"
import { JOB_STATUSES, TASK_STATUSES, type JobStatus, type TaskStatus } from "../../protocol/domain/statuses.ts"
import { newestEventId, tallyRead, type EventTally } from "../store/event-tally.ts"
import type { Store } from "../store/store.ts"

/** How many jobs and tasks came to each status since this start; numbers that only grow. */
export interface Totals {
  jobs: Record<JobStatus, number>
  /** Cancelled ones count when their job has ended. */
  tasks: Record<TaskStatus, number>
}

/** Counts what happens by reading on in the log when it is asked. */
export interface Tally {
  /** Whoever asks meanwhile gets the same answer. When the log cannot be read now, the last answer stands. */
  read(): Promise<Totals>
}

export async function startTally(parts: { store: Store; log: Log }): Promise<Tally> {
  let position = await parts.store.read(newestEventId)
  const totals: Totals = { jobs: zeros(JOB_STATUSES), tasks: zeros(TASK_STATUSES) }
  let reading: Promise<void> | null = null

  async function readOn(): Promise<void> {
    try {
      const news = await parts.store.readAside(tallyRead, position)
      position = news.upto
      add(totals, news)
    } catch (error) {
      parts.log.warn("events not counted", { error: errorText(error) })
    } finally {
      reading = null
    }
  }

  return {
    async read() {
      await (reading ??= readOn())
      return { jobs: { ...totals.jobs }, tasks: { ...totals.tasks } }
    },
  }
}

function add({ jobs, tasks }: Totals, { events, tasksPlanned, tasksCancelled }: EventTally): void {
  for (const status of JOB_STATUSES) jobs[status] += events[`job.${status}`] ?? 0
  tasks.queued += tasksPlanned + (events["task.retried"] ?? 0)
  tasks.running += events["task.started"] ?? 0
  tasks.completed += events["task.completed"] ?? 0
  tasks.failed += events["task.failed"] ?? 0
  tasks.cancelled += tasksCancelled
}

function zeros<Name extends string>(names: readonly Name[]): Record<Name, number> {
  return Object.fromEntries(names.map((name) => [name, 0])) as Record<Name, number>
}
