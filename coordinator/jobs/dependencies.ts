import { present } from "../../protocol/base/assert.ts"
import type { Instant } from "../../protocol/base/clock.ts"
import { ComputalotError, invalidRequest } from "../../protocol/domain/errors.ts"
import { jobId, type AccountId, type JobId } from "../../protocol/domain/ids.ts"
import type { TerminalJobStatus } from "../../protocol/domain/statuses.ts"
import { appendEvent } from "../events/event-log.ts"
import {
  closeDependency,
  completedDependencies,
  findUpstream,
  insertDependency,
  openDependents,
  renewDependency,
  restartQueueTime,
  upstreamBySeq,
  waitsForJobs,
  type Upstream,
} from "../store/dependencies.ts"
import { jobCounts } from "../store/jobs.ts"
import type { Tx } from "../store/store.ts"
import { endEarlyIn, type EarlyEnd, type EndEarlyParts } from "./end-early.ts"
import { isEnded } from "./job-state.ts"

// A job waits for those it depends on as long as one of its rows in job_dependencies is open. Rows are opened in the write that
// makes the job and closed after the end of the job they name, so a start finds what is left to do by looking for open rows
// of ended jobs. A new job can name only jobs that are there already: no cycle can be made.

/**
 * The jobs of these ids, which must be the account's and not expired (G-006, GAP-62). Refuses with 422 otherwise: a foreign
 * id reads as an unknown one.
 */
export async function requireUpstreams(
  tx: Tx,
  account: AccountId,
  ids: readonly JobId[],
  expiredUpto: Instant,
): Promise<Upstream[]> {
  const found: Upstream[] = []
  const unknown: JobId[] = []
  for (const id of ids) {
    const upstream = await findUpstream(tx, id, expiredUpto)
    if (upstream?.account === account) found.push(upstream)
    else unknown.push(id)
  }
  if (unknown.length === 0) return found
  const problem = `names ${namesOf(unknown)}: there is no such job of this account`
  throw invalidRequest([{ path: "depends_on", problem }], "Name jobs of this account by their ids, then submit again.")
}

const namesOf = (ids: readonly JobId[]): string =>
  ids.slice(0, MOST_NAMED).join(", ") + (ids.length > MOST_NAMED ? ", …" : "")
const MOST_NAMED = 10

/**
 * Lets the new job wait for these. Where one has ended without completing it is cancelled in the same write: it could never
 * run (GAP-62). The caller has written the rest of the job.
 */
export async function dependOn(
  tx: Tx,
  job: number,
  upstreams: readonly Upstream[],
  at: Instant,
): Promise<EarlyEnd | null> {
  let broken: (Upstream & { status: TerminalJobStatus }) | null = null
  for (const upstream of upstreams) {
    const { status } = upstream
    const ended = isEnded(status) ? status : null
    await insertDependency(tx, job, upstream.seq, ended)
    if (ended !== null && ended !== "completed") broken ??= { ...upstream, status: ended }
  }
  return broken && (await cancelDependent(tx, NOTHING_RUNS, job, broken, at))
}

const NOTHING_RUNS: Pick<EndEarlyParts, "runningMs"> = { runningMs: () => null }

/**
 * Lets a job that runs again wait anew for those of these that have not ended (G-001); gives them. Refuses with 409 where one
 * ended without completing, or is gone and never completed for this job: it could never run.
 */
export async function dependAgain(tx: Tx, job: number, ids: readonly JobId[], expiredUpto: Instant): Promise<JobId[]> {
  const waitsFor: JobId[] = []
  const missing: JobId[] = []
  const found = new Set<number>()
  for (const id of new Set(ids)) {
    const upstream = await findUpstream(tx, id, expiredUpto)
    if (!upstream) {
      missing.push(id)
      continue
    }
    const ended = isEnded(upstream.status) ? upstream.status : null
    if (ended !== null && ended !== "completed") {
      throw notAgain(
        `${id}, which ended ${ended}`,
        "Retry that job first, then this one: it waits until that has completed.",
      )
    }
    if (ended === null) waitsFor.push(id)
    found.add(upstream.seq)
    await renewDependency(tx, job, upstream.seq, ended)
  }
  if (missing.length > 0) {
    const completed = (await completedDependencies(tx, job)).filter((seq) => !found.has(seq))
    if (completed.length < missing.length) {
      throw notAgain(`${namesOf(missing)}: gone, and not all had completed`, "Submit it again without those.")
    }
  }
  return waitsFor
}

function notAgain(what: string, recommendedAction: string): ComputalotError {
  return new ComputalotError("conflict", `the job cannot be retried: it depends on ${what}`, { recommendedAction })
}

export interface SettledDependents {
  /** They wait for no other job any more: machines may take them. */
  released: number[]
  cancelled: EarlyEnd[]
  /** There may be more of them: call again. */
  more: boolean
}

/**
 * One slice of what follows from the end of a job for those that wait for it: all of them completed releases a job, any
 * other end cancels it (G-001, G-003, C-02), and so on to the dependents of those, in one write. A second call finds only what
 * is left; what it leaves of further generations is found by their own ends. Nothing happens while the job has not ended.
 */
export async function settleDependents(parts: EndEarlyParts, ended: number): Promise<SettledDependents> {
  const at = parts.clock.now()
  return await parts.store.write(async (tx) => {
    const settled: SettledDependents = { released: [], cancelled: [], more: false }
    const generations = [ended]
    let room = JOBS_AT_ONCE
    for (const upstream of generations) {
      const job = await upstreamBySeq(tx, upstream)
      if (!job || !isEnded(job.status)) continue
      const end = { id: job.id, status: job.status }
      const waiting = await openDependents(tx, upstream, room)
      for (const dependent of waiting) {
        if (!(await closeDependency(tx, dependent, upstream, end.status))) continue
        if (end.status === "completed") {
          if (await release(tx, dependent, at)) settled.released.push(dependent)
          continue
        }
        const cancelled = await cancelDependent(tx, parts, dependent, end, at)
        if (!cancelled) continue
        settled.cancelled.push(cancelled)
        generations.push(dependent)
      }
      room -= waiting.length
      settled.more ||= upstream === ended && room === 0
      if (room === 0) break
    }
    return settled
  })
}

/** Some 100 µs each. */
const JOBS_AT_ONCE = 50

/** A job that is still being planned goes on by itself when that is done. */
async function release(tx: Tx, job: number, at: Instant): Promise<boolean> {
  if ((await waitsForJobs(tx, job)) || !(await restartQueueTime(tx, job, at))) return false
  const { taskCount } = present(await jobCounts(tx, job), "a released job")
  await appendEvent(tx, {
    job,
    type: "job.queued",
    message: `all that it depends on completed: ${taskCount === 1 ? "its task waits" : `its ${taskCount} tasks wait`} for machines`,
    data: { to: "queued", blocked_by: [] },
    at,
  })
  return true
}

/** Null when it is over already, however it ended. */
function cancelDependent(
  tx: Tx,
  parts: Pick<EndEarlyParts, "runningMs">,
  job: number,
  upstream: { id: JobId; status: TerminalJobStatus },
  at: Instant,
): Promise<EarlyEnd | null> {
  return endEarlyIn(tx, parts, job, { status: "cancelled", error: dependencyError(upstream.id, upstream.status) }, at)
}

/** The `error` of a job that was cancelled by one it depends on: the direct cause only (rulings, Dependencies). */
const dependencyError = (upstream: JobId, status: TerminalJobStatus): string => `dependency ${upstream} ended ${status}`

/** The job that such an error names; null for any other. A client's own reason may look the same: ask the rows. */
export function dependencyNamed(error: string | null): JobId | null {
  const named = /^dependency (\S+) ended (?:partial|failed|cancelled)$/.exec(error ?? "")?.[1]
  return named === undefined ? null : jobId(named)
}
