import { z } from "zod"
import { pageOf, paging, timestamp } from "./common.ts"
import { endpoint } from "./endpoint.ts"

const sha256 = z.string().regex(/^[0-9a-f]{64}$/)
const source = z.enum(["local", "r2", "external"])
/** Administrators name an account by it. */
const accountQuery = { account_id: z.string().optional() }

const artifactMeta = z
  .object({
    id: z.string(),
    /** Null until known (external artifacts). */
    sha256: sha256.nullable(),
    size: z.int().nullable(),
    filename: z.string(),
    /** What the job's `_artifacts.upload` called it; null for archives and uploads. */
    name: z.string().nullable(),
    content_type: z.string(),
    source,
    job_id: z.string().nullable(),
    task_id: z.string().nullable(),
    created_at: timestamp,
    expires_at: timestamp,
    url: z.string(),
  })
  .meta({ id: "Artifact" })
export type ArtifactMeta = z.output<typeof artifactMeta>

export const uploadArtifact = endpoint({
  id: "artifacts-upload",
  method: "POST",
  path: "/api/v1/artifacts",
  access: "member",
  summary:
    "Stores the raw body, up to 2 GiB, as a new artifact. X-Artifact-Filename names it, X-Artifact-Job-Id links it to a job.",
  query: z.object(accountQuery),
  rawBody: { limitBytes: 2 * 2 ** 30, contentType: "application/octet-stream" },
  reply: z.object({ id: z.string(), sha256, size: z.int(), source: z.literal("local") }),
  status: 201,
  creates: true,
})

export const listArtifacts = endpoint({
  id: "artifacts-list",
  method: "GET",
  path: "/api/v1/artifacts",
  access: "viewer",
  summary: "Lists your artifacts, newest first, those of your jobs included.",
  query: z.object({
    ...paging(50, 500),
    ...accountQuery,
    job_id: z.string().optional(),
    source: source.optional(),
  }),
  reply: pageOf("artifacts", artifactMeta),
})

export const downloadArtifact = endpoint({
  id: "artifacts-download",
  method: "GET",
  path: "/api/v1/artifacts/:id",
  access: "viewer",
  summary: "Streams the bytes. Range gives a part of them, HEAD only the headers.",
  query: z.object(accountQuery),
  stream: "bytes",
  replies: {
    206: { description: "the asked part" },
    304: { description: "If-None-Match names these bytes" },
    416: { description: "the range lies outside" },
  },
})

export const getArtifactMeta = endpoint({
  id: "artifacts-meta",
  method: "GET",
  path: "/api/v1/artifacts/:id/meta",
  access: "viewer",
  summary: "Says what an artifact is, without its bytes.",
  query: z.object(accountQuery),
  reply: artifactMeta,
})

export const deleteArtifact = endpoint({
  id: "artifacts-delete",
  method: "DELETE",
  path: "/api/v1/artifacts/:id",
  access: "member",
  summary: "Deletes an artifact. Equal bytes under another id stay.",
  query: z.object(accountQuery),
  reply: z.object({ status: z.literal("deleted"), id: z.string() }),
})

export const artifactEndpoints = [
  uploadArtifact,
  listArtifacts,
  downloadArtifact,
  getArtifactMeta,
  deleteArtifact,
] as const
