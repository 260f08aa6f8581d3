import { describe, expect, test } from "vitest"
import { encodeCbor } from "../../protocol/base/cbor.ts"
import { bootId, nodeId, revisionId } from "../../protocol/domain/ids.ts"
import {
  createAdvertState,
  encodeAdvert,
  judgeAdvert,
  LARGEST_ADVERT_BYTES,
  type NodeAdvert,
} from "../../protocol/gossip/node-advert.ts"
import {
  createOffersState,
  encodeOffers,
  judgeOffers,
  LARGEST_OFFERS_BYTES,
  type OfferedBucket,
} from "../../protocol/gossip/offer.ts"
import { identityFromSeed } from "../../protocol/mesh/identity.ts"
import { signCertificate, type Membership } from "../../protocol/wire/certificate.ts"

const MINUTE = 60_000
const NOW = 1_800_000_000_000
const coordinator = await identityFromSeed(new Uint8Array(32).fill(1))
const member = await identityFromSeed(new Uint8Array(32).fill(2))
const other = await identityFromSeed(new Uint8Array(32).fill(3))

const certificateOf = (facts: Partial<Membership> = {}, key = coordinator): string =>
  signCertificate(key, {
    peerId: member.peerId,
    nodeId: nodeId("node_1"),
    roles: ["worker"],
    issuedAt: NOW - MINUTE,
    expiresAt: NOW + 7 * 24 * 60 * MINUTE,
    ...facts,
  })

const advertOf = (facts: Partial<NodeAdvert> = {}): NodeAdvert => ({
  nodeId: nodeId("node_1"),
  certificate: certificateOf(),
  bootId: bootId("boot_1"),
  seq: 1,
  issuedAt: NOW,
  intervalMs: 10_000,
  agentVersion: "computalot-node/1",
  protocolVersion: 1,
  draining: false,
  capacity: { cpu: 8, memoryMb: 16_384, storageGb: 100, gpus: [{ uuid: "GPU-1", model: "H200", memoryMb: 143_771 }] },
  drivers: [{ name: "gvisor", isolation: "gvisor", enforces: ["memory", "cpu"], network: "outbound" }],
  warm: [revisionId("rev_a")],
  addresses: ["/ip4/127.0.0.1/tcp/4001"],
  ...facts,
})

function newState(more: { revoked?: string; withoutCoordinator?: boolean } = {}) {
  return createAdvertState({
    coordinatorPublicKey: coordinator.publicKey,
    withoutCoordinator: () => more.withoutCoordinator === true,
    isRevoked: (id) => id === more.revoked,
  })
}
const say = (advert: NodeAdvert, state = newState(), from = member.peerId, now = NOW) =>
  judgeAdvert(state, { from, data: encodeAdvert(advert) }, now)

describe("adverts", () => {
  test("what a member says of itself is accepted, as it was said", () => {
    const advert = advertOf()
    expect(say(advert)).toEqual({ verdict: "accept", advert })
  })

  test("a node may not speak for another, nor without or with a forged or borrowed certificate", () => {
    expect(say(advertOf({ nodeId: nodeId("node_2") }))).toMatchObject({ verdict: "reject" })
    expect(say(advertOf({ certificate: "" }))).toMatchObject({ verdict: "reject" })
    expect(say(advertOf({ certificate: certificateOf({}, other) }))).toMatchObject({ verdict: "reject" })
    expect(say(advertOf(), newState(), other.peerId)).toMatchObject({ verdict: "reject" })
  })

  test("expired and revoked members are ignored: others may not know it yet", () => {
    const expired = advertOf({ certificate: certificateOf({ expiresAt: NOW - 10 * MINUTE }) })
    expect(say(expired)).toMatchObject({ verdict: "ignore" })
    expect(say(expired, newState({ withoutCoordinator: true }))).toMatchObject({ verdict: "accept" })
    expect(say(advertOf(), newState({ revoked: "node_1" }))).toMatchObject({ verdict: "ignore" })
  })

  test("only what is newer counts: by seq in one boot, by time between boots", () => {
    const state = newState()
    expect(say(advertOf({ seq: 5 }), state).verdict).toBe("accept")
    expect(say(advertOf({ seq: 5 }), state).verdict).toBe("ignore")
    expect(say(advertOf({ seq: 4 }), state).verdict).toBe("ignore")
    expect(say(advertOf({ seq: 6 }), state).verdict).toBe("accept")
    const reborn = advertOf({ bootId: bootId("boot_2"), seq: 1, issuedAt: NOW + 1 })
    expect(say(reborn, state).verdict).toBe("accept")
    expect(say(advertOf({ seq: 99 }), state).verdict).toBe("ignore")
  })

  test("it may be five minutes old, or five minutes ahead, by the coordinator's time", () => {
    expect(say(advertOf({ issuedAt: NOW - 5 * MINUTE })).verdict).toBe("accept")
    expect(say(advertOf({ issuedAt: NOW + 5 * MINUTE })).verdict).toBe("accept")
    expect(say(advertOf({ issuedAt: NOW - 5 * MINUTE - 1 })).verdict).toBe("ignore")
    expect(say(advertOf({ issuedAt: NOW + 5 * MINUTE + 1 })).verdict).toBe("ignore")
  })

  test("a member that sends without pause is relayed a few times and then as often as time allows", () => {
    const state = newState()
    const accepted = Array.from({ length: 100 }, (_, seq) => say(advertOf({ seq }), state)).filter(
      ({ verdict }) => verdict === "accept",
    )
    expect(accepted.length).toBe(8)
    expect(say(advertOf({ seq: 200 }), state, member.peerId, NOW + 2_000).verdict).toBe("accept")
    expect(say(advertOf({ seq: 201 }), state, member.peerId, NOW + 2_000).verdict).toBe("ignore")
  })

  test("it stays within 8 KiB: of many warm revisions the latest used are named", () => {
    const warm = Array.from({ length: 1_000 }, (_, i) => revisionId(`rev_${String(i).padStart(40, "0")}`))
    const data = encodeAdvert(advertOf({ warm }))
    expect(data.length).toBeLessThanOrEqual(LARGEST_ADVERT_BYTES)
    const judged = judgeAdvert(newState(), { from: member.peerId, data }, NOW)
    const named = judged.verdict === "accept" ? judged.advert.warm : []
    expect(named.length).toBeGreaterThan(100)
    expect(named).toEqual(warm.slice(0, named.length))
    expect(
      judgeAdvert(newState(), { from: member.peerId, data: new Uint8Array(LARGEST_ADVERT_BYTES + 1) }, NOW),
    ).toEqual({
      verdict: "reject",
      reason: "the advert is too large",
    })
  })

  test("memory of members is bounded", () => {
    const state = newState()
    for (let i = 0; i < 10_001; i++) {
      state.latest.set(nodeId(`n${i}`), { bootId: bootId("b"), seq: 1, issuedAt: NOW, allowance: 1, allowanceAt: NOW })
    }
    expect(say(advertOf(), state).verdict).toBe("accept")
    expect(state.latest.size).toBe(10_000)
  })
})

const bucket = (i: number): OfferedBucket => ({
  bucket: `bucket_${i}`,
  requirements: { cpu: 0.5, memoryMb: 512, storageGb: 1, gpuCount: 1, gpuMemoryMb: 24_000, profile: "gpu" },
  policy: { role: "worker", isolations: ["gvisor", "namespaces"], placement: "shared" },
  revision: revisionId(`rev_${i}`),
  count: i,
})
const offersOf = (facts: { epoch?: number; seq?: number; issuedAt?: number; buckets?: OfferedBucket[] } = {}) => ({
  epoch: 10,
  seq: 1,
  issuedAt: NOW,
  revocationVersion: 3,
  buckets: [bucket(1), bucket(2)],
  ...facts,
})
const offer = (offers: ReturnType<typeof offersOf>, state = createOffersState(coordinator.peerId)) =>
  judgeOffers(state, { from: coordinator.peerId, data: encodeOffers(offers) }, NOW)

describe("offers", () => {
  test("what the coordinator offers is accepted, as it was said", () => {
    expect(offer(offersOf())).toEqual({ verdict: "accept", offers: { ...offersOf(), truncated: false } })
    const cpuOnly = {
      ...bucket(1),
      requirements: { cpu: 1, memoryMb: 1, storageGb: 1, gpuCount: 0, profile: "cpu" as const },
    }
    expect(offer(offersOf({ buckets: [cpuOnly] }))).toMatchObject({ offers: { buckets: [cpuOnly] } })
  })

  test("offers of anyone else are rejected", () => {
    const data = encodeOffers(offersOf())
    const judged = judgeOffers(createOffersState(coordinator.peerId), { from: member.peerId, data }, NOW)
    expect(judged).toMatchObject({ verdict: "reject" })
  })

  test("only later ones count: by seq in one epoch, and never of a former epoch", () => {
    const state = createOffersState(coordinator.peerId)
    expect(offer(offersOf({ seq: 5 }), state).verdict).toBe("accept")
    expect(offer(offersOf({ seq: 5 }), state).verdict).toBe("ignore")
    expect(offer(offersOf({ seq: 6 }), state).verdict).toBe("accept")
    expect(offer(offersOf({ epoch: 9, seq: 99 }), state).verdict).toBe("ignore")
    expect(offer(offersOf({ epoch: 11, seq: 0 }), state).verdict).toBe("accept")
    expect(offer(offersOf({ seq: 99 }), state).verdict).toBe("ignore")
  })

  test("they are of these five minutes", () => {
    expect(offer(offersOf({ issuedAt: NOW - 5 * MINUTE - 1 })).verdict).toBe("ignore")
    expect(offer(offersOf({ issuedAt: NOW + 5 * MINUTE + 1 })).verdict).toBe("ignore")
  })

  test("they stay within 32 KiB, oldest demand first, and say when something was left out", () => {
    for (const count of [150, 400, 5_000]) {
      const buckets = Array.from({ length: count }, (_, i) => bucket(i))
      const data = encodeOffers(offersOf({ buckets }))
      expect(data.length).toBeLessThanOrEqual(LARGEST_OFFERS_BYTES)
      const judged = judgeOffers(createOffersState(coordinator.peerId), { from: coordinator.peerId, data }, NOW)
      const offers = judged.verdict === "accept" ? judged.offers : null
      expect(offers?.buckets).toEqual(buckets.slice(0, offers?.buckets.length))
      expect(offers?.truncated).toBe(offers?.buckets.length !== count)
      // Nothing is left out that would have fitted.
      if (offers?.truncated === true) expect(data.length).toBeGreaterThan(LARGEST_OFFERS_BYTES - 500)
    }
    const data = new Uint8Array(LARGEST_OFFERS_BYTES + 1)
    expect(judgeOffers(createOffersState(coordinator.peerId), { from: coordinator.peerId, data }, NOW)).toEqual({
      verdict: "reject",
      reason: "the offers are too large",
    })
  })

  test("a message that encodes the same in another way is rejected: each has one form", () => {
    const [first = 0, ...rest] = encodeOffers(offersOf())
    expect(first >> 5).toBe(5)
    // A map of 6 with its length in a byte of its own.
    const longer = new Uint8Array([0xb8, first & 31, ...rest])
    expect(
      judgeOffers(createOffersState(coordinator.peerId), { from: coordinator.peerId, data: longer }, NOW),
    ).toMatchObject({
      verdict: "reject",
    })
    const trailing = Buffer.concat([encodeOffers(offersOf()), encodeCbor(1)])
    expect(
      judgeOffers(createOffersState(coordinator.peerId), { from: coordinator.peerId, data: trailing }, NOW),
    ).toMatchObject({
      verdict: "reject",
    })
  })
})
