import type { Clock } from "../protocol/base/clock.ts"
import type { Log } from "../protocol/base/log.ts"
import type { Random } from "../protocol/base/random.ts"
import type { AccountId } from "../protocol/domain/ids.ts"
import type { MeshNode } from "../protocol/mesh/mesh.ts"
import type { Authenticator } from "./accounts/authenticate.ts"
import type { ObjectFiles } from "./artifacts/object-files.ts"
import { creditSignup } from "./billing/ledger.ts"
import type { Prices } from "./billing/pricing.ts"
import type { CoordinatorConfig } from "./config.ts"
import type { Tally } from "./events/tally.ts"
import type { JobWatch } from "./events/watch.ts"
import type { ContentBytes } from "./fleet/content-bytes.ts"
import type { EnrolmentParts } from "./fleet/enrol.ts"
import type { PlacementPolicy } from "./fleet/fit.ts"
import { fleetFacts, liveWorkers, type Fleet } from "./fleet/fleet.ts"
import type { Member, Members } from "./fleet/members.ts"
import type { HttpApp } from "./http/app.ts"
import type { RequestMetrics } from "./http/request-metrics.ts"
import { mountAccess } from "./http/routes/access.ts"
import { mountAccount } from "./http/routes/account.ts"
import { mountAdmin } from "./http/routes/admin.ts"
import { mountArtifacts } from "./http/routes/artifacts.ts"
import { mountBatch } from "./http/routes/batch.ts"
import { mountFeedback } from "./http/routes/feedback.ts"
import { mountJobs } from "./http/routes/jobs.ts"
import { mountMetrics } from "./http/routes/metrics.ts"
import { mountNodes } from "./http/routes/nodes.ts"
import { mountPresets } from "./http/routes/presets.ts"
import { mountProjectKv } from "./http/routes/project-kv.ts"
import { mountProjects } from "./http/routes/projects.ts"
import { mountStorage } from "./http/routes/storage.ts"
import { mountWebhookSecret } from "./http/routes/webhook-secret.ts"
import type { KnownJobs } from "./jobs/job-facts.ts"
import type { ReadParts } from "./jobs/read/read-job.ts"
import { retryJob } from "./jobs/retry.ts"
import { submitBatch } from "./jobs/submit-batch.ts"
import { submitJob, type CapacityWanted } from "./jobs/submit.ts"
import type { FleetFacts } from "./projects/readiness.ts"
import type { TarballScanner } from "./projects/tarball.ts"
import type { LiveClaims } from "./scheduler/live-claims.ts"
import type { Prepare } from "./scheduler/prepare.ts"
import type { ReadyQueue } from "./scheduler/ready-queue.ts"
import type { RuntimeSpecs } from "./scheduler/runtime-specs.ts"
import type { Scheduler } from "./start-scheduler.ts"
import type { JobRow } from "./store/jobs.ts"
import type { Store } from "./store/store.ts"
import type { Reach } from "./webhooks/callback-url.ts"

export interface RoutesParts {
  config: CoordinatorConfig
  clock: Clock
  random: Random
  log: Log
  version: string
  /** Where clients reach the API. */
  origin: string
  store: Store
  epoch: number
  files: ObjectFiles
  scanner: TarballScanner
  authenticator: Authenticator
  prices: Prices
  enrolment: EnrolmentParts
  mesh: MeshNode
  fleet: Fleet
  members: Members
  known: KnownJobs
  queue: ReadyQueue
  watch: JobWatch
  specs: RuntimeSpecs
  prepare: Prepare
  policy: PlacementPolicy
  tally: Tally
  requests: RequestMetrics
  contentBytes: ContentBytes
  reads: ReadParts
  reach: Reach
  scheduler: Scheduler
  liveClaims: LiveClaims
  /** Takes back what a revoked node holds, and ends its connection. */
  cutOff: (member: Member) => Promise<void>
}

/** The routes that need more than the door itself. */
export function mountRoutes(app: HttpApp, parts: RoutesParts): void {
  const { config, clock, random, store, files } = parts
  mountPeople(app, parts)
  mountFeedback(app, { store, clock, random })
  mountPresets(app)
  mountMetrics(app, {
    store,
    members: parts.members,
    tally: parts.tally,
    requests: parts.requests,
    waitingTasks: () => [...parts.queue.demand().values()].reduce((sum, { tasks }) => sum + tasks, 0),
    contentBytes: parts.contentBytes.total,
    version: parts.version,
    metricsToken: config.metricsToken,
    identify: (token) => parts.authenticator.identify(token),
  })
  mountStorage(app, { store, files })
  mountArtifacts(app, { store, files, clock, random, ttlMs: config.artifactTtlMs, origin: () => parts.origin })
  mountProjectRoutes(app, parts)
  mountJobRoutes(app, parts)
  mountNodeRoutes(app, parts)
}

function mountPeople(app: HttpApp, { config, clock, random, store, authenticator }: RoutesParts): void {
  const people = {
    store,
    clock,
    random,
    authenticator,
    welcome: (tx: Parameters<typeof creditSignup>[0], account: AccountId, at: number) =>
      creditSignup(tx, account, config.signupCredit, at),
  }
  mountAdmin(app, people)
  mountAccess(app, people)
  mountAccount(app, { store, clock })
}

function mountProjectRoutes(app: HttpApp, parts: RoutesParts): void {
  const { config, clock, random, store, files, scanner, prepare } = parts
  const { builds, jobLife, wake } = parts.scheduler
  const projects = {
    store,
    clock,
    random,
    files,
    scanner,
    quoteTtlMs: config.quoteTtlMs,
    fleet: () => projectFleet(parts),
    changed: () => {
      builds.wake()
      prepare.wake()
      wake()
    },
    cancelQueued: (wanted: Parameters<typeof jobLife.cancelQueued>[0]) => jobLife.cancelQueued(wanted),
  }
  mountProjects(app, projects)
  mountProjectKv(app, projects)
}

function projectFleet({ clock, members, policy, specs }: RoutesParts): FleetFacts {
  const facts = fleetFacts(members, policy, clock.now())
  return {
    ...facts,
    trouble: (revision) => specs.trouble(revision, liveWorkers(members, policy, clock.now()))?.message ?? null,
  }
}

function mountJobRoutes(app: HttpApp, parts: RoutesParts): void {
  const { config, clock, random, log, store, members, policy, watch, prices, reach, reads } = parts
  const { jobLife, dispatch } = parts.scheduler
  const retention = { clock, jobRetentionMs: config.jobRetentionMs }
  const submission = {
    ...retention,
    store,
    random,
    prices,
    quoteTtlMs: config.quoteTtlMs,
    plan(job: JobRow) {
      watch.changed([job.seq])
      jobLife.plan(job)
    },
    reserve: (wanted: CapacityWanted) => dispatch.reserve(wanted),
    workers: () => liveWorkers(members, policy, clock.now()).flatMap(({ facts }) => (facts ? [facts.capacity] : [])),
    reach,
  }
  const retrying = {
    ...retention,
    store,
    random,
    quoteTtlMs: config.quoteTtlMs,
    settled: (seq: number) => jobLife.settled(seq),
    again: (job: JobRow) => jobLife.again(job),
  }
  mountBatch(app, { log, submitBatch: (request) => submitBatch(submission, request) })
  mountWebhookSecret(app, { store, clock, random })
  mountJobs(app, {
    ...reads,
    watch,
    submit: (request) => submitJob(submission, request),
    retry: (request) => retryJob(retrying, request),
    cancel: (id, account, reason) => jobLife.cancel(id, account, reason),
    ssePingMs: config.ssePingMs,
    sseLimitMs: config.sseLimitMs,
  })
}

function mountNodeRoutes(app: HttpApp, parts: RoutesParts): void {
  const { epoch, files, enrolment, mesh, fleet, members, known, liveClaims, cutOff } = parts
  const { inputs, checkpoints, claims } = parts.scheduler
  mountNodes(app, {
    ...enrolment,
    coordinator: () => ({ peerId: mesh.peerId, addresses: mesh.addresses(), epoch }),
    fleet,
    members,
    known,
    files,
    isLive: (claim, node) => liveClaims.isLive(claim, node),
    stage: (node, blob) => liveClaims.stage(node, blob),
    payload: (attempt) => inputs.payload(attempt),
    inputs: (claim, node) => inputs.files(claim, node),
    resume: (claim, node) => checkpoints.resume(claim, node),
    drain: (member) => claims.drain(member),
    cutOff,
  })
}
