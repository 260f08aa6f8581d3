import type { z } from "zod"
import { createJobs, type BatchReply } from "../../../protocol/api/batch.ts"
import type { jobObject } from "../../../protocol/api/jobs.ts"
import { assert } from "../../../protocol/base/assert.ts"
import { errorText } from "../../../protocol/base/error-text.ts"
import { splitJsonArray, splitJsonObject } from "../../../protocol/base/json-text.ts"
import type { Log } from "../../../protocol/base/log.ts"
import { jobId } from "../../../protocol/domain/ids.ts"
import { newJobOnWire } from "../../jobs/read/job-object.ts"
import type { BatchElement, BatchOutcome, BatchRequest } from "../../jobs/submit-batch.ts"
import type { SubmittedJob } from "../../jobs/submit.ts"
import { mount, type HttpApp } from "../app.ts"
import { asRefusal } from "../errors.ts"
import { Reply } from "../reply.ts"

export interface BatchRouteParts {
  log: Log
  submitBatch: (request: BatchRequest) => Promise<BatchOutcome[]>
}

/** POST /jobs/batch (BT-*): 201 when every element became a job, else 207. */
export function mountBatch(app: Pick<HttpApp, "add">, { log, submitBatch }: BatchRouteParts): void {
  mount(app, createJobs, async (request) => {
    const texts = splitJsonArray(splitJsonObject(request.bodyText)?.get("jobs") ?? "[]")
    const made = await request.idempotency.partsMade()
    const elements = request.body.jobs.map((body, index): BatchElement => {
      const bodyText = texts?.[index]
      assert(bodyText !== undefined, "the list's text has its elements")
      const earlier = made.get(index)
      const kept = request.idempotency.rememberPart(index, ({ job }: SubmittedJob) => job.id)
      return { body, bodyText, made: earlier === undefined ? null : jobId(earlier), also: kept }
    })
    const outcomes = await submitBatch({ account: request.account(), user: request.caller.user, elements })

    const reply: BatchReply = { jobs: [], submitted: 0, errors: [], error_count: 0 }
    for (const [index, outcome] of outcomes.entries()) {
      if (outcome.kind === "submitted") reply.jobs.push({ index, ...submittedJob(outcome.submitted) })
      else {
        const refusal = asRefusal(outcome.error)
        if (refusal.code === "internal") {
          log.error("batch element failed", { request_id: request.id, index, error: errorText(outcome.error) })
        }
        reply.errors.push(refusedJob(index, refusal))
      }
    }
    reply.submitted = reply.jobs.length
    reply.error_count = reply.errors.length
    // What may pass by itself is no last word: under the same key the elements without a job are tried again.
    if (reply.errors.some(({ status }) => status >= 500)) request.idempotency.stayOpen()
    return new Reply(reply.error_count === 0 ? 201 : 207, reply)
  })
}

function submittedJob({ job, warnings }: SubmittedJob): Omit<BatchReply["jobs"][number], "index"> {
  const {
    request: _request,
    output: _output,
    feedback_summary: _feedback,
    ...rest
  }: z.output<typeof jobObject> = newJobOnWire(job, warnings)
  return rest
}

function refusedJob(index: number, refusal: ReturnType<typeof asRefusal>): BatchReply["errors"][number] {
  return {
    index,
    status: refusal.status,
    error: refusal.message,
    code: refusal.code,
    ...(refusal.recommendedAction === undefined ? {} : { recommended_action: refusal.recommendedAction }),
    ...(refusal.details === undefined ? {} : { details: refusal.details }),
    ...refusal.body,
  }
}
