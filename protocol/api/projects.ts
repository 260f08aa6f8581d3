import { z } from "zod"
import { listOf, timestamp } from "./common.ts"
import { endpoint } from "./endpoint.ts"

/** Administrators name an account by it. */
const query = z.object({ account_id: z.string().optional() })
const whole = z.int({ error: "must be a whole number" })
const anyObject = z
  .record(z.string(), z.json(), { error: "must be an object" })
  .meta({ shown: { type: "object", additionalProperties: true } })
const shortText = z.string().min(1).max(1024)
const env = z.record(
  z.string().regex(/^[^=\0]{1,256}$/, { error: "names have 1 to 256 characters, without = and NUL" }),
  z.string({ error: "must be a string" }).refine((value) => !value.includes("\0"), { error: "must not contain NUL" }),
  { error: "must be an object of strings" },
)
const remoteDir = z
  .string({ error: "must be an absolute path" })
  .max(1024)
  .regex(/^\/[^\0]*$/, { error: "must be an absolute path, as /root/my-project" })

/** As it is written; GAP-70's longest timeout bounds set-up too. */
const fields = {
  remote_dir: remoteDir,
  env,
  setup_timeout_s: whole.min(1).max(604_800),
  runtime_kind: z.literal("oci", { error: 'must be "oci"' }),
  image_ref: shortText,
  image_digest: shortText,
  manifest: anyObject,
  cache_policy: anyObject,
  runtime_version: whole.min(1),
}

const projectShape = {
  name: z.string(),
  remote_dir: z.string(),
  env: z.record(z.string(), z.string()),
  setup_timeout_s: whole,
  runtime_kind: z.literal("oci"),
  image_ref: z.string().nullable(),
  image_digest: z.string().nullable(),
  manifest: anyObject.nullable(),
  cache_policy: anyObject.nullable(),
  runtime_version: whole,
  /** 64 hex digits; null before the first push. */
  content_hash: z.string().nullable(),
  created_at: timestamp,
  updated_at: timestamp,
}
const project = z.object(projectShape).meta({ id: "Project" })
export type ProjectBody = z.output<typeof project>

const count = z.int().nonnegative()
const initStatusShape = {
  project_ready: z.boolean(),
  can_accept_new_jobs: z.boolean(),
  ready_for_jobs: z.boolean(),
  init_state: z.enum(["not_initialized", "published", "initializing", "ready", "refreshing", "attention_required"]),
  availability_status: z.enum(["cold", "warming", "ready", "degraded", "mixed"]),
  progress_phase: z.enum(["queued", "running", "failed", "refreshing", "refresh_pending", "ready", "idle"]),
  pending_init: z.boolean(),
  requested_state: z.string().optional(),
  content_hash: z.string().nullable(),
  status_message: z.string().min(1),
  next_action: z.string().min(1),
  latest_issue: z.string().optional(),
  last_ready_at: timestamp.nullable(),
  latest_activity_at: timestamp.optional(),
  latest_failure_at: timestamp.optional(),
  ready_replicas: count,
  initializing_replicas: count,
  failed_replicas: count,
  stale_replicas: count,
  total_replicas: count,
  queue_depth: count,
  queued_tasks: count,
  active_jobs: count,
  active_tasks: count,
}
const initStatus = z.object(initStatusShape).meta({ id: "ProjectInitStatus" })
export type InitStatusBody = z.output<typeof initStatus>
const statusShape = { project: z.string(), ...initStatusShape }

const diagnostic = z.object({
  id: z.string(),
  status: z.enum(["info", "running", "ready", "failed"]),
  phase: z.string(),
  message: z.string(),
  log_tail: z.string().nullable(),
  content_hash: z.string(),
  inserted_at: timestamp,
  updated_at: timestamp,
  initialized_at: timestamp.nullable(),
  recommended_action: z.string().nullable(),
})
export type DiagnosticBody = z.output<typeof diagnostic>

export const createProject = endpoint({
  id: "projects-create",
  method: "POST",
  path: "/api/v1/projects",
  access: "member",
  summary: "Registers a project.",
  query,
  body: z.object({
    name: z.string().regex(/^[a-z0-9_-]{1,64}$/, { error: "must be 1 to 64 characters out of a-z, 0-9, _ and -" }),
    remote_dir: fields.remote_dir,
    env: fields.env.default({}),
    setup_timeout_s: fields.setup_timeout_s.default(600),
    runtime_kind: fields.runtime_kind.default("oci"),
    image_ref: fields.image_ref.optional(),
    image_digest: fields.image_digest.optional(),
    manifest: fields.manifest.optional(),
    cache_policy: fields.cache_policy.optional(),
    runtime_version: fields.runtime_version.default(1),
  }),
  reply: project,
  status: 201,
  replies: { 409: { description: "there is a project or a recipe of this name" } },
  creates: true,
})

export const listProjects = endpoint({
  id: "projects-list",
  method: "GET",
  path: "/api/v1/projects",
  access: "viewer",
  summary: "Lists your projects.",
  query,
  reply: listOf("projects", project),
})

export const getProject = endpoint({
  id: "projects-get",
  method: "GET",
  path: "/api/v1/projects/:name",
  access: "viewer",
  summary: "A project and how ready it is.",
  query,
  reply: z.object({ ...projectShape, init_status: initStatus }),
})

/** Code comes by push alone (P-010). */
const forbidden = (why: string) =>
  z
    .unknown()
    .optional()
    .refine((value) => value === undefined, { error: why })
    .meta({ hidden: true })
const pushIt = forbidden("cannot be set here: push code to POST /api/v1/projects/:name/push")

export const updateProject = endpoint({
  id: "projects-update",
  method: "PUT",
  path: "/api/v1/projects/:name",
  access: "member",
  summary: "Changes a project's metadata. Code comes by push alone.",
  query,
  body: z.object({
    ...z.object(fields).partial().shape,
    tarball: pushIt,
    code: pushIt,
    files: pushIt,
    content_hash: pushIt,
    name: forbidden("cannot be changed"),
  }),
  reply: project,
})

export const deleteProject = endpoint({
  id: "projects-delete",
  method: "DELETE",
  path: "/api/v1/projects/:name",
  access: "member",
  summary: "Removes a project without unfinished jobs, and its code. Results and artifacts stay.",
  query,
  reply: z.object({ status: z.literal("deleted"), project: z.string() }),
  replies: { 409: { description: "jobs of it are not finished" } },
})

export const pushProject = endpoint({
  id: "projects-push",
  method: "POST",
  path: "/api/v1/projects/:name/push",
  access: "member",
  summary: "Publishes the tar.gz in the raw body, at most 100 MB, as the new revision.",
  query,
  rawBody: { limitBytes: 100 * 2 ** 20, contentType: "application/gzip" },
  reply: z.object({
    status: z.string(),
    content_hash: z.string(),
    size_bytes: count,
    runtime_kind: z.literal("oci"),
    runtime_version: whole,
    manifest_present: z.boolean(),
    tarball_diff: z
      .object({
        added_files: z.array(z.string()),
        removed_files: z.array(z.string()),
        changed_files: z.array(z.string()),
      })
      .optional(),
    ready_for_jobs: z.boolean(),
    status_message: z.string(),
    next_action: z.string(),
    init_status: initStatus,
  }),
  replies: {
    400: { description: "the body is not gzip" },
    409: { description: "the project is initializing or refreshing; carries init_state, ready_for_jobs, next_action" },
    413: { description: "more than 100 MB" },
    422: { description: "invalid tarball or manifest" },
  },
  creates: true,
})

export const initProject = endpoint({
  id: "projects-init",
  method: "POST",
  path: "/api/v1/projects/:name/init",
  access: "member",
  summary: "Prepares workers ahead of jobs. Free, but needs $5 available.",
  query,
  body: z.object({ max_nodes: whole.min(1, { error: "must be at least 1" }).optional() }),
  reply: z.object({
    status: z.string(),
    ready_for_jobs: z.boolean(),
    status_message: z.string(),
    init_status: initStatus,
  }),
  replies: {
    402: { description: "less than $5 available; carries a quote" },
    409: { description: "nothing has been pushed yet" },
  },
  creates: true,
})

export const invalidateProject = endpoint({
  id: "projects-invalidate",
  method: "POST",
  path: "/api/v1/projects/:name/invalidate",
  access: "member",
  summary: "Marks prepared runtimes as stale: the next job or init prepares them again.",
  query,
  body: z.object({}),
  reply: z.object({
    status: z.string(),
    ready_for_jobs: z.boolean(),
    status_message: z.string(),
    next_action: z.string(),
    init_status: initStatus,
  }),
  replies: { 409: { description: "nothing has been pushed yet" } },
})

export const cancelQueued = endpoint({
  id: "projects-cancel-queued",
  method: "PUT",
  path: "/api/v1/projects/:name/cancel-queued",
  access: "member",
  summary: "Cancels the project's planning and queued jobs, those of one tag only where it is given.",
  query,
  body: z.object({ reason: z.string().max(1000).optional(), tag: z.string().max(256).optional() }),
  reply: z.object({
    status: z.string(),
    project: z.string(),
    tag: z.string().optional(),
    queued_before: count,
    cancelled_jobs: count,
  }),
})

export const getProjectStatus = endpoint({
  id: "projects-status",
  method: "GET",
  path: "/api/v1/projects/:name/status",
  access: "viewer",
  summary: "How ready the active revision is.",
  query,
  reply: z.object(statusShape),
})

export const getProjectStatusDetails = endpoint({
  id: "projects-status-details",
  method: "GET",
  path: "/api/v1/projects/:name/status/details",
  access: "viewer",
  summary: "The same, and what building and preparing it left to read.",
  query,
  reply: z.object({ ...statusShape, diagnostics: z.array(diagnostic) }),
})

export const streamProject = endpoint({
  id: "projects-stream",
  method: "GET",
  path: "/api/v1/projects/:name/stream",
  access: "viewer",
  summary: "Server-sent events of all jobs of a project: snapshot, job, ping. Last-Event-ID resumes.",
  query,
  stream: "events",
})

export const projectEndpoints = [
  createProject,
  listProjects,
  getProject,
  updateProject,
  deleteProject,
  pushProject,
  initProject,
  invalidateProject,
  cancelQueued,
  getProjectStatus,
  getProjectStatusDetails,
  streamProject,
] as const
