import { execFileSync } from "node:child_process"
import { createHash } from "node:crypto"
import { existsSync, lstatSync, readdirSync, readFileSync, statSync } from "node:fs"
import { mkdir, readFile, writeFile } from "node:fs/promises"
import { join } from "node:path"
import { expect, onTestFinished, test } from "vitest"
import { ComputalotError } from "../../protocol/domain/errors.ts"
import { digest } from "../../protocol/domain/ids.ts"
import { imageDigest, type ImageRecord } from "../../protocol/domain/image.ts"
import { createImageStore, ImageUnavailable, type FetchedLayer } from "../../node-agent/runtime/images/images.ts"
import { LayerRefused } from "../../node-agent/runtime/images/layer-store.ts"
import { blobOf, layerOf, layerStore, missingTools, scratchDirectory, type Entry } from "../support/images.ts"

const skipped = missingTools("bwrap", "tar", "setpriv") !== null
const HIDDEN = { type: "file", content: "" } as const

function mountOverlay(layers: string[], at: string): void {
  execFileSync("mount", ["-t", "overlay", "overlay", "-o", `lowerdir=${layers.toReversed().join(":")}`, at])
  onTestFinished(() => void execFileSync("umount", [at]))
}

test.skipIf(skipped)(
  "an unpacked layer has the files, links, modes and owners of its tar, without set-user bits",
  async () => {
    const work = await scratchDirectory()
    const store = await layerStore(join(work, "layers"))
    const layer = await layerOf(work, [
      { name: "./etc/", type: "directory", mode: 0o750, uid: 7, gid: 8 },
      { name: "./etc/ő", content: "text", mode: 0o4755, uid: 7, gid: 8, mtime: new Date(1_000_000) },
      { name: "./etc/hard", type: "link", linkname: "./etc/ő" },
      { name: "sh", type: "symlink", linkname: "/bin/sh" },
      { name: "deep/down/file", content: "x" },
    ])
    await Promise.all([store.add(layer.diffId, layer.path), store.add(layer.diffId, layer.path)])
    const root = store.path(layer.diffId)
    expect(readFileSync(join(root, "etc/hard"), "utf8")).toBe("text")
    expect(statSync(join(root, "etc/ő"))).toMatchObject({ mode: 0o100755, uid: 7, gid: 8, mtimeMs: 1_000_000 })
    expect(statSync(join(root, "etc")).mode).toBe(0o040750)
    expect(lstatSync(join(root, "sh")).isSymbolicLink()).toBe(true)
    expect(readFileSync(join(root, "deep/down/file"), "utf8")).toBe("x")
    expect(store.usage().layers).toBe(1)
  },
)

test.skipIf(skipped)(
  "whiteouts and opaque directories hide lower files when the layers are joined by overlayfs",
  async () => {
    const work = await scratchDirectory()
    const store = await layerStore(join(work, "layers"))
    const lower = await layerOf(work, [
      { name: "kept", content: "1" },
      { name: "gone", content: "1" },
      { name: "dir/inside", content: "1" },
      { name: "opaque/old", content: "1" },
    ])
    const upper = await layerOf(work, [
      { name: ".wh.gone", ...HIDDEN },
      { name: "dir/.wh.inside", ...HIDDEN },
      { name: "opaque", type: "directory", mode: 0o700 },
      { name: "opaque/.wh..wh..opq", ...HIDDEN },
      { name: "opaque/new", content: "2" },
    ])
    for (const { diffId, path } of [lower, upper]) await store.add(diffId, path)
    const joined = join(work, "joined")
    await mkdir(joined)
    mountOverlay([store.path(lower.diffId), store.path(upper.diffId)], joined)
    expect(readdirSync(joined).toSorted()).toEqual(["dir", "kept", "opaque"])
    expect(readdirSync(join(joined, "dir"))).toEqual([])
    expect(readdirSync(join(joined, "opaque"))).toEqual(["new"])
    expect(statSync(join(joined, "opaque")).mode & 0o777).toBe(0o700)
  },
)

test.skipIf(skipped).each<[string, Entry[], RegExp]>([
  ["a name that climbs out", [{ name: "../out", content: "x" }], /leads out/],
  ["an absolute name", [{ name: "/out", content: "x" }], /absolute/],
  ["a hard link that climbs out", [{ name: "x", type: "link", linkname: "../../etc/shadow" }], /leads out/],
  ["a hard link to an absolute name", [{ name: "x", type: "link", linkname: "/etc/shadow" }], /absolute/],
  ["a device", [{ name: "kvm", type: "character-device", devmajor: 10, devminor: 232 }], /character-device/],
  ["a disk", [{ name: "sda", type: "block-device", devmajor: 8, devminor: 0 }], /block-device/],
  ["a fifo", [{ name: "pipe", type: "fifo" }], /fifo/],
  ["a whiteout of the parent", [{ name: "dir/.wh...", ...HIDDEN }], /hides nothing/],
  [
    "too many entries",
    Array.from({ length: 30 }, (_, at) => ({ name: `file${at}`, content: "x" })),
    /more than 20 entries/,
  ],
])("a layer with %s is refused and leaves nothing", async (_what, entries, reason) => {
  const work = await scratchDirectory()
  const store = await layerStore(join(work, "layers"), { limits: { maxBytes: 1 << 30, maxEntries: 20, maxRatio: 200 } })
  const layer = await layerOf(work, entries)
  const refused = store.add(layer.diffId, layer.path)
  await expect(refused).rejects.toThrow(reason)
  await expect(refused).rejects.toThrow(LayerRefused)
  expect(readdirSync(join(work, "layers"))).toEqual([])
  expect(existsSync(join(work, "out"))).toBe(false)
})

test.skipIf(skipped)("neither one layer nor two together write or read through a link to the machine", async () => {
  const work = await scratchDirectory()
  const victim = join(work, "victim")
  await mkdir(victim)
  await writeFile(join(victim, "secret"), "secret")
  const store = await layerStore(join(work, "layers"))
  const link = await layerOf(work, [{ name: "foo", type: "symlink", linkname: victim }])
  const through = await layerOf(work, [{ name: "foo/pwn", content: "x" }])
  const both = await layerOf(work, [
    { name: "foo", type: "symlink", linkname: victim },
    { name: "foo/pwn", content: "x" },
  ])
  const reading = await layerOf(work, [
    { name: "foo", type: "symlink", linkname: victim },
    { name: "copy", type: "link", linkname: "foo/secret" },
  ])
  await store.add(link.diffId, link.path)
  await store.add(through.diffId, through.path)
  for (const { diffId, path } of [both, reading]) await store.add(diffId, path).catch(() => {})
  expect(readdirSync(victim)).toEqual(["secret"])
  if (store.has(reading.diffId)) expect(existsSync(join(store.path(reading.diffId), "copy"))).toBe(false)
  const joined = join(work, "joined")
  await mkdir(joined)
  mountOverlay([store.path(link.diffId), store.path(through.diffId)], joined)
  expect(readdirSync(join(joined, "foo"))).toEqual(["pwn"])
})

test.skipIf(skipped)("bombs, endless headers, wrong content and what is no tar are refused", async () => {
  const work = await scratchDirectory()
  const limits = { maxBytes: 512 << 20, maxEntries: 1000, maxRatio: 200 }
  const store = await layerStore(join(work, "layers"), { limits })
  const bomb = await layerOf(work, [{ name: "zeros", content: "\0".repeat(100 << 20) }])
  await expect(store.add(bomb.diffId, bomb.path)).rejects.toThrow(/200 times/)

  const small = await layerOf(work, [{ name: "a", content: "a" }])
  await expect(store.add(digest("0".repeat(64)), small.path)).rejects.toThrow(/its content is/)

  const header = Buffer.alloc(512)
  header.write("x", 0)
  header.write("0000644\0", 100)
  header.write("77777777777\0", 124)
  header.write("        x", 148)
  header.write("ustar\x0000", 257)
  const sum = header.reduce((total, byte) => total + byte, 0)
  header.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148)
  const endless = await blobOf(work, Buffer.concat([header, Buffer.alloc(4 << 20, "1")]))
  await expect(store.add(endless.diffId, endless.path)).rejects.toThrow(LayerRefused)

  const noise = await blobOf(work, Buffer.alloc(4096, "noise"))
  await expect(store.add(noise.diffId, noise.path)).rejects.toThrow(LayerRefused)
  expect(readdirSync(join(work, "layers"))).toEqual([])
})

test.skipIf(skipped)(
  "layers survive a restart, half-unpacked ones are swept, the least used make room, pinned ones stay",
  async () => {
    const work = await scratchDirectory()
    const directory = join(work, "layers")
    const first = await layerStore(directory)
    const layers = await Promise.all(
      ["a", "b", "c"].map((name) => layerOf(work, [{ name, content: name.repeat(400_000) }])),
    )
    const [a, b, c] = layers
    if (!a || !b || !c) throw new Error("three layers")
    await first.add(a.diffId, a.path)
    await first.add(b.diffId, b.path)
    await first[Symbol.asyncDispose]()
    await mkdir(join(directory, "half-1-1/root"), { recursive: true })
    await mkdir(join(directory, "f".repeat(64)))

    const second = await layerStore(directory, { quotaBytes: 1_000_000 })
    expect(readdirSync(directory).toSorted()).toEqual([a.diffId, b.diffId].toSorted())
    second.pin(a.diffId, "task")
    await second.add(c.diffId, c.path)
    expect([second.has(a.diffId), second.has(b.diffId), second.has(c.diffId)]).toEqual([true, false, true])
    second.pin(c.diffId, "task")
    await expect(second.add(b.diffId, b.path)).rejects.toThrow(/no room/)
    second.unpin("task")
    await second.add(b.diffId, b.path)
    expect(second.usage().layers).toBe(2)
  },
)

test.skipIf(skipped)(
  "an image is ready once every layer is here: each is fetched once, held while in use, and a forged record is refused",
  async () => {
    const work = await scratchDirectory()
    const layers = await layerStore(join(work, "layers"), { quotaBytes: 1_000_000 })
    const images = createImageStore({ layers, basesDirectory: join(work, "bases") })
    const one = await layerOf(work, [{ name: "one", content: "1" }])
    const two = await layerOf(work, [{ name: "two", content: "2" }])
    const blob = { digest: "e".repeat(64), size: 1, piece_list: null }
    const config = { env: { PATH: "/bin" }, workdir: "/work", user: "" }
    const image: ImageRecord = {
      digest: imageDigest(config, [one.diffId, two.diffId]),
      config,
      layers: [one, two].map(({ diffId }) => ({ diff_id: diffId, unpacked_bytes: 1, base: false, blob })),
    }
    const fetched: string[] = []
    const fetchLayer = (layer: { diffId: string }): Promise<{ path: string }> => {
      fetched.push(layer.diffId)
      return Promise.resolve({ path: layer.diffId === one.diffId ? one.path : two.path })
    }
    const [ready, again] = await Promise.all([images.ready(image, { fetchLayer }), images.ready(image, { fetchLayer })])
    expect(fetched).toEqual([one.diffId, two.diffId])
    expect(ready.layers).toEqual([layers.path(one.diffId), layers.path(two.diffId)])
    expect(again.config).toEqual(config)
    again[Symbol.dispose]()

    const big = await layerOf(work, [{ name: "big", content: "x".repeat(999_000) }])
    await expect(layers.add(big.diffId, big.path)).rejects.toThrow(/no room/)
    ready[Symbol.dispose]()
    await layers.add(big.diffId, big.path)
    expect(layers.has(one.diffId)).toBe(false)

    await expect(images.ready({ ...image, digest: "0".repeat(64) }, { fetchLayer })).rejects.toThrow(ImageUnavailable)
    const baseOnly = { ...image, layers: image.layers.map((layer) => ({ ...layer, blob: null })) }
    await expect(images.ready(baseOnly, { fetchLayer })).rejects.toThrow(/bases directory/)
    const failing = { fetchLayer: () => Promise.reject(new Error("no holder")) }
    await expect(images.ready(image, failing)).rejects.toThrow("no holder")
    await images.ready(image, { fetchLayer })
  },
)

test.skipIf(skipped)(
  "architecture §5.6: a layer of the node's own bases is not fetched, another one is, and one that nobody gives is named",
  async () => {
    const work = await scratchDirectory()
    const basesDirectory = join(work, "bases")
    const one = await layerOf(work, [{ name: "one", content: "1" }])
    const two = await layerOf(work, [{ name: "two", content: "2" }])
    const broken = await layerOf(work, [{ name: "three", content: "3" }])
    await writeLayout(join(basesDirectory, "own"), [one, broken])
    await writeFile(join(basesDirectory, "bases.json"), JSON.stringify({ own: "own" }))
    // The layout names it still, and it holds something else.
    await writeFile(join(basesDirectory, "own/blobs/sha256", broken.diffId), await readFile(two.path))
    const layers = await layerStore(join(work, "layers"))
    const images = createImageStore({ layers, basesDirectory })
    const config = { env: {}, workdir: "/", user: "" }
    const blob = { digest: "e".repeat(64), size: 41_000_000, piece_list: "f".repeat(64) }
    const diffIds = [one, two, broken].map(({ diffId }) => diffId)
    const image: ImageRecord = {
      digest: imageDigest(config, diffIds),
      config,
      layers: diffIds.map((diffId) => ({ diff_id: diffId, unpacked_bytes: 1, base: true, blob })),
    }
    const nobody = () =>
      Promise.reject(new ComputalotError("unavailable", `no source could give blob ${blob.digest} in ${work}`))
    const refused = await images.ready(image, { fetchLayer: nobody }).catch((error: unknown) => error)
    expect(refused).toMatchObject({ name: "ImageUnavailable", missing: blob.digest })
    expect(String(refused)).toMatch(/base layer of the image \(41 MB\) is not in this node's bases directory/)
    expect(String(refused)).not.toContain(work)

    const fetched: FetchedLayer[] = []
    await images.ready(image, {
      fetchLayer(layer) {
        fetched.push(layer)
        return Promise.resolve({ path: layer.diffId === two.diffId ? two.path : broken.path })
      },
    })
    // The broken one is taken from another node, not held against the project.
    expect(fetched.map(({ diffId, base }) => [diffId, base])).toEqual([
      [two.diffId, true],
      [broken.diffId, true],
    ])
  },
)

/** An OCI layout of these layers, each under its diff_id as if that were the digest of its blob. */
async function writeLayout(directory: string, layers: readonly { diffId: string; path: string }[]): Promise<void> {
  const blobs = join(directory, "blobs/sha256")
  await mkdir(blobs, { recursive: true })
  for (const { diffId, path } of layers) await writeFile(join(blobs, diffId), await readFile(path))
  const put = async (value: object): Promise<{ digest: string; size: number }> => {
    const text = JSON.stringify(value)
    const name = createHash("sha256").update(text).digest("hex")
    await writeFile(join(blobs, name), text)
    return { digest: `sha256:${name}`, size: text.length }
  }
  const named = layers.map(({ diffId }) => `sha256:${diffId}`)
  const config = await put({ rootfs: { diff_ids: named } })
  const manifest = await put({ config, layers: named.map((digest) => ({ digest, size: 1 })) })
  await writeFile(join(directory, "index.json"), JSON.stringify({ manifests: [manifest] }))
}
