import type { Instant } from "../../../protocol/base/clock.ts"
import { ComputalotError } from "../../../protocol/domain/errors.ts"
import type { AccountId, JobId } from "../../../protocol/domain/ids.ts"
import { eventTimes, logEndId, logLines, newsOfJob, type LogLine } from "../../store/events.ts"
import { activeJobs, endedJobs, jobPlaces, jobPlacesBySeq, type JobPlace } from "../../store/jobs-of-project.ts"
import type { Store } from "../../store/store.ts"
import { expiredUpto, type RetentionParts } from "../retention.ts"

export type { JobPlace } from "../../store/jobs-of-project.ts"

/** The jobs of these ids, in their order. Throws `not_found` naming those that the account does not see or that expired. */
export async function findJobPlaces(
  parts: RetentionParts & { store: Store },
  ids: readonly JobId[],
  account: AccountId | null,
): Promise<JobPlace[]> {
  const found = await parts.store.read((view) => jobPlaces(view, ids, account, expiredUpto(parts)))
  const byId = new Map(found.map((place) => [place.id, place]))
  const missing = ids.filter((id) => !byId.has(id))
  if (missing.length > 0) {
    throw new ComputalotError("not_found", `not found: ${missing.join(", ")}`, {
      recommendedAction: "Leave these ids out; jobs of other accounts are not visible.",
      details: { missing },
    })
  }
  return ids.flatMap((id) => byId.get(id) ?? [])
}

/** The id of the newest event of all, 0 without any. */
export async function logPosition(store: Store): Promise<number> {
  return await store.read(logEndId)
}

export interface JobNews {
  job: number
  /** The newest event of its status; null where only its tasks have done something. */
  event: number | null
}

/** Has the job's status changed behind this event? */
export async function hasChangedSince(store: Store, job: number, event: number): Promise<boolean> {
  return (await store.read((view) => newsOfJob(view, job, event))).status !== null
}

/**
 * What happened to these jobs behind an event, those without news left out, and how each stands. What tasks did in `alsoMs`
 * before that event counts too.
 */
export async function newsBehind(
  store: Store,
  jobs: readonly number[],
  after: number,
  alsoMs: number,
): Promise<{ places: JobPlace[]; news: JobNews[] }> {
  return await store.read(async (view) => {
    const news: JobNews[] = []
    const [at] = alsoMs > 0 ? await eventTimes(view, [after]) : []
    for (const job of jobs) {
      const { any, status, taskAt } = await newsOfJob(view, job, after)
      const wasJustBefore = at !== undefined && taskAt !== null && taskAt >= at - alsoMs
      if (any !== null || wasJustBefore) news.push({ job, event: status })
    }
    return { places: await jobPlacesBySeq(view, jobs), news }
  })
}

/** Lines of the log behind `after`, oldest first. */
export async function readLines(store: Store, after: number, limit: number): Promise<LogLine[]> {
  return await store.read((view) => logLines(view, after, limit))
}

export interface ProjectJobs {
  active: number[]
  queued: number[]
  recent: number[]
  /** Of each kind, however many are listed. */
  totals: { active: number; queued: number; recent: number }
}

/** The jobs of a project of these accounts by seq: those that run and wait, newest first, and those that ended last. */
export async function projectJobs(
  store: Store,
  accounts: readonly AccountId[],
  project: string,
  limits: { listed: number; recent: number; since: Instant },
): Promise<ProjectJobs> {
  return await store.read(async (view) => {
    const found: ProjectJobs = { active: [], queued: [], recent: [], totals: { active: 0, queued: 0, recent: 0 } }
    const ended: { seq: number; at: Instant }[] = []
    for (const account of accounts) {
      const active = await activeJobs(view, account, project, ["running", "finishing"], limits.listed)
      const queued = await activeJobs(view, account, project, ["planning", "queued"], limits.listed)
      const recent = await endedJobs(view, account, project, limits.since, limits.recent)
      found.active.push(...active.seqs)
      found.queued.push(...queued.seqs)
      ended.push(...recent.ended)
      found.totals.active += active.total
      found.totals.queued += queued.total
      found.totals.recent += recent.total
    }
    // Seqs grow with the time of submission.
    const newest = (seqs: number[]): number[] => seqs.toSorted((a, b) => b - a).slice(0, limits.listed)
    const recent = ended.toSorted((a, b) => b.at - a.at).slice(0, limits.recent)
    return {
      active: newest(found.active),
      queued: newest(found.queued),
      recent: recent.map(({ seq }) => seq),
      totals: found.totals,
    }
  })
}
