import type { z } from "zod"
import { timestampText } from "../../../protocol/api/common.ts"
import type { jobEvent, JobEventType } from "../../../protocol/api/jobs.ts"
import { taskId, type JobId } from "../../../protocol/domain/ids.ts"
import { isEvent, jobEvents, lastEventId, type EventRow } from "../../store/events.ts"
import { jobHeadBySeq, type JobHead } from "../../store/jobs.ts"
import type { Store } from "../../store/store.ts"

export type { EventRow } from "../../store/events.ts"

/** A job's events behind `after`, oldest first, and its row as the same snapshot has it; null when the job is gone. */
export async function readLog(
  store: Store,
  seq: number,
  after: number,
  limit: number,
): Promise<{ events: EventRow[]; head: JobHead | null }> {
  return await store.read(async (view) => ({
    events: await jobEvents(view, seq, after, limit),
    head: await jobHeadBySeq(view, seq),
  }))
}

/** The id of the job's newest event, 0 without any. */
export async function logEnd(store: Store, seq: number): Promise<number> {
  return await store.read((view) => lastEventId(view, seq))
}

/** Was there ever an event of this id (of any job)? Ids are never used again. */
export async function wasLogged(store: Store, event: number): Promise<boolean> {
  return await store.read((view) => isEvent(view, event))
}

/** A row of GET /jobs/:id/events (GAP-29). */
export function eventOnWire(job: JobId, event: EventRow): z.output<typeof jobEvent> {
  return {
    id: event.id,
    // Written by `appendEvent`, which takes no other.
    type: event.type as JobEventType,
    job_id: job,
    ...(event.taskIndex !== null && { task_id: taskId(job, event.taskIndex) }),
    message: event.message,
    data: event.data,
    inserted_at: timestampText(event.at),
  }
}
