import type { JobStatus } from "../../../protocol/domain/statuses.ts"
import { pageOfJobs, type JobFilter, type StoredJobStatus } from "../../store/jobs.ts"
import type { Store } from "../../store/store.ts"
import { leftOutput } from "../../store/task-reads.ts"
import { expiredUpto, type RetentionParts } from "../retention.ts"
import { jobListRowOnWire, type JobListRow } from "./job-object.ts"
import { isUntouched, readJobsAnd, type ReadParts } from "./read-job.ts"

export type { JobFilter } from "../../store/jobs.ts"

/** A page of jobs by seq, newest first by `created_at`, then id (rulings, Results), and how many match in all. */
export async function findJobs(
  parts: RetentionParts & { store: Store },
  filter: JobFilter,
  page: { limit: number; offset: number },
): Promise<{ seqs: number[]; total: number }> {
  const expired = { expiredUpto: expiredUpto(parts) }
  return await parts.store.read((view) => pageOfJobs(view, { ...filter, ...expired }, page.limit, page.offset))
}

/** A job whose results are being merged still runs, as far as clients know. */
export function storedStatuses(status: JobStatus): StoredJobStatus[] {
  return status === "running" ? ["running", "finishing"] : [status]
}

/** Submissions may be large: few are in memory at once. */
const JOBS_AT_ONCE = 8

/** The rows of GET /jobs, in order, each as it is when its slice is read; jobs that are gone are left out. */
export async function* jobListRows(
  parts: ReadParts,
  seqs: readonly number[],
): AsyncGenerator<JobListRow, void, undefined> {
  for (let from = 0; from < seqs.length; from += JOBS_AT_ONCE) {
    const slice = seqs.slice(from, from + JOBS_AT_ONCE)
    const found = await readJobsAnd(parts.store, slice, async (view, { head }) =>
      isUntouched(head) ? false : await leftOutput(view, head.seq),
    )
    for (const { job, seen: hasOutput } of found) {
      yield jobListRowOnWire(parts, job, [...parts.members.ofJob(job.head.seq)], hasOutput)
    }
  }
}
