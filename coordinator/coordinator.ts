import { mkdir } from "node:fs/promises"
import { join } from "node:path"
import { every, type Clock } from "../protocol/base/clock.ts"
import { errorText } from "../protocol/base/error-text.ts"
import type { Log } from "../protocol/base/log.ts"
import type { Random } from "../protocol/base/random.ts"
import { claimNumber, digest, nodeId, type AccountId, type ClaimNumber, type NodeId } from "../protocol/domain/ids.ts"
import { judgeAdvert, createAdvertState, TOO_FAST } from "../protocol/gossip/node-advert.ts"
import { ADVERTS_TOPIC, OFFERS_TOPIC } from "../protocol/gossip/topics.ts"
import { ignore } from "../protocol/gossip/verdict.ts"
import { createMeshNode } from "../protocol/mesh/create-mesh-node.ts"
import { loadOrCreateIdentity } from "../protocol/mesh/identity.ts"
import { serveContent } from "../protocol/mesh/serve-content.ts"
import { createAuthenticator } from "./accounts/authenticate.ts"
import { bootstrapToken } from "./accounts/bootstrap-token.ts"
import { inspectBlobs } from "./artifacts/inspect-blobs.ts"
import { createObjectContent } from "./artifacts/object-content.ts"
import { openObjectFiles } from "./artifacts/object-files.ts"
import { freeReleasedBlobs, sweepArtifacts, sweepOrphans } from "./artifacts/retention.ts"
import { sweepStaged } from "./artifacts/stage.ts"
import { creditSignup } from "./billing/ledger.ts"
import { DEFAULT_PRICES, readPrices } from "./billing/pricing.ts"
import type { CoordinatorConfig } from "./config.ts"
import { startTally } from "./events/tally.ts"
import { createDocuments } from "./documents/documents.ts"
import { createJobWatch } from "./events/watch.ts"
import { createContentBytes } from "./fleet/content-bytes.ts"
import { createFleet, fleetFacts, hasLiveWorker, liveWorkers, type ReplicaNews } from "./fleet/fleet.ts"
import { heartbeatIntervalMs } from "./fleet/liveness.ts"
import { createMembers, type Member } from "./fleet/members.ts"
import { createReputation } from "./fleet/reputation.ts"
import { createHttpApp } from "./http/app.ts"
import { createRequestMetrics } from "./http/request-metrics.ts"
import { mountAccess } from "./http/routes/access.ts"
import { mountAccount } from "./http/routes/account.ts"
import { mountAdmin } from "./http/routes/admin.ts"
import { mountArtifacts } from "./http/routes/artifacts.ts"
import { mountBatch } from "./http/routes/batch.ts"
import { mountFeedback } from "./http/routes/feedback.ts"
import { mountDocuments } from "./http/routes/documents.ts"
import { mountJobs } from "./http/routes/jobs.ts"
import { mountMetrics } from "./http/routes/metrics.ts"
import { mountNodes } from "./http/routes/nodes.ts"
import { mountOps } from "./http/routes/ops.ts"
import { mountPresets } from "./http/routes/presets.ts"
import { mountProjectKv } from "./http/routes/project-kv.ts"
import { mountProjects } from "./http/routes/projects.ts"
import { mountStorage } from "./http/routes/storage.ts"
import { mountWebhookSecret } from "./http/routes/webhook-secret.ts"
import { startHttpServer } from "./http/server.ts"
import { sweepCheckpoints } from "./jobs/checkpoints.ts"
import { createBackground } from "./jobs/background.ts"
import { createKnownJobs } from "./jobs/job-facts.ts"
import { createPlans } from "./jobs/plans.ts"
import { sweepExpiredJobs } from "./jobs/retention.ts"
import { submitBatch } from "./jobs/submit-batch.ts"
import { jobOutput, OUTPUT_LIMITS } from "./jobs/read/output.ts"
import { readJobBySeq } from "./jobs/read/read-job.ts"
import { retryJob } from "./jobs/retry.ts"
import { submitJob, type CapacityWanted } from "./jobs/submit.ts"
import { openControlDoor } from "./mesh/control-door.ts"
import type { FleetFacts } from "./projects/readiness.ts"
import { sweepRevisions } from "./projects/revisions.ts"
import { sweepSharedState } from "./projects/shared-state.ts"
import { createTarballScanner } from "./projects/tarball.ts"
import { createBuilds } from "./scheduler/builds.ts"
import { createCheckpoints } from "./scheduler/checkpoints.ts"
import { createClaims } from "./scheduler/claims.ts"
import { createContactWatch } from "./scheduler/contact.ts"
import { createDispatch } from "./scheduler/dispatch.ts"
import { createJobLife } from "./scheduler/job-life.ts"
import { createKeptNodes } from "./scheduler/kept-nodes.ts"
import { createOffers } from "./scheduler/offers.ts"
import { createPace } from "./scheduler/pace.ts"
import { createPrepare } from "./scheduler/prepare.ts"
import { createQueueReasons } from "./scheduler/queue-reason.ts"
import { createQueueTimeout } from "./scheduler/queue-timeout.ts"
import { createReadyQueue } from "./scheduler/ready-queue.ts"
import { createReservations } from "./scheduler/reservations.ts"
import { createRuntimeSpecs, REST_MS, type FailedSetup } from "./scheduler/runtime-specs.ts"
import { restoreClaims } from "./scheduler/restore-claims.ts"
import { createStuckSweep } from "./scheduler/stuck-sweep.ts"
import { createGivenInputs } from "./scheduler/task-inputs.ts"
import { stageBlob } from "./store/blobs.ts"
import { noteProbe, OlderCopy, recordLaterEpoch, startEpoch } from "./store/meta.ts"
import type { JobRow } from "./store/jobs.ts"
import { openStore } from "./store/open-store.ts"
import { openReservations } from "./store/reservations.ts"
import { attemptByClaim } from "./store/tasks.ts"
import { callReceiver } from "./webhooks/call.ts"
import { reachOf } from "./webhooks/callback-url.ts"
import { createWebhooks } from "./webhooks/deliver.ts"
import { createResolve } from "./webhooks/resolve.ts"

export interface CoordinatorParts {
  config: CoordinatorConfig
  clock: Clock
  random: Random
  log: Log
  version: string
  /** Go on from this copy of the data, although nodes were welcomed by a later one. */
  takeOver?: boolean
  /**
   * The program must end: the store may or may not have committed, and recovers at the next start; or (`OlderCopy`) a node
   * proved that a later copy of the data has been running, and the next start refuses.
   */
  onFatal: (error: Error) => void
  /** A simulation's own mesh, sockets and threads; what is left out is real. */
  outside?: Partial<CoordinatorOutside>
}

/** What the coordinator reaches the world through. */
export interface CoordinatorOutside {
  createMesh: typeof createMeshNode
  serveHttp: typeof startHttpServer
  createScanner: typeof createTarballScanner
  /** Calls a job's `callback_url`. */
  callReceiver: typeof callReceiver
}

const REAL: CoordinatorOutside = {
  createMesh: createMeshNode,
  serveHttp: startHttpServer,
  createScanner: createTarballScanner,
  callReceiver,
}

export interface Coordinator extends AsyncDisposable {
  readonly origin: string
  readonly meshAddresses: string[]
  readonly peerId: string
  readonly adminToken: string
}

/** Content served to nodes as the last resort: two first copies of a blob at once, peers for the rest. */
const CONTENT_LIMITS = { streams: 64, sends: 4, copiesPerBlob: 2 }
const SWEEP_MS = 60_000
/** How often the times of waiting jobs are looked at. */
const QUEUE_LOOK_MS = 30_000

/** Builds every part once, in the order in which they need one another, and opens the doors last. */
export async function startCoordinator(parts: CoordinatorParts): Promise<Coordinator> {
  const { config, clock, random, log } = parts
  const outside = { ...REAL, ...parts.outside }
  await using opening = new AsyncDisposableStack()
  await mkdir(config.dataDir, { recursive: true })

  const requests = createRequestMetrics()
  const app = createHttpApp({ clock, random, log, trustProxy: config.trustProxy, onAnswered: requests.count })
  mountOps(app)
  const server = opening.use(await outside.serveHttp({ app, host: config.httpHost, port: config.httpPort, log }))
  const origin = config.publicUrl ?? server.origin

  const store = opening.use(await openStore({ dataDir: config.dataDir, clock, log, onFatal: parts.onFatal }))
  const epoch = await store.write((tx) => startEpoch(tx, clock.now() / 1000, parts.takeOver))
  const files = await openObjectFiles(config.dataDir, random, (blob, problem) => {
    log.error("a stored blob is damaged and is not given out", { digest: blob, problem })
  })
  // Nobody else has the directory: what is unfinished now is of an earlier start, and will never be finished.
  const unfinished = await files.sweepIncoming(Number.POSITIVE_INFINITY)
  if (unfinished > 0) log.info("unfinished files of an earlier start removed", { files: unfinished })
  const identity = await loadOrCreateIdentity(join(config.dataDir, "coordinator.key"), random)
  const adminToken = bootstrapToken(config.dataDir, config.adminToken, random)
  const authenticator = createAuthenticator({ store, clock, bootstrapToken: adminToken })
  const prices = config.pricesFile === null ? DEFAULT_PRICES : readPrices(config.pricesFile)
  mountDocuments(app, {
    documents: createDocuments({ rows: () => app.rows(), prices, version: parts.version }),
    publicOrigin: config.publicUrl,
  })
  const policy = { allowUnsandboxed: config.allowUnsandboxed, allowUnenforced: config.allowUnenforced }
  const heartbeatMs = (count: number): number =>
    config.heartbeatMs ?? heartbeatIntervalMs(count, config.claimLifetimeMs)
  const timing = {
    heartbeatMs: heartbeatMs(1),
    claimLifetimeMs: config.claimLifetimeMs,
    lostAfterMs: config.lostAfterMs,
  }

  const members = createMembers(clock, timing)
  const known = createKnownJobs()
  const plans = createPlans(store)
  const retention = { clock, jobRetentionMs: config.jobRetentionMs }
  const queue = createReadyQueue(config.priorityAgeingMs)
  const kept = createKeptNodes(config.priorityAgeingMs)
  const pace = createPace()
  const watch = createJobWatch()
  const content = createObjectContent(files)
  const contentBytes = createContentBytes()
  const background = opening.use(createBackground({ clock, random, log }))
  const scanner = opening.use(outside.createScanner(clock))
  const enrolment = { store, clock, random, key: identity, certificateTtlMs: config.certificateTtlMs }
  const specs = createRuntimeSpecs({ store, clock, key: identity, content, members })
  const prepare = createPrepare({ store, clock, log, members, specs, policy, waiting: tasksWaiting })
  let lastUnableMs = 0
  let retrying = false
  const fleet = createFleet({ ...enrolment, log, members, replicaChanged })
  await fleet.load()

  const mesh = opening.use(
    await outside.createMesh({
      identity,
      listen: [`/ip4/${config.meshHost}/tcp/${config.meshPort}`],
      announce: config.meshAnnounce,
      coordinatorKey: identity,
      certificate: () => null,
      isCoordinator: true,
      agentVersion: `computalot-coordinator/${parts.version}`,
      log,
      clock,
      admitExpired: ({ nodeId }) => !fleet.isRevoked(nodeId),
      isKnown: (peer) => members.byPeer(peer) !== undefined,
    }),
  )
  mesh.setRevoked(fleet.revoked())
  serveContent(mesh, content, {
    coordinatorPublicKey: identity.publicKey,
    revoked: (peer) => members.byPeer(peer)?.state === "revoked",
    clock,
    log,
    limits: CONTENT_LIMITS,
    sent: ({ bytes }) => contentBytes.sent(bytes),
  })
  const adverts = createAdvertState({
    coordinatorPublicKey: identity.publicKey,
    withoutCoordinator: () => false,
    isRevoked: (node) => fleet.isRevoked(node),
  })
  mesh.subscribe(ADVERTS_TOPIC, (message) => {
    const judged = judgeAdvert(adverts, message, clock.now())
    if (judged.verdict === "accept") contact.advertised(judged.advert.nodeId, judged.advert.intervalMs)
    else if (judged.reason === TOO_FAST) reputation.floods(message.from)
    return judged
  })
  mesh.subscribe(OFFERS_TOPIC, () => ignore("our own"))

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
  const reports = {
    store,
    files,
    clock,
    random,
    artifactTtlMs: config.artifactTtlMs,
    resultSpillBytes: config.resultSpillBytes,
  }
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
    cannotPrepare,
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
        await cutOff(member)
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

  await builds.restore()
  await sweepCheckpoints(reports, clock.now())
  reservations.restore(await store.read(openReservations))
  await restoreClaims({ store, clock, members, known, queue, claimLifetimeMs: timing.claimLifetimeMs }, () =>
    jobLife.resume(),
  )
  const door = opening.use(
    openControlDoor({
      mesh,
      clock,
      random,
      log,
      key: identity,
      epoch,
      members,
      fleet,
      claims,
      checkpoints,
      builds,
      prepare,
      reputation,
      heartbeatMs,
      contentBytes,
      claimLifetimeMs: timing.claimLifetimeMs,
      wake,
      superseded,
    }),
  )
  opening.use(everyMinute())
  const stuck = createStuckSweep({ store, clock, log, members, known, jobLife })
  opening.use(every(clock, config.stuckSweepMs, () => background.run("sweep of stuck jobs", () => stuck.sweep())))
  opening.use(
    every(clock, config.stuckSweepMs, () =>
      background.run("sweep of expired jobs", (signal) => forgetExpiredJobs(signal)),
    ),
  )
  opening.use(await watchQueueTimes())
  const tally = await startTally({ store, log })
  const reach = reachOf(config)
  const queueReasons = createQueueReasons({ members, queue, kept, reservations, known, pace, specs, policy, clock })
  const reads = { ...retention, store, files, plans, members, queueReasons }
  const calling = { clock, resolve: createResolve(), reach, timeoutMs: WEBHOOK_TIMEOUT_MS }
  const webhooks = opening.use(
    createWebhooks({
      store,
      clock,
      random,
      log,
      retryMs: config.webhookRetryMs,
      call: (call, signal) => outside.callReceiver(calling, call, signal),
      async outputOf(seq) {
        const job = await readJobBySeq(store, seq)
        return job === null ? "" : (await jobOutput(reads, job, OUTPUT_LIMITS)).output
      },
      changed: (seq) => watch.changed([seq]),
    }),
  )
  opening.use(watch.listen({ changed: () => webhooks.wake() }))
  mountRoutes()
  app.open({
    store,
    probe: () => store.write((tx) => noteProbe(tx, clock.now())),
    identify: (token) => authenticator.identify(token),
    identifyNode: async (token) => {
      const node = door.nodeOfToken(token)
      return node && { node }
    },
  })
  builds.wake()
  wake()
  const opened = opening.move()

  function replicaChanged(revision: string, member: Member, news: ReplicaNews): void {
    if (news.state === "ready") specs.readyOn(revision, member)
    if (news.state === "unable") unable(revision, member, news)
    if (news.state === "failed") {
      specs.failedOn(revision, member, news)
      const failure = cannotPrepare(revision)
      if (failure) jobLife.setupFailed(revision, failure.message, failure.logTail)
    }
    wake()
  }

  /** Whatever was written from here on might be decided otherwise elsewhere. */
  async function superseded(later: number): Promise<void> {
    await store.write((tx) => recordLaterEpoch(tx, later)).finally(() => parts.onFatal(new OlderCopy(epoch, later)))
  }

  /** One timer, however often nodes say that they are unable. */
  function retryIn(ms: number): void {
    retrying = true
    clock.after(ms, () => {
      retrying = false
      prepare.wake()
      wake()
      const restsMs = lastUnableMs + REST_MS - clock.monotonicMs()
      if (restsMs > 0) retryIn(restsMs)
    })
  }

  function unable(
    revision: string,
    member: Member,
    { message, missing }: Extract<ReplicaNews, { state: "unable" }>,
  ): void {
    specs.restOn(revision, member, message)
    prepare.unable(member, revision)
    lastUnableMs = clock.monotonicMs()
    if (!retrying) retryIn(REST_MS)
    if (missing === null) return
    builds.lost(revision, missing).catch((error: unknown) => {
      log.error("a lost image could not be queued", { revision, error: errorText(error) })
    })
  }

  /** By revision. */
  function tasksWaiting(): Map<string, number> {
    const waiting = new Map<string, number>()
    for (const { sample, tasks } of queue.demand().values()) {
      const revision = known.get(sample.seq)?.revision
      if (revision !== undefined) waiting.set(revision, (waiting.get(revision) ?? 0) + tasks)
    }
    return waiting
  }

  /** It failed on every live node that could run it, or on three: the project is at fault (rulings, Failed set-up). */
  function cannotPrepare(revision: string): FailedSetup | null {
    const failures = specs.failures(revision)
    const { workers } = fleetFacts(members, policy, clock.now())
    if (failures < SETUP_FAILURES && (workers === 0 || failures < workers)) return null
    const failure = specs.failure(revision)
    return failure && { ...failure, message: `preparing the runtime failed: ${failure.message}` }
  }

  /** Nodes may have gone since that could have tried. */
  function failUnprepared(): void {
    for (const revision of new Set([...known.all()].map((job) => job.revision))) {
      const failure = cannotPrepare(revision)
      if (failure) jobLife.setupFailed(revision, failure.message, failure.logTail)
    }
  }

  function projectFleet(): FleetFacts {
    const facts = fleetFacts(members, policy, clock.now())
    return {
      ...facts,
      trouble: (revision) => specs.trouble(revision, liveWorkers(members, policy, clock.now()))?.message ?? null,
    }
  }

  function mountRoutes(): void {
    const projects = {
      store,
      clock,
      random,
      files,
      scanner,
      quoteTtlMs: config.quoteTtlMs,
      fleet: projectFleet,
      changed: () => {
        builds.wake()
        prepare.wake()
        wake()
      },
      cancelQueued: (wanted: Parameters<typeof jobLife.cancelQueued>[0]) => jobLife.cancelQueued(wanted),
    }
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
    mountFeedback(app, { store, clock, random })
    mountPresets(app)
    mountMetrics(app, {
      store,
      members,
      tally,
      requests,
      waitingTasks: () => [...queue.demand().values()].reduce((sum, { tasks }) => sum + tasks, 0),
      contentBytes: contentBytes.total,
      version: parts.version,
      metricsToken: config.metricsToken,
      identify: (token) => authenticator.identify(token),
    })
    mountStorage(app, { store, files })
    mountArtifacts(app, { store, files, clock, random, ttlMs: config.artifactTtlMs, origin: () => origin })
    mountProjects(app, projects)
    mountProjectKv(app, projects)
    const submission = {
      ...retention,
      store,
      random,
      prices,
      quoteTtlMs: config.quoteTtlMs,
      plan: takeIn,
      reserve: (wanted: CapacityWanted) => dispatch.reserve(wanted),
      workers: () => liveWorkers(members, policy, clock.now()).flatMap(({ facts }) => (facts ? [facts.capacity] : [])),
      reach,
    }
    mountBatch(app, { log, submitBatch: (request) => submitBatch(submission, request) })
    mountWebhookSecret(app, { store, clock, random })
    mountJobs(app, {
      ...reads,
      watch,
      submit: (request) => submitJob(submission, request),
      retry: (request) =>
        retryJob(
          {
            ...retention,
            store,
            random,
            quoteTtlMs: config.quoteTtlMs,
            settled: (job) => jobLife.settled(job),
            again: (job) => jobLife.again(job),
          },
          request,
        ),
      cancel: (id, account, reason) => jobLife.cancel(id, account, reason),
      ssePingMs: config.ssePingMs,
      sseLimitMs: config.sseLimitMs,
    })
    mountNodes(app, {
      ...enrolment,
      coordinator: () => ({ peerId: mesh.peerId, addresses: mesh.addresses(), epoch }),
      fleet,
      members,
      known,
      files,
      isLive,
      stage,
      payload: (attempt) => inputs.payload(attempt),
      inputs: (claim, node) => inputs.files(claim, node),
      resume: (claim, node) => checkpoints.resume(claim, node),
      drain: (member) => claims.drain(member),
      cutOff,
    })
  }

  function takeIn(job: JobRow): void {
    watch.changed([job.seq])
    jobLife.plan(job)
  }

  /** Takes back what a revoked node holds, and ends its connection. */
  async function cutOff(member: Member): Promise<void> {
    await claims.revoke(member)
    mesh.setRevoked(fleet.revoked())
    door.close(member.id, "the node was revoked")
  }

  function isLive(claim: number, node: NodeId): boolean {
    return builds.isLive(claim, node) || members.attempt(claim)?.node === node
  }

  async function stage(node: NodeId, blob: { claim: number; digest: string; size: number }): Promise<boolean> {
    const claim = claimNumber(blob.claim)
    const isBuild = builds.isLive(blob.claim, node)
    const at = clock.now()
    return await store.write(async (tx) => {
      const attempt = isBuild ? null : await attemptByClaim(tx, claim)
      if (!isBuild && (attempt?.node !== node || attempt.endedAt !== null)) return false
      await stageBlob(tx, { claim, digest: digest(blob.digest), size: blob.size, at })
      return true
    })
  }

  /** What nobody waits for: expired artifacts, unneeded bytes, old revisions, when members were last heard. */
  function everyMinute(): Disposable {
    return every(clock, Math.min(SWEEP_MS, config.artifactTtlMs), () => {
      background.run("sweep", async () => {
        const now = clock.now()
        failUnprepared()
        await fleet.storeSeen()
        await reputation.sweep()
        await sweepCheckpoints(reports, now)
        await sweepArtifacts({ store, files }, now)
        await sweepRevisions({ store }, now)
        await sweepSharedState({ store }, now)
        await sweepStaged({ store, liveClaims }, now)
        await freeReleasedBlobs({ store, files })
      })
    })
  }

  async function forgetExpiredJobs(signal: AbortSignal): Promise<void> {
    const jobs = await sweepExpiredJobs({ ...retention, store, files }, signal)
    if (jobs > 0) log.info("expired jobs removed", { jobs })
  }

  async function watchQueueTimes(): Promise<Disposable> {
    const intervalMs = Math.min(QUEUE_LOOK_MS, (config.queueTimeoutMs ?? Number.POSITIVE_INFINITY) / 4)
    const queueTimeout = createQueueTimeout({
      store,
      clock,
      known,
      queueTimeoutMs: config.queueTimeoutMs,
      intervalMs,
      hasCapacity: () => hasLiveWorker(members, clock.now()),
      cancel: (job, reason) => jobLife.cancelWaiting(job, reason),
    })
    await queueTimeout.load()
    return every(clock, intervalMs, () => background.run("queue timeouts", () => queueTimeout.look()))
  }

  async function liveClaims(
    view: Parameters<typeof attemptByClaim>[0],
    claims: ClaimNumber[],
  ): Promise<ReadonlySet<ClaimNumber>> {
    const live = new Set(builds.liveClaims())
    for (const claim of claims) if ((await attemptByClaim(view, claim))?.endedAt === null) live.add(claim)
    return live
  }

  background.run("look at stored blobs", async (signal) => {
    await sweepOrphans({ store, files }, clock.now(), signal)
    const { missing, missingCount } = await inspectBlobs({ store, files }, signal)
    for (const { digest: blob, neededBy } of missing.slice(0, MISSING_NAMED)) {
      log.error("a stored blob is missing", { digest: blob, ...neededBy })
    }
    if (missingCount > 0) log.error("stored blobs are missing: put them back below blobs/", { blobs: missingCount })
  })
  return {
    origin: server.origin,
    meshAddresses: mesh.addresses(),
    peerId: mesh.peerId,
    adminToken,
    async [Symbol.asyncDispose]() {
      app.close()
      dispatch.stop()
      await server.close()
      await opened.disposeAsync()
    },
  }
}

/** Of one call: GAP-61. */
const WEBHOOK_TIMEOUT_MS = 10_000
/** In the log; `GET /admin/storage` names more. */
const MISSING_NAMED = 20
/** Nodes on which preparing failed, after which the project is taken to be at fault. */
const SETUP_FAILURES = 3
