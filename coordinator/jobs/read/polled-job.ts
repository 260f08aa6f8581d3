import { JsonText, stringifyJson } from "../../../protocol/base/json-text.ts"
import type { AccountId, JobId } from "../../../protocol/domain/ids.ts"
import { isEnded } from "../job-state.ts"
import { expiredUpto } from "../retention.ts"
import type { Aggregates } from "./aggregates.ts"
import type { JobCache } from "./job-cache.ts"
import { jobDetails, liveFields, storedFields, type JobDetails } from "./job-object.ts"
import { isVisible, readJobAnd, type ReadJob, type ReadParts } from "./read-job.ts"

/** What is stored of a job, written as its object shows it: all members, without the closing brace. */
export interface StoredJob {
  job: ReadJob
  members: string
  firstOutputs: JobDetails["firstOutputs"]
}

type PollParts = ReadParts & { aggregates: Aggregates; jobCache: JobCache<StoredJob> }

/**
 * The object of a job (J-030) that is still to be found (`readJob`), as JSON: what clients poll. What is stored of it is read, in
 * one snapshot, and written once for all polls until it changes.
 */
export async function polledJob(parts: PollParts, id: JobId, account: AccountId | null): Promise<JsonText> {
  const known = parts.jobCache.get(id)
  const isKnown = known !== null && isVisible(known.job.head, account, expiredUpto(parts))
  const { job, members, firstOutputs } = isKnown ? known : await readStored(parts, id, account)
  const live = stringifyJson(await liveFields(parts, job, firstOutputs))
  return new JsonText(`${members},${live.slice(1)}`)
}

async function readStored(parts: PollParts, id: JobId, account: AccountId | null): Promise<StoredJob> {
  const version = parts.jobCache.version()
  const { job, seen: details } = await readJobAnd(parts, id, account, jobDetails)
  const { firstOutputs } = details
  const members = stringifyJson(await storedFields(parts, job, details)).slice(0, -1)
  const stored = { job, members, firstOutputs }
  // What it waits for is told by rows of other jobs; and until an ended job has its aggregate an older one may be shown.
  const changesWithItsRows = job.submission.dependsOn === undefined
  const isWhole = !isEnded(job.head.status) || details.outcome !== null
  if (changesWithItsRows && isWhole) parts.jobCache.keep(job.head, stored, charactersOf(stored), version)
  return stored
}

function charactersOf({ job, members, firstOutputs }: StoredJob): number {
  const texts = members.length + job.head.submission.length
  return firstOutputs.reduce((sum, { output, error }) => sum + output.length + (error?.length ?? 0) + 100, texts)
}
