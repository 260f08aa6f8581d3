import fc from "fast-check"
import { expect, test } from "vitest"
import { chooseEvictions } from "../../node-agent/cache/eviction.ts"
import { digest } from "../../protocol/domain/ids.ts"
import {
  decodePieceList,
  encodePieceList,
  pieceCount,
  pieceRange,
  readPieceList,
} from "../../protocol/wire/piece-list.ts"
import {
  addPiece,
  countPieces,
  emptyPieceSet,
  fullPieceSet,
  hasPiece,
  removePiece,
} from "../../protocol/wire/piece-set.ts"
import { MIB, newTestBlob } from "../support/content.ts"

const cached = fc.array(
  fc.record({ bytes: fc.nat(1000), lastUsedAt: fc.nat(50), kept: fc.boolean(), spared: fc.boolean() }),
  {
    maxLength: 30,
  },
)

test("eviction makes exactly enough room, oldest first, spared ones last, and never touches what is kept", () => {
  fc.assert(
    fc.property(cached, fc.nat(5000), fc.nat(10_000), (some, needed, quota) => {
      const blobs = some.map((blob, index) => ({ ...blob, digest: digest(index.toString(16).padStart(64, "0")) }))
      const chosen = chooseEvictions(blobs, needed, quota)
      const sum = (of: typeof blobs): number => of.reduce((total, blob) => total + blob.bytes, 0)
      if (chosen === null) {
        expect(sum(blobs.filter((blob) => blob.kept)) + needed).toBeGreaterThan(quota)
        return
      }
      const gone = blobs.filter((blob) => chosen.includes(blob.digest))
      const stays = blobs.filter((blob) => !chosen.includes(blob.digest))
      expect(gone.some((blob) => blob.kept)).toBe(false)
      expect(sum(stays) + needed).toBeLessThanOrEqual(quota)
      const goesAt = ({ spared, lastUsedAt }: (typeof blobs)[number]): number => (spared ? 100 : 0) + lastUsedAt
      const lastGone = Math.max(-1, ...gone.map(goesAt))
      for (const blob of stays) if (!blob.kept) expect(goesAt(blob)).toBeGreaterThanOrEqual(lastGone)
      const last = blobs.find((blob) => blob.digest === chosen.at(-1))
      if (last !== undefined) expect(sum(stays) + last.bytes + needed).toBeGreaterThan(quota)
    }),
  )
})

test("a piece set is the set of the pieces added and not removed", () => {
  const steps = fc.array(fc.record({ index: fc.nat(99), add: fc.boolean() }))
  fc.assert(
    fc.property(steps, fc.integer({ min: 100, max: 130 }), (changes, count) => {
      const set = emptyPieceSet(count)
      const model = new Set<number>()
      for (const { index, add } of changes) {
        if (add) addPiece(set, index)
        else removePiece(set, index)
        if (add) model.add(index)
        else model.delete(index)
      }
      for (let index = 0; index < count + 20; index++) expect(hasPiece(set, index)).toBe(model.has(index))
      expect(countPieces(set, count)).toBe(model.size)
    }),
  )
})

test("a full piece set has every piece and no more", () => {
  fc.assert(
    fc.property(fc.nat(100), (count) => {
      const set = fullPieceSet(count)
      for (let index = 0; index < count + 16; index++) expect(hasPiece(set, index)).toBe(index < count)
    }),
  )
})

test("the ranges of a list's pieces cover the blob once, in order", () => {
  fc.assert(
    fc.property(fc.nat(400 * MIB), (size) => {
      const list = { ...newTestBlob(0).list, size }
      let at = 0
      for (let index = 0; index < pieceCount(list); index++) {
        const range = pieceRange(list, index)
        expect(range.offset).toBe(at)
        expect(range.length).toBeGreaterThan(0)
        at += range.length
      }
      expect(at).toBe(size)
    }),
  )
})

test("an encoded piece list reads back as itself, and no changed byte is ever taken for it", () => {
  const { list, ref } = newTestBlob(2.5 * MIB)
  const bytes = encodePieceList(list)
  expect(decodePieceList(bytes)).toEqual(list)
  expect(readPieceList(bytes, ref)).toEqual(list)
  fc.assert(
    fc.property(fc.nat(bytes.length - 1), fc.integer({ min: 1, max: 255 }), (at, change) => {
      const changed = bytes.slice()
      changed[at] = (changed[at] ?? 0) ^ change
      expect(readPieceList(changed, ref)).toBeNull()
    }),
  )
})

test("bytes that are no piece list give null", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
      expect(decodePieceList(bytes)).toBeNull()
    }),
  )
})
