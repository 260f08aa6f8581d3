import { ComputalotError } from "../../protocol/domain/errors.ts"
import type { AccountId } from "../../protocol/domain/ids.ts"
import { dropBlobReferences } from "../store/blobs.ts"
import { countActiveJobs } from "../store/jobs.ts"
import { deleteProject, revisionsOf, type Project } from "../store/projects.ts"
import { requireProject, type ProjectParts } from "./project.ts"

/**
 * Removes a project and what was pushed to it; jobs, results and artifacts stay readable (GAP-12). Refuses with `conflict`
 * while a job of it is planning, queued or running (P-012).
 */
export async function removeProject(parts: ProjectParts, account: AccountId | null, name: string): Promise<Project> {
  const removed = await parts.store.write(async (tx) => {
    const project = await requireProject(tx, account, name)
    const { activeJobs } = await countActiveJobs(tx, project.account, name)
    if (activeJobs > 0) {
      throw new ComputalotError("conflict", `${activeJobs} jobs of ${name} are not finished`, {
        recommendedAction: "Cancel them or let them finish, then delete the project.",
        details: { active_jobs: activeJobs },
      })
    }
    for (const owner of await revisionsOf(tx, project.id)) {
      await dropBlobReferences(tx, { kind: "revision", owner })
      await dropBlobReferences(tx, { kind: "image", owner })
    }
    await deleteProject(tx, project.id)
    return project
  })
  parts.changed()
  return removed
}
