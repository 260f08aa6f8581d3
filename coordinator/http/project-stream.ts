import { stringifyJson } from "../../protocol/base/json-text.ts"
import type { AccountId } from "../../protocol/domain/ids.ts"
import { jobOnWire } from "../jobs/read/job-object.ts"
import { projectJobs, readLines, type JobNews } from "../jobs/read/followed.ts"
import { readJobBySeq } from "../jobs/read/read-job.ts"
import { serveFollowed, type FollowedStreamParts, type Following, type StreamRequest } from "./followed-stream.ts"
import { lastEventBefore } from "./stream-position.ts"

/** What a stream shows of a project at first (rulings, Streams). */
const LISTED = 200
const RECENT = 20
const RECENT_MS = 24 * 3600 * 1000
/** Whoever was away for longer than so many events of all jobs begins anew. */
const MOST_MISSED = 20_000
const LINES_AT_ONCE = 1_000

export interface FollowedProject {
  name: string
  /** Whose jobs; null: everybody's. */
  account: AccountId | null
  /** The accounts that have a project of this name. */
  accounts: readonly AccountId[]
}

/** Serves all jobs of a project until the time is over (ST-005, ST-006). */
export async function serveProjectStream(
  parts: FollowedStreamParts,
  project: FollowedProject,
  request: StreamRequest,
): Promise<void> {
  await serveFollowed(parts, projectFollowing(parts, project), request)
}

function projectFollowing(parts: FollowedStreamParts, { name, account, accounts }: FollowedProject): Following {
  return {
    interest: { account, project: name },
    withResults: false,
    async *snapshot() {
      const since = parts.clock.now() - RECENT_MS
      const { totals, ...lists } = await projectJobs(parts.store, accounts, name, {
        listed: LISTED,
        recent: RECENT,
        since,
      })
      yield "{"
      for (const [list, seqs] of Object.entries(lists)) {
        yield `"${list}":[`
        let before = ""
        for (const seq of seqs) {
          const read = await readJobBySeq(parts.store, seq)
          if (!read) continue
          yield `${before}${stringifyJson(await jobOnWire(parts, read))}`
          before = ","
        }
        yield "],"
      }
      yield `"totals":${stringifyJson(totals)}}`
    },
    async missed(id) {
      const news = new Map<number, JobNews>()
      let after = lastEventBefore(id)
      for (let read = 0; read < MOST_MISSED; read += LINES_AT_ONCE) {
        const lines = await readLines(parts.store, after, LINES_AT_ONCE)
        for (const line of lines) {
          if (line.project !== name || (account !== null && line.account !== account)) continue
          if (line.type.startsWith("job.")) news.set(line.job, { job: line.job, event: line.id })
          else if (line.type.startsWith("task.") && !news.has(line.job))
            news.set(line.job, { job: line.job, event: null })
        }
        after = lines.at(-1)?.id ?? after
        if (lines.length < LINES_AT_ONCE) return [...news.values()]
      }
      return null
    },
  }
}
