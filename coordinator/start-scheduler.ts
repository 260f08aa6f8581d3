import type { Clock } from "../protocol/base/clock.ts"
import type { Log } from "../protocol/base/log.ts"
import type { Random } from "../protocol/base/random.ts"
import { nodeId } from "../protocol/domain/ids.ts"
import type { MeshNode } from "../protocol/mesh/mesh.ts"
import type { ObjectContent } from "./artifacts/object-content.ts"
import type { ObjectFiles } from "./artifacts/object-files.ts"
import type { CoordinatorConfig } from "./config.ts"
import type { JobWatch } from "./events/watch.ts"
import type { PlacementPolicy } from "./fleet/fit.ts"
import type { Fleet } from "./fleet/fleet.ts"
import type { Member, Members } from "./fleet/members.ts"
import { createReputation, type Reputation } from "./fleet/reputation.ts"
import type { Background } from "./jobs/background.ts"
import type { KnownJobs } from "./jobs/job-facts.ts"
import type { Plans } from "./jobs/plans.ts"
import type { ReportParts } from "./jobs/report.ts"
import { createBuilds, type Builds } from "./scheduler/builds.ts"
import { createCheckpoints, type Checkpoints } from "./scheduler/checkpoints.ts"
import { createClaims, type Claims } from "./scheduler/claims.ts"
import { createContactWatch, type ContactWatch } from "./scheduler/contact.ts"
import { createDispatch, type Dispatch } from "./scheduler/dispatch.ts"
import { createJobLife, type JobLife } from "./scheduler/job-life.ts"
import type { KeptNodes } from "./scheduler/kept-nodes.ts"
import { createOffers } from "./scheduler/offers.ts"
import type { Pace } from "./scheduler/pace.ts"
import type { Prepare } from "./scheduler/prepare.ts"
import type { ReadyQueue } from "./scheduler/ready-queue.ts"
import { createReplicaWatch, type ReplicaWatch } from "./scheduler/replica-watch.ts"
import { createReservations, type Reservations } from "./scheduler/reservations.ts"
import type { RuntimeSpecs } from "./scheduler/runtime-specs.ts"
import { createGivenInputs, type GivenInputs } from "./scheduler/task-inputs.ts"
import type { Store } from "./store/store.ts"

/** What decides which task runs where, and what becomes of it. */
export interface Scheduler {
  /** Work may start somewhere: look. */
  wake: () => void
  reservations: Reservations
  replicas: ReplicaWatch
  jobLife: JobLife
  reputation: Reputation
  contact: ContactWatch
  claims: Claims
  builds: Builds
  checkpoints: Checkpoints
  inputs: GivenInputs
  dispatch: Dispatch
}

export interface SchedulerParts {
  config: CoordinatorConfig
  clock: Clock
  random: Random
  log: Log
  store: Store
  epoch: number
  files: ObjectFiles
  content: ObjectContent
  mesh: MeshNode
  fleet: Fleet
  members: Members
  known: KnownJobs
  plans: Plans
  queue: ReadyQueue
  kept: KeptNodes
  pace: Pace
  watch: JobWatch
  background: Background
  specs: RuntimeSpecs
  prepare: Prepare
  policy: PlacementPolicy
  timing: { heartbeatMs: number; claimLifetimeMs: number; lostAfterMs: number }
  reports: ReportParts
  /** Takes back what a revoked node holds, and ends its connection. */
  cutOff: (member: Member) => Promise<void>
}

/** Connects the parts that need one another; `opening` disposes of them, the last one first. */
export function startScheduler(opening: AsyncDisposableStack, parts: SchedulerParts): Scheduler {
  const { config, clock, random, log, store, epoch, files, content, mesh, fleet, members, known, plans } = parts
  const { queue, kept, pace, watch, background, specs, prepare, policy, timing, reports } = parts
  const offers = opening.use(
    createOffers({ mesh, clock, log, queue, known, policy, epoch, revocationVersion: () => fleet.revocationVersion() }),
  )
  const wake = (): void => {
    dispatch.wake()
    offers.wake()
  }
  const reservations = createReservations({
    clock,
    attemptsOf: (job) => members.ofJob(job),
    known: (job) => known.get(job),
    runsOn: (job, node) => specs.runsOn(job.revision, members.byNode(nodeId(node))),
    isKept: (node) => kept.jobOn(nodeId(node)) !== null,
    ageingMs: config.priorityAgeingMs,
    wake,
  })
  const replicas = createReplicaWatch({
    clock,
    log,
    members,
    known,
    policy,
    specs,
    prepare,
    lost: (revision, blob) => builds.lost(revision, blob),
    setupFailed: (revision, message, logTail) => jobLife.setupFailed(revision, message, logTail),
    wake,
  })
  const jobLife = createJobLife({
    store,
    files,
    clock,
    log,
    background,
    known,
    queue,
    reservations,
    pace,
    watch,
    specs,
    wake,
    cannotPrepare: (revision) => replicas.cannotPrepare(revision),
    runningMs: (claim) => members.attempt(claim)?.runningMs ?? null,
    spend: (spent, reason) => claims.spend(spent, reason),
  })
  const reputation = opening.use(
    createReputation({
      store,
      clock,
      log,
      members,
      async expel(member, reason) {
        await fleet.setState(member.id, "revoked", reason)
        member.session?.send({ type: "node_state", state: "revoked" })
        await parts.cutOff(member)
      },
      wake,
    }),
  )
  const contact = opening.use(
    createContactWatch({
      store,
      clock,
      log,
      members,
      queue,
      watch,
      timing,
      wake,
      over: (ended) => claims.spend(ended, "its task is over"),
      idle(member, attempt) {
        reputation.setback(member, true)
        reputation.wasted(member, "idle_claim", attempt.job)
      },
    }),
  )
  const claims = opening.use(
    createClaims({
      ...reports,
      log,
      members,
      known,
      queue,
      pace,
      watch,
      contact,
      reputation,
      timing,
      wake,
      returned: (jobs) => jobLife.returned(jobs),
      finish: (jobs) => jobLife.finish(jobs),
      taskFailed: (jobs) => jobLife.taskFailed(jobs),
      preparationMs: (revision) => (specs.known(revision)?.project.setupTimeoutSeconds ?? 0) * 1000,
    }),
  )
  const builds = opening.use(
    createBuilds({
      store,
      clock,
      random,
      log,
      members,
      content,
      specs,
      built: () => {
        prepare.wake()
        wake()
      },
      failed: (revision, message, logTail) => jobLife.setupFailed(revision, message, logTail),
    }),
  )
  const checkpoints = opening.use(
    createCheckpoints({
      ...reports,
      log,
      members,
      known,
      watch,
      content,
      contentGrant: (member, blobs) => specs.contentGrant(member, blobs),
    }),
  )
  const inputs = createGivenInputs({
    store,
    files,
    clock,
    members,
    known,
    plans,
    content,
    contentGrant: (member, blobs) => specs.contentGrant(member, blobs),
  })
  const dispatch = opening.use(
    createDispatch({
      store,
      clock,
      log,
      members,
      known,
      plans,
      queue,
      kept,
      reservations,
      pace,
      watch,
      runtimes: specs,
      policy,
      claimLifetimeMs: timing.claimLifetimeMs,
      resuming: (rows) => checkpoints.resuming(rows),
      inputs,
      unresolved: (member, attempts) => claims.unresolved(member, attempts),
      spend: (spent, reason) => claims.spend(spent, reason),
      takeBack: (given) => claims.takeBack(given),
      askBack: (member, given) => claims.askBack(member, given),
      finish: (jobs) => jobLife.finish(jobs),
      taskFailed: (jobs) => jobLife.taskFailed(jobs),
      budgetSpent: (job) => jobLife.budgetSpent(job),
      cannotRun: (job, message) => jobLife.cannotRun(job, message),
    }),
  )
  members.onChange(() => {
    prepare.wake()
    builds.wake()
    wake()
  })
  return { wake, reservations, replicas, jobLife, reputation, contact, claims, builds, checkpoints, inputs, dispatch }
}
