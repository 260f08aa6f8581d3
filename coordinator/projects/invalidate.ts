import { present } from "../../protocol/base/assert.ts"
import { newRevisionId, type AccountId } from "../../protocol/domain/ids.ts"
import { addBlobReference } from "../store/blobs.ts"
import {
  cancelOlderBuilds,
  deleteDiagnostics,
  deleteInitRequest,
  findProjectById,
  findRevision,
  insertRevision,
  outdateReplicas,
  setActiveRevision,
} from "../store/projects.ts"
import { nothingPushed } from "./init.ts"
import { requireProject, type ProjectParts } from "./project.ts"
import { keepImage } from "./record.ts"
import { lookUpStatus, type ProjectStatus } from "./status.ts"

/**
 * Marks what nodes prepared as stale, so that the next job or init prepares it again (P-027): the same tree becomes a new
 * revision, whose id no node has seen. A built image stays built; a failed or unfinished build starts again. Refuses with
 * `no_revision` before the first push; never because the project is busy (C-11).
 */
export async function invalidateProject(
  parts: ProjectParts,
  account: AccountId | null,
  name: string,
): Promise<ProjectStatus> {
  const at = parts.clock.now()
  const fleet = parts.fleet()
  const id = newRevisionId(parts.random)
  const status = await parts.store.write(async (tx) => {
    const project = await requireProject(tx, account, name)
    if (project.activeRevision === null) throw nothingPushed(project)
    const former = present(await findRevision(tx, project.activeRevision), "the active revision")
    const build = former.image === null ? "queued" : "built"
    const builder = former.image === null ? null : former.builder
    await insertRevision(tx, { ...former, id, build, builder, buildChangedAt: at, pushedAt: at })
    await addBlobReference(tx, former.tarball.digest, { kind: "revision", owner: id })
    await addBlobReference(tx, former.contentHash, { kind: "revision", owner: id })
    if (former.image !== null) await keepImage(tx, id, former.image)
    await cancelOlderBuilds(tx, project.id, id, at)
    await outdateReplicas(tx, project.id, at)
    await deleteDiagnostics(tx, project.id)
    await deleteInitRequest(tx, project.id)
    await setActiveRevision(tx, project.id, { revision: id, manifest: null, at })
    return lookUpStatus(tx, present(await findProjectById(tx, project.id), "the project"), fleet, at)
  })
  parts.changed()
  return status
}
