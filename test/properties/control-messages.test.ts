import fc from "fast-check"
import { expect, test } from "vitest"
import { systemRandom } from "../../protocol/base/random.ts"
import { identityFromSeed } from "../../protocol/mesh/identity.ts"
import { signEpoch, verifyEpoch } from "../../protocol/wire/epoch.ts"
import { decodeToCoordinator, decodeToNode, encodeMessage, type ToCoordinator } from "../../protocol/wire/control.ts"
import { resultItem } from "../support/job-rig.ts"

const claim = fc.integer({ min: 1, max: Number.MAX_SAFE_INTEGER })
const claims = fc.array(claim, { maxLength: 256 })
const toCoordinator: fc.Arbitrary<ToCoordinator> = fc.oneof(
  claims.map((all): ToCoordinator => ({ type: "accept", claims: all })),
  claims.map((all): ToCoordinator => ({ type: "started", claims: all })),
  fc
    .tuple(claims, claims)
    .map(([not_started, started]): ToCoordinator => ({ type: "taken_back", not_started, started })),
  fc
    .tuple(fc.nat(), fc.array(fc.record({ claim, running_ms: fc.option(fc.nat()) })))
    .map(([n, attempts]): ToCoordinator => ({ type: "heartbeat", n, attempts })),
  fc
    .tuple(claim, fc.string({ unit: "binary", maxLength: 100 }), fc.nat())
    .map(([of, output, runtime_ms]): ToCoordinator => ({
      type: "report",
      items: [resultItem(of, { output, runtime_ms })],
    })),
)

test("a message comes out as it went in", () => {
  fc.assert(
    fc.property(toCoordinator, (message) => {
      expect(decodeToCoordinator(encodeMessage(message))).toEqual(message)
    }),
  )
})

test("garbage is refused, and nothing but refused", () => {
  const decoders = [decodeToCoordinator, decodeToNode]
  fc.assert(
    fc.property(
      fc.oneof(
        fc.uint8Array({ maxLength: 200 }),
        fc.json().map((text) => Buffer.from(text)),
      ),
      (bytes) => {
        for (const decode of decoders) expect(() => decode(bytes)).toThrow()
      },
    ),
  )
})

test("lists and texts beyond their limits are refused", () => {
  const tooMany = Array.from({ length: 257 }, (_, n) => n + 1)
  const wrong: unknown[] = [
    { type: "accept", claims: tooMany },
    { type: "accept", claims: [0] },
    { type: "accept", claims: [1.5] },
    { type: "accept", claims: [2 ** 53] },
    { type: "heartbeat", n: -1, attempts: [] },
    { type: "report", items: [resultItem(1, { output: "x".repeat(16_385) })] },
    { type: "report", items: [{ ...resultItem(1), digest: "no digest" }] },
    { type: "report", items: [{ ...resultItem(1), failure_kind: "bad_luck" }] },
    { type: "give_back", items: [{ claim: 1, reason: "x".repeat(201) }] },
    {
      type: "claim",
      open: true,
      draining: false,
      capacity: { cpu: -1, memory_mb: 1, storage_gb: 1, gpus: [] },
      warm: [],
      credit: 0,
    },
  ]
  for (const message of wrong) expect(() => decodeToCoordinator(Buffer.from(JSON.stringify(message)))).toThrow()
})

test("an epoch is believed only under the coordinator's own signature of exactly it", async () => {
  const [ours, other] = await Promise.all([1, 2].map(() => identityFromSeed(systemRandom.bytes(32))))
  if (!ours || !other) throw new Error("both are made")
  const proof = signEpoch(ours, 1_800_000_000)
  expect(verifyEpoch(ours.peerId, 1_800_000_000, proof)).toBe(true)
  expect(verifyEpoch(ours.peerId, 1_800_000_001, proof)).toBe(false)
  expect(verifyEpoch(other.peerId, 1_800_000_000, proof)).toBe(false)
  expect(verifyEpoch(ours.peerId, 1_800_000_000, "")).toBe(false)
  fc.assert(
    fc.property(fc.string(), fc.nat(), (text, epoch) => {
      expect(verifyEpoch(ours.peerId, epoch, text)).toBe(false)
    }),
  )
})
