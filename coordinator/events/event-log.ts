import type { JobEventType } from "../../protocol/api/jobs.ts"
import type { Instant } from "../../protocol/base/clock.ts"
import { insertEvent } from "../store/events.ts"
import type { Tx } from "../store/store.ts"

export interface JobEventFacts {
  /** The job's seq. */
  job: number
  type: JobEventType
  taskIndex?: number
  message: string
  data?: Record<string, unknown>
  at: Instant
}

/** Appends to the job's log, in the write that makes the change the event tells of. */
export async function appendEvent(tx: Tx, event: JobEventFacts): Promise<void> {
  await insertEvent(tx, {
    job: event.job,
    type: event.type,
    taskIndex: event.taskIndex ?? null,
    message: event.message,
    data: event.data ?? {},
    at: event.at,
  })
}
