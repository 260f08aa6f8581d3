import { readFile } from "node:fs/promises"
import { join } from "node:path"
import { z } from "zod"
import { digest, type Digest } from "../../../protocol/domain/ids.ts"

/** An image of an OCI layout: what it is called, how its programs start, and its layers, lowest first. */
export interface LayoutImage {
  /** sha256 of the manifest. */
  manifestDigest: Digest
  config: ImageConfig
  layers: LayoutLayer[]
}

export interface LayoutLayer {
  /** sha256 of the plain tar. */
  diffId: Digest
  /** Where the blob lies: a tar, plain or compressed with gzip or zstd. */
  path: string
  /** sha256 and bytes of the blob. */
  digest: Digest
  size: number
}

export interface ImageConfig {
  env: Record<string, string>
  /** `/` when the image names none. */
  workdir: string
  /** As the image writes it (`app`, `1000:1000`); empty: root. */
  user: string
}

/** Reads the layout's image for this machine's platform. Throws when the layout is broken; layers are not looked into. */
export async function readLayout(directory: string): Promise<LayoutImage> {
  const index = indexSchema.parse(await readJson(join(directory, "index.json")))
  const chosen = index.manifests.find((one) => isOurs(one.platform)) ?? index.manifests[0]
  if (chosen === undefined) throw new Error(`${directory} has no image`)
  const manifest = manifestSchema.parse(await readJson(blobPath(directory, chosen.digest)))
  const config = configSchema.parse(await readJson(blobPath(directory, manifest.config.digest)))
  const diffIds = config.rootfs.diff_ids
  if (diffIds.length !== manifest.layers.length) throw new Error(`${directory}: layers and diff_ids differ in number`)
  return {
    manifestDigest: bare(chosen.digest),
    config: {
      env: parseEnv(config.config?.Env ?? []),
      workdir: config.config?.WorkingDir || "/",
      user: config.config?.User ?? "",
    },
    layers: manifest.layers.map((layer, at) => ({
      diffId: bare(diffIds[at] ?? ""),
      path: blobPath(directory, layer.digest),
      digest: bare(layer.digest),
      size: layer.size,
    })),
  }
}

const ociDigest = z.string().regex(/^sha256:[0-9a-f]{64}$/)
const descriptor = z.object({ digest: ociDigest, size: z.int().nonnegative() })
const platform = z.object({ os: z.string(), architecture: z.string() })
const indexSchema = z.object({ manifests: z.array(descriptor.extend({ platform: platform.optional() })) })
const manifestSchema = z.object({ config: descriptor, layers: z.array(descriptor).max(127) })
const configSchema = z.object({
  config: z
    .object({
      Env: z.array(z.string()).nullish(),
      WorkingDir: z.string().optional(),
      User: z.string().optional(),
    })
    .optional(),
  rootfs: z.object({ diff_ids: z.array(ociDigest) }),
})

function isOurs(named: z.infer<typeof platform> | undefined): boolean {
  return named?.os === "linux" && named.architecture === (process.arch === "x64" ? "amd64" : process.arch)
}

function bare(named: string): Digest {
  return digest(named.slice("sha256:".length))
}

function blobPath(directory: string, named: string): string {
  return join(directory, "blobs", "sha256", bare(named))
}

function parseEnv(lines: readonly string[]): Record<string, string> {
  return Object.fromEntries(
    lines.map((line) => {
      const at = line.indexOf("=")
      return at < 0 ? [line, ""] : [line.slice(0, at), line.slice(at + 1)]
    }),
  )
}

async function readJson(file: string): Promise<unknown> {
  return JSON.parse(await readFile(file, "utf8")) as unknown
}
