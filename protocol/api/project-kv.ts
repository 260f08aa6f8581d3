import { z } from "zod"
import { LARGEST_STATE_VALUE_BYTES, STATE_KEY_PATTERN, STATE_KEY_RULE } from "../domain/shared-state.ts"
import { timestamp, wholeNumberText } from "./common.ts"
import { endpoint } from "./endpoint.ts"

/** Administrators name an account by it. */
const query = z.object({ account_id: z.string().optional() })
const params = z.object({ name: z.string(), key: z.string().regex(STATE_KEY_PATTERN, { error: STATE_KEY_RULE }) })

/** Thirty years: the time that comes of it can be written. */
const LONGEST_TTL_S = 1_000_000_000
const ttlRule = { error: `must be a whole number of seconds from 1 to ${LONGEST_TTL_S}` }

const entryShape = {
  key: z.string(),
  value: z.unknown(),
  updated_at: timestamp,
  /** As it was set; absent where the entry stays. */
  ttl_s: z.int().optional(),
  expires_at: timestamp.nullable(),
  /** Who wrote it: an account, and the job where one published it. */
  meta: z.object({ account: z.int().optional(), job_id: z.string().optional() }),
}
const entry = z.object({ project: z.string(), ...entryShape })
export type KvEntryBody = z.output<typeof entry>

export const listProjectKv = endpoint({
  id: "projects-kv-list",
  method: "GET",
  path: "/api/v1/projects/:name/kv",
  access: "viewer",
  summary: "The project's shared values in byte order of their keys; after=KEY gives the next ones.",
  query: z.object({
    ...query.shape,
    prefix: z.string().max(128).default(""),
    after: z.string().max(128).default(""),
    limit: wholeNumberText(1)
      .transform((limit) => Math.min(limit, 1000))
      .default(100),
  }),
  reply: z.object({
    project: z.string(),
    prefix: z.string(),
    entries: z.array(z.object(entryShape)),
    count: z.int(),
  }),
})

export const putProjectKv = endpoint({
  id: "projects-kv-put",
  method: "PUT",
  path: "/api/v1/projects/:name/kv/:key",
  access: "member",
  summary: `Sets a shared value: any JSON of at most ${LARGEST_STATE_VALUE_BYTES / 1024} KiB. ttl_s makes it disappear after so many seconds; without one it stays.`,
  params,
  query,
  body: z.object({
    value: z
      .unknown()
      .refine((value) => value !== undefined, { error: "is required: any JSON value, null included" })
      .meta({ description: "Any JSON value, null included. Required." }),
    ttl_s: z.int(ttlRule).min(1, ttlRule).max(LONGEST_TTL_S, ttlRule).optional(),
  }),
  reply: entry,
  replies: { 413: { description: "the value is too large: store an artifact, and its id here" } },
})

export const getProjectKv = endpoint({
  id: "projects-kv-get",
  method: "GET",
  path: "/api/v1/projects/:name/kv/:key",
  access: "viewer",
  summary: "One shared value.",
  params,
  query,
  reply: entry,
})

export const deleteProjectKv = endpoint({
  id: "projects-kv-delete",
  method: "DELETE",
  path: "/api/v1/projects/:name/kv/:key",
  access: "member",
  summary: "Removes a shared value.",
  params,
  query,
  reply: z.object({ status: z.literal("deleted"), project: z.string(), key: z.string() }),
})

export const projectKvEndpoints = [listProjectKv, putProjectKv, getProjectKv, deleteProjectKv] as const
