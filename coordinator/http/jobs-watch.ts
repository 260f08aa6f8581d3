import { invalidField } from "../../protocol/domain/errors.ts"
import { jobId, type JobId } from "../../protocol/domain/ids.ts"
import { isTerminal, type JobStatus } from "../../protocol/domain/statuses.ts"
import { stringifyJson } from "../../protocol/base/json-text.ts"
import { isEnded, jobStatus } from "../jobs/job-state.ts"
import { newsBehind, type JobPlace } from "../jobs/read/followed.ts"
import { readJobBySeq } from "../jobs/read/read-job.ts"
import { watchedJobOnWire } from "../jobs/read/watched-job.ts"
import { serveFollowed, type FollowedStreamParts, type Following, type StreamRequest } from "./followed-stream.ts"
import { eventOf, isJobId, lastEventBefore } from "./stream-position.ts"

/** ST-003; duplicates are merged first, then counted (rulings, Streams). */
const MOST_JOBS = 100
/** What tasks did has no id: a client that left just after a change of status may have missed what they did just before. */
const UNTOLD_MS = 250

/** The ids of `?ids=a,b,…`, each once. Refuses none and more than a hundred (422). */
export function watchedIds(text: string | undefined): JobId[] {
  const ids = [...new Set((text ?? "").split(",").map((id) => id.trim()))].filter((id) => id !== "")
  if (ids.length === 0) throw invalidField("ids", "is required: must name jobs, with commas between")
  if (ids.length > MOST_JOBS) throw invalidField("ids", `names ${ids.length} jobs: must name at most ${MOST_JOBS}`)
  return ids.map(jobId)
}

/** Serves one connection for up to a hundred jobs, until all of them have ended (ST-003, ST-004). */
export async function serveJobsWatch(
  parts: FollowedStreamParts,
  jobs: readonly JobPlace[],
  request: StreamRequest,
): Promise<void> {
  await serveFollowed(parts, watchOf(parts, jobs), request)
}

function watchOf(parts: FollowedStreamParts, jobs: readonly JobPlace[]): Following {
  const seqs = jobs.map(({ seq }) => seq)
  const statuses = new Map<number, { id: JobId; status: JobStatus }>(
    jobs.map(({ seq, id, status }) => [seq, { id, status: jobStatus(status) }]),
  )

  const setStatus = (seq: number, status: JobStatus): void => {
    const known = statuses.get(seq)
    if (known) known.status = status
  }

  return {
    interest: { jobs: new Set(seqs) },
    withResults: true,
    async *snapshot() {
      let before = '{"jobs":['
      for (const seq of seqs) {
        const read = await readJobBySeq(parts.store, seq)
        if (!read) continue
        setStatus(seq, jobStatus(read.head.status))
        yield `${before}${stringifyJson(await watchedJobOnWire(parts, read))}`
        before = ","
      }
      yield `${before === "," ? "" : before}]}`
    },
    async missed(id) {
      const after = lastEventBefore(id)
      const { places, news } = await newsBehind(parts.store, seqs, after, isJobId(id) ? UNTOLD_MS : 0)
      for (const { seq, status } of places) setStatus(seq, jobStatus(status))
      return news
    },
    told: ({ job, status }) => setStatus(job, status),
    done() {
      const all = [...statuses.values()]
      if (!all.every(({ status }) => isTerminal(status))) return null
      return { reason: "all_terminal", statuses: Object.fromEntries(all.map(({ id, status }) => [id, status])) }
    },
    async isOver(id) {
      const { places, news } = await newsBehind(parts.store, seqs, eventOf(id), 0)
      return places.every(({ status }) => isEnded(status)) && news.every(({ event }) => event === null)
    },
  }
}
