import {
  cancelJob,
  createJob,
  getJob,
  getJobMetrics,
  getJobOutput,
  getLease,
  listJobEvents,
  listJobs,
  listTasks,
  retryJob,
} from "../../../protocol/api/jobs-endpoints.ts"
import { jobId, type AccountId, type JobId } from "../../../protocol/domain/ids.ts"
import { chargedByJob } from "../../billing/holds.ts"
import { createAggregates } from "../../jobs/read/aggregates.ts"
import { eventOnWire, readLog } from "../../jobs/read/events.ts"
import { createJobCache } from "../../jobs/read/job-cache.ts"
import { jobOnWire, newJobOnWire, retriedJobOnWire, summaryFacts } from "../../jobs/read/job-object.ts"
import { leaseOnWire } from "../../jobs/read/lease.ts"
import { findJobs, jobListRows, storedStatuses } from "../../jobs/read/list.ts"
import { metricsOnWire } from "../../jobs/read/metrics.ts"
import { jobOutput, OUTPUT_LIMITS } from "../../jobs/read/output.ts"
import { polledJob, type StoredJob } from "../../jobs/read/polled-job.ts"
import { readJob, type ReadJob } from "../../jobs/read/read-job.ts"
import { pageOfIndexes, taskRows } from "../../jobs/read/tasks.ts"
import type { RetriedJob, RetryRequest } from "../../jobs/retry.ts"
import type { SubmittedJob, SubmitRequest } from "../../jobs/submit.ts"
import { mount, type HttpApp } from "../app.ts"
import { JsonPieces, objectWithRows, Reply } from "../reply.ts"
import { scopeOf, type ScopedRequest } from "../scope.ts"
import { mountResults } from "./results.ts"
import { mountStreams, type StreamRouteParts } from "./streams.ts"

interface JobRouteParts extends Omit<StreamRouteParts, "aggregates"> {
  submit(request: SubmitRequest): Promise<SubmittedJob>
  /** Runs tasks of a job that has ended again. */
  retry(request: RetryRequest): Promise<RetriedJob>
  /** Ends the job and tells its nodes. Cancelled already: nothing more; ended another way: `conflict` (GAP-31). */
  cancel(id: JobId, account: AccountId | null, reason: string): Promise<unknown>
}

/**
 * Submit, list, show, cancel and follow jobs (J-*, ST-*), and read their results. Ids that are unknown or another account's
 * are 404 (GAP-04).
 */
export function mountJobs(app: Pick<HttpApp, "add">, given: JobRouteParts): void {
  const jobCache = createJobCache<StoredJob>(given.store)
  const parts = { ...given, aggregates: createAggregates(given), jobCache }
  mountResults(app, parts)
  mountStreams(app, parts)
  const find = (request: ScopedRequest & { params: { id: string } }): Promise<ReadJob> =>
    readJob(parts, jobId(request.params.id), scopeOf(request))

  mount(app, createJob, async (request) => {
    const reply = ({ job, warnings }: SubmittedJob) => newJobOnWire(job, warnings)
    const submitted = await parts.submit({
      account: request.account(),
      user: request.caller.user,
      body: request.body,
      bodyText: request.bodyText,
      earlierQuote: request.idempotency.earlierQuote,
      also: request.idempotency.remember((made: SubmittedJob) => ({ status: 201, body: reply(made) })),
    })
    return reply(submitted)
  })

  mount(app, listJobs, async (request) => {
    const { status, project, type, tag, client_ref, limit, offset } = request.query
    const filter = {
      account: scopeOf(request),
      statuses: status === undefined ? null : storedStatuses(status),
      project: project ?? null,
      type: type ?? null,
      tag: tag ?? null,
      clientRef: client_ref ?? null,
      userId: null,
      ids: null,
    }
    const { seqs, total } = await findJobs(parts, filter, { limit, offset })
    const rows = jobListRows(parts, seqs)
    return new Reply(200, new JsonPieces(objectWithRows("jobs", rows, (count) => ({ count, limit, offset, total }))))
  })

  mount(
    app,
    getJob,
    async (request) => new Reply(200, await polledJob(parts, jobId(request.params.id), scopeOf(request))),
  )

  mount(app, cancelJob, async (request) => {
    const { head } = await find(request)
    await parts.cancel(head.id, scopeOf(request), request.body.reason ?? "cancelled by its owner")
    return await jobOnWire(parts, await find(request))
  })

  mount(app, retryJob, async (request) => {
    const job = await find(request)
    const before = await jobOnWire(parts, job)
    let reply = before
    const remember = request.idempotency.remember((body: typeof reply) => ({ status: 200, body }))
    await parts.retry({
      id: job.head.id,
      account: scopeOf(request),
      filter: request.body.filter,
      indexes: request.body.indexes ?? null,
      earlierQuote: request.idempotency.earlierQuote,
      async also(tx, { job: row }) {
        reply = retriedJobOnWire(before, row, await summaryFacts(tx, row))
        await remember(tx, reply)
      },
    })
    return reply
  })

  mount(app, getJobOutput, async (request) => jobOutput(parts, await find(request), OUTPUT_LIMITS))

  mount(app, listTasks, async (request) => {
    const job = await find(request)
    const { status, limit, offset } = request.query
    const page = { limit, offset }
    const { indexes, total } = await pageOfIndexes(parts, job, status === undefined ? null : [status], page)
    const rows = taskRows(parts, job, indexes)
    return new Reply(200, new JsonPieces(objectWithRows("tasks", rows, (count) => ({ count, total, limit, offset }))))
  })

  mount(app, listJobEvents, async (request) => {
    const { head } = await find(request)
    const { after, limit } = request.query
    const { events } = await readLog(parts.store, head.seq, after ?? 0, limit)
    return { events: events.map((event) => eventOnWire(head.id, event)), count: events.length }
  })

  mount(app, getJobMetrics, async (request) => {
    const { head } = await find(request)
    const billed = await parts.store.read((view) => chargedByJob(view, head.id))
    return metricsOnWire(head, billed, parts.clock.now())
  })

  mount(app, getLease, async (request) => {
    const { job_id: id } = request.params
    return leaseOnWire(parts, await readJob(parts, jobId(id), scopeOf(request)))
  })
}
