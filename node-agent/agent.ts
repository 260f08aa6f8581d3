import { join, resolve } from "node:path"
import { present } from "../protocol/base/assert.ts"
import { sleep, type Clock } from "../protocol/base/clock.ts"
import { errorText } from "../protocol/base/error-text.ts"
import type { Log } from "../protocol/base/log.ts"
import type { Random } from "../protocol/base/random.ts"
import { newBootId, nodeId, peerId, revisionId, type NodeId } from "../protocol/domain/ids.ts"
import type { Capacity } from "../protocol/domain/requirements.ts"
import type { Isolation, NodeRole } from "../protocol/domain/statuses.ts"
import { createMeshNode } from "../protocol/mesh/create-mesh-node.ts"
import { loadOrCreateIdentity } from "../protocol/mesh/identity.ts"
import { verifyCertificate } from "../protocol/wire/certificate.ts"
import { MOST_HELD, type ToCoordinator, type WireCapacity } from "../protocol/wire/control.ts"
import { publicKeyOfPeerId } from "../protocol/wire/signing.ts"
import { PROTOCOL_VERSION } from "../protocol/wire/version.ts"
import { createHasher } from "./cache/hasher.ts"
import type { NodeConfig } from "./config.ts"
import { probeHardware } from "./hardware/probe.ts"
import { advertise } from "./mesh/advertise.ts"
import { createCoordinatorLink, type CoordinatorLink } from "./mesh/coordinator-link.ts"
import { enrol, readMembership, writeMembership, type Membership } from "./mesh/enrol.ts"
import { createTransfers, TransferRefused } from "./mesh/transfers.ts"
import { openMachine } from "./open-machine.ts"
import { lockDataDir } from "./outbox/data-dir-lock.ts"
import { openOutbox } from "./outbox/outbox.ts"
import { chooseDriver } from "./runtime/choose-driver.ts"
import { createImageStore } from "./runtime/images/images.ts"
import { startBuilds } from "./start-builds.ts"
import { startMesh, type World } from "./start-mesh.ts"
import { supervise } from "./supervise.ts"
import { talkToCoordinator } from "./talk-to-coordinator.ts"
import type { BuildOrders, BuildOrdersParts } from "./tasks/build-orders.ts"
import { createCheckpoints } from "./tasks/checkpoints.ts"
import { createClaimLoop } from "./tasks/claim-loop.ts"
import { createDelivery, UploadRefused, type DeliveryParts } from "./tasks/deliver.ts"
import { machineEnvironment } from "./tasks/environment.ts"
import { createFetchInputs } from "./tasks/inputs.ts"
import { createResume } from "./tasks/resume.ts"
import { createAttemptRunner } from "./tasks/run-attempt.ts"
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
/** Short tasks handed over ahead of free slots, at most. */
const CREDIT = 256
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

  const blockedAddresses = addressesOf([config.coordinator, ...member.coordinator.addrs])
  const machine = await openMachine(opening, { config, dataDir, hardware, blockedAddresses, clock, log, outside })
  const { driver, probe, network, attemptsDir, hasher, blobs, layers, halfCache } = machine

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
  const world: World = { offsetMs: 0, members: 0, peers: member.peers, revoked: new Set(), revocationVersion: 0 }
  const coordinatorNow = (): number => clock.now() + world.offsetMs
  /** None until what an earlier agent left is taken up: that may speak already, and says it again once it is welcomed. */
  let link: CoordinatorLink | null = null
  const connected = (): boolean => link?.connected === true
  const send = (message: ToCoordinator): void => link?.send(message)
  const reconnect = (reason: string): void => link?.reconnect(reason)
  /** Opened last: it tries a build first. */
  let builds: BuildOrders | null = null
  const { mesh, heard, wants, fetch, peerBytes } = await startMesh(opening, {
    config,
    version: parts.version,
    identity,
    coordinator,
    certificate: () => member.certificate,
    world,
    now: coordinatorNow,
    blobs,
    clock,
    random,
    log,
    createMesh: outside.createMesh,
    connected,
    mayClaim: () => mayClaim(),
    offeredTo: () => ({ ...probe, roles, capacity: hardware.capacity, knows: (revision) => runtimes.knows(revision) }),
    remakes: (blob) => builds?.remakes(blob) ?? false,
    send,
    reconnect,
    cannotGoOn,
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
    deliver: (moreSoon) => delivery.wake(moreSoon),
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
  const ownBuilds: AgentOutside["openBuilds"] = async (given) => {
    if (driver.name === "process") return null
    const place = { config, dataDir, capacity: hardware.capacity, blockedAddresses }
    return await startBuilds(opening, { ...place, ...given, blobs, fetch, origin, clock, random, log })
  }
  builds = roles.includes("builder") ? await (outside.openBuilds ?? ownBuilds)({ upload, send }) : null
  if (builds === null && roles.includes("builder")) roles.splice(roles.indexOf("builder"), 1)

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

  function renewed(certificate: string): void {
    member = { ...member, certificate }
    writeMembership(membershipFile, member)
    void mesh
      .showCertificate()
      .catch((error: unknown) => log.warn("certificate not shown", { error: errorText(error) }))
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
  const talk = talkToCoordinator({
    version: parts.version,
    bootId,
    roles,
    capacity,
    driver,
    probe,
    network,
    mesh,
    world,
    outbox,
    claimLoop,
    delivery,
    checkpoints,
    builds,
    runtimes,
    standing,
    wants,
    adverts,
    clock,
    send,
    reconnect,
    transferToken: (token) => (transferToken = token),
    certificate: renewed,
    drainedByAdmin: (isDrained) => (state.drainedByAdmin = isDrained),
    counted: () => becomeReady(facts),
    cannotGoOn,
  })
  await runtimes.restore()
  await claimLoop.recover()

  let lostSinceMs = clock.monotonicMs()
  link = createCoordinatorLink({
    mesh,
    coordinator,
    clock,
    random,
    log,
    ...talk,
    peerBytes,
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

  const supervision = supervise({
    config,
    dataDir,
    mesh,
    coordinator,
    outbox,
    clock,
    random,
    log,
    connected,
    lostSinceMs: () => lostSinceMs,
    peerAddresses: () => [...world.peers, ...heard.addresses()],
    members: () => world.members,
    send,
    enrol: enrolNow,
    moved: (found) => (member = found),
    cannotGoOn,
    timeJumped(reason) {
      claimLoop.pause()
      reconnect(reason)
    },
    roomOnDisk(has) {
      state.roomOnDisk = has
      standing.changed()
    },
    signal: closing.signal,
  })

  opening.defer(async () => {
    closing.abort(new Error("the agent stops"))
    supervision[Symbol.dispose]()
    await link?.[Symbol.asyncDispose]()
    await supervision.ended
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
