import type { Clock } from "../../protocol/base/clock.ts"
import type { Log } from "../../protocol/base/log.ts"
import { claimNumber } from "../../protocol/domain/ids.ts"
import type { Members } from "../fleet/members.ts"
import type { KnownJobs } from "../jobs/job-facts.ts"
import { markJobFinishing } from "../store/jobs.ts"
import type { Store } from "../store/store.ts"
import { activeJobs, recountJob, tasksWithNodes, type ActiveJob, type TaskWithNode } from "../store/stuck-jobs.ts"
import { indexOfTask } from "../store/tasks.ts"
import { markClaimable } from "./give-up.ts"
import type { JobLife } from "./job-life.ts"

/**
 * Finds jobs that nothing would ever move again, and goes on with them (L-005): planned in part, finishing and not finished,
 * unknown to memory, or running with no attempt that anybody holds and nothing queued. Rows decide; nothing fails by it. In a
 * coordinator without faults it finds nothing.
 */
export interface StuckSweep {
  sweep(): Promise<void>
}

export interface StuckSweepParts {
  store: Store
  clock: Clock
  log: Log
  members: Members
  known: Pick<KnownJobs, "get">
  jobLife: Pick<JobLife, "takeUp" | "finish" | "recount">
}

const PAGE_JOBS = 500
/** A grant is held in memory as soon as its write is answered: one that is not by now never will be. */
const GRANT_GRACE_MS = 30_000

export function createStuckSweep(parts: StuckSweepParts): StuckSweep {
  const { store, clock, log, members } = parts

  async function goOn(job: ActiveJob, held: number): Promise<void> {
    const isUnknown = parts.known.get(job.seq) === undefined
    if (job.status === "planning" || job.status === "finishing" || isUnknown) await parts.jobLife.takeUp(job.seq)
    const isActive = job.status === "queued" || job.status === "running"
    const allEnded = job.completed + job.failed + job.cancelled === job.taskCount
    if (isActive && (allEnded || job.granted + job.running !== held)) await reconcile(job.seq)
  }

  /** What rows call granted or running and memory does not hold may be granted again; sums are made again from the rows. */
  async function reconcile(seq: number): Promise<void> {
    const at = clock.now()
    const isOrphan = ({ claim, grantedAt }: TaskWithNode): boolean =>
      (claim === null || !members.attempt(claim)) && at - (grantedAt ?? 0) >= GRANT_GRACE_MS
    const orphans = (await store.read((view) => tasksWithNodes(view, seq))).filter(isOrphan)
    const isOver = await store.write(async (tx) => {
      await markClaimable(
        tx,
        orphans.map(({ key, claim, attempt }) => ({
          claim: claimNumber(claim ?? 0),
          task: key,
          job: seq,
          index: indexOfTask(key),
          number: attempt,
        })),
        at,
      )
      await recountJob(tx, seq)
      return await markJobFinishing(tx, seq)
    })
    if (orphans.length > 0) log.warn("tasks that nobody ran may be granted again", { job: seq, tasks: orphans.length })
    if (isOver) parts.jobLife.finish([seq])
  }

  return {
    async sweep() {
      for (let after = 0; ;) {
        const from = after
        const page = await store.read((view) => activeJobs(view, from, PAGE_JOBS))
        const held = new Map<number, number>()
        for (const { attempts } of members.all()) {
          for (const { job } of attempts.values()) held.set(job, (held.get(job) ?? 0) + 1)
        }
        for (const job of page) await goOn(job, held.get(job.seq) ?? 0)
        const last = page.at(-1)
        if (!last || page.length < PAGE_JOBS) break
        after = last.seq
      }
      await parts.jobLife.recount()
    },
  }
}
