import { z } from "zod"
import { decodeCbor, encodeCbor } from "../base/cbor.ts"
import type { Instant } from "../base/clock.ts"
import { bootId, nodeId, revisionId, type BootId, type NodeId, type PeerId, type RevisionId } from "../domain/ids.ts"
import type { Capacity } from "../domain/requirements.ts"
import { ENFORCEABLE, ISOLATIONS, type Enforceable, type Isolation } from "../domain/statuses.ts"
import { LONGEST_CERTIFICATE, verifyCertificate, type Membership } from "../wire/certificate.ts"
import { ignore, reject, type Refused } from "./verdict.ts"

/** What a node says of itself, soft state (architecture §5.2). What is free now changes with every task and is not here. */
export interface NodeAdvert {
  nodeId: NodeId
  /** Its membership certificate: whoever hears an advert over others can tell that the signer is the member. */
  certificate: string
  bootId: BootId
  /** Grows with each advert of one boot. */
  seq: number
  /** In coordinator time. */
  issuedAt: Instant
  /** When the next one is due; after three of these without one it is stale. */
  intervalMs: number
  agentVersion: string
  protocolVersion: number
  draining: boolean
  capacity: Capacity
  drivers: AdvertisedDriver[]
  /** Opaque ids of revisions whose runtime is ready here, most recently used first. */
  warm: RevisionId[]
  /** Multiaddrs. */
  addresses: string[]
}

export interface AdvertisedDriver {
  /** `gvisor`, `bubblewrap`, `process`. */
  name: string
  isolation: Isolation
  enforces: Enforceable[]
  network: "none" | "outbound"
}

export const LARGEST_ADVERT_BYTES = 8 * 1024
/** An advert is stale after this many of its own intervals, counted from when it was received. */
export const ADVERT_LIFE_INTERVALS = 3

/** At most `LARGEST_ADVERT_BYTES`: of too many warm revisions the least recently used are left out. */
export function encodeAdvert(advert: NodeAdvert): Uint8Array {
  const warm = [...advert.warm]
  for (;;) {
    const bytes = encodeCbor(toWire({ ...advert, warm }))
    if (bytes.length <= LARGEST_ADVERT_BYTES) return bytes
    if (warm.length === 0) throw new Error(`an advert of ${bytes.length} bytes cannot be cut to fit`)
    warm.length = Math.floor(warm.length * 0.9)
  }
}

/** What a judge of adverts remembers, bounded. One for each mesh node. */
export interface AdvertState {
  coordinatorPublicKey: Uint8Array
  /** Does this node lack the coordinator now? Then certificates count for longer. */
  withoutCoordinator: () => boolean
  isRevoked: (node: NodeId) => boolean
  latest: Map<NodeId, Heard>
  /** Certificates that were found genuine, by their text: a member's is checked once, not with every advert. */
  certificates: Map<string, Membership>
}

interface Heard {
  bootId: BootId
  seq: number
  issuedAt: Instant
  /** How many more it may send now; comes back with time. */
  allowance: number
  allowanceAt: Instant
}

export function createAdvertState(
  facts: Pick<AdvertState, "coordinatorPublicKey" | "withoutCoordinator" | "isRevoked">,
): AdvertState {
  return { ...facts, latest: new Map(), certificates: new Map() }
}

/**
 * Judges one message of the adverts topic; `now` is coordinator time. An accepted advert is remembered as the latest of its
 * node. Rejected is what no honest relayer can have accepted; what may only look different from elsewhere (age, order,
 * expiry, revocation) is ignored.
 */
export function judgeAdvert(
  state: AdvertState,
  message: { from: PeerId; data: Uint8Array },
  now: Instant,
): { verdict: "accept"; advert: NodeAdvert } | Refused {
  if (message.data.length > LARGEST_ADVERT_BYTES) return reject("the advert is too large")
  const advert = decodeAdvert(message.data)
  if (advert === null) return reject("the advert is malformed")
  const stranger = judgeSigner(state, advert, message.from, now)
  if (stranger !== null) return stranger
  if (Math.abs(now - advert.issuedAt) > ADVERT_AGE_MS) return ignore("the advert is not of these minutes")
  const latest = state.latest.get(advert.nodeId)
  if (latest !== undefined && !isNewer(advert, latest)) return ignore("a later advert is known")
  const allowance = allowanceOf(latest, now)
  if (allowance < 1) return ignore(TOO_FAST)
  remember(state.latest, advert.nodeId, {
    bootId: advert.bootId,
    seq: advert.seq,
    issuedAt: advert.issuedAt,
    allowance: allowance - 1,
    allowanceAt: now,
  })
  return { verdict: "accept", advert }
}

/** In coordinator time, both ways (architecture §5.2). */
const ADVERT_AGE_MS = 5 * 60_000
/** Members remembered at once; the one heard longest ago goes first. */
const REMEMBERED_MEMBERS = 10_000
/** The signer's own doing, whoever relayed it: nobody else can sign a newer advert. */
export const TOO_FAST = "adverts come too fast"
/** A node may send so many adverts at once, and one more each two seconds: ten times what an honest one has to say. */
const ADVERT_BURST = 8
const ADVERT_EVERY_MS = 2_000

/** Null when the signer is the member for whom the advert speaks. */
function judgeSigner(state: AdvertState, advert: NodeAdvert, from: PeerId, now: Instant): Refused | null {
  const known = state.certificates.get(advert.certificate)
  const verdict =
    known !== undefined && known.expiresAt > now && known.issuedAt <= now
      ? { valid: true as const, membership: known }
      : verifyCertificate(advert.certificate, state.coordinatorPublicKey, now, {
          withoutCoordinator: state.withoutCoordinator(),
        })
  if (!("membership" in verdict)) return reject(`the advert's certificate is ${verdict.reason}`)
  if (verdict.membership.peerId !== from) return reject("the certificate is not the signer's")
  if (verdict.membership.nodeId !== advert.nodeId) return reject("the advert speaks for another member")
  if (!verdict.valid) return ignore(`the advert's certificate is ${verdict.reason}`)
  if (state.isRevoked(advert.nodeId)) return ignore("the member is revoked")
  if (known === undefined) remember(state.certificates, advert.certificate, verdict.membership)
  return null
}

/** Boot ids have no order of their own; between two boots the time of issue decides. */
function isNewer(advert: NodeAdvert, latest: Heard): boolean {
  return advert.bootId === latest.bootId ? advert.seq > latest.seq : advert.issuedAt > latest.issuedAt
}

function allowanceOf(latest: Heard | undefined, now: Instant): number {
  if (latest === undefined) return ADVERT_BURST
  return Math.min(ADVERT_BURST, latest.allowance + Math.max(0, now - latest.allowanceAt) / ADVERT_EVERY_MS)
}

function remember<K, V>(map: Map<K, V>, key: K, value: V): void {
  map.delete(key)
  map.set(key, value)
  for (const oldest of map.keys()) {
    if (map.size <= REMEMBERED_MEMBERS) break
    map.delete(oldest)
  }
}

const amount = z.number().nonnegative()
const name = z.string().max(64)
const wireAdvert = z.object({
  node_id: name.min(1),
  certificate: z.string().max(LONGEST_CERTIFICATE),
  boot_id: name.min(1),
  seq: z.int().nonnegative(),
  issued_at: z.int(),
  interval_ms: z
    .int()
    .min(100)
    .max(24 * 3600_000),
  agent_version: name,
  protocol_version: z.int().nonnegative(),
  draining: z.boolean(),
  capacity: z.object({
    cpu: amount,
    memory_mb: amount,
    storage_gb: amount,
    gpus: z.array(z.object({ uuid: name, model: z.string().max(128), memory_mb: amount })).max(32),
  }),
  drivers: z
    .array(
      z.object({
        name,
        isolation: z.enum(ISOLATIONS),
        enforces: z.array(z.enum(ENFORCEABLE)).max(ENFORCEABLE.length),
        network: z.enum(["none", "outbound"]),
      }),
    )
    .max(8),
  warm: z.array(name).max(1024),
  addresses: z.array(z.string().max(256)).max(16),
})

function toWire(advert: NodeAdvert): z.infer<typeof wireAdvert> {
  const { capacity } = advert
  return {
    node_id: advert.nodeId,
    certificate: advert.certificate,
    boot_id: advert.bootId,
    seq: advert.seq,
    issued_at: advert.issuedAt,
    interval_ms: advert.intervalMs,
    agent_version: advert.agentVersion,
    protocol_version: advert.protocolVersion,
    draining: advert.draining,
    capacity: {
      cpu: capacity.cpu,
      memory_mb: capacity.memoryMb,
      storage_gb: capacity.storageGb,
      gpus: capacity.gpus.map((gpu) => ({ uuid: gpu.uuid, model: gpu.model, memory_mb: gpu.memoryMb })),
    },
    drivers: advert.drivers,
    warm: advert.warm,
    addresses: advert.addresses,
  }
}

function decodeAdvert(bytes: Uint8Array): NodeAdvert | null {
  let parsed: z.infer<typeof wireAdvert>
  try {
    parsed = wireAdvert.parse(decodeCbor(bytes))
  } catch {
    return null
  }
  const { capacity } = parsed
  return {
    nodeId: nodeId(parsed.node_id),
    certificate: parsed.certificate,
    bootId: bootId(parsed.boot_id),
    seq: parsed.seq,
    issuedAt: parsed.issued_at,
    intervalMs: parsed.interval_ms,
    agentVersion: parsed.agent_version,
    protocolVersion: parsed.protocol_version,
    draining: parsed.draining,
    capacity: {
      cpu: capacity.cpu,
      memoryMb: capacity.memory_mb,
      storageGb: capacity.storage_gb,
      gpus: capacity.gpus.map((gpu) => ({ uuid: gpu.uuid, model: gpu.model, memoryMb: gpu.memory_mb })),
    },
    drivers: parsed.drivers,
    warm: parsed.warm.map(revisionId),
    addresses: parsed.addresses,
  }
}
