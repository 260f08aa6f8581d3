import type { z } from "zod"
import type { resultsQuery } from "../../../protocol/api/jobs.ts"
import { getJobResults, listResults } from "../../../protocol/api/jobs-endpoints.ts"
import { RESULT_GUIDE } from "../../../protocol/api/result-guide.ts"
import { slices } from "../../../protocol/base/slices.ts"
import { invalidField } from "../../../protocol/domain/errors.ts"
import { jobId } from "../../../protocol/domain/ids.ts"
import { TERMINAL_JOB_STATUSES } from "../../../protocol/domain/statuses.ts"
import type { Aggregates } from "../../jobs/read/aggregates.ts"
import { createGroupCache } from "../../jobs/read/groups.ts"
import { findJobs, type JobFilter } from "../../jobs/read/list.ts"
import { readJob, type ReadJob, type ReadParts } from "../../jobs/read/read-job.ts"
import { countResults, jobResults, jobResultsBySeq, resultOnWire } from "../../jobs/read/results.ts"
import { pageOfIndexes, pageOfResults, taskRows } from "../../jobs/read/tasks.ts"
import { mount, type HttpApp } from "../app.ts"
import { rowsWithin } from "../job-stream.ts"
import { JsonPieces, objectWithRows, Reply } from "../reply.ts"
import { scopeOf } from "../scope.ts"

interface ResultRouteParts extends ReadParts {
  aggregates: Aggregates
}

/** What jobs came to (RS-*): one while it runs and after, and all that have ended. */
export function mountResults(app: Pick<HttpApp, "add">, parts: ResultRouteParts): void {
  const groupCache = createGroupCache(parts)

  mount(app, getJobResults, async (request) => {
    const job = await readJob(parts, jobId(request.params.job_id), scopeOf(request))
    const { limit, offset } = request.query
    const { indexes, total } = await pageOfResults(parts, job, { limit, offset })
    const fields = await jobResults(parts, job)
    const left = await countResults(parts, job.head)
    const rest = (count: number) => ({ ...fields, count, total, limit, offset, ...left })
    return new Reply(200, new JsonPieces(objectWithRows("results", resultRows(), rest)))

    async function* resultRows() {
      for await (const row of taskRows(parts, job, indexes)) yield resultOnWire(row)
    }
  })

  mount(app, listResults, async (request) => {
    const { query } = request
    const { limit, offset, group_by: by } = query
    const filter = filterOf(query, scopeOf(request))
    const { seqs, total } = await findJobs(parts, filter, { limit, offset })
    const key = by === "recipe_cache_key" ? "nothing" : by
    const groups = key === undefined ? {} : { group_by: by, groups: await groupCache.groups(filter, key) }
    const rest = (count: number) => ({
      count,
      limit,
      offset,
      total,
      applied_filters: appliedFilters(query),
      result_guide: RESULT_GUIDE,
      ...groups,
    })
    const rows = jobRows(parts, seqs, query.include_tasks === "true")
    return new Reply(200, new JsonPieces(objectWithRows("results", rows, rest)))
  })
}

type Query = z.output<typeof resultsQuery>

/** Task rows of one job in a list: the first page of its tasks, and no more than this many characters of it. */
const INCLUDED_TASKS = 1_000
const INCLUDED_CHARACTERS = 8 * 1024 * 1024
/** Aggregates may be large: few are in memory at once. */
const JOBS_AT_ONCE = 8
/** More ids than a page can show are of no use. */
const MOST_IDS = 1_000

async function* jobRows(parts: ResultRouteParts, seqs: readonly number[], includeTasks: boolean) {
  for (const slice of slices(seqs, includeTasks ? 1 : JOBS_AT_ONCE)) {
    for (const { job, results } of await jobResultsBySeq(parts, slice)) {
      yield includeTasks ? { ...results, tasks: await taskTexts(parts, job) } : results
    }
  }
}

async function taskTexts(parts: ResultRouteParts, job: ReadJob): Promise<unknown> {
  const { indexes } = await pageOfIndexes(parts, job, null, { limit: INCLUDED_TASKS, offset: 0 })
  return await rowsWithin(taskRows(parts, job, indexes), INCLUDED_CHARACTERS)
}

function filterOf(query: Query, account: JobFilter["account"]): JobFilter {
  return {
    account,
    statuses: query.status === undefined ? TERMINAL_JOB_STATUSES : [query.status],
    project: query.project ?? null,
    type: query.type ?? null,
    tag: query.tag ?? null,
    clientRef: query.client_ref ?? null,
    userId: query.user_id ?? null,
    ids: idsOf(query),
  }
}

/** Null: all. Nothing is served from a recipe's cache yet, so what asks for that finds nothing. */
function idsOf(query: Query): JobFilter["ids"] {
  const wantsCached =
    query.recipe_cache_key !== undefined || query.recipe_cache_scope !== undefined || query.recipe_cache_hit === "true"
  if (wantsCached) return []
  const listed = query.ids === undefined ? null : listedIds(query.ids)
  if (listed && listed.length > MOST_IDS) throw invalidField("ids", `must name at most ${MOST_IDS} jobs`)
  const one = query.job_id
  if (one === undefined) return listed && listed.map(jobId)
  return listed === null || listed.includes(one) ? [jobId(one)] : []
}

const listedIds = (text: string): string[] => [
  ...new Set(
    text
      .split(",")
      .map((id) => id.trim())
      .filter((id) => id !== ""),
  ),
]

/** They choose the page, or whose jobs are meant. */
const NO_FILTERS: ReadonlySet<string> = new Set(["limit", "offset", "account_id"])

/** What was asked for and had an effect (RS-011): flags as booleans, ids as a list. */
function appliedFilters(query: Query): Record<string, unknown> {
  const { ids, include_tasks: tasks, recipe_cache_hit: hit } = query
  const asked = Object.entries(query).filter(([name, value]) => value !== undefined && !NO_FILTERS.has(name))
  return {
    ...Object.fromEntries(asked),
    ...(ids !== undefined && { ids: listedIds(ids) }),
    ...(tasks !== undefined && { include_tasks: tasks === "true" }),
    ...(hit !== undefined && { recipe_cache_hit: hit === "true" }),
  }
}
