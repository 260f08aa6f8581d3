import { createHash, randomBytes } from "node:crypto"
import { mkdtemp, readdir, readFile, readlink, rm, stat, utimes, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { buffer } from "node:stream/consumers"
import fc from "fast-check"
import { afterEach, beforeEach, expect, test } from "vitest"
import { systemRandom } from "../../protocol/base/random.ts"
import { digest as asDigest, type Digest } from "../../protocol/domain/ids.ts"
import { openObjectFiles, type ObjectFiles } from "../../coordinator/artifacts/object-files.ts"
import { filenameFromHeader, contentDisposition } from "../../coordinator/artifacts/filename.ts"
import { parseRange } from "../../coordinator/artifacts/open.ts"

let root = ""
let files: ObjectFiles
/** Blobs that were said to be damaged. */
let told: Digest[] = []
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), "computalot-files-"))
  told = []
  files = await openObjectFiles(root, systemRandom, (digest) => told.push(digest))
})
afterEach(() => rm(root, { recursive: true, force: true }))

async function* pieces(...all: (Uint8Array | string)[]): AsyncGenerator<Uint8Array> {
  for (const piece of all) yield Buffer.from(piece)
}
const digestOf = (bytes: Uint8Array | string): Digest => asDigest(createHash("sha256").update(bytes).digest("hex"))
async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = []
  for await (const item of items) found.push(item)
  return found
}
const UNLIMITED = { maxBytes: 2 ** 31 }
const never = async (): Promise<boolean> => false
const stored = async (): Promise<string[]> =>
  (await readdir(join(root, "blobs"), { recursive: true })).filter((name) => name.length > 60)
const unfinished = (): Promise<string[]> => readdir(join(root, "incoming"))

test("AR-004: bytes are stored under their digest, equal ones once, and read back whole and in parts", async () => {
  using first = await files.put(pieces("hello ", "world"), UNLIMITED)
  using second = await files.put(pieces("hello world"), UNLIMITED)
  expect(first).toMatchObject({ digest: digestOf("hello world"), size: 11 })
  expect(second.digest).toBe(first.digest)
  expect(await stored()).toHaveLength(1)
  expect((await buffer(await files.open(first.digest))).toString()).toBe("hello world")
  expect((await buffer(await files.open(first.digest, { start: 6, end: 8 }))).toString()).toBe("wor")
  expect((await files.readRange(first.digest, 6, 100))?.toString()).toBe("world")
  expect(await files.size(first.digest)).toBe(11)
  expect(await files.size(digestOf("nothing"))).toBeNull()
  expect(await files.readRange(digestOf("nothing"), 0, 1)).toBeNull()
  expect(await unfinished()).toEqual([])
})

test("AR-003: the limit is inclusive, and what is refused leaves nothing", async () => {
  using exact = await files.put(pieces(Buffer.alloc(100)), { maxBytes: 100 })
  expect(exact.size).toBe(100)
  await expect(files.put(pieces(Buffer.alloc(99), "xx"), { maxBytes: 100 })).rejects.toMatchObject({ status: 413 })
  await expect(files.put(pieces("a"), { ...UNLIMITED, expectedDigest: digestOf("b") })).rejects.toMatchObject({
    status: 422,
  })
  using right = await files.put(pieces("a"), { ...UNLIMITED, expectedDigest: digestOf("a") })
  expect(right.size).toBe(1)
  expect(await unfinished()).toEqual([])
  expect(await stored()).toHaveLength(2)
})

test("an abort ends the wait at once and leaves nothing; so does a source that fails", async () => {
  const gone = new AbortController()
  async function* hangs(): AsyncGenerator<Uint8Array> {
    yield Buffer.from("some")
    await new Promise(() => {})
  }
  const putting = files.put(hangs(), { ...UNLIMITED, signal: gone.signal })
  setTimeout(() => gone.abort(new Error("client left")), 30)
  await expect(putting).rejects.toThrow("client left")
  async function* fails(): AsyncGenerator<Uint8Array> {
    yield Buffer.from("some")
    throw new Error("connection reset")
  }
  await expect(files.put(fails(), UNLIMITED)).rejects.toThrow("connection reset")
  expect(await unfinished()).toEqual([])
  expect(await stored()).toEqual([])
})

test("a full disk is storage_full, 503, and nothing of the upload stays", async () => {
  async function* intoFull(): AsyncGenerator<Uint8Array> {
    yield Buffer.from("some")
    throw Object.assign(new Error("ENOSPC: no space left on device"), { code: "ENOSPC" })
  }
  await expect(files.put(intoFull(), UNLIMITED)).rejects.toMatchObject({ code: "storage_full", status: 503 })
  expect(await unfinished()).toEqual([])
})

test("a blob goes only when nothing needs it and nobody is about to", async () => {
  const held = await files.put(pieces("kept"), UNLIMITED)
  expect(await files.remove(held.digest, never)).toBe(false)
  held[Symbol.dispose]()
  held[Symbol.dispose]()
  expect(await files.remove(held.digest, async () => true)).toBe(false)
  expect(await files.size(held.digest)).toBe(4)
  expect(await files.remove(held.digest, never)).toBe(true)
  expect(await files.size(held.digest)).toBeNull()
  expect(await files.pin(held.digest)).toBeNull()
})

test("a removal ends no running read", async () => {
  const blob = await files.put(pieces(Buffer.alloc(3_000_000, "x")), UNLIMITED)
  blob[Symbol.dispose]()
  const reading = await files.open(blob.digest)
  expect(await files.remove(blob.digest, never)).toBe(true)
  expect(await buffer(reading)).toHaveLength(3_000_000)
})

test("puts and removals of the same bytes at once: whoever recorded a blob finds it", async () => {
  const digest = digestOf("contended")
  const records = new Set<number>()
  const put = async (n: number): Promise<void> => {
    using blob = await files.put(pieces("contended"), UNLIMITED)
    await new Promise((resolve) => setTimeout(resolve, Math.random() * 3))
    records.add(n)
    expect(await files.size(blob.digest)).toBe(9)
  }
  const removeAll = async (): Promise<void> => {
    for (let n = 0; n < 40; n++) {
      await files.remove(digest, async () => records.size > 0)
      await new Promise((resolve) => setTimeout(resolve, Math.random() * 2))
      if (n % 3 === 0) records.clear()
    }
  }
  await Promise.all([removeAll(), ...Array.from({ length: 60 }, (_, n) => put(n))])
  records.add(-1)
  using last = await files.put(pieces("contended"), UNLIMITED)
  expect(await files.size(last.digest)).toBe(9)
})

test("sweeps find what a crash left: unfinished files, and blobs that no record ever named", async () => {
  await writeFile(join(root, "incoming", "left"), "half")
  await utimes(join(root, "incoming", "left"), new Date(0), new Date(0))
  await writeFile(join(root, "incoming", "young"), "half")
  expect(await files.sweepIncoming(Date.now() - 3_600_000)).toBe(1)
  expect(await unfinished()).toEqual(["young"])
  const blob = await files.put(pieces("old"), UNLIMITED)
  blob[Symbol.dispose]()
  expect(await all(files.blobs(Date.now() - 1000))).toEqual([])
  expect(await all(files.blobs(Date.now() + 1000))).toEqual([blob.digest])
})

test("AR-001: 64 MB pass through with bounded memory", async () => {
  const piece = randomBytes(64 * 1024)
  async function* big(): AsyncGenerator<Uint8Array> {
    for (let n = 0; n < 1024; n++) yield piece
  }
  const before = process.memoryUsage().rss
  let highest = 0
  const watching = setInterval(() => (highest = Math.max(highest, process.memoryUsage().rss)), 5)
  using blob = await files.put(big(), UNLIMITED)
  clearInterval(watching)
  expect(blob.size).toBe(64 * 2 ** 20)
  expect((await stat(files.path(blob.digest))).size).toBe(blob.size)
  expect(highest - before).toBeLessThan(40 * 2 ** 20)
})

test("a Range header never reads outside, whatever it says", () => {
  expect(parseRange("bytes=0-3", 10)).toEqual({ start: 0, end: 3 })
  expect(parseRange("bytes=4-", 10)).toEqual({ start: 4, end: 9 })
  expect(parseRange("bytes=-3", 10)).toEqual({ start: 7, end: 9 })
  expect(parseRange("bytes=-30", 10)).toEqual({ start: 0, end: 9 })
  expect(parseRange("bytes=0-300", 10)).toEqual({ start: 0, end: 9 })
  for (const outside of ["bytes=10-", "bytes=10-20", "bytes=-0"]) expect(parseRange(outside, 10)).toBe("unsatisfiable")
  for (const ignored of [undefined, "bytes=-", "bytes=3-1", "bytes=0-1,3-4", "lines=0-1", "bytes=a-b"])
    expect(parseRange(ignored, 10)).toBeNull()
  expect(parseRange("bytes=0-", 0)).toBe("unsatisfiable")
  fc.assert(
    fc.property(
      fc.nat(100),
      fc.option(fc.nat(200), { nil: "" }),
      fc.option(fc.nat(200), { nil: "" }),
      (size, first, last) => {
        const range = parseRange(`bytes=${first}-${last}`, size)
        if (range === null || range === "unsatisfiable") return
        expect(range.start).toBeGreaterThanOrEqual(0)
        expect(range.end).toBeLessThan(size)
        expect(range.start).toBeLessThanOrEqual(range.end)
      },
    ),
  )
})

test("GAP-49: a file name loses its path and cannot break a header", () => {
  expect(filenameFromHeader(undefined)).toBe("artifact.bin")
  expect(filenameFromHeader("../../etc/passwd")).toBe("passwd")
  expect(filenameFromHeader("C:\\tmp\\model.pt")).toBe("model.pt")
  expect(filenameFromHeader("a/..")).toBe("artifact.bin")
  expect(filenameFromHeader(Buffer.from("größe.txt", "utf8").toString("latin1"))).toBe("größe.txt")
  expect(Buffer.byteLength(filenameFromHeader(`${"ä".repeat(400)}.tar.gz`))).toBeLessThanOrEqual(510)
  expect(contentDisposition('a"b\\c.txt')).toBe(`attachment; filename="a_b_c.txt"; filename*=UTF-8''a%22b%5Cc.txt`)
  fc.assert(
    fc.property(fc.string({ unit: "binary" }), (text) => {
      expect(contentDisposition(filenameFromHeader(text))).toMatch(/^[\x20-\x7e]*$/)
    }),
  )
})

/** Other bytes where the blob lies. */
async function damage(digest: Digest, change: (bytes: Buffer) => Buffer): Promise<void> {
  const path = files.path(digest)
  await writeFile(path, change(await readFile(path)))
}
const flip = (bytes: Buffer): Buffer =>
  Buffer.from(bytes.map((byte, index) => (index === bytes.length >> 1 ? byte ^ 1 : byte)))
const cut = (bytes: Buffer): Buffer => bytes.subarray(0, bytes.length >> 1)

test.each([
  ["flipped in one bit", flip],
  ["cut short", cut],
])("a small blob %s is refused before its first byte, whole, in part and in memory", async (_how, change) => {
  using blob = await files.put(pieces("hello world"), UNLIMITED)
  expect((await files.read(blob.digest, 11))?.toString()).toBe("hello world")
  expect(await files.read(blob.digest, 10)).toBeNull()
  await damage(blob.digest, change)
  await expect(files.open(blob.digest)).rejects.toMatchObject({
    status: 500,
    message: expect.stringContaining("damaged") as string,
  })
  await expect(files.open(blob.digest, { start: 0, end: 2 })).rejects.toMatchObject({ status: 500 })
  expect(await files.read(blob.digest, 11)).toBeNull()
  expect(await files.size(blob.digest)).toBeNull()
  expect(told).toEqual([blob.digest])
  expect([...files.damaged().keys()]).toEqual([blob.digest])
})

test.each([
  ["flipped in one bit", flip],
  ["cut short", cut],
])("the stream of a large blob %s breaks before its end, and a part of it is refused", async (_how, change) => {
  const bytes = randomBytes(2 ** 21 + 5)
  using blob = await files.put(pieces(bytes), UNLIMITED)
  expect((await buffer(await files.open(blob.digest))).equals(bytes)).toBe(true)
  expect((await buffer(await files.open(blob.digest, { start: 7, end: 9 }))).equals(bytes.subarray(7, 10))).toBe(true)
  await damage(blob.digest, change)
  let received = 0
  const reading = (async () => {
    for await (const piece of await files.open(blob.digest)) received += (piece as Buffer).length
  })()
  await expect(reading).rejects.toThrow("damaged")
  expect(received).toBeLessThan(change(bytes).length)
  await expect(files.open(blob.digest, { start: 7, end: 9 })).rejects.toThrow("damaged")
  expect(told).toEqual([blob.digest])
})

test("put again, a damaged blob is whole again; one that was cut short heals before anybody noticed", async () => {
  using blob = await files.put(pieces("hello world"), UNLIMITED)
  for (const [change, noticed] of [
    [cut, false],
    [flip, true],
  ] as const) {
    await damage(blob.digest, change)
    if (noticed) expect(await files.read(blob.digest, 11)).toBeNull()
    using _again = await files.put(pieces("hello world"), UNLIMITED)
    expect((await files.read(blob.digest, 11))?.toString()).toBe("hello world")
    expect(files.damaged().size).toBe(0)
  }
})

test("a reader that leaves at once leaves no file open", async () => {
  using blob = await files.put(pieces(randomBytes(2 ** 20)), UNLIMITED)
  const openFiles = async (): Promise<number> =>
    (
      await Promise.all((await readdir("/proc/self/fd")).map((fd) => readlink(`/proc/self/fd/${fd}`).catch(() => "")))
    ).filter((path) => path.startsWith(root)).length
  for (const range of [undefined, { start: 0, end: 5 }]) {
    const reading = await files.open(blob.digest, range)
    expect(await openFiles()).toBe(1)
    reading.destroy()
    await expect.poll(openFiles).toBe(0)
  }
})
