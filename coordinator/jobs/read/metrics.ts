import type { z } from "zod"
import type { jobMetricsReply } from "../../../protocol/api/jobs.ts"
import type { Instant } from "../../../protocol/base/clock.ts"
import { usd, type MicroUsd } from "../../../protocol/domain/money.ts"
import type { JobHead } from "../../store/jobs.ts"
import { taskCounts } from "./read-job.ts"

/** GET /jobs/:id/metrics (GAP-30). The mean is over tasks that ended by running: completed and failed ones. */
export function metricsOnWire(head: JobHead, billed: MicroUsd, now: Instant): z.output<typeof jobMetricsReply> {
  const { total, ...byStatus } = taskCounts(head)
  const ended = head.completed + head.failed
  const waitedUntil = head.startedAt ?? head.completedAt ?? now
  return {
    job_id: head.id,
    tasks: { total, by_status: byStatus },
    queue_s: head.queuedAt === null ? null : seconds(Math.max(0, waitedUntil - head.queuedAt)),
    runtime_s: {
      sum: seconds(head.runtimeMsSum),
      mean: ended === 0 ? null : seconds(head.runtimeMsSum / ended),
      max: ended === 0 ? null : seconds(head.runtimeMsMax),
    },
    attempts: head.attempts,
    cpu_seconds: seconds(head.cpuMsSum),
    billed_usd: usd(billed),
  }
}

const seconds = (ms: number): number => Math.round(ms) / 1000
