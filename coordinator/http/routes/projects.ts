import type { z } from "zod"
import * as api from "../../../protocol/api/projects.ts"
import { timestampText } from "../../../protocol/api/common.ts"
import type { AccountId } from "../../../protocol/domain/ids.ts"
import { createProject } from "../../projects/create.ts"
import { initProject, type InitParts } from "../../projects/init.ts"
import { invalidateProject } from "../../projects/invalidate.ts"
import { checkProject } from "../../projects/project.ts"
import { checkPush, pushProject, type Pushed, type PushParts } from "../../projects/push.ts"
import type { Readiness } from "../../projects/readiness.ts"
import { removeProject } from "../../projects/remove.ts"
import { getStatus, listProjects, type ProjectStatus } from "../../projects/status.ts"
import { updateProject } from "../../projects/update.ts"
import type { Diagnostic, Project, ProjectFields } from "../../store/projects.ts"
import { mount, type HttpApp } from "../app.ts"
import { scopeOf } from "../scope.ts"

export interface ProjectRouteParts extends PushParts, InitParts {
  /** Cancels planning and queued jobs of a project; counts those that matched and those it cancelled (P-028). */
  cancelQueued: (wanted: {
    account: AccountId
    project: string
    reason: string | null
    tag: string | null
  }) => Promise<{ queuedBefore: number; cancelledJobs: number }>
}

/** Projects: create, read, change, delete, push, init, invalidate, cancel-queued and status (P-001 … P-031, PR-001 … PR-016). */
export function mountProjects(app: Pick<HttpApp, "add">, parts: ProjectRouteParts): void {
  mount(app, api.createProject, async (request) => {
    const { body, idempotency } = request
    const required = {
      name: body.name,
      remoteDir: body.remote_dir,
      env: body.env,
      setupTimeoutSeconds: body.setup_timeout_s,
      runtimeKind: body.runtime_kind,
      runtimeVersion: body.runtime_version,
    }
    const wanted = { ...BLANK, ...fieldsOf({ ...body, name: undefined }), ...required }
    const remember = idempotency.remember((made: Project) => ({ status: 201, body: projectBody(made) }))
    return projectBody(await createProject(parts, request.account(), wanted, remember))
  })

  mount(app, api.listProjects, async (request) => {
    const projects = await listProjects(parts, request.account())
    return { count: projects.length, projects: projects.map(projectBody) }
  })

  mount(app, api.getProject, async (request) => {
    const { project, readiness } = await getStatus(parts, scopeOf(request), request.params.name)
    return { ...projectBody(project), init_status: initStatusBody(readiness) }
  })

  mount(
    app,
    api.updateProject,
    async (request) =>
      projectBody(await updateProject(parts, scopeOf(request), request.params.name, fieldsOf(request.body))),
    { before: (request) => checkProject(parts, scopeOf(request), request.params.name) },
  )

  mount(app, api.deleteProject, async (request) => {
    const { name } = await removeProject(parts, scopeOf(request), request.params.name)
    return { status: "deleted" as const, project: name }
  })

  mount(
    app,
    api.pushProject,
    async (request) => {
      const also = request.idempotency.remember((pushed: Pushed) => ({ status: 200, body: pushBody(pushed) }))
      const signal = request.signal()
      return pushBody(
        await pushProject(parts, scopeOf(request), request.params.name, request.openBody(), { signal, also }),
      )
    },
    { before: (request) => checkPush(parts, scopeOf(request), request.params.name) },
  )

  mount(
    app,
    api.initProject,
    async (request) => {
      const { idempotency, body } = request
      const order = { maxNodes: body.max_nodes ?? null, earlierQuote: idempotency.earlierQuote }
      const also = idempotency.remember((status: ProjectStatus) => ({ status: 200, body: initBody(status) }))
      return initBody(await initProject(parts, scopeOf(request), request.params.name, order, also))
    },
    { before: (request) => checkProject(parts, scopeOf(request), request.params.name) },
  )

  mount(app, api.invalidateProject, async (request) => {
    const { readiness } = await invalidateProject(parts, scopeOf(request), request.params.name)
    return { status: "invalidated", ...summaryOf(readiness), next_action: readiness.nextAction }
  })

  mount(
    app,
    api.cancelQueued,
    async (request) => {
      const { project } = await getStatus(parts, scopeOf(request), request.params.name)
      const { reason, tag } = request.body
      const wanted = { account: project.account, project: project.name, reason: reason ?? null, tag: tag ?? null }
      const { queuedBefore, cancelledJobs } = await parts.cancelQueued(wanted)
      const named = tag === undefined ? {} : { tag }
      return {
        status: "ok",
        project: project.name,
        ...named,
        queued_before: queuedBefore,
        cancelled_jobs: cancelledJobs,
      }
    },
    { before: (request) => checkProject(parts, scopeOf(request), request.params.name) },
  )

  mount(app, api.getProjectStatus, async (request) => {
    const { project, readiness } = await getStatus(parts, scopeOf(request), request.params.name)
    return { project: project.name, ...initStatusBody(readiness) }
  })

  mount(app, api.getProjectStatusDetails, async (request) => {
    const { project, readiness, diagnostics } = await getStatus(parts, scopeOf(request), request.params.name)
    return { project: project.name, ...initStatusBody(readiness), diagnostics: diagnostics.map(diagnosticBody) }
  })
}

/** What a new project has where the request says nothing. */
const BLANK = { imageRef: null, imageDigest: null, manifest: null, cachePolicy: null }

/** The fields that were sent, in our spelling; those left out stay out. */
function fieldsOf(body: z.output<(typeof api.updateProject)["body"]>): Partial<ProjectFields> {
  return {
    ...(body.remote_dir !== undefined && { remoteDir: body.remote_dir }),
    ...(body.env !== undefined && { env: body.env }),
    ...(body.setup_timeout_s !== undefined && { setupTimeoutSeconds: body.setup_timeout_s }),
    ...(body.runtime_kind !== undefined && { runtimeKind: body.runtime_kind }),
    ...(body.image_ref !== undefined && { imageRef: body.image_ref }),
    ...(body.image_digest !== undefined && { imageDigest: body.image_digest }),
    ...(body.manifest !== undefined && { manifest: body.manifest }),
    ...(body.cache_policy !== undefined && { cachePolicy: body.cache_policy }),
    ...(body.runtime_version !== undefined && { runtimeVersion: body.runtime_version }),
  }
}

function projectBody(project: Project): api.ProjectBody {
  return {
    name: project.name,
    remote_dir: project.remoteDir,
    env: project.env,
    setup_timeout_s: project.setupTimeoutSeconds,
    runtime_kind: project.runtimeKind,
    image_ref: project.imageRef,
    image_digest: project.imageDigest,
    manifest: project.manifest,
    cache_policy: project.cachePolicy,
    runtime_version: project.runtimeVersion,
    content_hash: project.contentHash,
    created_at: timestampText(project.createdAt),
    updated_at: timestampText(project.updatedAt),
  }
}

function pushBody({ project, readiness, revision, sizeBytes, manifestPresent, diff }: Pushed) {
  return {
    status: "published",
    content_hash: revision.contentHash,
    size_bytes: sizeBytes,
    runtime_kind: project.runtimeKind,
    runtime_version: project.runtimeVersion,
    manifest_present: manifestPresent,
    ...(diff !== null && {
      tarball_diff: {
        added_files: diff.addedFiles,
        removed_files: diff.removedFiles,
        changed_files: diff.changedFiles,
      },
    }),
    ...summaryOf(readiness),
    next_action: readiness.nextAction,
  }
}

function initBody({ readiness }: ProjectStatus) {
  return { status: readiness.pendingInit ? "initializing" : "ready", ...summaryOf(readiness) }
}

function summaryOf(readiness: Readiness) {
  return {
    ready_for_jobs: readiness.readyForJobs,
    status_message: readiness.statusMessage,
    init_status: initStatusBody(readiness),
  }
}

function initStatusBody(readiness: Readiness): api.InitStatusBody {
  const { counts, load } = readiness
  return {
    project_ready: readiness.projectReady,
    can_accept_new_jobs: readiness.canAcceptNewJobs,
    ready_for_jobs: readiness.readyForJobs,
    init_state: readiness.initState,
    availability_status: readiness.availabilityStatus,
    progress_phase: readiness.progressPhase,
    pending_init: readiness.pendingInit,
    ...(readiness.requestedState !== null && { requested_state: readiness.requestedState }),
    content_hash: readiness.contentHash,
    status_message: readiness.statusMessage,
    next_action: readiness.nextAction,
    ...(readiness.latestIssue !== null && { latest_issue: readiness.latestIssue }),
    last_ready_at: timestampText(readiness.lastReadyAt),
    ...(readiness.latestActivityAt !== null && { latest_activity_at: timestampText(readiness.latestActivityAt) }),
    ...(readiness.latestFailureAt !== null && { latest_failure_at: timestampText(readiness.latestFailureAt) }),
    ready_replicas: counts.ready,
    initializing_replicas: counts.initializing,
    failed_replicas: counts.failed,
    stale_replicas: counts.stale,
    total_replicas: counts.ready + counts.initializing + counts.failed + counts.stale,
    queue_depth: load.queuedTasks,
    queued_tasks: load.queuedTasks,
    active_jobs: load.activeJobs,
    active_tasks: load.activeTasks,
  }
}

/** Without its subject: that names a node. */
function diagnosticBody(entry: Diagnostic): api.DiagnosticBody {
  return {
    id: entry.id,
    status: entry.status,
    phase: entry.phase,
    message: entry.message,
    log_tail: entry.logTail,
    content_hash: entry.contentHash,
    inserted_at: timestampText(entry.insertedAt),
    updated_at: timestampText(entry.updatedAt),
    initialized_at: timestampText(entry.initializedAt),
    recommended_action: entry.recommendedAction,
  }
}
