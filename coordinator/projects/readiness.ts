import type { Instant } from "../../protocol/base/clock.ts"
import type { Digest, NodeId, RevisionId } from "../../protocol/domain/ids.ts"
import type { Diagnostic, InitRequest, Project, Replica, Revision } from "../store/projects.ts"

type InitState = "not_initialized" | "published" | "initializing" | "ready" | "refreshing" | "attention_required"
type AvailabilityStatus = "cold" | "warming" | "ready" | "degraded" | "mixed"
type ProgressPhase = "queued" | "running" | "failed" | "refreshing" | "refresh_pending" | "ready" | "idle"

/** What the fleet can do at this moment; from memory, as good as the last heartbeats. */
export interface FleetFacts {
  isLive: (node: NodeId) => boolean
  /** Live nodes that may run project work. */
  workers: number
  /** Those of them that take the tarball itself and need no image (process runtime). */
  workersWithoutImage: number
  builders: number
  /** Why no live worker can prepare this revision; null while one may, while it is being built, and without workers. */
  trouble: (revision: RevisionId) => string | null
}

interface Load {
  queuedTasks: number
  activeJobs: number
  activeTasks: number
}

export interface ReadinessFacts {
  project: Pick<Project, "name" | "lastReadyAt">
  revision: Revision | null
  replicas: Replica[]
  request: InitRequest | null
  /** Of the active revision, newest change first. */
  diagnostics: Diagnostic[]
  fleet: FleetFacts
  load: Load
  now: Instant
}

/** The active revision as its owner sees it: never machines, only counts and words (PR-001, PR-003). */
export interface Readiness {
  project: string
  projectReady: boolean
  canAcceptNewJobs: boolean
  readyForJobs: boolean
  initState: InitState
  availabilityStatus: AvailabilityStatus
  progressPhase: ProgressPhase
  pendingInit: boolean
  requestedState: string | null
  contentHash: Digest | null
  statusMessage: string
  nextAction: string
  latestIssue: string | null
  lastReadyAt: Instant | null
  latestActivityAt: Instant | null
  latestFailureAt: Instant | null
  counts: ReplicaCounts
  load: Load
}

interface ReplicaCounts {
  ready: number
  initializing: number
  failed: number
  stale: number
}

/** Everything a client is told of a project's state, from the rows that pushes, builds and nodes wrote (PR-001 … PR-015). */
export function readinessOf(facts: ReadinessFacts): Readiness {
  const { project, revision, diagnostics, fleet, load } = facts
  const counts = countReplicas(facts)
  const activity = activityOf(facts, counts)
  const initState = initStateOf(revision, counts, activity)
  const failures = diagnostics.filter(({ status }) => status === "failed")
  const availabilityStatus = availabilityOf(counts, activity)
  const showsIssue = initState === "attention_required" || availabilityStatus === "degraded"
  return {
    project: project.name,
    projectReady: revision !== null && initState !== "attention_required",
    canAcceptNewJobs: revision !== null,
    readyForJobs: counts.ready > 0,
    initState,
    availabilityStatus,
    progressPhase: phaseOf(initState, revision, counts, activity),
    pendingInit: activity.requestOpen || counts.initializing > 0 || (counts.ready === 0 && activity.building),
    requestedState: activity.requestOpen ? (facts.request?.kind === "refresh" ? "refreshed" : "ready") : null,
    contentHash: revision?.contentHash ?? null,
    ...guidance(initState, revision, counts, activity, fleet),
    latestIssue: showsIssue ? (failures[0]?.message ?? "Preparing the runtime failed.") : null,
    lastReadyAt: project.lastReadyAt,
    latestActivityAt: latest(
      ...diagnostics.map(({ updatedAt }) => updatedAt),
      ...facts.replicas.map(({ changedAt }) => changedAt),
      facts.request?.requestedAt ?? null,
      revision?.buildChangedAt ?? null,
    ),
    latestFailureAt: latest(...failures.map(({ updatedAt }) => updatedAt)),
    counts,
    load,
  }
}

/** A push would pull the rug from under what is being prepared (P-019). */
export const isBusy = ({ initState }: Readiness): boolean => initState === "initializing" || initState === "refreshing"

/** Ready and initializing ones of nodes that are away count as stale: nobody can use them now. */
function countReplicas({ replicas, fleet }: ReadinessFacts): ReplicaCounts {
  const counts: ReplicaCounts = { ready: 0, initializing: 0, failed: 0, stale: 0 }
  for (const { state, node } of replicas) counts[state === "failed" || fleet.isLive(node) ? state : "stale"]++
  return counts
}

interface Activity {
  /** An image is being built, or will be as soon as a live builder gets to it. */
  building: boolean
  /** Something was asked for and is neither done nor given up. */
  requestOpen: boolean
  initializing: boolean
  refreshing: boolean
}

function activityOf({ revision, request, replicas, fleet, now }: ReadinessFacts, counts: ReplicaCounts): Activity {
  const building =
    revision !== null && (revision.build === "building" || (revision.build === "queued" && fleet.builders > 0))
  const mayStillHappen =
    request !== null && revision !== null && request.revision === revision.id && now < request.endsAt
  // Without anybody who is warm or building there is nothing to wait for, and nobody is locked out (rulings, Readiness).
  const canPrepare =
    fleet.workers > 0 &&
    (counts.initializing > 0 || building || revision?.build === "built" || fleet.workersWithoutImage > 0)

  const staleAndLive = replicas.filter(({ state, node }) => state === "stale" && fleet.isLive(node)).length
  const refreshOpen =
    mayStillHappen &&
    request.kind === "refresh" &&
    revision.build !== "failed" &&
    (staleAndLive > 0 || counts.initializing > 0)
  const wanted = Math.max(1, Math.min(request?.maxNodes ?? fleet.workers, fleet.workers))
  const imageFailed = revision?.build === "failed" && fleet.workersWithoutImage === 0
  const initOpen = mayStillHappen && request.kind === "init" && !imageFailed && counts.ready + counts.failed < wanted
  return {
    building,
    requestOpen: (refreshOpen && canPrepare) || initOpen,
    initializing: initOpen && canPrepare,
    refreshing: refreshOpen && canPrepare,
  }
}

function initStateOf(revision: Revision | null, counts: ReplicaCounts, activity: Activity): InitState {
  if (revision === null) return "not_initialized"
  if (counts.ready > 0) return "ready"
  if (activity.refreshing) return "refreshing"
  if (activity.initializing) return "initializing"
  const inProgress = counts.initializing > 0 || activity.building
  if (!inProgress && (counts.failed > 0 || revision.build === "failed")) return "attention_required"
  return "published"
}

function availabilityOf(counts: ReplicaCounts, activity: Activity): AvailabilityStatus {
  if (counts.ready === 0) return counts.initializing > 0 || activity.building ? "warming" : "cold"
  if (counts.failed > 0) return "degraded"
  return counts.stale > 0 || counts.initializing > 0 ? "mixed" : "ready"
}

function phaseOf(
  initState: InitState,
  revision: Revision | null,
  counts: ReplicaCounts,
  activity: Activity,
): ProgressPhase {
  const isRunning = counts.initializing > 0 || revision?.build === "building"
  switch (initState) {
    case "not_initialized":
      return "idle"
    case "attention_required":
      return "failed"
    case "ready":
      return "ready"
    case "refreshing":
      return isRunning ? "refreshing" : "refresh_pending"
    case "initializing":
      return isRunning ? "running" : "queued"
    case "published":
      if (isRunning) return "running"
      if (activity.building || activity.requestOpen) return "queued"
      return counts.stale > 0 ? "refresh_pending" : "idle"
  }
}

/** What is going on and what to do next, in a sentence each (PR-014). */
function guidance(
  initState: InitState,
  revision: Revision | null,
  counts: ReplicaCounts,
  activity: Activity,
  fleet: FleetFacts,
): { statusMessage: string; nextAction: string } {
  const submit = "Submit jobs; the first one waits until the runtime is prepared."
  switch (initState) {
    case "not_initialized":
      return {
        statusMessage: "No code has been pushed yet.",
        nextAction: "Push a tar.gz of the project to POST /api/v1/projects/:name/push.",
      }
    case "ready":
      return {
        statusMessage:
          counts.failed > 0
            ? "The active revision is ready, though preparing it failed somewhere."
            : "The active revision is ready.",
        nextAction: counts.failed > 0 ? "Submit jobs, and read status/details for what failed." : "Submit jobs.",
      }
    case "refreshing":
      return {
        statusMessage: "The new revision is replacing the one that was prepared.",
        nextAction: "Submit jobs now, or wait until ready_for_jobs is true. Push again once the refresh has ended.",
      }
    case "initializing":
      return {
        statusMessage: `Workers are preparing the active revision${troubled(revision, fleet, "; so far none could")}.`,
        nextAction: "Submit jobs now, or wait until ready_for_jobs is true.",
      }
    case "attention_required":
      return {
        statusMessage:
          revision?.build === "failed" ? "Building the image failed." : "Preparing the active revision failed.",
        nextAction: "Read status/details, correct the project and push again; or call init to try once more.",
      }
    case "published":
      return { statusMessage: publishedMessage(revision, counts, activity, fleet), nextAction: submit }
  }
}

function publishedMessage(
  revision: Revision | null,
  counts: ReplicaCounts,
  activity: Activity,
  fleet: FleetFacts,
): string {
  if (revision?.build === "building") return "The revision is published; its image is being built."
  if (counts.initializing > 0) return "The revision is published; its runtime is being prepared."
  if (activity.building) return "The revision is published; its image is about to be built."
  if (revision?.build === "queued" && fleet.workersWithoutImage === 0) {
    return "The revision is published; its image waits for a builder, and none is connected."
  }
  const trouble = troubled(revision, fleet, "no connected worker could prepare it, and it is tried again")
  if (trouble !== "") return `The revision is published; ${trouble}.`
  if (activity.requestOpen) return "The revision is published; preparation waits for a worker, and none is connected."
  if (counts.stale > 0) return "The revision is published; what was prepared before is out of date."
  return "The revision is published."
}

/** What goes wrong on every worker, after the words; nothing where nothing does. */
function troubled(revision: Revision | null, fleet: FleetFacts, words: string): string {
  const reason = revision === null ? null : fleet.trouble(revision.id)
  return reason === null ? "" : `${words}: ${reason.replace(/\.$/, "")}`
}

function latest(...instants: (Instant | null)[]): Instant | null {
  return instants.reduce((newest, at) => (at !== null && (newest === null || at > newest) ? at : newest), null)
}
