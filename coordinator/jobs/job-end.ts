import type { Instant } from "../../protocol/base/clock.ts"
import type { JobStatus, TerminalJobStatus } from "../../protocol/domain/statuses.ts"
import { settleHold } from "../billing/holds.ts"
import { appendEvent } from "../events/event-log.ts"
import type { JobHead } from "../store/jobs.ts"
import type { Tx } from "../store/store.ts"

/**
 * What belongs to the write that makes a job terminal, however it ended, once that write has set its status: its hold is
 * settled and the log tells. What must be true from the same moment on stands here and nowhere else. Jobs that wait for this
 * one are released or cancelled in later writes (`settleDependents`), which see all of it.
 */
export async function recordJobEnd(
  tx: Tx,
  job: Pick<JobHead, "seq" | "hold">,
  end: { status: TerminalJobStatus; from?: JobStatus; message: string; at: Instant },
): Promise<void> {
  await settleHold(tx, job.hold, end.at)
  await appendEvent(tx, {
    job: job.seq,
    type: `job.${end.status}`,
    message: end.message,
    data: { ...(end.from && { from: end.from }), to: end.status },
    at: end.at,
  })
}
