import type { Clock } from "../../protocol/base/clock.ts"
import type { Random } from "../../protocol/base/random.ts"
import { invalidField, notFound } from "../../protocol/domain/errors.ts"
import type { AccountId } from "../../protocol/domain/ids.ts"
import { accountsWithProjectNamed } from "../store/jobs-of-project.ts"
import { findProject, findProjectsNamed, type Project } from "../store/projects.ts"
import type { Store, View } from "../store/store.ts"
import type { FleetFacts } from "./readiness.ts"

export interface ProjectParts {
  store: Store
  clock: Clock
  random: Random
  /** What the fleet can do right now. */
  fleet: () => FleetFacts
  /** Something is to be built, prepared or no longer built: called after the write that says so. */
  changed: () => void
}

/**
 * The project of this name; other accounts' ones are `not_found` (A-022). `account` null is an administrator without one: the
 * name resolves where a single account has it, else `invalid_request` asks for the account.
 */
export async function requireProject(view: View, account: AccountId | null, name: string): Promise<Project> {
  if (account !== null) return present(await findProject(view, account, name), name)
  const named = await findProjectsNamed(view, name)
  if (named.length > 1) throw invalidField("account_id", `is required: several accounts have a project ${name}`)
  return present(named[0] ?? null, name)
}

/** The accounts that have a project of this name and that the caller sees, at least one; else `not_found`. */
export async function accountsWithProject(store: Store, account: AccountId | null, name: string): Promise<AccountId[]> {
  const accounts = await store.read(async (view) =>
    account === null
      ? await accountsWithProjectNamed(view, name)
      : [(await requireProject(view, account, name)).account],
  )
  if (accounts.length === 0) throw notFound(`the project ${name}`)
  return accounts
}

function present(project: Project | null, name: string): Project {
  if (project === null) throw notFound(`the project ${name}`)
  return project
}

/** Refuses with `not_found` as `requireProject`: for looking before a body is read. */
export async function checkProject(parts: ProjectParts, account: AccountId | null, name: string): Promise<void> {
  await parts.store.read((view) => requireProject(view, account, name))
}
