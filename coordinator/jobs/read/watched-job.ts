import { JsonText, splitJsonObject } from "../../../protocol/base/json-text.ts"
import { isEnded } from "../job-state.ts"
import type { Aggregates } from "./aggregates.ts"
import { jobOnWire } from "./job-object.ts"
import type { ReadJob, ReadParts } from "./read-job.ts"

type JobOnWire = Awaited<ReturnType<typeof jobOnWire>>

/**
 * A job as a watch shows it, running or ended: the object of GET /jobs/:id, and what GET /results/:id says that its results
 * add up to so far, aliases such as `avg_edge` directly (ST-004).
 */
export async function watchedJobOnWire(parts: ReadParts & { aggregates: Aggregates }, read: ReadJob): Promise<object> {
  const [object, aggregate] = await Promise.all([jobOnWire(parts, read), parts.aggregates.of(read.head)])
  return withResults(read, object, aggregate)
}

/** The same out of what is at hand. */
export function withResults(read: ReadJob, object: JobOnWire, aggregate: ReadonlyMap<string, string>): object {
  const members = Object.fromEntries([...aggregate].map(([name, text]) => [name, new JsonText(text)]))
  const { aggregate_result = null, aggregate_aliases = {}, completeness = null } = members
  const aliases = splitJsonObject(aggregate.get("aggregate_aliases") ?? "{}") ?? []
  return {
    ...Object.fromEntries([...aliases].map(([name, text]) => [name, new JsonText(text)])),
    ...object,
    summary: isEnded(read.head.status) ? object.summary : { ...object.summary, ...members },
    aggregate_result,
    aggregate_aliases,
    completeness,
    result_persisted: object.summary.result_persisted === true,
    output_persisted: object.summary.output_persisted === true,
  }
}
