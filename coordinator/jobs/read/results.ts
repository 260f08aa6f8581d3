import { setImmediate as turn } from "node:timers/promises"
import type { z } from "zod"
import { timestampText } from "../../../protocol/api/common.ts"
import type { jobResultsReply, resultRow } from "../../../protocol/api/jobs.ts"
import type { Instant } from "../../../protocol/base/clock.ts"
import { JsonText } from "../../../protocol/base/json-text.ts"
import type { JobId } from "../../../protocol/domain/ids.ts"
import { outcomeAndHold } from "../../store/holds.ts"
import type { JobHead } from "../../store/jobs.ts"
import type { View } from "../../store/store.ts"
import { artifactIdsOfJob, countLeftBehind } from "../../store/task-reads.ts"
import { jobStatus } from "../job-state.ts"
import type { Aggregates } from "./aggregates.ts"
import { countedFacts, summaryOnWire } from "./job-object.ts"
import { readJobsAnd, type ReadJob, type ReadParts } from "./read-job.ts"
import type { TaskOnWire } from "./task-row.ts"

export type JobResults = Omit<
  z.output<typeof jobResultsReply>,
  "results" | "count" | "total" | "limit" | "offset" | "result_count" | "output_count"
>

/** `artifact_ids` of a job names its first ones; GET /artifacts?job_id= pages through all. */
const MOST_ARTIFACTS = 10_000

/** What a job's results add up to, so far where it still runs (RS-001, RS-007). */
export async function jobResults(parts: ReadParts & { aggregates: Aggregates }, job: ReadJob): Promise<JobResults> {
  const at = parts.clock.now()
  const facts = await parts.store.read((view) => resultFacts(view, job, at))
  return await shownResults(parts, job, facts)
}

/** The same of several jobs by seq, without those that are gone, all of them in one snapshot. */
export async function jobResultsBySeq(
  parts: ReadParts & { aggregates: Aggregates },
  seqs: readonly number[],
): Promise<{ job: ReadJob; results: JobResults }[]> {
  const at = parts.clock.now()
  const found = await readJobsAnd(parts.store, seqs, (view, job) => resultFacts(view, job, at))
  return await Promise.all(found.map(async ({ job, seen }) => ({ job, results: await shownResults(parts, job, seen) })))
}

type ResultFacts = Awaited<ReturnType<typeof resultFacts>>

async function resultFacts(view: View, { head }: ReadJob, at: Instant) {
  return {
    ...((await outcomeAndHold(view, head)) ?? { outcome: null, hold: null }),
    ...(await countedFacts(view, head)),
    artifacts: await artifactIdsOfJob(view, head.id, at, MOST_ARTIFACTS),
  }
}

async function shownResults(
  parts: ReadParts & { aggregates: Aggregates },
  job: ReadJob,
  facts: ResultFacts,
): Promise<JobResults> {
  const { head, submission } = job
  const aggregate = await parts.aggregates.of(head, facts.outcome)
  const json = (name: string): JsonText => new JsonText(aggregate.get(name) ?? "null")
  return {
    job_id: head.id,
    project: head.project,
    type: head.type,
    status: jobStatus(head.status),
    client_ref: head.clientRef,
    tags: head.tags,
    meta: submission.meta,
    variant: submission.variant,
    user_id: head.account,
    artifact_ids: facts.artifacts,
    links: linksOf(head.id),
    summary: summaryOnWire(job, facts, aggregate),
    aggregate_result: json("aggregate_result"),
    ...aggregateFields(json),
    result_persisted: facts.left?.results === true,
    output_persisted: facts.left?.outputs === true,
    created_at: timestampText(head.createdAt),
    completed_at: timestampText(head.completedAt),
  }
}

/** JSON text made by `aggregateOnWire`, which has these shapes. */
function aggregateFields(json: (name: string) => JsonText): Pick<JobResults, "aggregate_aliases" | "completeness"> {
  return { aggregate_aliases: json("aggregate_aliases"), completeness: json("completeness") } as unknown as Pick<
    JobResults,
    "aggregate_aliases" | "completeness"
  >
}

/** How many of all its tasks left a result, and printed anything; counted in slices. */
export async function countResults(
  parts: Pick<ReadParts, "store">,
  head: JobHead,
): Promise<{ result_count: number; output_count: number }> {
  const counts = { result_count: 0, output_count: 0 }
  for (let from = 0; from < head.taskCount; from += COUNTED_AT_ONCE) {
    if (from > 0) await turn()
    const first = from
    const { results, outputs } = await parts.store.read((view) =>
      countLeftBehind(view, head.seq, first, Math.min(first + COUNTED_AT_ONCE, head.taskCount)),
    )
    counts.result_count += results
    counts.output_count += outputs
  }
  return counts
}
/** A statement of a few milliseconds. */
const COUNTED_AT_ONCE = 5_000

/** A row of results out of a row of tasks: what a result is, without how the task is doing (RS-002). */
export function resultOnWire(task: TaskOnWire): z.output<typeof resultRow> {
  return {
    task_id: task.task_id,
    index: task.index,
    status: task.status,
    payload: task.payload,
    result: task.result,
    result_present: task.result_present,
    ...(task.result_artifact_id !== undefined && { result_artifact_id: task.result_artifact_id }),
    result_quality: task.result_quality,
    result_warnings: task.result_warnings,
    artifact_ids: task.artifact_ids,
    artifacts: task.artifacts,
    output: task.output,
    output_present: task.output_present,
    error: task.error,
    project_content_hash: task.project_content_hash,
    started_at: task.started_at,
    completed_at: task.completed_at,
  }
}

function linksOf(id: JobId): JobResults["links"] {
  const job = `/api/v1/jobs/${id}`
  return {
    job,
    tasks: `${job}/tasks`,
    output: `${job}/output`,
    events: `${job}/events`,
    stream: `${job}/stream`,
    results: `/api/v1/results/${id}`,
  }
}
