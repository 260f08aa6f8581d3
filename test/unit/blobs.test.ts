import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, utimesSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterEach, expect, test } from "vitest"
import { ComputalotError } from "../../protocol/domain/errors.ts"
import { encodePieceList, pieceCount } from "../../protocol/wire/piece-list.ts"
import { countPieces, hasPiece } from "../../protocol/wire/piece-set.ts"
import { present } from "../../protocol/base/assert.ts"
import { inChunks, MIB, newTestBlob, openTestBlobs, type TestBlob } from "../support/content.ts"
import type { Blobs } from "../../node-agent/cache/blobs.ts"

const directories: string[] = []
function newDirectory(): string {
  const directory = mkdtempSync(join(tmpdir(), "computalot-blobs-"))
  directories.push(directory)
  return directory
}
afterEach(() => {
  for (const directory of directories.splice(0)) rmSync(directory, { recursive: true, force: true })
})

const pieceOf = (blob: TestBlob, index: number): Uint8Array => blob.bytes.subarray(index * MIB, (index + 1) * MIB)
const putBytes = (blobs: Blobs, blob: TestBlob, holder?: string) =>
  blobs.put({ stream: inChunks(blob.bytes) }, holder === undefined ? {} : { holder })
async function readWhole(blobs: Blobs, blob: TestBlob): Promise<Uint8Array> {
  const opened = present(await blobs.open(blob.ref.digest, "reader"), "the blob")
  blobs.unpin(blob.ref.digest, "reader")
  return readFileSync(opened.path)
}

test("a stored stream and a stored file read back byte for byte, whole and by pieces", async () => {
  await using blobs = await openTestBlobs()
  for (const size of [0, 1, MIB, MIB + 1, 3.5 * MIB]) {
    const blob = newTestBlob(size)
    expect(await putBytes(blobs, blob)).toEqual(blob.ref)
    expect(Buffer.compare(await readWhole(blobs, blob), blob.bytes)).toBe(0)
    expect(await blobs.has(blob.ref.digest)).toEqual(blob.ref)
    expect(await blobs.pieceList(blob.ref.digest)).toEqual(encodePieceList(blob.list))
    for (let index = 0; index < pieceCount(blob.list); index++) {
      expect(await blobs.readPiece(blob.ref.digest, index)).toEqual(new Uint8Array(pieceOf(blob, index)))
    }
    expect(await blobs.readPiece(blob.ref.digest, pieceCount(blob.list))).toBeNull()
  }
  const fromFile = newTestBlob(2 * MIB)
  const path = join(newDirectory(), "layer")
  writeFileSync(path, fromFile.bytes)
  expect(await blobs.put({ file: path })).toEqual(fromFile.ref)
  expect(statSync(path).size).toBe(2 * MIB)
})

test("the same bytes are stored once", async () => {
  await using blobs = await openTestBlobs()
  const blob = newTestBlob(2 * MIB)
  await Promise.all([putBytes(blobs, blob), putBytes(blobs, blob)])
  expect(await putBytes(blobs, blob)).toEqual(blob.ref)
  expect(blobs.usage()).toMatchObject({ bytes: 2 * MIB, blobs: 1 })
  expect(readdirSync(blobs.directory).toSorted()).toEqual([`${blob.ref.digest}.blob`, `${blob.ref.digest}.list`])
})

test("what is not here is null, and opening it too", async () => {
  await using blobs = await openTestBlobs()
  const { digest } = newTestBlob(10).ref
  expect(blobs.find(digest)).toBeNull()
  expect(await blobs.open(digest, "reader")).toBeNull()
  expect(await blobs.has(digest)).toBeNull()
  expect(await blobs.bitmap(digest)).toBeNull()
  expect(await blobs.pieceList(digest)).toBeNull()
  expect(await blobs.readPiece(digest, 0)).toBeNull()
})

test("a broken or aborted input leaves nothing behind", async () => {
  await using blobs = await openTestBlobs()
  async function* broken(): AsyncGenerator<Uint8Array> {
    yield new Uint8Array(10)
    throw new Error("the line broke")
  }
  await expect(blobs.put({ stream: broken() })).rejects.toThrow("the line broke")
  const signal = AbortSignal.abort(new Error("stopped"))
  await expect(blobs.put({ stream: inChunks(new Uint8Array(10)) }, { signal })).rejects.toThrow("stopped")
  expect(readdirSync(blobs.directory)).toEqual([])
  expect(blobs.usage()).toMatchObject({ bytes: 0, blobs: 0 })
})

test("a partial blob keeps right pieces only, serves them at once, and becomes whole", async () => {
  await using blobs = await openTestBlobs()
  const blob = newTestBlob(3.5 * MIB)
  await using partial = present(await blobs.begin(blob.ref, blob.list), "a new partial blob")
  expect(await partial.write(1, pieceOf(blob, 0))).toBe(false)
  expect(await partial.write(3, pieceOf(blob, 0))).toBe(false)
  expect(await blobs.readPiece(blob.ref.digest, 1)).toBeNull()
  expect(await partial.write(1, pieceOf(blob, 1))).toBe(true)
  expect(await blobs.readPiece(blob.ref.digest, 1)).toEqual(new Uint8Array(pieceOf(blob, 1)))
  expect(await blobs.bitmap(blob.ref.digest)).toEqual(new Uint8Array([0b10]))
  expect(blobs.find(blob.ref.digest)).toBeNull()
  for (const index of [0, 2, 3]) expect(await partial.write(index, pieceOf(blob, index))).toBe(true)
  expect(await partial.finish()).toEqual(blob.ref)
  expect(blobs.find(blob.ref.digest)).toEqual(blob.ref)
  expect(Buffer.compare(await readWhole(blobs, blob), blob.bytes)).toBe(0)
  expect(await blobs.begin(blob.ref, blob.list)).toBeNull()
})

test("a list that is not the blob's shows at the end: nothing is kept", async () => {
  await using blobs = await openTestBlobs()
  const truth = newTestBlob(2 * MIB)
  const other = newTestBlob(2 * MIB)
  const list = { ...other.list, digest: truth.ref.digest }
  const ref = { ...truth.ref, pieceListDigest: newTestBlob(0, encodePieceList(list)).ref.digest }
  await using partial = present(await blobs.begin(ref, list), "a new partial blob")
  for (const index of [0, 1]) expect(await partial.write(index, pieceOf(other, index))).toBe(true)
  await expect(partial.finish()).rejects.toThrow("is not that of blob")
  expect(await blobs.has(truth.ref.digest)).toBeNull()
  expect(readdirSync(blobs.directory)).toEqual([])
})

test("after a restart whole blobs are there, a partial one goes on where it was, and torn pieces are not believed", async () => {
  const directory = newDirectory()
  const whole = newTestBlob(2 * MIB)
  const part = newTestBlob(4 * MIB)
  {
    await using blobs = await openTestBlobs({ directory })
    await putBytes(blobs, whole)
    await using partial = present(await blobs.begin(part.ref, part.list), "a new partial blob")
    for (const index of [0, 2]) await partial.write(index, pieceOf(part, index))
  }
  // Power failed: the second of them never reached the disk whole, and a put was under way.
  const path = join(directory, `${part.ref.digest}.part`)
  const bytes = readFileSync(path)
  bytes.fill(0, 2.5 * MIB, 2.75 * MIB)
  writeFileSync(path, bytes)
  writeFileSync(join(directory, "1-1.tmp"), "half")
  await using blobs = await openTestBlobs({ directory })
  expect(readdirSync(directory)).not.toContain("1-1.tmp")
  expect(Buffer.compare(await readWhole(blobs, whole), whole.bytes)).toBe(0)
  expect(await blobs.has(part.ref.digest)).toBeNull()
  await using partial = present(await blobs.begin(part.ref, part.list), "the partial blob")
  expect(countPieces(partial.have, 4)).toBe(1)
  expect(hasPiece(partial.have, 0)).toBe(true)
  for (const index of [1, 2, 3]) expect(await partial.write(index, pieceOf(part, index))).toBe(true)
  expect(await partial.finish()).toEqual(part.ref)
})

test("a partial file that a crash left before it had its size is begun anew: right pieces are not taken for wrong ones", async () => {
  for (const size of [1_000, 3 * MIB]) {
    const directory = newDirectory()
    const part = newTestBlob(size)
    {
      await using blobs = await openTestBlobs({ directory })
      await using _ = present(await blobs.begin(part.ref, part.list), "a new partial blob")
    }
    writeFileSync(join(directory, `${part.ref.digest}.part`), "")
    await using blobs = await openTestBlobs({ directory })
    await using partial = present(await blobs.begin(part.ref, part.list), "the partial blob")
    for (let index = 0; index < pieceCount(part.list); index++)
      expect(await partial.write(index, pieceOf(part, index))).toBe(true)
    expect(await partial.finish()).toEqual(part.ref)
    expect(Buffer.compare(await readWhole(blobs, part), part.bytes)).toBe(0)
  }
})

test("a damaged blob is found when it is read, by piece or whole, and dropped", async () => {
  const directory = newDirectory()
  const first = newTestBlob(2 * MIB)
  const second = newTestBlob(2 * MIB)
  const cut = newTestBlob(2 * MIB)
  {
    await using blobs = await openTestBlobs({ directory })
    for (const blob of [first, second, cut]) await putBytes(blobs, blob)
  }
  const damage = (blob: TestBlob, bytes: Uint8Array): void =>
    writeFileSync(join(directory, `${blob.ref.digest}.blob`), bytes)
  damage(first, first.bytes.toReversed())
  damage(second, second.bytes.toReversed())
  damage(cut, cut.bytes.subarray(0, 1.5 * MIB))
  await using blobs = await openTestBlobs({ directory })
  expect(blobs.find(cut.ref.digest)).toBeNull()
  expect(await blobs.readPiece(first.ref.digest, 0)).toBeNull()
  expect(blobs.find(first.ref.digest)).toBeNull()
  expect(await blobs.open(second.ref.digest, "task")).toBeNull()
  expect(blobs.find(second.ref.digest)).toBeNull()
  expect(readdirSync(directory)).toEqual([])
  expect(await putBytes(blobs, first)).toEqual(first.ref)
  expect(Buffer.compare(await readWhole(blobs, first), first.bytes)).toBe(0)
})

test("a full cache drops what was used longest ago, never what is pinned or being downloaded", async () => {
  const directory = newDirectory()
  const [old, pinned, recent] = [newTestBlob(2 * MIB), newTestBlob(2 * MIB), newTestBlob(2 * MIB)]
  {
    await using blobs = await openTestBlobs({ directory })
    for (const blob of [old, pinned, recent]) await putBytes(blobs, blob)
  }
  const usedAt = (blob: TestBlob, second: number): void =>
    utimesSync(join(directory, `${blob.ref.digest}.blob`), second, second)
  usedAt(pinned, 1000)
  usedAt(old, 2000)
  usedAt(recent, 3000)
  await using blobs = await openTestBlobs({ directory, quotaBytes: 8 * MIB })
  blobs.pin(pinned.ref.digest, "task")
  blobs.pin(pinned.ref.digest, "task")
  const part = newTestBlob(2 * MIB)
  await using partial = present(await blobs.begin(part.ref, part.list), "a partial blob")
  await putBytes(blobs, newTestBlob(1.5 * MIB))
  expect(blobs.find(old.ref.digest)).toBeNull()
  expect(blobs.find(recent.ref.digest)).not.toBeNull()
  const tooLarge = newTestBlob(5 * MIB)
  const refused: unknown = await putBytes(blobs, tooLarge).catch((error: unknown) => error)
  expect(refused).toBeInstanceOf(ComputalotError)
  expect(refused).toMatchObject({ code: "storage_full" })
  await expect(blobs.begin(tooLarge.ref, tooLarge.list)).rejects.toMatchObject({ code: "storage_full" })
  expect(blobs.find(pinned.ref.digest)).not.toBeNull()
  expect(await partial.write(0, pieceOf(part, 0))).toBe(true)
  // One of two pins given back keeps it; all given back lets it go.
  blobs.unpin(pinned.ref.digest, "task")
  await expect(putBytes(blobs, tooLarge)).rejects.toMatchObject({ code: "storage_full" })
  blobs.unpinAll("task")
  expect(await putBytes(blobs, tooLarge, "task")).toEqual(tooLarge.ref)
  expect(blobs.find(pinned.ref.digest)).toBeNull()
  await expect(putBytes(blobs, newTestBlob(3 * MIB))).rejects.toMatchObject({ code: "storage_full" })
  expect(blobs.find(tooLarge.ref.digest)).not.toBeNull()
})

test("a quota smaller than what is cached is kept from the start", async () => {
  const directory = newDirectory()
  {
    await using blobs = await openTestBlobs({ directory })
    for (let i = 0; i < 4; i++) await putBytes(blobs, newTestBlob(MIB))
  }
  await using blobs = await openTestBlobs({ directory, quotaBytes: 2 * MIB })
  expect(blobs.usage()).toMatchObject({ bytes: 2 * MIB, blobs: 2 })
})

test("storing a large file does not hold up the event loop", async () => {
  await using blobs = await openTestBlobs()
  const path = join(newDirectory(), "large")
  writeFileSync(path, new Uint8Array(192 * MIB))
  await putBytes(blobs, newTestBlob(10))
  const before = performance.eventLoopUtilization()
  await blobs.put({ file: path })
  // Hashing on this thread would keep the loop busy all the time.
  expect(performance.eventLoopUtilization(before).utilization).toBeLessThan(0.5)
})
