import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { expect, test } from "vitest"
import { createHasher } from "../../node-agent/cache/hasher.ts"
import { systemClock } from "../../protocol/base/clock.ts"
import { hashPieces } from "../../protocol/wire/hash-pieces.ts"
import { PIECE_BYTES } from "../../protocol/wire/piece-list.ts"
import { inChunks, MIB, newTestBlob } from "../support/content.ts"

test("files are hashed side by side to their piece lists, and one that is missing fails alone", async () => {
  const directory = mkdtempSync(join(tmpdir(), "computalot-hash-"))
  try {
    await using hasher = createHasher(systemClock)
    const blobs = [newTestBlob(5.5 * MIB), newTestBlob(0), newTestBlob(MIB)]
    const hashed = await Promise.all([
      ...blobs.map((blob, index) => {
        const path = join(directory, String(index))
        writeFileSync(path, blob.bytes)
        return hasher.file(path, PIECE_BYTES)
      }),
      hasher.file(join(directory, "missing"), PIECE_BYTES).catch(() => "missing"),
    ])
    expect(hashed).toEqual([...blobs.map((blob) => blob.list), "missing"])
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
})

test("a closed hasher hashes no more files, and the ones under way are refused", async () => {
  const hasher = createHasher(systemClock)
  const underWay = hasher.file("/dev/zero", PIECE_BYTES)
  const refused = expect(underWay).rejects.toThrow("closed")
  await hasher[Symbol.asyncDispose]()
  await refused
  await expect(hasher.file("/dev/null", PIECE_BYTES)).rejects.toThrow("closed")
})

test("a passing stream gives the piece list of its bytes, however it is cut", async () => {
  const blob = newTestBlob(3.5 * MIB)
  for (const chunkBytes of [1000, MIB, 4 * MIB]) {
    const hashing = hashPieces()
    for await (const chunk of inChunks(blob.bytes, chunkBytes)) hashing.update(chunk)
    expect(hashing.finish()).toEqual(blob.list)
  }
})
