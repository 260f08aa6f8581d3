import type { z } from "zod"
import { timestampText } from "../../../protocol/api/common.ts"
import type { jobEvent, JobEventType } from "../../../protocol/api/jobs.ts"
import { taskId, type JobId } from "../../../protocol/domain/ids.ts"
import type { EventRow } from "../../store/events.ts"

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
