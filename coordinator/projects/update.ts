import { present } from "../../protocol/base/assert.ts"
import type { AccountId } from "../../protocol/domain/ids.ts"
import { findProjectById, updateProject as updateRow, type Project, type ProjectFields } from "../store/projects.ts"
import { requireProject, type ProjectParts } from "./project.ts"

/** Changes a project's metadata; code comes by push alone (P-008). `env` replaces the whole map, for attempts that start from now on. */
export function updateProject(
  parts: ProjectParts,
  account: AccountId | null,
  name: string,
  change: Partial<ProjectFields>,
): Promise<Project> {
  const at = parts.clock.now()
  return parts.store.write(async (tx) => {
    const project = await requireProject(tx, account, name)
    // One change after another: also two within one millisecond move it forward.
    await updateRow(tx, project.id, { ...project, ...change }, Math.max(at, project.updatedAt + 1))
    return present(await findProjectById(tx, project.id), "the project just changed")
  })
}
