import type { Instant } from "../../protocol/base/clock.ts"
import type { TerminalJobStatus } from "../../protocol/domain/statuses.ts"
import type { JobHead } from "../store/jobs.ts"
import type { Tx } from "../store/store.ts"
import { insertWebhookCall } from "../store/webhooks.ts"
import { endedProgress } from "./job-state.ts"
import type { Submission } from "./submission/submission.ts"

/**
 * Puts the call of the job's `callback_url`, where it has one, into the outbox: in the write that ends the job, however it
 * ends, so that there is one call for each end and a crash loses none (W-001).
 */
export async function queueCallback(
  tx: Tx,
  job: JobHead,
  { callbackUrl }: Pick<Submission, "callbackUrl">,
  end: { status: TerminalJobStatus; error: string | null; at: Instant },
): Promise<void> {
  if (callbackUrl === undefined) return
  await insertWebhookCall(tx, {
    job: job.seq,
    round: job.round,
    account: job.account,
    url: callbackUrl,
    status: end.status,
    error: end.error,
    progress: endedProgress(end.status, job),
    endedAt: end.at,
  })
}
