import { sleep, type Clock } from "../../protocol/base/clock.ts"
import type { AccountId } from "../../protocol/domain/ids.ts"
import type { JobStatus } from "../../protocol/domain/statuses.ts"
import { tailLog } from "../events/log-tail.ts"
import type { JobWatch } from "../events/watch.ts"
import type { Aggregates } from "../jobs/read/aggregates.ts"
import { jobDetails, shownJob } from "../jobs/read/job-object.ts"
import { readJobsAnd, type ReadJob, type ReadParts } from "../jobs/read/read-job.ts"
import { hasChangedSince } from "../jobs/read/followed.ts"
import { withResults } from "../jobs/read/watched-job.ts"
import { isEnded, jobStatus } from "../jobs/job-state.ts"
import type { LogLine } from "../store/events.ts"
import { eventFrame } from "./sse.ts"
import { eventOf, frameId } from "./stream-position.ts"

/** A job as it is now, written once for all who follow it. */
export interface JobFrame {
  /** The job's seq. */
  job: number
  status: JobStatus
  /** Null: its tasks did or said something; such frames are never repeated. */
  id: number | null
  /** The whole frame. */
  text: string
}

export interface Follower {
  interest: { jobs: ReadonlySet<number> } | { account: AccountId | null; project: string }
  /** With what its results add up to (ST-004). */
  withResults: boolean
  /** Frames with ids come in the order of their ids. */
  take(frame: JobFrame): void
  /** A change cannot be told: the stream ends, and its client comes back for it. */
  lose(): void
}

/**
 * The changes of jobs, for streams that follow many: one reader of the log, and each change of a job rendered once, whoever
 * follows it. Changes of status are told at once and have ids. What tasks do is told as often as the machine bears it, each
 * job as a whole: nothing is queued but the names of jobs.
 */
export interface JobFeed {
  /** Resolves when every later change will reach the follower; until disposed. */
  follow(follower: Follower): Promise<Disposable>
}

export interface JobFeedParts extends ReadParts {
  aggregates: Aggregates
  clock: Clock
  watch: JobWatch
}

/** Jobs rendered side by side: their reads share a snapshot's turn. */
const AT_ONCE = 16
/** Between two rounds of what tasks do; at least as long as the thread worked during the last one: others come first. */
const ROUND_MS = 40
/** While tasks end one after another, what their results add up to is told anew this often: it reads them all. */
const AGGREGATE_MS = 500
const MOST_ADDED = 1_000
/** Reading a job of more tasks, or writing a longer text, takes a while: it is told of at most a tenth of the time. */
const MANY_TASKS = 1_000
const LONG_TEXT = 256 * 1024
/** Whose jobs the latest ones are: live words name only the job. */
const MOST_OWNERS = 10_000

const RENDER_ATTEMPTS = 5
const AGAIN_MS = 50

export function createJobFeed(parts: JobFeedParts): JobFeed {
  const { clock } = parts
  const byJob = new Map<number, Set<Follower>>()
  const byProject = new Map<string, Set<Follower>>()
  const owners = new Map<number, Pick<LogLine, "account" | "project">>()
  /** The event of each, in the order of the log. */
  const changed = new Map<number, number>()
  const stirred = new Set<number>()
  /** What results of running jobs added up to a moment ago. */
  const added = new Map<number, { texts: ReadonlyMap<string, string>; atMs: number }>()
  /** When a job that takes long may be told again. */
  const restsUntilMs = new Map<number, number>()
  let followers = 0
  let tail: Promise<Disposable> | null = null
  let listening: Disposable | null = null
  let working = false
  let roundDue = true

  function followersOf(job: number): Follower[] {
    const owner = owners.get(job)
    const ofProject = owner ? [...(byProject.get(owner.project) ?? [])] : []
    const allowed = ofProject.filter(
      ({ interest }) => "project" in interest && (interest.account === null || interest.account === owner?.account),
    )
    return [...(byJob.get(job) ?? []), ...allowed]
  }

  const isFollowed = (job: number): boolean => byJob.has(job) || (byProject.size > 0 && followersOf(job).length > 0)

  function heard(lines: readonly LogLine[]): void {
    for (const { id, job, type, account, project } of lines) {
      if (byProject.size > 0) remember(job, { account, project })
      if (!isFollowed(job)) continue
      if (type.startsWith("job.")) {
        changed.delete(job)
        changed.set(job, id)
        stirred.delete(job)
      } else if (type.startsWith("task.") && !changed.has(job)) stirred.add(job)
    }
    work()
  }

  function remember(job: number, owner: Pick<LogLine, "account" | "project">): void {
    owners.delete(job)
    owners.set(job, owner)
    for (const [oldest] of owners) {
      if (owners.size <= MOST_OWNERS) break
      owners.delete(oldest)
    }
  }

  function work(): void {
    if (working || (changed.size === 0 && !(roundDue && stirred.size > 0))) return
    working = true
    tellAll()
      .catch(() => undefined)
      .finally(() => {
        working = false
        work()
      })
  }

  async function tellAll(): Promise<void> {
    while (changed.size > 0) await tellChanged()
    if (roundDue && stirred.size > 0) await tellStirred()
  }

  async function tellChanged(): Promise<void> {
    const some = [...changed].slice(0, AT_ONCE)
    for (const [job] of some) changed.delete(job)
    await tell(some.map(([job, event]) => ({ job, id: frameId(event, "job") })))
  }

  /** One round over all whose tasks stirred; changes of status come first, also in the middle of it. */
  async function tellStirred(): Promise<void> {
    roundDue = false
    const startedAtMs = clock.monotonicMs()
    const workedMs = threadMs()
    const round = [...stirred].filter((job) => (restsUntilMs.get(job) ?? 0) <= startedAtMs)
    while (round.length > 0) {
      if (changed.size > 0) await tellChanged()
      const some = round.splice(0, AT_ONCE).filter((job) => stirred.delete(job))
      await tell(some.map((job) => ({ job, id: null })))
    }
    for (const [job, untilMs] of restsUntilMs) if (untilMs <= startedAtMs) restsUntilMs.delete(job)
    clock.after(Math.max(ROUND_MS, threadMs() - workedMs), () => {
      roundDue = true
      work()
    })
  }

  async function tell(some: readonly { job: number; id: number | null }[]): Promise<void> {
    const rendered = await Promise.all(some.map(({ job, id }) => renderSurely(job, id)))
    for (const each of rendered) {
      if (!each) continue
      const { job, id, status } = each
      for (const follower of followersOf(job)) {
        const text = follower.withResults ? each.withResults : each.plain
        // Who came after it was rendered sees a later state in its own first look.
        if (text !== null) follower.take({ job, id, status, text })
      }
    }
  }

  /** Tried again while the database has too much to do; what tasks do may be told another time. */
  async function renderSurely(job: number, id: number | null): Promise<Rendered | null> {
    for (let attempt = 1; ; attempt++) {
      const followed = followersOf(job)
      if (followed.length === 0) return null
      const startedAtMs = clock.monotonicMs()
      try {
        const asked = {
          plain: followed.some((follower) => !follower.withResults),
          withResults: followed.some((follower) => follower.withResults),
        }
        const rendered = await renderJob(parts, job, id, asked, (read) => resultsOf(read, id === null))
        if (rendered?.isLarge) restsUntilMs.set(job, startedAtMs + 10 * (clock.monotonicMs() - startedAtMs))
        return rendered
      } catch {
        if (id === null) return null
        if (attempt < RENDER_ATTEMPTS) await sleep(clock, attempt * AGAIN_MS)
        else for (const follower of followersOf(job)) follower.lose()
        if (attempt >= RENDER_ATTEMPTS) return null
      }
    }
  }

  /** Of a job that runs and whose tasks only did something, those of a moment ago may do; the new ones come after it. */
  async function resultsOf({ head }: ReadJob, mayBeOlder: boolean): Promise<ReadonlyMap<string, string>> {
    const known = added.get(head.seq)
    const ageMs = known ? clock.monotonicMs() - known.atMs : Number.POSITIVE_INFINITY
    if (known && mayBeOlder && ageMs < AGGREGATE_MS) {
      clock.after(AGGREGATE_MS - ageMs, () => stir(head.seq))
      return known.texts
    }
    const texts = await parts.aggregates.of(head)
    const characters = [...texts.values()].reduce((sum, { length }) => sum + length, 0)
    if (added.size >= MOST_ADDED) added.clear()
    if (isEnded(head.status) || characters > LONG_TEXT) added.delete(head.seq)
    else added.set(head.seq, { texts, atMs: clock.monotonicMs() })
    return texts
  }

  function add(follower: Follower): void {
    const { interest } = follower
    if ("project" in interest) addTo(byProject, interest.project, follower)
    else for (const job of interest.jobs) addTo(byJob, job, follower)
  }

  function remove(follower: Follower): void {
    const { interest } = follower
    if ("project" in interest) removeFrom(byProject, interest.project, follower)
    else for (const job of interest.jobs) removeFrom(byJob, job, follower)
    followers -= 1
    if (followers > 0) return
    tail?.then(
      (reading) => reading[Symbol.dispose](),
      () => undefined,
    )
    tail = null
    listening?.[Symbol.dispose]()
    listening = null
    owners.clear()
    changed.clear()
    stirred.clear()
    added.clear()
  }

  function stir(job: number): void {
    if (changed.has(job) || stirred.has(job) || !isFollowed(job)) return
    stirred.add(job)
    work()
  }

  return {
    async follow(follower) {
      followers += 1
      add(follower)
      let left = false
      const leave = (): void => {
        if (!left) remove(follower)
        left = true
      }
      try {
        tail ??= tailLog(parts, heard)
        listening ??= parts.watch.listen({ spoke: stir })
        await tail
      } catch (error) {
        tail = null
        leave()
        throw error
      }
      return { [Symbol.dispose]: leave }
    },
  }
}

interface Rendered {
  job: number
  id: number | null
  status: JobStatus
  /** Null where nobody asked for it. */
  plain: string | null
  withResults: string | null
  isLarge: boolean
}

async function renderJob(
  parts: ReadParts & { aggregates: Aggregates },
  job: number,
  id: number | null,
  asked: { plain: boolean; withResults: boolean },
  resultsOf: (read: ReadJob) => Promise<ReadonlyMap<string, string>>,
): Promise<Rendered | null> {
  // In one act: a hundred jobs are told some ten times a second.
  const [found] = await readJobsAnd(parts.store, [job], jobDetails)
  if (!found) return null
  const { job: read, seen: details } = found
  // The later change is told by itself: under this id its end would be told twice.
  if (id !== null && isEnded(read.head.status) && (await hasChangedSince(parts.store, job, eventOf(id)))) return null
  const [object, results] = await Promise.all([
    shownJob(parts, read, details),
    asked.withResults ? resultsOf(read) : null,
  ])
  const frame = (data: object): string =>
    eventFrame({ event: "job", ...(id !== null && { id: String(id) }), data: { job: data } })
  const plain = asked.plain ? frame(object) : null
  const whole = results ? frame(withResults(read, object, results)) : null
  const longest = Math.max(plain?.length ?? 0, whole?.length ?? 0)
  const isLarge = read.head.taskCount > MANY_TASKS || longest > LONG_TEXT
  return { job, id, status: jobStatus(read.head.status), plain, withResults: whole, isLarge }
}

/** The job as it is now, for one stream that catches up; null when it is gone, or has ended behind this id. */
export async function renderJobFrame(
  parts: ReadParts & { aggregates: Aggregates },
  job: number,
  id: number | null,
  hasResults: boolean,
): Promise<JobFrame | null> {
  const asked = { plain: !hasResults, withResults: hasResults }
  const rendered = await renderJob(parts, job, id, asked, ({ head }) => parts.aggregates.of(head))
  const text = rendered && (hasResults ? rendered.withResults : rendered.plain)
  return rendered && text !== null ? { job, id, status: rendered.status, text } : null
}

/** Processor time of this thread so far. */
function threadMs(): number {
  const { user, system } = process.threadCpuUsage()
  return (user + system) / 1_000
}

function addTo<Key>(sets: Map<Key, Set<Follower>>, key: Key, follower: Follower): void {
  const set = sets.get(key)
  if (set) set.add(follower)
  else sets.set(key, new Set([follower]))
}

function removeFrom<Key>(sets: Map<Key, Set<Follower>>, key: Key, follower: Follower): void {
  const set = sets.get(key)
  set?.delete(follower)
  if (set?.size === 0) sets.delete(key)
}
