import type { Instant } from "../../protocol/base/clock.ts"
import type { JsonObject } from "../../protocol/base/json-text.ts"
import {
  accountId,
  digest as asDigest,
  nodeId,
  revisionId,
  type AccountId,
  type ClaimNumber,
  type Digest,
  type NodeId,
  type RevisionId,
} from "../../protocol/domain/ids.ts"
import type { ImageRecord } from "../../protocol/domain/image.ts"
import type { Manifest } from "../../protocol/domain/manifest.ts"
import type { SqlValue, Tx, View } from "./store.ts"

export interface Project {
  id: number
  account: AccountId
  name: string
  /** For compatibility (C-06): inside a task another path to the code. */
  remoteDir: string
  env: Record<string, string>
  setupTimeoutSeconds: number
  runtimeKind: "oci"
  imageRef: string | null
  imageDigest: string | null
  /** As shown; counts only for a revision whose tarball has none. */
  manifest: JsonObject | null
  cachePolicy: JsonObject | null
  runtimeVersion: number
  activeRevision: RevisionId | null
  /** Of the active revision; null before the first push. */
  contentHash: Digest | null
  lastReadyAt: Instant | null
  createdAt: Instant
  updatedAt: Instant
}

/** What an owner may set. */
export type ProjectFields = Pick<
  Project,
  | "remoteDir"
  | "env"
  | "setupTimeoutSeconds"
  | "runtimeKind"
  | "imageRef"
  | "imageDigest"
  | "manifest"
  | "cachePolicy"
  | "runtimeVersion"
>

export type BuildState = "queued" | "building" | "built" | "failed" | "cancelled"

/** One push of a project, or one invalidation of it. */
export interface Revision {
  id: RevisionId
  project: number
  contentHash: Digest
  /** The checked tarball that nodes unpack. */
  tarball: { digest: Digest; size: number }
  /** The tarball's own. */
  manifest: Manifest | null
  hasDockerfile: boolean
  /** The tarball's env files, layered. */
  env: Record<string, string>
  build: BuildState
  builder: NodeId | null
  image: ImageRecord | null
  buildChangedAt: Instant
  pushedAt: Instant
}

export type ReplicaState = "initializing" | "ready" | "failed" | "stale"

export interface Replica {
  node: NodeId
  revision: RevisionId
  state: ReplicaState
  changedAt: Instant
}

export interface InitRequest {
  project: number
  revision: RevisionId
  /** `init`: the owner asked; `refresh`: a push over warm replicas. */
  kind: "init" | "refresh"
  maxNodes: number | null
  requestedAt: Instant
  endsAt: Instant
}

export interface Diagnostic {
  id: string
  /** `build`, `runtime`, or the node that prepared. Never shown. */
  subject: string
  status: "info" | "running" | "ready" | "failed"
  phase: string
  message: string
  logTail: string | null
  recommendedAction: string | null
  contentHash: Digest
  insertedAt: Instant
  updatedAt: Instant
  initializedAt: Instant | null
}

// ── projects ────────────────────────────────────────────────────────────────────────────────────────────────────────

/** False when the account has a project of this name. */
export async function insertProject(
  tx: Tx,
  project: ProjectFields & { account: AccountId; name: string; at: Instant },
): Promise<boolean> {
  const { changes } = await tx.run(
    `INSERT INTO projects (account, name, remote_dir, env, setup_timeout_s, runtime_kind, image_ref, image_digest, manifest,
       cache_policy, runtime_version, created_at, updated_at)
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (account, name) DO NOTHING`,
    project.account,
    project.name,
    ...fieldValues(project),
    project.at,
    project.at,
  )
  return changes === 1
}

export async function updateProject(tx: Tx, id: number, fields: ProjectFields, at: Instant): Promise<void> {
  await tx.run(
    `UPDATE projects SET remote_dir = ?, env = ?, setup_timeout_s = ?, runtime_kind = ?, image_ref = ?, image_digest = ?,
       manifest = ?, cache_policy = ?, runtime_version = ?, updated_at = ? WHERE id = ?`,
    ...fieldValues(fields),
    at,
    id,
  )
}

function fieldValues(fields: ProjectFields): SqlValue[] {
  return [
    fields.remoteDir,
    JSON.stringify(fields.env),
    fields.setupTimeoutSeconds,
    fields.runtimeKind,
    fields.imageRef,
    fields.imageDigest,
    jsonOrNull(fields.manifest),
    jsonOrNull(fields.cachePolicy),
    fields.runtimeVersion,
  ]
}

export async function findProject(view: View, account: AccountId, name: string): Promise<Project | null> {
  const row = await view.get<ProjectRow>(`${SELECT_PROJECT} WHERE p.account = ? AND p.name = ?`, account, name)
  return row === undefined ? null : projectFrom(row)
}

export async function findProjectById(view: View, id: number): Promise<Project | null> {
  const row = await view.get<ProjectRow>(`${SELECT_PROJECT} WHERE p.id = ?`, id)
  return row === undefined ? null : projectFrom(row)
}

/** Up to two: for a caller without an account, who may name a project that only one account has. */
export async function findProjectsNamed(view: View, name: string): Promise<Project[]> {
  return (await view.all<ProjectRow>(`${SELECT_PROJECT} WHERE p.name = ? ORDER BY p.id LIMIT 2`, name)).map(projectFrom)
}

/** By name. */
export async function listProjects(view: View, account: AccountId): Promise<Project[]> {
  return (await view.all<ProjectRow>(`${SELECT_PROJECT} WHERE p.account = ? ORDER BY p.name`, account)).map(projectFrom)
}

/** With its revisions, replicas, requests and diagnostics. Blobs are the caller's to release. */
export async function deleteProject(tx: Tx, id: number): Promise<void> {
  await tx.run("DELETE FROM projects WHERE id = ?", id)
}

export async function setActiveRevision(
  tx: Tx,
  project: number,
  active: { revision: RevisionId; manifest: JsonObject | null; at: Instant },
): Promise<void> {
  await tx.run(
    "UPDATE projects SET active_revision = ?, manifest = coalesce(?, manifest), updated_at = ? WHERE id = ?",
    active.revision,
    jsonOrNull(active.manifest),
    active.at,
    project,
  )
}

export async function setLastReady(tx: Tx, project: number, at: Instant): Promise<void> {
  await tx.run("UPDATE projects SET last_ready_at = ? WHERE id = ?", at, project)
}

// ── revisions ───────────────────────────────────────────────────────────────────────────────────────────────────────

export async function insertRevision(tx: Tx, revision: Revision): Promise<void> {
  await tx.run(
    `INSERT INTO revisions (id, project, content_hash, tarball_digest, tarball_bytes, manifest, has_dockerfile, env, build,
       builder, image, build_changed_at, pushed_at)
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
    revision.id,
    revision.project,
    revision.contentHash,
    revision.tarball.digest,
    revision.tarball.size,
    jsonOrNull(revision.manifest),
    revision.hasDockerfile ? 1 : 0,
    JSON.stringify(revision.env),
    revision.build,
    revision.builder,
    jsonOrNull(revision.image),
    revision.buildChangedAt,
    revision.pushedAt,
  )
}

export async function findRevision(view: View, id: RevisionId): Promise<Revision | null> {
  const row = await view.get<RevisionRow>("SELECT * FROM revisions WHERE id = ?", id)
  return row === undefined ? null : revisionFrom(row)
}

export async function revisionsOf(view: View, project: number): Promise<RevisionId[]> {
  const rows = await view.all<{ id: string }>("SELECT id FROM revisions WHERE project = ?", project)
  return rows.map(({ id }) => revisionId(id))
}

/** Revisions whose image is to be built or being built, oldest push first. */
export async function revisionsToBuild(view: View): Promise<Revision[]> {
  const sql = "SELECT * FROM revisions WHERE build IN ('queued', 'building') ORDER BY pushed_at"
  return (await view.all<RevisionRow>(sql)).map(revisionFrom)
}

/** False when the build is no longer in the expected state, or with another builder: then nothing changes. */
export async function changeBuild(
  tx: Tx,
  revision: RevisionId,
  from: { build: BuildState; builder: NodeId | null },
  to: { build: BuildState; builder?: NodeId; claim?: ClaimNumber; image?: ImageRecord },
  at: Instant,
): Promise<boolean> {
  const { changes } = await tx.run(
    `UPDATE revisions SET build = ?, builder = ?, build_claim = ?, image = ?, build_changed_at = ?
     WHERE id = ? AND build = ? AND coalesce(builder, '') = ?`,
    to.build,
    to.builder ?? null,
    to.claim ?? null,
    jsonOrNull(to.image ?? null),
    at,
    revision,
    from.build,
    from.builder ?? "",
  )
  return changes === 1
}

/**
 * Ends what was to be built, or being built, of revisions before `active`, unless an unfinished job was submitted to one of
 * them: it would wait for ever. Whoever builds an ended one is to be stopped.
 */
export async function cancelOlderBuilds(tx: Tx, project: number, active: RevisionId, at: Instant): Promise<void> {
  await tx.run(
    `UPDATE revisions SET build = 'cancelled', builder = NULL, build_claim = NULL, build_changed_at = ?
     WHERE project = ? AND id <> ? AND build IN ('queued', 'building') AND id NOT IN (${NEEDED_BY_JOBS})`,
    at,
    project,
    active,
  )
}

/** What unfinished jobs were submitted to; jobs_active keeps this small. */
const NEEDED_BY_JOBS = "SELECT revision FROM jobs WHERE status IN ('planning', 'queued', 'running', 'finishing')"

/** Revisions that are neither active nor pinned by a job that may still run, oldest first. */
export async function supersededRevisions(view: View, before: Instant, most: number): Promise<RevisionId[]> {
  const rows = await view.all<{ id: string }>(
    `SELECT r.id FROM revisions r JOIN projects p ON p.id = r.project
     WHERE r.pushed_at < ? AND p.active_revision <> r.id
       AND r.id NOT IN (${NEEDED_BY_JOBS})
     ORDER BY r.pushed_at LIMIT ?`,
    before,
    most,
  )
  return rows.map(({ id }) => revisionId(id))
}

/** Is it still neither active nor pinned? A job of it may have been retried since it was looked for. */
export async function isSuperseded(view: View, id: RevisionId): Promise<boolean> {
  const row = await view.get(
    `SELECT 1 AS found FROM revisions r JOIN projects p ON p.id = r.project
     WHERE r.id = ? AND p.active_revision <> r.id AND r.id NOT IN (${NEEDED_BY_JOBS})`,
    id,
  )
  return row !== undefined
}

export async function deleteRevision(tx: Tx, id: RevisionId): Promise<void> {
  await tx.run("DELETE FROM revisions WHERE id = ?", id)
}

// ── replicas ────────────────────────────────────────────────────────────────────────────────────────────────────────

export async function replicasOf(view: View, project: number): Promise<Replica[]> {
  const rows = await view.all<ReplicaRow>(
    "SELECT node, revision, state, changed_at FROM replicas WHERE project = ?",
    project,
  )
  return rows.map((row) => ({
    node: nodeId(row.node),
    revision: revisionId(row.revision),
    state: row.state,
    changedAt: row.changed_at,
  }))
}

export async function putReplica(tx: Tx, project: number, replica: Replica): Promise<void> {
  await tx.run(
    `INSERT INTO replicas (project, node, revision, state, changed_at) VALUES (?, ?, ?, ?, ?)
     ON CONFLICT (project, node) DO UPDATE SET revision = excluded.revision, state = excluded.state, changed_at = excluded.changed_at`,
    project,
    replica.node,
    replica.revision,
    replica.state,
    replica.changedAt,
  )
}

export async function deleteReplica(tx: Tx, project: number, node: NodeId): Promise<void> {
  await tx.run("DELETE FROM replicas WHERE project = ? AND node = ?", project, node)
}

/** The node is gone for good, or lost all it had. */
export async function deleteReplicasOfNode(tx: Tx, node: NodeId): Promise<void> {
  await tx.run("DELETE FROM replicas WHERE node = ?", node)
}

/** A new revision: what was ready is stale, what failed or had not got ready is forgotten. */
export async function outdateReplicas(tx: Tx, project: number, at: Instant): Promise<void> {
  await tx.run("DELETE FROM replicas WHERE project = ? AND state IN ('initializing', 'failed')", project)
  await tx.run("UPDATE replicas SET state = 'stale', changed_at = ? WHERE project = ? AND state = 'ready'", at, project)
}

export async function deleteFailedReplicas(tx: Tx, project: number): Promise<void> {
  await tx.run("DELETE FROM replicas WHERE project = ? AND state = 'failed'", project)
}

// ── init requests ───────────────────────────────────────────────────────────────────────────────────────────────────

export async function findInitRequest(view: View, project: number): Promise<InitRequest | null> {
  const row = await view.get<InitRequestRow>("SELECT * FROM init_requests WHERE project = ?", project)
  return row === undefined ? null : requestFrom(row)
}

/** Requests that somebody may still be waiting for, oldest first. */
export async function openInitRequests(view: View, at: Instant): Promise<InitRequest[]> {
  const sql = "SELECT * FROM init_requests WHERE ends_at > ? ORDER BY requested_at"
  return (await view.all<InitRequestRow>(sql, at)).map(requestFrom)
}

export async function putInitRequest(tx: Tx, request: InitRequest): Promise<void> {
  await tx.run(
    `INSERT INTO init_requests (project, revision, kind, max_nodes, requested_at, ends_at) VALUES (?, ?, ?, ?, ?, ?)
     ON CONFLICT (project) DO UPDATE SET revision = excluded.revision, kind = excluded.kind, max_nodes = excluded.max_nodes,
       requested_at = excluded.requested_at, ends_at = excluded.ends_at`,
    request.project,
    request.revision,
    request.kind,
    request.maxNodes,
    request.requestedAt,
    request.endsAt,
  )
}

export async function deleteInitRequest(tx: Tx, project: number): Promise<void> {
  await tx.run("DELETE FROM init_requests WHERE project = ?", project)
}

// ── diagnostics ─────────────────────────────────────────────────────────────────────────────────────────────────────

/** Newest change first. */
export async function diagnosticsOf(view: View, project: number, revision: RevisionId): Promise<Diagnostic[]> {
  const rows = await view.all<DiagnosticRow>(
    `SELECT d.*, r.content_hash FROM setup_diagnostics d JOIN revisions r ON r.id = d.revision
     WHERE d.project = ? AND d.revision = ? ORDER BY d.updated_at DESC, d.id LIMIT 100`,
    project,
    revision,
  )
  return rows.map((row) => ({
    id: row.id,
    subject: row.subject,
    status: row.status,
    phase: row.phase,
    message: row.message,
    logTail: row.log_tail,
    recommendedAction: row.recommended_action,
    contentHash: asDigest(row.content_hash),
    insertedAt: row.inserted_at,
    updatedAt: row.updated_at,
    initializedAt: row.initialized_at,
  }))
}

export async function putDiagnostic(
  tx: Tx,
  entry: Pick<Diagnostic, "id" | "subject" | "status" | "phase" | "message" | "logTail" | "recommendedAction"> & {
    project: number
    revision: RevisionId
    at: Instant
  },
): Promise<void> {
  await tx.run(
    `INSERT INTO setup_diagnostics (id, project, revision, subject, status, phase, message, log_tail, recommended_action,
       inserted_at, updated_at, initialized_at)
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
     ON CONFLICT (project, revision, subject) DO UPDATE SET status = excluded.status, phase = excluded.phase,
       message = excluded.message, log_tail = coalesce(excluded.log_tail, setup_diagnostics.log_tail),
       recommended_action = excluded.recommended_action, updated_at = excluded.updated_at,
       initialized_at = coalesce(excluded.initialized_at, setup_diagnostics.initialized_at)`,
    entry.id,
    entry.project,
    entry.revision,
    entry.subject,
    entry.status,
    entry.phase,
    entry.message,
    entry.logTail,
    entry.recommendedAction,
    entry.at,
    entry.at,
    entry.status === "ready" ? entry.at : null,
  )
}

export async function deleteDiagnostics(tx: Tx, project: number): Promise<void> {
  await tx.run("DELETE FROM setup_diagnostics WHERE project = ?", project)
}

// ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────

/** A subquery, not a join: every submission reads it (store.ts, View, on hidden parameters). */
const SELECT_PROJECT =
  "SELECT p.*, (SELECT r.content_hash FROM revisions r WHERE r.id = p.active_revision) AS content_hash FROM projects p"

interface ProjectRow {
  id: number
  account: number
  name: string
  remote_dir: string
  env: string
  setup_timeout_s: number
  runtime_kind: "oci"
  image_ref: string | null
  image_digest: string | null
  manifest: string | null
  cache_policy: string | null
  runtime_version: number
  active_revision: string | null
  content_hash: string | null
  last_ready_at: number | null
  created_at: number
  updated_at: number
}

function projectFrom(row: ProjectRow): Project {
  return {
    id: row.id,
    account: accountId(row.account),
    name: row.name,
    remoteDir: row.remote_dir,
    env: JSON.parse(row.env) as Record<string, string>,
    setupTimeoutSeconds: row.setup_timeout_s,
    runtimeKind: row.runtime_kind,
    imageRef: row.image_ref,
    imageDigest: row.image_digest,
    manifest: fromJson<JsonObject>(row.manifest),
    cachePolicy: fromJson<JsonObject>(row.cache_policy),
    runtimeVersion: row.runtime_version,
    activeRevision: row.active_revision === null ? null : revisionId(row.active_revision),
    contentHash: row.content_hash === null ? null : asDigest(row.content_hash),
    lastReadyAt: row.last_ready_at,
    createdAt: row.created_at,
    updatedAt: row.updated_at,
  }
}

interface RevisionRow {
  id: string
  project: number
  content_hash: string
  tarball_digest: string
  tarball_bytes: number
  manifest: string | null
  has_dockerfile: number
  env: string
  build: BuildState
  builder: string | null
  image: string | null
  build_changed_at: number
  pushed_at: number
}

function revisionFrom(row: RevisionRow): Revision {
  return {
    id: revisionId(row.id),
    project: row.project,
    contentHash: asDigest(row.content_hash),
    tarball: { digest: asDigest(row.tarball_digest), size: row.tarball_bytes },
    manifest: fromJson<Manifest>(row.manifest),
    hasDockerfile: row.has_dockerfile === 1,
    env: JSON.parse(row.env) as Record<string, string>,
    build: row.build,
    builder: row.builder === null ? null : nodeId(row.builder),
    image: fromJson<ImageRecord>(row.image),
    buildChangedAt: row.build_changed_at,
    pushedAt: row.pushed_at,
  }
}

interface ReplicaRow {
  node: string
  revision: string
  state: ReplicaState
  changed_at: number
}

interface InitRequestRow {
  project: number
  revision: string
  kind: "init" | "refresh"
  max_nodes: number | null
  requested_at: number
  ends_at: number
}

const requestFrom = (row: InitRequestRow): InitRequest => ({
  project: row.project,
  revision: revisionId(row.revision),
  kind: row.kind,
  maxNodes: row.max_nodes,
  requestedAt: row.requested_at,
  endsAt: row.ends_at,
})

interface DiagnosticRow {
  id: string
  subject: string
  status: Diagnostic["status"]
  phase: string
  message: string
  log_tail: string | null
  recommended_action: string | null
  content_hash: string
  inserted_at: number
  updated_at: number
  initialized_at: number | null
}

const jsonOrNull = (value: object | null): string | null => (value === null ? null : JSON.stringify(value))
const fromJson = <T>(text: string | null): T | null => (text === null ? null : (JSON.parse(text) as T))
