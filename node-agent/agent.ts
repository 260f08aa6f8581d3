import { mkdirSync } from "node:fs"
import { statfs } from "node:fs/promises"
import { join, resolve } from "node:path"
import { present, unreachable } from "../protocol/base/assert.ts"
import { every, sleep, type Clock } from "../protocol/base/clock.ts"
import { errorText } from "../protocol/base/error-text.ts"
import type { Log } from "../protocol/base/log.ts"
import type { Random } from "../protocol/base/random.ts"
import { newBootId, nodeId, peerId, revisionId, type NodeId, type PeerId } from "../protocol/domain/ids.ts"
import type { Capacity } from "../protocol/domain/requirements.ts"
import type { Isolation, NodeRole } from "../protocol/domain/statuses.ts"
import { createMeshNode } from "../protocol/mesh/create-mesh-node.ts"
import { loadOrCreateIdentity } from "../protocol/mesh/identity.ts"
import { keepConnected } from "../protocol/mesh/redial.ts"
import { verifyCertificate } from "../protocol/wire/certificate.ts"
import {
  CONTROL_VERSION,
  MOST_HELD,
  type Hello,
  type RevokedAhead,
  type ToCoordinator,
  type ToNode,
  type Welcome,
  type WireCapacity,
} from "../protocol/wire/control.ts"
import { publicKeyOfPeerId } from "../protocol/wire/signing.ts"
import { PROTOCOL_VERSION } from "../protocol/wire/version.ts"
import { openBlobs } from "./cache/blobs.ts"
import { createHasher } from "./cache/hasher.ts"
import type { NodeConfig } from "./config.ts"
import { probeHardware } from "./hardware/probe.ts"
import { advertise } from "./mesh/advertise.ts"
import { createComplaints } from "./mesh/complaints.ts"
import { createCoordinatorLink, type CoordinatorLink } from "./mesh/coordinator-link.ts"
import { enrol, EnrolmentRefused, readMembership, writeMembership, type Membership } from "./mesh/enrol.ts"
import { createFetchContent } from "./mesh/fetch-content.ts"
import { hearAdverts } from "./mesh/heard-adverts.ts"
import { createWants, hearOffers, worthPreparing } from "./mesh/offers.ts"
import { watchRefusals } from "./mesh/refusals.ts"
import { shareContent } from "./mesh/share-content.ts"
import { watchTime } from "./mesh/time-jumps.ts"
import { createTransfers, TransferRefused } from "./mesh/transfers.ts"
import { lockDataDir } from "./outbox/data-dir-lock.ts"
import { openOutbox } from "./outbox/outbox.ts"
import { chooseDriver } from "./runtime/choose-driver.ts"
import { boundBuilds } from "./runtime/bound-builds.ts"
import { createImageBuilder } from "./runtime/images/build.ts"
import { createImageStore } from "./runtime/images/images.ts"
import { openLayerStore } from "./runtime/images/layer-store.ts"
import { openTaskGroups } from "./runtime/limits.ts"
import { openTaskNetworks, type TaskNetworks } from "./runtime/network.ts"
import { openBuildOrders, type BuildOrders, type BuildOrdersParts } from "./tasks/build-orders.ts"
import { createCheckpoints } from "./tasks/checkpoints.ts"
import { createClaimLoop } from "./tasks/claim-loop.ts"
import { createDelivery, UploadRefused, type DeliveryParts } from "./tasks/deliver.ts"
import { machineEnvironment } from "./tasks/environment.ts"
import { createFetchInputs } from "./tasks/inputs.ts"
import { createAttemptRunner } from "./tasks/run-attempt.ts"
import { createResume } from "./tasks/resume.ts"
import { createRuntimes } from "./tasks/runtimes.ts"
import { keepStandingClaim } from "./tasks/standing-claim.ts"

export interface AgentParts {
  config: NodeConfig
  clock: Clock
  random: Random
  log: Log
  version: string
  /** A simulation's own mesh, machine, programs and threads, or a benchmark's; what is left out is real. */
  outside?: Partial<AgentOutside>
  /** Gives up starting: a first start waits for the coordinator for ever. */
  signal?: AbortSignal
}

/** What the agent reaches the world through. */
export interface AgentOutside {
  createMesh: typeof createMeshNode
  probeHardware: typeof probeHardware
  chooseDriver: typeof chooseDriver
  createHasher: typeof createHasher
  createRuntimes: typeof createRuntimes
  createRunner: typeof createAttemptRunner
  /** In place of this machine's own image builder; null: it builds nothing. */
  openBuilds?: (parts: Pick<BuildOrdersParts, "upload" | "send">) => Promise<BuildOrders | null>
}

const REAL: AgentOutside = {
  createMesh: createMeshNode,
  probeHardware,
  chooseDriver,
  createHasher,
  createRuntimes,
  createRunner: createAttemptRunner,
}

export interface Agent extends AsyncDisposable {
  /** Resolves once the coordinator counts this node's capacity; rejects with `AgentStopped`, or when disposed of before. */
  readonly ready: Promise<AgentFacts>
  /** Resolves when the agent cannot go on: one line for the operator. Dispose of it then, and exit non-zero. */
  readonly stopped: Promise<AgentStopped>
  /** Takes no more grants. Resolves when nothing runs and nothing waits for an answer; `now` ends what runs and gives it back. */
  drain(mode: DrainMode): Promise<void>
}

/** `checkpoint`: as `now`, once every attempt that runs has left a durable checkpoint, or half a minute is over. */
export type DrainMode = "finish" | "checkpoint" | "now"

export interface AgentFacts {
  nodeId: NodeId
  peerId: string
  listen: string[]
  runtime: string
  isolation: Isolation
  roles: NodeRole[]
}

/** The coordinator will not have this node any more. */
export class AgentStopped extends Error {
  override name = "AgentStopped"
}

/** Of results that wait for an answer: above half of it nothing new is claimed, full no attempt is collected (architecture §5.3). */
const OUTBOX_QUOTA_BYTES = 256 * 1024 ** 2
/** With less free disk nothing new is claimed. */
const LEAST_FREE_BYTES = 256 * 1024 ** 2
/** Short tasks handed over ahead of free slots, at most. */
const CREDIT = 256
const LOOK_AT_DISK_MS = 5_000
/** Without contact for this long the coordinator may have moved: its addresses are asked for again. */
const ASK_ADDRESSES_MS = 10_000
/** A build's weight against tasks: it takes more while nothing else wants it. */
const BUILD_CPU = 1
/** Of buildah, runsc and what RUN starts, threads included. */
const BUILD_PIDS = 4096
/** Attempts in one heartbeat. */
const MOST_NAMED = 10_000
/** What a task may take to reach its next checkpoint (rulings, Drain). */
const CHECKPOINT_WAIT_MS = 30_000
const LOOK_FOR_CHECKPOINTS_MS = 100
/** Answers of a drained agent that are waited for. */
const LAST_VERDICTS_MS = 30_000

/**
 * Builds every part once, in the order in which they need one another. At a first start it waits for the coordinator. Rejects
 * with one clear line for the operator.
 */
export async function createAgent(parts: AgentParts): Promise<Agent> {
  const { config, clock, random, log } = parts
  const outside: AgentOutside = { ...REAL, ...parts.outside }
  const dataDir = resolve(config.dataDir)
  await using opening = new AsyncDisposableStack()
  opening.use(lockDataDir(dataDir))
  const hardware = await outside.probeHardware({
    dataDir,
    path: config.environment.PATH ?? "",
    caps: config.caps,
    mayExceed: config.runtime === "process",
  })
  const capacity = wireCapacity(hardware.capacity)
  const identity = await loadOrCreateIdentity(join(dataDir, "node.key"), random)
  const outbox = opening.use(openOutbox(join(dataDir, "outbox.sqlite"), clock.now()))
  const membershipFile = join(dataDir, "membership.json")
  const enrolment = { ...parts, identity, origin: config.coordinator, token: config.token, name: config.name }
  const enrolNow = async (signal: AbortSignal): Promise<Membership> => {
    const member = await enrol({ ...enrolment, agentVersion: parts.version }, signal)
    writeMembership(membershipFile, member)
    return member
  }
  let member = readMembership(membershipFile) ?? (await enrolNow(parts.signal ?? new AbortController().signal))

  // ── what runs tasks ───────────────────────────────────────────────────────────────────────────────────────────────

  const attemptsDir = join(dataDir, "attempts")
  mkdirSync(attemptsDir, { recursive: true, mode: 0o711 })
  const blockedAddresses = addressesOf([config.coordinator, ...member.coordinator.addrs])
  const { driver, probe, problems } = await outside.chooseDriver(
    config.runtime,
    { dataDir, attemptsDir, blockedAddresses },
    config,
  )
  opening.use(driver)
  for (const problem of [...hardware.problems, ...problems]) log.warn("not everything works here", { problem })
  if (config.taskNetwork === "outbound" && probe.network === "none") {
    const why = driver.name === "process" ? "plain processes share the machine's network" : probe.problems.join("; ")
    throw new Error(`--task-network outbound cannot be enforced here: ${why}`)
  }
  const network = config.taskNetwork === "none" ? "none" : probe.network
  const hasher = opening.use(outside.createHasher(clock))
  const halfCache = Math.floor(config.cacheBytes / 2)
  const blobs = opening.use(
    await openBlobs({ directory: join(dataDir, "blobs"), quotaBytes: halfCache, clock, log, hasher }),
  )
  const layers =
    driver.name === "process"
      ? null
      : opening.use(await openLayerStore({ directory: join(dataDir, "layers"), quotaBytes: halfCache, clock, log }))

  // ── the mesh ──────────────────────────────────────────────────────────────────────────────────────────────────────

  let stop: (reason: AgentStopped) => void = () => {}
  const stopped = new Promise<AgentStopped>((settle) => (stop = settle))
  const cannotGoOn = (line: string): void => {
    log.error("the agent cannot go on", { reason: line })
    stop(new AgentStopped(line))
  }
  const coordinator = {
    peerId: peerId(member.coordinator.peer_id),
    publicKey: present(publicKeyOfPeerId(member.coordinator.peer_id), "the coordinator's key in its peer id"),
    addresses: () => member.coordinator.addrs,
  }
  const origin = () => ({ peer: coordinator.peerId, addresses: coordinator.addresses() })
  const mesh = opening.use(
    await outside.createMesh({
      identity,
      listen: config.listen,
      announce: config.announce,
      coordinatorKey: coordinator,
      certificate: () => member.certificate,
      isCoordinator: false,
      agentVersion: `computalot-node/${parts.version}`,
      log,
      clock,
      refused({ peer, by, reason }) {
        if (peer !== coordinator.peerId || by !== "them") return
        if (reason === "revoked") cannotGoOn("this node was revoked")
        if (reason === "version") cannotGoOn("the coordinator speaks no protocol version that this agent knows")
      },
    }),
  )
  /** What the coordinator last told of the world. */
  const world = { offsetMs: 0, members: 0, peers: member.peers, revoked: new Set<string>(), revocationVersion: 0 }
  const coordinatorNow = (): number => clock.now() + world.offsetMs
  /** None until what an earlier agent left is taken up: that may speak already, and says it again once it is welcomed. */
  let link: CoordinatorLink | null = null
  const connected = (): boolean => link?.connected === true
  const isRevoked = (node: NodeId): boolean => world.revoked.has(node)
  const membershipOf = (peer: PeerId): NodeId | null => mesh.membership(peer)?.nodeId ?? null
  /** Opened last: it tries a build first. */
  let builds: BuildOrders | null = null
  shareContent(mesh, blobs, {
    coordinatorPublicKey: coordinator.publicKey,
    revoked: (peer) => {
      const node = membershipOf(peer)
      return node !== null && isRevoked(node)
    },
    remakes: (blob) => builds?.remakes(blob) ?? false,
    clock,
    log,
  })
  const heard = hearAdverts({
    mesh,
    coordinatorPublicKey: coordinator.publicKey,
    withoutCoordinator: () => !connected(),
    isRevoked,
    now: coordinatorNow,
    clock,
  })
  hearOffers({
    mesh,
    coordinator: coordinator.peerId,
    now: coordinatorNow,
    heard(offers) {
      const { capacity: whole } = hardware
      if (connected() && mayClaim()) {
        wants.heard(
          worthPreparing(offers, { ...probe, roles, capacity: whole, knows: (revision) => runtimes.knows(revision) }),
        )
      }
      // The list of revoked members comes with a welcome.
      if (connected() && offers.revocationVersion > world.revocationVersion) link?.reconnect("members were revoked")
    },
  })
  const wants = createWants({ clock, ask: (revisions) => send({ type: "want", revisions }) })
  const convicted = createComplaints({ clock, send: (message) => send(message) })
  let peerBytes = 0
  const fetch = createFetchContent({
    mesh,
    blobs,
    clock,
    random,
    log,
    convicted,
    received: ({ source, bytes }) => void (peerBytes += source === "peer" ? bytes : 0),
  })

  // ── tasks ─────────────────────────────────────────────────────────────────────────────────────────────────────────

  const closing = new AbortController()
  let transferToken: string | null = null
  const transfers = createTransfers(config.coordinator, () => transferToken)
  const upload: DeliveryParts["upload"] = async (claim, file, signal, sent) => {
    try {
      await transfers.upload(claim, file, signal, sent)
    } catch (error) {
      throw error instanceof TransferRefused ? new UploadRefused(error.message, { cause: error }) : error
    }
  }
  const send = (message: ToCoordinator): void => link?.send(message)
  const machineEnv = machineEnvironment(config.environment)
  const runtimes = outside.createRuntimes({
    directory: join(dataDir, "runtimes"),
    blobs,
    fetch,
    images: layers && { layers, store: createImageStore({ layers, basesDirectory: resolve(config.basesDirectory) }) },
    validate: { driver, attemptsDir, network, machineEnv },
    origin,
    holdersOf: (revision) => heard.holdersOf(revision),
    send,
    changed() {
      standing.changed()
      adverts.changed()
    },
    treeQuotaBytes: halfCache,
    clock,
    log,
  })
  const checkpoints = createCheckpoints({ outbox, hasher, send, upload, clock, random, log })
  const runner = outside.createRunner({
    driver,
    runtimes,
    attemptsDir,
    network,
    machineEnv,
    hasher,
    downloadPayload: (claim, signal) => transfers.payload(claim, signal),
    checkpoints,
    resume: createResume({
      ask: (claim, signal) => transfers.resume(claim, signal),
      blobs,
      fetch,
      origin,
      connected,
      send,
      clock,
      random,
      log,
    }),
    inputs: createFetchInputs({
      ask: (claim, signal) => transfers.inputs(claim, signal),
      blobs,
      fetch,
      origin,
      connected,
      clock,
      random,
      log,
    }),
    // What ends while the agent stops is collected by the next one.
    outboxFull: () => closing.signal.aborted || outbox.waitingBytes() >= OUTBOX_QUOTA_BYTES,
    clock,
    log,
  })
  const claimLoop = createClaimLoop({
    outbox,
    runner,
    capacity: () => capacity,
    send,
    full: () => standing.changed(),
    deliver: () => delivery.wake(),
    clock,
    log,
    keepRunningMs: config.keepRunningMs,
  })
  const delivery = createDelivery({
    outbox,
    send,
    connected,
    upload,
    discard: (claim) => runner.discard(claim),
    clock,
    random,
    log,
  })
  const roles = rolesOf(member, coordinator.publicKey, config, log, clock)
  builds = roles.includes("builder") ? await (outside.openBuilds ?? openBuilds)({ upload, send }) : null
  if (builds === null && roles.includes("builder")) roles.splice(roles.indexOf("builder"), 1)

  async function openBuilds(): Promise<BuildOrders | null> {
    if (driver.name === "process") return null
    const directory = join(dataDir, "builder")
    const groups = openTaskGroups(dataDir)
    if (!groups.enforces.includes("memory")) log.warn("builds are not limited: no control groups can be made here")
    const networks = await buildNetworks(directory)
    const builder = await createImageBuilder({
      directory,
      bounds: boundBuilds({
        groups,
        limits: {
          memoryBytes: Math.floor(hardware.capacity.memoryMb * 1024 ** 2),
          cpu: Math.min(BUILD_CPU, hardware.capacity.cpu),
          pids: BUILD_PIDS,
        },
        networks,
      }),
      basesDirectory: resolve(config.basesDirectory),
      pullBases: config.pullBases,
      packages: { pipIndexUrl: config.pipIndexUrl ?? undefined, npmRegistry: config.npmRegistry ?? undefined },
      log,
    })
    const found = await builder.probe()
    for (const problem of found.problems) log.warn("not every image can be built here", { problem })
    if (!found.available) {
      await builder[Symbol.asyncDispose]()
      return null
    }
    opening.use(builder)
    return await openBuildOrders({
      builder,
      directory: join(dataDir, "builds"),
      blobs,
      fetch,
      origin,
      upload,
      send,
      clock,
      random,
      log,
    })
  }

  /** Of builds alone, or null. Throws where the operator asks for what cannot be enforced here. */
  async function buildNetworks(directory: string): Promise<TaskNetworks | null> {
    if (config.buildNetwork === "none") return null
    const networks = await openTaskNetworks(directory, blockedAddresses)
    if (networks.problem !== null) {
      if (config.buildNetwork === "outbound") throw new Error(`--build-network outbound: ${networks.problem}`)
      log.warn("builds get no network", { problem: networks.problem })
      return null
    }
    await networks.sweep([])
    opening.defer(() => networks.close())
    return networks
  }

  // ── the coordinator ───────────────────────────────────────────────────────────────────────────────────────────────

  const state = { draining: false, drainedByAdmin: false, roomOnDisk: true }
  const bootId = newBootId(random)
  const standing = keepStandingClaim({
    current: () => ({
      open: mayClaim(),
      draining: state.draining || state.drainedByAdmin,
      capacity,
      warm: runtimes.warm(),
      credit: CREDIT,
    }),
    send,
  })
  const mayClaim = (): boolean =>
    !state.draining &&
    !state.drainedByAdmin &&
    state.roomOnDisk &&
    outbox.heldCount() < MOST_HELD &&
    outbox.waitingBytes() < OUTBOX_QUOTA_BYTES / 2
  const facts: AgentFacts = {
    nodeId: nodeId(member.node_id),
    peerId: identity.peerId,
    listen: mesh.addresses(),
    runtime: driver.name,
    isolation: probe.isolation,
    roles,
  }
  let becomeReady: (facts: AgentFacts) => void = () => {}
  const ready = new Promise<AgentFacts>((settle, reject) => {
    becomeReady = settle
    void stopped.then(reject)
  })
  ready.catch(() => {})

  function hello(): Hello {
    const { epoch, epochProof } = outbox.memory()
    return {
      type: "hello",
      version: CONTROL_VERSION,
      agent_version: parts.version,
      boot_id: bootId,
      epoch,
      epoch_proof: epochProof,
      roles,
      capacity,
      runtime: driver.name,
      isolation: probe.isolation,
      enforces: probe.enforces,
      network,
      addresses: mesh.addresses().slice(0, 16),
      attempts: claimLoop.heldClaims(),
    }
  }

  function welcomed(welcome: Welcome): void {
    const known = outbox.memory().epoch
    if (welcome.epoch < known) return link?.reconnect("the coordinator runs on an older copy of its data")
    if (welcome.epoch > known) outbox.rememberEpoch(welcome.epoch, welcome.epoch_proof)
    world.offsetMs = welcome.now - clock.now()
    world.members = welcome.members
    world.peers = welcome.peers
    world.revoked = new Set(welcome.revoked)
    world.revocationVersion = welcome.revocation_version
    transferToken = welcome.transfer_token
    mesh.setRevoked(welcome.revoked.map(nodeId))
    adverts.setMembers(welcome.members)
    if (welcome.certificate !== null) renewed(welcome.certificate)
    claimLoop.welcome(welcome)
    delivery.welcome(welcome.claim_lifetime_ms)
    checkpoints.welcome()
    builds?.welcome()
    runtimes.announce()
    standing.welcome()
    wants.welcome()
  }

  function renewed(certificate: string): void {
    member = { ...member, certificate }
    writeMembership(membershipFile, member)
    void mesh
      .showCertificate()
      .catch((error: unknown) => log.warn("certificate not shown", { error: errorText(error) }))
  }

  function heardMessage(message: Exclude<ToNode, Welcome | RevokedAhead>, sentAtMs: number): void {
    switch (message.type) {
      case "refusal":
        return
      case "grant":
        return claimLoop.grant(message)
      case "verdicts": {
        const results = message.items.filter(({ kind }) => kind === "result")
        if (results.length > 0) delivery.verdicts(results)
        checkpoints.verdicts(message.items.filter(({ kind }) => kind === "checkpoint"))
        builds?.verdicts(message.items.filter(({ kind }) => kind === "build"))
        return
      }
      case "heartbeat_reply":
        claimLoop.renewed(message.renewed, sentAtMs)
        if (message.spent.length > 0) claimLoop.spent(message.spent)
        return becomeReady(facts)
      case "cancel":
        return claimLoop.spent(message.claims)
      case "take_back":
        return claimLoop.takeBack(message.claims)
      case "prepare":
        return runtimes.prepare(message.runtime)
      case "build":
        return builds === null ? refuseBuild(message.claim) : builds.order(message)
      case "cancel_build":
        return builds?.cancel(message.claim)
      case "node_state":
        if (message.state === "revoked") return cannotGoOn("this node was revoked")
        state.drainedByAdmin = message.state === "draining"
        adverts.changed()
        return standing.changed()
      case "certificate":
        return renewed(message.certificate)
      default:
        return unreachable(message)
    }
  }

  function refuseBuild(claim: number): void {
    send({
      type: "built",
      claim,
      outcome: { ok: false, kind: "node", message: "this node builds nothing" },
      log_tail: "",
    })
  }

  /** Nothing new is taken meanwhile, and what ends by itself is delivered. */
  async function untilCheckpointed(): Promise<void> {
    const sinceMs = clock.monotonicMs()
    void claimLoop.drain("finish")
    while (checkpoints.publishedSince(sinceMs) < claimLoop.activeCount()) {
      if (clock.monotonicMs() - sinceMs >= CHECKPOINT_WAIT_MS) return
      await sleep(clock, LOOK_FOR_CHECKPOINTS_MS)
    }
  }

  /** Results on their way are ours too. Never waits: it only names. */
  function heartbeat(): ReturnType<typeof claimLoop.heartbeat> {
    const named = claimLoop.heartbeat()
    const known = new Set(named.map(({ claim }) => claim))
    for (const claim of delivery.advancing()) if (!known.has(claim)) named.push({ claim, running_ms: null })
    return named.slice(0, MOST_NAMED)
  }

  const adverts = opening.use(
    advertise({
      mesh,
      facts: () => ({
        nodeId: facts.nodeId,
        certificate: member.certificate,
        bootId,
        agentVersion: parts.version,
        protocolVersion: PROTOCOL_VERSION,
        draining: state.draining || state.drainedByAdmin,
        capacity: hardware.capacity,
        drivers: [{ name: driver.name, isolation: probe.isolation, enforces: probe.enforces, network }],
        warm: runtimes.warm().map(revisionId),
        addresses: mesh.addresses().slice(0, 16),
      }),
      now: coordinatorNow,
      clock,
      random,
      log,
    }),
  )
  await runtimes.restore()
  await claimLoop.recover()

  let lostSinceMs = clock.monotonicMs()
  link = createCoordinatorLink({
    mesh,
    coordinator,
    clock,
    random,
    log,
    hello,
    heartbeat,
    peerBytes: () => peerBytes,
    onWelcome: welcomed,
    onMessage: heardMessage,
    onLost() {
      lostSinceMs = clock.monotonicMs()
      delivery.lost()
      adverts.coordinatorLost()
    },
    onRefused(reason, message) {
      if (reason === "revoked" || reason === "version" || reason === "malformed") cannotGoOn(message)
      else log.warn("the coordinator refused this node for now", { reason, message })
    },
  })

  // ── supervision ───────────────────────────────────────────────────────────────────────────────────────────────────

  const redialing = keepConnected({
    mesh,
    clock,
    random,
    log,
    coordinator,
    peerAddresses: () => [...world.peers, ...heard.addresses()],
    members: () => world.members,
    signal: closing.signal,
  })
  const following = followCoordinator()
  const refusals = watchRefusals({ mesh, clock, coordinator: coordinator.peerId, send })
  const timing = watchTime(clock, (reason) => {
    claimLoop.pause()
    link?.reconnect(reason)
  })
  const looking = every(clock, LOOK_AT_DISK_MS, () => void lookAtDisk())

  /** A coordinator that moved is found through its API, by whoever still has the token. */
  async function followCoordinator(): Promise<void> {
    while (!closing.signal.aborted) {
      await sleep(clock, ASK_ADDRESSES_MS, closing.signal).catch(() => {})
      if (closing.signal.aborted || connected() || config.token === null) continue
      if (clock.monotonicMs() - lostSinceMs < ASK_ADDRESSES_MS) continue
      try {
        const found = await enrolNow(closing.signal)
        if (found.coordinator.peer_id === coordinator.peerId) member = found
        else return cannotGoOn("another coordinator answers at this address")
      } catch (error) {
        if (error instanceof EnrolmentRefused) return cannotGoOn(error.message)
      }
    }
  }

  async function lookAtDisk(): Promise<void> {
    try {
      outbox.flush()
    } catch (error) {
      log.warn("answered results stay in the outbox for now", { error: errorText(error) })
    }
    const { bavail, bsize } = await statfs(dataDir)
    const room = bavail * bsize >= LEAST_FREE_BYTES
    if (room !== state.roomOnDisk) log.warn(room ? "there is disk again" : "the disk is full: nothing new is claimed")
    state.roomOnDisk = room
    standing.changed()
  }

  opening.defer(async () => {
    closing.abort(new Error("the agent stops"))
    looking[Symbol.dispose]()
    timing[Symbol.dispose]()
    refusals[Symbol.dispose]()
    await link?.[Symbol.asyncDispose]()
    await Promise.all([redialing, following])
    await builds?.[Symbol.asyncDispose]()
    await delivery[Symbol.asyncDispose]()
    await checkpoints[Symbol.asyncDispose]()
    await claimLoop[Symbol.asyncDispose]()
    await runtimes[Symbol.asyncDispose]()
  })
  const opened = opening.move()
  return {
    ready,
    stopped,
    async drain(mode) {
      state.draining = true
      standing.changed()
      adverts.changed()
      if (mode === "checkpoint") await untilCheckpointed()
      await claimLoop.drain(mode === "finish" ? "finish" : "now")
      const untilMs = clock.monotonicMs() + LAST_VERDICTS_MS
      while (connected() && outbox.waitingBytes() > 0 && clock.monotonicMs() < untilMs) await sleep(clock, 50)
    },
    [Symbol.asyncDispose]: () => opened[Symbol.asyncDispose](),
  }
}

function wireCapacity({ cpu, memoryMb, storageGb, gpus }: Capacity): WireCapacity {
  const wireGpus = gpus.map((gpu) => ({ uuid: gpu.uuid, model: gpu.model, memory_mb: gpu.memoryMb }))
  return { cpu, memory_mb: memoryMb, storage_gb: storageGb, gpus: wireGpus }
}

/** What the certificate grants, less what the operator leaves out; more than it grants is cut, with a warning. */
function rolesOf(member: Membership, key: Uint8Array, config: NodeConfig, log: Log, clock: Clock): NodeRole[] {
  const verdict = verifyCertificate(member.certificate, key, clock.now(), { withoutCoordinator: true })
  const granted = "membership" in verdict ? verdict.membership.roles : []
  const wanted = config.roles ?? granted
  const cut = wanted.filter((role) => !granted.includes(role))
  if (cut.length > 0) log.warn("the token does not grant every role asked for", { left_out: cut })
  return wanted.filter((role) => granted.includes(role))
}

/** IPv4 addresses in URLs and multiaddrs. */
function addressesOf(texts: readonly string[]): string[] {
  return texts.flatMap((text) => /(?:\/\/|\/ip4\/)(\d+(?:\.\d+){3})(?=[:/]|$)/.exec(text)?.[1] ?? [])
}
