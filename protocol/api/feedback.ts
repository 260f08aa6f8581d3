import { z } from "zod"
import { isJsonObject, type JsonObject } from "../base/json-text.ts"
import { FEEDBACK_TYPES } from "../domain/statuses.ts"
import { pageOf, paging, timestamp } from "./common.ts"
import { endpoint } from "./endpoint.ts"

/** GAP-66. */
const LONGEST_TITLE = 200
const LONGEST_DESCRIPTION = 10_000
const LARGEST_METADATA_BYTES = 16 * 1024

const metadata = z
  .custom<JsonObject>(isJsonObject, "must be an object")
  .refine((value) => Buffer.byteLength(JSON.stringify(value)) <= LARGEST_METADATA_BYTES, {
    error: `must have at most ${LARGEST_METADATA_BYTES} bytes as JSON`,
  })
  .meta({ type: "object" })

const feedback = z.object({
  id: z.string(),
  type: z.enum(FEEDBACK_TYPES),
  title: z.string(),
  description: z.string(),
  job_id: z.string().nullable(),
  metadata: z.unknown(),
  created_at: timestamp,
})

export const sendFeedback = endpoint({
  id: "feedback",
  method: "POST",
  path: "/api/v1/feedback",
  access: "public",
  summary: "Tells the operators about a bug, a wish, a missing machine or a missing job type. Needs no token.",
  body: z.object({
    type: z.enum(FEEDBACK_TYPES, { error: `must be one of ${FEEDBACK_TYPES.join(", ")}` }),
    title: z.string().trim().min(1).max(LONGEST_TITLE),
    description: z.string().trim().min(1).max(LONGEST_DESCRIPTION),
    /** Any text: it need not name a job of this deployment. */
    job_id: z.string().max(256).optional(),
    metadata: metadata.optional(),
  }),
  status: 201,
  reply: z.object({ id: z.string(), status: z.literal("received") }),
  replies: { 429: { description: "too much from one address: come back after Retry-After seconds" } },
})

export const listFeedback = endpoint({
  id: "admin-feedback",
  method: "GET",
  path: "/api/v1/admin/feedback",
  access: "admin",
  summary: "What was sent, newest first.",
  query: z.object(paging(100, 500)),
  reply: z.object({ ...pageOf("feedback", feedback).shape, total: z.int() }),
})

export const feedbackEndpoints = [sendFeedback, listFeedback] as const
