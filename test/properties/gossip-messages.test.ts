import fc from "fast-check"
import { expect, test } from "vitest"
import { encodeCbor } from "../../protocol/base/cbor.ts"
import { peerId } from "../../protocol/domain/ids.ts"
import { createAdvertState, judgeAdvert } from "../../protocol/gossip/node-advert.ts"
import { createOffersState, judgeOffers } from "../../protocol/gossip/offer.ts"
import { verifyCertificate } from "../../protocol/wire/certificate.ts"
import { decodeHello, encodeHello } from "../../protocol/wire/hello.ts"
import { agreeOnVersion } from "../../protocol/wire/version.ts"

const coordinator = peerId("12D3KooWCoordinator")
const key = new Uint8Array(32).fill(7)
const bytes = fc.uint8Array({ maxLength: 4096 })
/** Well-formed CBOR of the wrong shape gets further than plain garbage. */
const shaped = fc
  .dictionary(
    fc.constantFrom("node_id", "seq", "epoch", "issued_at", "buckets", "certificate", "warm", "capacity", "type"),
    fc.jsonValue({ maxDepth: 3 }),
  )
  .map((value) => encodeCbor(JSON.parse(JSON.stringify(value))))
const garbage = fc.oneof(bytes, shaped)

test("garbage is never accepted, never throws and leaves nothing behind", () => {
  fc.assert(
    fc.property(garbage, fc.integer(), (data, now) => {
      const adverts = createAdvertState({
        coordinatorPublicKey: key,
        withoutCoordinator: () => true,
        isRevoked: () => false,
      })
      expect(judgeAdvert(adverts, { from: coordinator, data }, now).verdict).toBe("reject")
      expect(adverts.latest.size + adverts.certificates.size).toBe(0)
      const offers = createOffersState(coordinator)
      expect(judgeOffers(offers, { from: coordinator, data }, now).verdict).toBe("reject")
      expect(offers).toEqual(createOffersState(coordinator))
      expect(decodeHello(data)).toBeNull()
      const text = Buffer.from(data).toString("base64")
      expect(verifyCertificate(text, key, now, { withoutCoordinator: true }).valid).toBe(false)
    }),
  )
})

test("hello messages of a later program are still read: unknown fields are passed over, unknown reasons named so", () => {
  const hello = { type: "hello" as const, oldest: 1, newest: 9, agent_version: "x", certificate: null }
  expect(decodeHello(encodeCbor({ ...hello, more: [1, 2] }))).toEqual(hello)
  expect(decodeHello(encodeHello(hello))).toEqual(hello)
  const refused = { type: "refused", oldest: 8, newest: 9, reason: "moon_phase", detail: "d" }
  expect(decodeHello(encodeCbor(refused))).toEqual({ ...refused, reason: "unknown" })
})

test("two version ranges agree on the highest both speak, the same from both sides", () => {
  const range = fc.tuple(fc.nat(20), fc.nat(20)).map(([a, b]) => ({ oldest: Math.min(a, b), newest: Math.max(a, b) }))
  fc.assert(
    fc.property(range, range, (ours, theirs) => {
      const spoken = (v: number): boolean =>
        v >= ours.oldest && v <= ours.newest && v >= theirs.oldest && v <= theirs.newest
      const both = Array.from({ length: 21 }, (_, v) => v).filter(spoken)
      expect(agreeOnVersion(ours, theirs)).toBe(both.at(-1) ?? null)
      expect(agreeOnVersion(theirs, ours)).toBe(agreeOnVersion(ours, theirs))
    }),
  )
})
