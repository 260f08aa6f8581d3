import { z } from "zod"
import { decodeCbor, encodeCbor } from "../base/cbor.ts"
import type { Instant } from "../base/clock.ts"
import { revisionId, type PeerId, type RevisionId } from "../domain/ids.ts"
import type { Requirements } from "../domain/requirements.ts"
import { ISOLATIONS, NODE_ROLES, type Isolation, type NodeRole } from "../domain/statuses.ts"
import { ignore, reject, type Refused } from "./verdict.ts"

/**
 * What the coordinator has work for: a hint by which nodes fetch images early (architecture §5.2). No task depends on it:
 * grants come over the control stream.
 */
export interface Offers {
  /** Of the coordinator's start: grows with every restart. */
  epoch: number
  /** Grows within one epoch. */
  seq: number
  issuedAt: Instant
  /** Grows with every revocation: a node that knows a lower one asks for the list. */
  revocationVersion: number
  /** Demand that did not fit is left out. */
  truncated: boolean
  /** Oldest demand first. */
  buckets: OfferedBucket[]
}

export interface OfferedBucket {
  /** Opaque. */
  bucket: string
  requirements: Requirements
  policy: { role: NodeRole; isolations: Isolation[]; placement: "shared" | "dedicated" }
  /** Opaque. */
  revision: RevisionId
  /** Tasks waiting. */
  count: number
}

export const LARGEST_OFFERS_BYTES = 32 * 1024

/** At most `LARGEST_OFFERS_BYTES`: the latest demand is left out where it does not fit, and `truncated` says so. */
export function encodeOffers(offers: Omit<Offers, "truncated">): Uint8Array {
  const encodeFirst = (count: number): Uint8Array =>
    encodeCbor(toWire({ ...offers, truncated: count < offers.buckets.length, buckets: offers.buckets.slice(0, count) }))
  const all = encodeFirst(Math.min(offers.buckets.length, MOST_BUCKETS))
  if (all.length <= LARGEST_OFFERS_BYTES) return all
  // The size grows with the count: the largest count that fits lies between these two.
  let fits = 0
  let tooMany = Math.min(offers.buckets.length, MOST_BUCKETS)
  while (tooMany - fits > 1) {
    const middle = Math.floor((fits + tooMany) / 2)
    if (encodeFirst(middle).length <= LARGEST_OFFERS_BYTES) fits = middle
    else tooMany = middle
  }
  return encodeFirst(fits)
}

export interface OffersState {
  coordinator: PeerId
  epoch: number
  seq: number
}

export const createOffersState = (coordinator: PeerId): OffersState => ({ coordinator, epoch: -1, seq: -1 })

/**
 * Judges one message of the offers topic; `now` is coordinator time. Only the coordinator may send there. Accepted offers
 * are remembered as the latest; what is older is ignored.
 */
export function judgeOffers(
  state: OffersState,
  message: { from: PeerId; data: Uint8Array },
  now: Instant,
): { verdict: "accept"; offers: Offers } | Refused {
  if (message.from !== state.coordinator) return reject("offers come from the coordinator alone")
  if (message.data.length > LARGEST_OFFERS_BYTES) return reject("the offers are too large")
  const offers = decodeOffers(message.data)
  if (offers === null) return reject("the offers are malformed")
  if (Math.abs(now - offers.issuedAt) > OFFERS_AGE_MS) return ignore("the offers are not of these minutes")
  if (offers.epoch < state.epoch || (offers.epoch === state.epoch && offers.seq <= state.seq)) {
    return ignore("later offers are known")
  }
  state.epoch = offers.epoch
  state.seq = offers.seq
  return { verdict: "accept", offers }
}

/** In coordinator time, both ways (architecture §5.2). */
const OFFERS_AGE_MS = 5 * 60_000
/** More than fit into 32 KiB. */
const MOST_BUCKETS = 1024

const amount = z.number().nonnegative()
const wireOffers = z.object({
  epoch: z.int().nonnegative(),
  seq: z.int().nonnegative(),
  issued_at: z.int(),
  revocation_version: z.int().nonnegative(),
  truncated: z.boolean(),
  buckets: z
    .array(
      z.object({
        bucket: z.string().max(64),
        requirements: z.object({
          cpu: amount,
          memory_mb: amount,
          storage_gb: amount,
          gpu_count: amount,
          gpu_memory_mb: amount.optional(),
          profile: z.enum(["cpu", "gpu"]),
        }),
        policy: z.object({
          role: z.enum(NODE_ROLES),
          isolations: z.array(z.enum(ISOLATIONS)).max(ISOLATIONS.length),
          placement: z.enum(["shared", "dedicated"]),
        }),
        revision: z.string().max(64),
        count: z.int().nonnegative(),
      }),
    )
    .max(MOST_BUCKETS),
})

function toWire(offers: Offers): z.infer<typeof wireOffers> {
  return {
    epoch: offers.epoch,
    seq: offers.seq,
    issued_at: offers.issuedAt,
    revocation_version: offers.revocationVersion,
    truncated: offers.truncated,
    buckets: offers.buckets.map(({ bucket, requirements, policy, revision, count }) => ({
      bucket,
      requirements: {
        cpu: requirements.cpu,
        memory_mb: requirements.memoryMb,
        storage_gb: requirements.storageGb,
        gpu_count: requirements.gpuCount,
        gpu_memory_mb: requirements.gpuMemoryMb,
        profile: requirements.profile,
      },
      policy,
      revision,
      count,
    })),
  }
}

function decodeOffers(bytes: Uint8Array): Offers | null {
  let parsed: z.infer<typeof wireOffers>
  try {
    parsed = wireOffers.parse(decodeCbor(bytes))
  } catch {
    return null
  }
  return {
    epoch: parsed.epoch,
    seq: parsed.seq,
    issuedAt: parsed.issued_at,
    revocationVersion: parsed.revocation_version,
    truncated: parsed.truncated,
    buckets: parsed.buckets.map(({ bucket, requirements, policy, revision, count }) => ({
      bucket,
      requirements: {
        cpu: requirements.cpu,
        memoryMb: requirements.memory_mb,
        storageGb: requirements.storage_gb,
        gpuCount: requirements.gpu_count,
        ...(requirements.gpu_memory_mb === undefined ? {} : { gpuMemoryMb: requirements.gpu_memory_mb }),
        profile: requirements.profile,
      },
      policy,
      revision: revisionId(revision),
      count,
    })),
  }
}
