import fc from "fast-check"
import { expect, test } from "vitest"
import { systemRandom } from "../../protocol/base/random.ts"
import { identityFromSeed } from "../../protocol/mesh/identity.ts"
import { signEpoch, verifyEpoch } from "../../protocol/wire/epoch.ts"
import { OUTPUT_TAIL_BYTES } from "../../protocol/domain/runner.ts"
import {
  BATCH_BYTES,
  BATCH_ITEMS,
  CONTROL_PROTOCOL,
  decodeToCoordinator,
  decodeToNode,
  encodeMessage,
  inFrames,
  lastThatFits,
  MOST_HELD,
  REVOKED_IN_FRAME,
  type CheckpointItem,
  type ToCoordinator,
  type ToNode,
} from "../../protocol/wire/control.ts"
import { resultItem } from "../support/job-rig.ts"
import { HELLO } from "../support/scripted-node.ts"

const claim = fc.integer({ min: 1, max: Number.MAX_SAFE_INTEGER })
const claims = fc.array(claim, { maxLength: 256 })
const text = fc.string({ unit: "binary", maxLength: 100 })
const checkpoint: fc.Arbitrary<CheckpointItem> = fc.record({
  claim,
  n: claim,
  digest: fc.constant("a".repeat(64)),
  state: text,
  line: text,
  file: fc.option(
    fc.record({ digest: fc.constant("b".repeat(64)), size: fc.nat(), filename: fc.constant("model.bin") }),
  ),
  problem: fc.option(fc.record({ status: fc.constantFrom("failed", "skipped"), reason: text })),
})
const toCoordinator: fc.Arbitrary<ToCoordinator> = fc.oneof(
  checkpoint.map((item): ToCoordinator => ({ type: "checkpoint", item })),
  fc
    .tuple(claim, fc.array(fc.record({ claim, n: claim, reason: text }), { maxLength: 2 }))
    .map(([of, unreadable]): ToCoordinator => ({ type: "fell_back", claim: of, unreadable })),
  fc
    .tuple(claim, checkpoint)
    .map(([of, left]): ToCoordinator => ({ type: "report", items: [resultItem(of, { checkpoint: left })] })),
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
    { type: "checkpoint", item: { ...CHECKPOINT, n: 0 } },
    { type: "checkpoint", item: { ...CHECKPOINT, state: "x".repeat(64 * 1024 + 1) } },
    { type: "checkpoint", item: { ...CHECKPOINT, problem: { status: "published", reason: "" } } },
    { type: "fell_back", claim: 1, unreadable: [1, 2, 3].map((n) => ({ claim: 1, n, reason: "" })) },
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

test("architecture §5.3: a message whose lists are as long as they may be fits into its frame", () => {
  const claims = (count: number): number[] => Array.from({ length: count }, (_, n) => Number.MAX_SAFE_INTEGER - n)
  const held = claims(MOST_HELD)
  const text = (length: number): string => "x".repeat(length)
  const revoked = Array.from({ length: REVOKED_IN_FRAME }, () => text(128))
  const node: ToNode[] = [
    {
      type: "welcome",
      version: 1,
      epoch: Number.MAX_SAFE_INTEGER,
      epoch_proof: text(512),
      now: Number.MAX_SAFE_INTEGER,
      heartbeat_ms: 1_000.123,
      claim_lifetime_ms: 86_400_000.123,
      members: 1_000_000,
      attempts: held.map((claim) => ({ claim, verdict: "spent", expires_in_ms: 86_400_000 })),
      peers: Array.from({ length: 64 }, () => text(256)),
      revocation_version: 1_000_000,
      revoked,
      transfer_token: text(128),
      certificate: text(4096),
    },
    { type: "revoked", nodes: revoked },
    { type: "heartbeat_reply", n: Number.MAX_SAFE_INTEGER, renewed: held, spent: held },
    { type: "cancel", claims: claims(BATCH_ITEMS), reason: "\u0001".repeat(1000) },
    { type: "take_back", claims: claims(BATCH_ITEMS) },
    {
      type: "verdicts",
      items: claims(BATCH_ITEMS).map((claim) => ({ claim, kind: "result", verdict: "refused", reason: text(500) })),
    },
  ]
  const gpu = { uuid: text(64), model: text(64), memory_mb: 1e6 }
  const capacity = { cpu: 1e4, memory_mb: 1e9, storage_gb: 1e9, gpus: Array.from({ length: 64 }, () => gpu) }
  const attempts = held.map((claim) => ({ claim, running_ms: 86_400_000 }))
  const coordinator: ToCoordinator[] = [
    {
      ...HELLO,
      capacity,
      addresses: Array.from({ length: 16 }, () => text(256)),
      attempts: held.map((claim) => ({ claim, state: "accepted" as const })),
    },
    {
      type: "claim",
      open: true,
      draining: false,
      capacity,
      warm: Array.from({ length: 256 }, () => text(64)),
      credit: 1,
    },
    { type: "heartbeat", n: 1, attempts },
    { type: "give_back", items: claims(BATCH_ITEMS).map((claim) => ({ claim, reason: text(200) })) },
    { type: "taken_back", not_started: claims(BATCH_ITEMS), started: claims(BATCH_ITEMS) },
    // What a program can leave at worst, as the node cuts it: control characters, and JSON full of quotes.
    {
      type: "report",
      items: [
        resultItem(1, {
          output: "\u0001".repeat(OUTPUT_TAIL_BYTES),
          error_tail: "\u0001".repeat(4096),
          message: text(2000),
          result: { text: JSON.stringify('"'.repeat(32 * 1024 - 1)) },
        }),
      ],
    },
    {
      type: "built",
      claim: 1,
      outcome: { ok: false, kind: "project", message: text(2000) },
      log_tail: lastThatFits("\u0001".repeat(60_000), 60_000),
    },
    {
      type: "replica",
      revision: "rev",
      state: "failed",
      message: "\u0001".repeat(2000),
      log_tail: "\u0001".repeat(16_384),
    },
  ]
  const tooLarge = (messages: readonly (ToNode | ToCoordinator)[]): [string, number][] =>
    messages
      .map((message): [string, number] => [message.type, encodeMessage(message).length])
      .filter(([, bytes]) => bytes > CONTROL_PROTOCOL.largestFrameBytes)
  for (const message of node) decodeToNode(encodeMessage(message))
  for (const message of coordinator) decodeToCoordinator(encodeMessage(message))
  expect(tooLarge([...node, ...coordinator])).toEqual([])
})

test("items are cut into frames that fit, in order and with none left out; a text's end is cut to what it weighs", () => {
  const item = fc.record({ text: fc.string({ unit: "binary", maxLength: 40_000 }) })
  fc.assert(
    fc.property(fc.array(fc.oneof(item, fc.nat()), { maxLength: 600 }), fc.nat(100_000), (items, bytes) => {
      const frames = [...inFrames<unknown>(items)]
      expect(frames.flat()).toEqual(items)
      for (const frame of frames) {
        expect(frame.length).toBeLessThanOrEqual(BATCH_ITEMS)
        const weight = Buffer.byteLength(JSON.stringify(frame))
        expect(frame.length === 1 || weight <= BATCH_BYTES + 2).toBe(true)
      }
      const text = JSON.stringify(items)
      const tail = lastThatFits(text, bytes + 2)
      expect(text.endsWith(tail)).toBe(true)
      expect(Buffer.byteLength(JSON.stringify(tail))).toBeLessThanOrEqual(bytes + 2)
    }),
    { numRuns: 50 },
  )
})

const CHECKPOINT = { claim: 1, n: 1, digest: "a".repeat(64), state: "{}", line: "{}", file: null, problem: null }

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
