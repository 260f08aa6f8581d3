import { present } from "../../protocol/base/assert.ts"
import { ComputalotError } from "../../protocol/domain/errors.ts"
import type { AccountId } from "../../protocol/domain/ids.ts"
import { findProject, insertProject, type Project, type ProjectFields } from "../store/projects.ts"
import type { Tx } from "../store/store.ts"
import type { ProjectParts } from "./project.ts"

/** Registers a project (P-001). Refuses with `conflict` a name the account has already, or that a recipe has. */
export async function createProject(
  parts: ProjectParts,
  account: AccountId,
  wanted: ProjectFields & { name: string },
  also?: (tx: Tx, project: Project) => Promise<void>,
): Promise<Project> {
  const { name } = wanted
  if (RECIPE_NAMES.has(name)) {
    throw new ComputalotError("conflict", `${name} is the name of a recipe`, {
      recommendedAction: "Choose another name.",
    })
  }
  const at = parts.clock.now()
  return parts.store.write(async (tx) => {
    if (!(await insertProject(tx, { ...wanted, account, at }))) {
      throw new ComputalotError("conflict", `there is a project ${name} already`, {
        recommendedAction: "Change it with PUT, push code to it, or choose another name.",
      })
    }
    const project = present(await findProject(tx, account, name), "the project just made")
    await also?.(tx, project)
    return project
  })
}

/** A job's `project` may name one of these instead (J-003), so no project may be called so. */
const RECIPE_NAMES: ReadonlySet<string> = new Set(["packing", "prop_amm", "lightgbm_train", "echidna", "simple_amm"])
