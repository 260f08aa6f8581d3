import type { Clock } from "../../protocol/base/clock.ts"
import type { Members } from "../fleet/members.ts"
import type { KnownJobs } from "../jobs/job-facts.ts"
import { extendLiveClaims } from "../store/attempt-contact.ts"
import { lastDurableAt } from "../store/checkpoints.ts"
import { jobOfTask, indexOfTask, liveAttempts, taskByKey } from "../store/tasks.ts"
import type { Store } from "../store/store.ts"
import type { ReadyQueue } from "./ready-queue.ts"

/**
 * Takes the live attempts of an earlier start into memory, once their jobs are known: each gets one more claim life, and no
 * further one until its node is heard (architecture §5.5). A restart loses no work.
 */
export async function restoreClaims(
  parts: {
    store: Store
    clock: Clock
    members: Members
    known: KnownJobs
    queue: Pick<ReadyQueue, "runs">
    claimLifetimeMs: number
  },
  resumeJobs: () => Promise<void>,
): Promise<void> {
  await resumeJobs()
  const { clock, members, known, queue } = parts
  const nowMs = clock.monotonicMs()
  const now = clock.now()
  const until = now + parts.claimLifetimeMs
  const live = await parts.store.read(async (view) => {
    const attempts = await liveAttempts(view, null)
    const lost = new Set<number>()
    const checkpointedAt = new Map<number, number>()
    for (const { claim, task } of attempts) {
      if ((await taskByKey(view, task))?.state === "lost") lost.add(claim)
      const at = await lastDurableAt(view, task, claim)
      if (at !== null) checkpointedAt.set(claim, at)
    }
    return attempts.map((attempt) => ({
      ...attempt,
      claimable: lost.has(attempt.claim),
      checkpointedAt: checkpointedAt.get(attempt.claim) ?? null,
    }))
  })
  for (const attempt of live) {
    const job = known.get(jobOfTask(attempt.task))
    const member = members.byNode(attempt.node)
    if (!job || !member) continue
    queue.runs(job.seq)
    members.hold(member, {
      claim: attempt.claim,
      node: attempt.node,
      job: job.seq,
      task: attempt.task,
      index: indexOfTask(attempt.task),
      number: attempt.number,
      state: attempt.state,
      requirements: job.requirements,
      gpus: attempt.gpus,
      reserveMicro: job.reserveMicro,
      grantedAt: attempt.grantedAt,
      acceptedAt: attempt.acceptedAt,
      startedAt: attempt.startedAt,
      grantedAtMs: nowMs - Math.max(0, now - attempt.grantedAt),
      // No further extension before its node is heard, however often this process starts.
      expiresAtMs: nowMs + Math.min(parts.claimLifetimeMs, Math.max(0, (attempt.extendedUntil ?? until) - now)),
      heardAtMs: nowMs,
      runningMs: null,
      claimable: attempt.claimable,
      bootId: null,
      died: false,
      contactLostMs: attempt.contactLostAt === null ? null : nowMs - Math.max(0, now - attempt.contactLostAt),
      extended: true,
      checkpointedAtMs:
        attempt.checkpointedAt === null ? null : nowMs - Math.max(0, clock.now() - attempt.checkpointedAt),
      progress: null,
      outputTail: null,
      feedbackAt: null,
    })
  }
  await parts.store.write((tx) => extendLiveClaims(tx, until))
}
