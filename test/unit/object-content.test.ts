import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { expect, test } from "vitest"
import { createObjectContent } from "../../coordinator/artifacts/object-content.ts"
import { openObjectFiles } from "../../coordinator/artifacts/object-files.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import { encodePieceList } from "../../protocol/wire/piece-list.ts"
import { inChunks, MIB, newTestBlob } from "../support/content.ts"

test("a stored blob is named and served as every node would: same list, same pieces; a removed one not at all", async () => {
  const root = mkdtempSync(join(tmpdir(), "computalot-objects-"))
  try {
    const files = await openObjectFiles(root, systemRandom)
    const content = createObjectContent(files)
    for (const size of [0, 500, MIB, 2.5 * MIB]) {
      const blob = newTestBlob(size)
      expect(await content.has(blob.ref.digest)).toBeNull()
      expect(await content.readPiece(blob.ref.digest, 0)).toBeNull()
      ;(await files.put(inChunks(blob.bytes), { maxBytes: 10 * MIB }))[Symbol.dispose]()
      expect(await content.ref(blob.ref.digest)).toEqual(blob.ref)
      expect(await content.has(blob.ref.digest)).toEqual(blob.ref)
      expect(await content.pieceList(blob.ref.digest)).toEqual(encodePieceList(blob.list))
      const pieces = Math.ceil(size / MIB)
      expect(await content.bitmap(blob.ref.digest)).toEqual(new Uint8Array(pieces === 0 ? [] : [2 ** pieces - 1]))
      for (let index = 0; index < pieces; index++) {
        const piece = await content.readPiece(blob.ref.digest, index)
        expect(piece && Buffer.compare(piece, blob.bytes.subarray(index * MIB, (index + 1) * MIB))).toBe(0)
      }
      expect(await content.readPiece(blob.ref.digest, pieces)).toBeNull()
      await files.remove(blob.ref.digest, async () => false)
      expect(await content.has(blob.ref.digest)).toBeNull()
      expect(await content.bitmap(blob.ref.digest)).toBeNull()
      expect(await content.pieceList(blob.ref.digest)).toBeNull()
    }
  } finally {
    rmSync(root, { recursive: true, force: true })
  }
})

test("a damaged blob is not named, and a piece that was damaged after its list was made is not served", async () => {
  const root = mkdtempSync(join(tmpdir(), "computalot-objects-"))
  try {
    const files = await openObjectFiles(root, systemRandom)
    const flip = (path: string): void => {
      const bytes = readFileSync(path)
      bytes[bytes.length - 1] = (bytes.at(-1) ?? 0) ^ 1
      writeFileSync(path, bytes)
    }
    for (const size of [500, 2.5 * MIB]) {
      const blob = newTestBlob(size)
      ;(await files.put(inChunks(blob.bytes), { maxBytes: 10 * MIB }))[Symbol.dispose]()
      const content = createObjectContent(files)
      expect(await content.ref(blob.ref.digest)).toEqual(blob.ref)
      flip(files.path(blob.ref.digest))
      const last = Math.ceil(size / MIB) - 1
      if (last > 0) expect(await content.readPiece(blob.ref.digest, 0)).not.toBeNull()
      expect(await content.readPiece(blob.ref.digest, last)).toBeNull()
      expect([...files.damaged().keys()]).toContain(blob.ref.digest)
      expect(await content.ref(blob.ref.digest)).toBeNull()
    }
    const large = newTestBlob(2.5 * MIB)
    ;(await files.put(inChunks(large.bytes), { maxBytes: 10 * MIB }))[Symbol.dispose]()
    flip(files.path(large.ref.digest))
    expect(await createObjectContent(files).ref(large.ref.digest)).toBeNull()
    expect([...files.damaged().keys()]).toContain(large.ref.digest)
  } finally {
    rmSync(root, { recursive: true, force: true })
  }
})
