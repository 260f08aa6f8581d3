/**
 * The part of make-bases that writes OCI layouts.
 *   base-layout.ts make LAYOUT TAR CONFIG_JSON [BELOW]   one image of TAR, on top of the layers of the layout BELOW
 *   base-layout.ts list BASES_JSON NAME FOLDER           adds NAME, short and full, to the list of bases
 */
import { createHash, type Hash } from "node:crypto"
import { createReadStream, createWriteStream, existsSync } from "node:fs"
import { copyFile, mkdir, readFile, rename, writeFile } from "node:fs/promises"
import { join } from "node:path"
import { Transform } from "node:stream"
import { pipeline } from "node:stream/promises"
import { constants, createZstdCompress } from "node:zlib"

const [act, ...rest] = process.argv.slice(2)
if (act === "make") await makeLayout(...readMake(rest))
else if (act === "list") await listBase(...readList(rest))
else throw new Error(`base-layout.ts knows make and list, not ${act}`)

function readMake([layout, tar, config, below]: string[]): [string, string, object, string | undefined] {
  if (layout === undefined || tar === undefined || config === undefined)
    throw new Error("make LAYOUT TAR CONFIG [BELOW]")
  return [layout, tar, JSON.parse(config) as object, below]
}

function readList([file, name, folder]: string[]): [string, string, string] {
  if (file === undefined || name === undefined || folder === undefined) throw new Error("list BASES_JSON NAME FOLDER")
  return [file, name, folder]
}

interface Descriptor {
  mediaType: string
  digest: string
  size: number
}

async function makeLayout(layout: string, tar: string, config: object, below?: string): Promise<void> {
  await mkdir(join(layout, "blobs", "sha256"), { recursive: true })
  const lower = below === undefined ? { layers: [], diffIds: [] } : await takeLayers(below, layout)
  const top = await compressLayer(tar, layout)

  const diffIds = [...lower.diffIds, top.diffId]
  const created = new Date(0).toISOString()
  const configBlob = await putBlob(layout, "application/vnd.oci.image.config.v1+json", {
    created,
    architecture: process.arch === "x64" ? "amd64" : process.arch,
    os: "linux",
    config,
    rootfs: { type: "layers", diff_ids: diffIds },
    // buildah refuses to build upon an image whose history does not account for every layer.
    history: diffIds.map(() => ({ created, created_by: "make-bases" })),
  })
  const manifest = await putBlob(layout, "application/vnd.oci.image.manifest.v1+json", {
    schemaVersion: 2,
    mediaType: "application/vnd.oci.image.manifest.v1+json",
    config: configBlob,
    layers: [...lower.layers, top.descriptor],
  })
  await writeFile(join(layout, "oci-layout"), JSON.stringify({ imageLayoutVersion: "1.0.0" }))
  await writeFile(
    join(layout, "index.json"),
    JSON.stringify({
      schemaVersion: 2,
      manifests: [{ ...manifest, annotations: { "org.opencontainers.image.ref.name": "latest" } }],
    }),
  )
}

/** Reads the tar once: its digest, its compressed form and that form's digest. */
async function compressLayer(tar: string, layout: string): Promise<{ descriptor: Descriptor; diffId: string }> {
  const plain = createHash("sha256")
  const packed = createHash("sha256")
  let size = 0
  const written = join(layout, "blobs", "layer.new")
  await pipeline(
    createReadStream(tar, { highWaterMark: 1 << 20 }),
    tee(plain),
    createZstdCompress({ params: { [constants.ZSTD_c_compressionLevel]: 3 } }),
    tee(packed, (bytes) => (size += bytes)),
    createWriteStream(written),
  )
  const digest = packed.digest("hex")
  await rename(written, join(layout, "blobs", "sha256", digest))
  return {
    descriptor: { mediaType: "application/vnd.oci.image.layer.v1.tar+zstd", digest: `sha256:${digest}`, size },
    diffId: `sha256:${plain.digest("hex")}`,
  }
}

function tee(hash: Hash, count?: (bytes: number) => void): Transform {
  return new Transform({
    transform(chunk: Buffer, _encoding, done) {
      hash.update(chunk)
      count?.(chunk.length)
      done(null, chunk)
    },
  })
}

async function takeLayers(below: string, layout: string): Promise<{ layers: Descriptor[]; diffIds: string[] }> {
  const index = (await readJson(join(below, "index.json"))) as { manifests: [Descriptor] }
  const manifest = (await readJson(blobPath(below, index.manifests[0].digest))) as {
    config: Descriptor
    layers: Descriptor[]
  }
  const config = (await readJson(blobPath(below, manifest.config.digest))) as { rootfs: { diff_ids: string[] } }
  for (const layer of manifest.layers) await copyFile(blobPath(below, layer.digest), blobPath(layout, layer.digest))
  return { layers: manifest.layers, diffIds: config.rootfs.diff_ids }
}

async function putBlob(layout: string, mediaType: string, content: object): Promise<Descriptor> {
  const bytes = Buffer.from(JSON.stringify(content))
  const digest = `sha256:${createHash("sha256").update(bytes).digest("hex")}`
  await writeFile(blobPath(layout, digest), bytes)
  return { mediaType, digest, size: bytes.length }
}

function blobPath(layout: string, digest: string): string {
  return join(layout, "blobs", "sha256", digest.slice("sha256:".length))
}

/** Keeps what else the operator has listed. */
async function listBase(file: string, name: string, folder: string): Promise<void> {
  const listed = existsSync(file) ? ((await readJson(file)) as Record<string, string>) : {}
  const all = { ...listed, [name]: folder, [`docker.io/library/${name}`]: folder }
  await writeFile(`${file}.new`, `${JSON.stringify(all, null, 2)}\n`)
  await rename(`${file}.new`, file)
}

async function readJson(file: string): Promise<unknown> {
  return JSON.parse(await readFile(file, "utf8")) as unknown
}
