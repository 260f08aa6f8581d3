import type { Instant } from "../../protocol/base/clock.ts"
import type { JobStatus, TerminalJobStatus } from "../../protocol/domain/statuses.ts"
import { settleHold } from "../billing/holds.ts"
import { appendEvent } from "../events/event-log.ts"
import type { JobHead } from "../store/jobs.ts"
import { endReservation } from "../store/reservations.ts"
import type { Tx } from "../store/store.ts"
import { queueCallback } from "./queue-callback.ts"
import type { Submission } from "./submission/submission.ts"

/**
 * What belongs to the write that makes a job terminal, however it ended, once that write has set its status: its hold is
 * settled, what it had reserved is free, its callback waits to be called and the log tells. What must be true from the same moment on stands here and nowhere else. Jobs that wait for this
 * one are released or cancelled in later writes (`settleDependents`), which see all of it.
 */
export async function recordJobEnd(
  tx: Tx,
  job: JobHead,
  end: { status: TerminalJobStatus; from?: JobStatus; message: string; error: string | null; at: Instant },
): Promise<void> {
  const submission = JSON.parse(job.submission) as Submission
  await settleHold(tx, job.hold, end.at)
  if (submission.reservation.mode === "guaranteed") await endReservation(tx, job.seq, end.at)
  await queueCallback(tx, job, submission, end)
  await appendEvent(tx, {
    job: job.seq,
    type: `job.${end.status}`,
    message: end.message,
    data: { ...(end.from && { from: end.from }), to: end.status },
    at: end.at,
  })
}
