import type { Instant } from "../../protocol/base/clock.ts"
import type { AccountId } from "../../protocol/domain/ids.ts"
import { countActiveJobs } from "../store/jobs.ts"
import {
  diagnosticsOf,
  findInitRequest,
  findRevision,
  listProjects as listRows,
  replicasOf,
  type Diagnostic,
  type Project,
} from "../store/projects.ts"
import type { View } from "../store/store.ts"
import { requireProject, type ProjectParts } from "./project.ts"
import { readinessOf, type FleetFacts, type Readiness } from "./readiness.ts"

export interface ProjectStatus {
  project: Project
  readiness: Readiness
  diagnostics: Diagnostic[]
}

/** A project as it stands, with what its set-up left to read. */
export function getStatus(parts: ProjectParts, account: AccountId | null, name: string): Promise<ProjectStatus> {
  const fleet = parts.fleet()
  const now = parts.clock.now()
  return parts.store.read(async (view) => lookUpStatus(view, await requireProject(view, account, name), fleet, now))
}

/** The same inside another read or write: acts decide by it. */
export async function lookUpStatus(
  view: View,
  project: Project,
  fleet: FleetFacts,
  now: Instant,
): Promise<ProjectStatus> {
  const { activeRevision } = project
  const revision = activeRevision === null ? null : await findRevision(view, activeRevision)
  const diagnostics = activeRevision === null ? [] : await diagnosticsOf(view, project.id, activeRevision)
  const readiness = readinessOf({
    project,
    revision,
    diagnostics,
    replicas: await replicasOf(view, project.id),
    request: await findInitRequest(view, project.id),
    load: await countActiveJobs(view, project.account, project.name),
    fleet,
    now,
  })
  return { project, readiness, diagnostics }
}

/** By name. */
export function listProjects(parts: ProjectParts, account: AccountId): Promise<Project[]> {
  return parts.store.read((view) => listRows(view, account))
}
