import type { JsonObject } from "../../protocol/base/json-text.ts"
import type { Instant } from "../../protocol/base/clock.ts"
import type { AccountId, RevisionId } from "../../protocol/domain/ids.ts"
import { manifestSchema, type Manifest } from "../../protocol/domain/manifest.ts"
import { dropBlobReferences } from "../store/blobs.ts"
import {
  deleteRevision,
  findProjectById,
  findRevision,
  isSuperseded,
  supersededRevisions,
  type Project,
  type Revision,
} from "../store/projects.ts"
import type { Store, View } from "../store/store.ts"
import { nothingPushed } from "./init.ts"
import { requireProject } from "./project.ts"

/** What a job runs: a project and one revision of it. */
export interface ProjectRevision {
  project: Project
  revision: Revision
}

/**
 * The revision that a job submitted now runs. Refuses as GAP-21 says: `not_found` for a project the account does not have,
 * `no_revision` (with `next_action`) before the first push. A project that needs attention is accepted.
 */
export async function requireActiveRevision(view: View, account: AccountId, name: string): Promise<ProjectRevision> {
  const project = await requireProject(view, account, name)
  const revision = project.activeRevision === null ? null : await findRevision(view, project.activeRevision)
  if (revision === null) throw nothingPushed(project)
  return { project, revision }
}

/** The manifest that counts: the tarball's, else the project's where it is one; null without either. */
export function effectiveManifest({ project, revision }: ProjectRevision): Manifest | null {
  return revision.manifest ?? parsed(project.manifest)
}

/** Where the commands of jobs on this revision run inside the sandbox; null where no manifest says so. */
export async function workingDirectory(view: View, id: RevisionId): Promise<string | null> {
  const revision = await findRevision(view, id)
  const project = revision && (await findProjectById(view, revision.project))
  const manifest = revision && project && effectiveManifest({ revision, project })
  return manifest?.runtime.workdir ?? null
}

function parsed(manifest: JsonObject | null): Manifest | null {
  const result = manifestSchema.safeParse(manifest)
  return result.success ? result.data : null
}

/**
 * Forgets revisions that are neither active nor needed by a job that may still run, and lets go of their tarballs and images.
 * Those of the last minute stay: a submission may just be about to name one.
 */
export async function sweepRevisions(parts: { store: Store }, now: Instant): Promise<number> {
  const old = await parts.store.read((view) => supersededRevisions(view, now - 60_000, REVISIONS_AT_ONCE))
  for (const id of old) {
    await parts.store.write(async (tx) => {
      if (!(await isSuperseded(tx, id))) return
      await dropBlobReferences(tx, { kind: "revision", owner: id })
      await dropBlobReferences(tx, { kind: "image", owner: id })
      await deleteRevision(tx, id)
    })
  }
  return old.length
}

const REVISIONS_AT_ONCE = 200
