import type { Clock } from "../../protocol/base/clock.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import type { Log } from "../../protocol/base/log.ts"
import { mayRunProjects, type PlacementPolicy } from "../fleet/fit.ts"
import type { Member, Members } from "../fleet/members.ts"
import { openInitRequests, replicasOf, type InitRequest } from "../store/projects.ts"
import type { Store } from "../store/store.ts"
import type { RuntimeSpecs } from "./runtime-specs.ts"

/** Has nodes make runtimes ready ahead of jobs, as init and pushes over warm replicas ask for (P-024 … P-026). */
export interface Prepare {
  /** Requests, builds or nodes changed: look. */
  wake(): void
}

export interface PrepareParts {
  store: Store
  clock: Clock
  log: Log
  members: Members
  specs: RuntimeSpecs
  policy: PlacementPolicy
}

export function createPrepare(parts: PrepareParts): Prepare {
  const { store, clock, log, members, specs } = parts
  /** Who was asked for what on which connection: asked again after a reconnect only. */
  const asked = new WeakMap<object, Set<string>>()
  let looking = false
  let again = false

  async function look(): Promise<void> {
    for (const request of await store.read((view) => openInitRequests(view, clock.now()))) await serve(request)
  }

  async function serve(request: InitRequest): Promise<void> {
    await specs.refresh(request.revision)
    const replicas = await store.read((view) => replicasOf(view, request.project))
    const current = replicas.filter(({ revision }) => revision === request.revision)
    const counted = new Set<string>(
      current.filter(({ state }) => state === "ready" || state === "initializing").map(({ node }) => node),
    )
    const failed = new Set<string>(current.filter(({ state }) => state === "failed").map(({ node }) => node))
    const most = request.maxNodes ?? Number.POSITIVE_INFINITY
    for (const member of members.all()) {
      if (counted.size >= most) return
      if (counted.has(member.id) || failed.has(member.id) || !mayPrepare(member, request.revision)) continue
      counted.add(member.id)
      await ask(member, request.revision)
    }
  }

  function mayPrepare({ session, facts, state, roles }: Member, revision: string): boolean {
    return (
      session !== null &&
      facts !== null &&
      state === "active" &&
      mayRunProjects({ ...facts, roles: facts.roles.filter((role) => roles.includes(role)) }, parts.policy) &&
      (facts.runtime === "process" || specs.known(revision)?.revision.image != null)
    )
  }

  async function ask(member: Member, revision: string): Promise<void> {
    const { session } = member
    if (!session) return
    const before = asked.get(session) ?? new Set()
    asked.set(session, before)
    if (before.has(revision)) return
    before.add(revision)
    session.send({ type: "prepare", runtime: await specs.runtime(revision, member) })
  }

  return {
    wake() {
      if (looking) {
        again = true
        return
      }
      looking = true
      look()
        .catch((error: unknown) => log.error("preparing could not be looked at", { error: errorText(error) }))
        .finally(() => {
          looking = false
          if (again) {
            again = false
            this.wake()
          }
        })
    },
  }
}
