import type { Clock } from "../../protocol/base/clock.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import type { Log } from "../../protocol/base/log.ts"
import { mayRunProjects, type PlacementPolicy } from "../fleet/fit.ts"
import type { Member, Members } from "../fleet/members.ts"
import type { KnownJobs } from "../jobs/job-facts.ts"
import { openInitRequests, replicasOf, type InitRequest } from "../store/projects.ts"
import type { Store } from "../store/store.ts"
import type { ReadyQueue } from "./ready-queue.ts"
import type { RuntimeSpecs } from "./runtime-specs.ts"

/**
 * Has nodes make runtimes ready ahead of tasks: as init and pushes over warm replicas ask for (P-024 … P-026), and where
 * tasks wait that a node could serve next (architecture §5.2).
 */
export interface Prepare {
  /** Requests, builds or nodes changed: look. */
  wake(): void
  /**
   * A node could serve these: it prepares those for which more tasks wait than nodes were asked before it. Never rejects;
   * what a node says too often, or of revisions that nothing waits for, changes nothing.
   */
  want(member: Member, revisions: readonly string[]): Promise<void>
  /** The node could not prepare it, by its own fault: it may be asked again once it has rested. */
  unable(member: Member, revision: string): void
}

export interface PrepareParts {
  store: Store
  clock: Clock
  log: Log
  members: Members
  specs: RuntimeSpecs
  policy: PlacementPolicy
  /** How many tasks of each revision wait for a node. */
  waiting: () => ReadonlyMap<string, number>
}

/** Nodes hear of demand at the same time and then ask at once: the queue is looked at for all of them together. */
const WAITING_KNOWN_MS = 500
/** One node is listened to so often. It asks again with the next offers that it hears. */
const WANT_INTERVAL_MS = 1_000

export function createPrepare(parts: PrepareParts): Prepare {
  const { store, clock, log, members, specs } = parts
  /** Who was asked for what on which connection: asked again after a reconnect only. */
  const asked = new WeakMap<object, Set<string>>()
  /** Who was sent a revision because it asked, on connections that are open. */
  const wanting = new Map<string, Set<object>>()
  const listenedAtMs = new WeakMap<object, number>()
  let waiting = { atMs: Number.NEGATIVE_INFINITY, tasks: new Map<string, number>() as ReadonlyMap<string, number> }
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
      if (counted.has(member.id) || failed.has(member.id)) continue
      if (!mayPrepare(member, request.revision) || specs.rests(request.revision, member)) continue
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

  function tasksWaiting(): ReadonlyMap<string, number> {
    const nowMs = clock.monotonicMs()
    if (nowMs - waiting.atMs > WAITING_KNOWN_MS) {
      waiting = { atMs: nowMs, tasks: parts.waiting() }
      for (const revision of wanting.keys()) if (!waiting.tasks.has(revision)) wanting.delete(revision)
    }
    return waiting.tasks
  }

  /** Not more nodes than tasks fetch an image for them. */
  function isEnough(revision: string, tasks: number): boolean {
    const sent = wanting.get(revision)
    if (!sent) return false
    let open = 0
    for (const { session } of members.all()) if (session && sent.has(session)) open += 1
    return open >= tasks
  }

  return {
    async want(member, revisions) {
      const { session } = member
      const nowMs = clock.monotonicMs()
      if (!session || nowMs - (listenedAtMs.get(session) ?? Number.NEGATIVE_INFINITY) < WANT_INTERVAL_MS) return
      listenedAtMs.set(session, nowMs)
      for (const revision of revisions) {
        const tasks = tasksWaiting().get(revision)
        if (tasks === undefined || isEnough(revision, tasks)) continue
        if (!mayPrepare(member, revision) || !specs.canRun(revision, member)) continue
        wanting.set(revision, (wanting.get(revision) ?? new Set()).add(session))
        await ask(member, revision).catch((error: unknown) => {
          log.error("a wanted revision could not be sent", { revision, error: errorText(error) })
        })
      }
    },
    unable({ session }, revision) {
      if (!session) return
      asked.get(session)?.delete(revision)
      wanting.get(revision)?.delete(session)
    },
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

/** Tasks that wait for a node, by revision. */
export function waitingByRevision(
  queue: Pick<ReadyQueue, "demand">,
  known: Pick<KnownJobs, "get">,
): Map<string, number> {
  const waiting = new Map<string, number>()
  for (const { sample, tasks } of queue.demand().values()) {
    const revision = known.get(sample.seq)?.revision
    if (revision !== undefined) waiting.set(revision, (waiting.get(revision) ?? 0) + tasks)
  }
  return waiting
}
