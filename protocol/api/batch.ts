import { z } from "zod"
import { ERROR_STATUS, type ErrorCode } from "../domain/errors.ts"
import { endpoint } from "./endpoint.ts"
import { jobObject } from "./jobs.ts"

/** BT-001. */
const MOST_JOBS = 200
const rightList = `must be a list of 1 to ${MOST_JOBS} submissions`

/** Each element is judged by itself, as the body of POST /jobs (BT-005): what is wrong with one is no fault of the others. */
const submitBatchBody = z.object({
  jobs: z
    .array(z.unknown().meta({ description: "as the body of POST /api/v1/jobs" }), rightList)
    .min(1, rightList)
    .max(MOST_JOBS, rightList),
})

/** A job as its submission is answered, without what the client has just sent itself. */
const submittedJob = z.object({
  /** Of the element in the request. */
  index: z.int(),
  ...jobObject.omit({ request: true, output: true, feedback_summary: true, checkpoint_summary: true }).shape,
})

/** An element that made no job: the refusal that it would have got alone. */
const refusedJob = z.looseObject({
  index: z.int(),
  status: z.int().meta({ description: "the HTTP status of the refusal, such as 402, 404, 409 or 422" }),
  error: z.string(),
  code: z.enum(Object.keys(ERROR_STATUS) as [ErrorCode, ...ErrorCode[]]),
  recommended_action: z.string().optional(),
  details: z.unknown().optional(),
  /** Of a 402: what the account lacks; it is paid at `pay.path`. */
  quote: z.unknown().optional(),
  pay: z.object({ method: z.string(), path: z.string() }).optional(),
})

/** BT-003, BT-004: both lists in the order of the request. */
const batchReply = z.object({
  jobs: z.array(submittedJob),
  submitted: z.int(),
  errors: z.array(refusedJob),
  error_count: z.int(),
})
export type BatchReply = z.output<typeof batchReply>

export const createJobs = endpoint({
  id: "jobs-batch",
  method: "POST",
  path: "/api/v1/jobs/batch",
  access: "member",
  summary: `Submits up to ${MOST_JOBS} jobs, each as if alone, in their order: 201 when all were accepted, 207 when not.`,
  query: z.object({ account_id: z.string().optional() }),
  body: submitBatchBody,
  reply: batchReply,
  status: 201,
  creates: true,
  replies: {
    207: { description: "some elements, or all, were refused: errors says which and why", schema: batchReply },
    422: { description: "jobs is no list, is empty or has more than 200 elements: nothing was created" },
  },
})

export const batchEndpoints = [createJobs] as const
