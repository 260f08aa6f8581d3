import { mkdir } from "node:fs/promises"
import { join } from "node:path"
import type { Clock } from "../protocol/base/clock.ts"
import type { Log } from "../protocol/base/log.ts"
import type { Random } from "../protocol/base/random.ts"
import { judgeAdvert, createAdvertState, TOO_FAST } from "../protocol/gossip/node-advert.ts"
import { ADVERTS_TOPIC, OFFERS_TOPIC } from "../protocol/gossip/topics.ts"
import { ignore } from "../protocol/gossip/verdict.ts"
import { createMeshNode } from "../protocol/mesh/create-mesh-node.ts"
import { loadOrCreateIdentity } from "../protocol/mesh/identity.ts"
import { serveContent } from "../protocol/mesh/serve-content.ts"
import { createAuthenticator } from "./accounts/authenticate.ts"
import { bootstrapToken } from "./accounts/bootstrap-token.ts"
import { createObjectContent } from "./artifacts/object-content.ts"
import { openObjectFiles } from "./artifacts/object-files.ts"
import { DEFAULT_PRICES, readPrices } from "./billing/pricing.ts"
import type { CoordinatorConfig } from "./config.ts"
import { createDocuments } from "./documents/documents.ts"
import { startTally } from "./events/tally.ts"
import { createJobWatch } from "./events/watch.ts"
import { createContentBytes } from "./fleet/content-bytes.ts"
import { createFleet } from "./fleet/fleet.ts"
import { heartbeatIntervalMs } from "./fleet/liveness.ts"
import { createMembers, type Member } from "./fleet/members.ts"
import { createHttpApp } from "./http/app.ts"
import { createRequestMetrics } from "./http/request-metrics.ts"
import { mountDocuments } from "./http/routes/documents.ts"
import { mountOps } from "./http/routes/ops.ts"
import { startHttpServer } from "./http/server.ts"
import { createBackground } from "./jobs/background.ts"
import { sweepCheckpoints } from "./jobs/checkpoints.ts"
import { createKnownJobs } from "./jobs/job-facts.ts"
import { createPlans } from "./jobs/plans.ts"
import { jobOutput, OUTPUT_LIMITS } from "./jobs/read/output.ts"
import { readJobBySeq } from "./jobs/read/read-job.ts"
import { openControlDoor } from "./mesh/control-door.ts"
import { mountRoutes } from "./mount-routes.ts"
import { createTarballScanner } from "./projects/tarball.ts"
import { createKeptNodes } from "./scheduler/kept-nodes.ts"
import { createLiveClaims } from "./scheduler/live-claims.ts"
import { createPace } from "./scheduler/pace.ts"
import { createPrepare, waitingByRevision } from "./scheduler/prepare.ts"
import { createQueueReasons } from "./scheduler/queue-reason.ts"
import { createReadyQueue } from "./scheduler/ready-queue.ts"
import { restoreClaims } from "./scheduler/restore-claims.ts"
import { createRuntimeSpecs } from "./scheduler/runtime-specs.ts"
import { startScheduler } from "./start-scheduler.ts"
import { lookAtBlobs, startSweeps } from "./start-sweeps.ts"
import { noteProbe, OlderCopy, recordLaterEpoch, startEpoch } from "./store/meta.ts"
import { openStore } from "./store/open-store.ts"
import { openReservations } from "./store/reservations.ts"
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
  const prepare = createPrepare({
    store,
    clock,
    log,
    members,
    specs,
    policy,
    waiting: () => waitingByRevision(queue, known),
  })
  const fleet = createFleet({
    ...enrolment,
    log,
    members,
    replicaChanged: (revision, member, news) => replicas.changed(revision, member, news),
  })
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

  const reports = {
    store,
    files,
    clock,
    random,
    artifactTtlMs: config.artifactTtlMs,
    resultSpillBytes: config.resultSpillBytes,
  }
  const shared = {
    config,
    clock,
    random,
    log,
    store,
    epoch,
    files,
    mesh,
    fleet,
    members,
    known,
    queue,
    watch,
    background,
    specs,
    prepare,
    policy,
    reports,
    cutOff,
  }
  const scheduler = startScheduler(opening, { ...shared, content, plans, kept, pace, timing })
  const { wake, replicas, jobLife, reputation, contact, claims, builds, checkpoints } = scheduler
  const liveClaims = createLiveClaims({ store, clock, members, builds })

  await builds.restore()
  await sweepCheckpoints(reports, clock.now())
  scheduler.reservations.restore(await store.read(openReservations))
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
  const sweeps = { ...shared, scheduler, liveClaims }
  await startSweeps(opening, sweeps)
  const tally = await startTally({ store, log })
  const reach = reachOf(config)
  const { reservations } = scheduler
  const queueReasons = createQueueReasons({ members, queue, kept, reservations, known, pace, specs, policy, clock })
  const reads = { clock, jobRetentionMs: config.jobRetentionMs, store, files, plans, members, queueReasons }
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
  mountRoutes(app, {
    ...shared,
    version: parts.version,
    origin,
    scanner,
    authenticator,
    prices,
    enrolment,
    tally,
    requests,
    contentBytes,
    reads,
    reach,
    scheduler,
    liveClaims,
  })
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

  /** Whatever was written from here on might be decided otherwise elsewhere. */
  async function superseded(later: number): Promise<void> {
    await store.write((tx) => recordLaterEpoch(tx, later)).finally(() => parts.onFatal(new OlderCopy(epoch, later)))
  }

  /** Takes back what a revoked node holds, and ends its connection. */
  async function cutOff(member: Member): Promise<void> {
    await claims.revoke(member)
    mesh.setRevoked(fleet.revoked())
    door.close(member.id, "the node was revoked")
  }

  lookAtBlobs(sweeps)
  return {
    origin: server.origin,
    meshAddresses: mesh.addresses(),
    peerId: mesh.peerId,
    adminToken,
    async [Symbol.asyncDispose]() {
      app.close()
      scheduler.dispatch.stop()
      await server.close()
      await opened.disposeAsync()
    },
  }
}

/** Of one call: GAP-61. */
const WEBHOOK_TIMEOUT_MS = 10_000
