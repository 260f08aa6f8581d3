import { mkdir, readdir, readFile, rename, rm, stat, utimes, writeFile } from "node:fs/promises"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { z } from "zod"
import { DIGEST_PATTERN, digest, type Digest } from "../../../protocol/domain/ids.ts"
import type { PackedLayer, PackOrder } from "./pack-layers.ts"
import { runTool } from "./run-tool.ts"

/** The blobs of layers, made once and kept in files by diff_id (architecture §5.6), those of bases and those of projects. */
export interface PackedLayers {
  /** What is known of the layer, when its blob lies here. */
  find(diffId: Digest): PackedLayer | null
  /** Layers whose blobs lie here. */
  all(): Digest[]
  /** The layer whose blob this is, or was before it was trimmed. */
  layerOf(blob: Digest): Digest | null
  path(diffId: Digest): string
  /**
   * Packs what is not here yet, in a child program; calls at once share the work. Rejects when a layer's content is not what
   * its diff_id says, and when the signal of the call that packs is aborted.
   */
  pack(layers: readonly LayerFile[], signal: AbortSignal): Promise<void>
  /** The file of this blob is not what it was: it is packed again when it is wanted. */
  drop(blob: Digest): Promise<void>
  /**
   * Notes the use of `latest` and deletes the blobs that were used longest ago until the rest fits; those of `latest` stay.
   * Of bases it stays known which blob they give: it can be made again.
   */
  trim(maxBytes: number, latest: readonly Digest[], isBase: (diffId: Digest) => boolean): Promise<void>
}

export interface LayerFile {
  diffId: Digest
  /** The layer: tar, gzip or zstd. */
  path: string
}

interface Kept {
  facts: PackedLayer
  /** Is the blob here? */
  here: boolean
  usedAt: number
}

export async function openPackedLayers(directory: string): Promise<PackedLayers> {
  await mkdir(directory, { recursive: true, mode: 0o700 })
  const kept = await readKept(directory)
  const packing = new Map<Digest, Promise<void>>()
  const path = (diffId: Digest): string => join(directory, `${diffId}${BLOB}`)
  const factsPath = (diffId: Digest): string => join(directory, `${diffId}${FACTS}`)

  async function packAll(layers: readonly LayerFile[], signal: AbortSignal): Promise<void> {
    const orders = layers.map(({ diffId, path: from }): PackOrder => ({ from, to: path(diffId) }))
    const end = await runTool([process.execPath, PACK_PROGRAM, JSON.stringify(orders)], { signal })
    signal.throwIfAborted()
    if (end.exitCode !== 0) throw new Error(`layers could not be packed: ${end.output.slice(-2000)}`)
    const packed = packedSchema.parse(JSON.parse(end.output))
    for (const [at, { diffId }] of layers.entries()) {
      const facts = packed[at]
      if (facts?.diffId !== diffId) {
        await rm(path(diffId), { force: true })
        throw new Error(`the layer ${diffId} has other content`)
      }
      await writeFile(`${factsPath(diffId)}.new`, JSON.stringify(facts))
      await rename(`${factsPath(diffId)}.new`, factsPath(diffId))
      kept.set(diffId, { facts, here: true, usedAt: Date.now() })
    }
  }

  async function remove(diffId: Digest, known: Kept, keepFacts: boolean): Promise<void> {
    known.here = false
    if (!keepFacts) {
      kept.delete(diffId)
      await rm(factsPath(diffId), { force: true })
    }
    await rm(path(diffId), { force: true })
  }

  const find = (diffId: Digest): PackedLayer | null => {
    const known = kept.get(diffId)
    return known?.here === true ? known.facts : null
  }

  return {
    find,
    all: () => [...kept].filter(([, { here }]) => here).map(([diffId]) => diffId),
    layerOf(blob) {
      for (const [diffId, { facts }] of kept) if (facts.blob.digest === blob) return diffId
      return null
    },
    path,

    async pack(layers, signal) {
      const fresh = layers.filter(({ diffId }) => find(diffId) === null && !packing.has(diffId))
      if (fresh.length > 0) {
        const started = packAll(fresh, signal).finally(() => {
          for (const { diffId } of fresh) packing.delete(diffId)
        })
        for (const { diffId } of fresh) packing.set(diffId, started)
      }
      await Promise.all(layers.flatMap(({ diffId }) => packing.get(diffId) ?? []))
    },

    async drop(blob) {
      for (const [diffId, known] of kept) if (known.facts.blob.digest === blob) await remove(diffId, known, true)
    },

    async trim(maxBytes, latest, isBase) {
      const now = new Date()
      for (const diffId of latest) {
        const known = kept.get(diffId)
        if (known === undefined) continue
        known.usedAt = now.getTime()
        await utimes(factsPath(diffId), now, now)
      }
      const stays = new Set(latest)
      const here = [...kept].filter(([, known]) => known.here).toSorted(([, a], [, b]) => a.usedAt - b.usedAt)
      let excess = here.reduce((sum, [, { facts }]) => sum + facts.blob.size, 0) - maxBytes
      for (const [diffId, known] of here) {
        if (excess <= 0) return
        if (stays.has(diffId)) continue
        await remove(diffId, known, isBase(diffId))
        excess -= known.facts.blob.size
      }
    },
  }
}

const FACTS = ".layer.json"
const BLOB = ".zst"

/** What earlier starts packed. */
async function readKept(directory: string): Promise<Map<Digest, Kept>> {
  const kept = new Map<Digest, Kept>()
  const names = new Set(await readdir(directory))
  for (const name of names) {
    if (!name.endsWith(FACTS)) continue
    const [facts] = readFacts(await readFile(join(directory, name), "utf8"))
    if (facts === undefined) continue
    const { mtimeMs } = await stat(join(directory, name))
    kept.set(facts.diffId, { facts, here: names.has(`${facts.diffId}${BLOB}`), usedAt: mtimeMs })
  }
  return kept
}

/** Nothing when it is not readable: the layer is packed again. */
function readFacts(text: string): PackedLayer[] {
  try {
    return packedSchema.parse([JSON.parse(text)])
  } catch {
    return []
  }
}

const anyDigest = z.string().regex(DIGEST_PATTERN).transform(digest)
const packedSchema = z.array(
  z.object({
    diffId: anyDigest,
    unpackedBytes: z.int().nonnegative(),
    blob: z.object({ digest: anyDigest, size: z.int(), pieceList: anyDigest.nullable() }),
  }),
)

/** The compiled agent runs the compiled program. */
const PACK_PROGRAM = fileURLToPath(
  new URL(import.meta.url.endsWith(".ts") ? "./pack-layers.ts" : "./pack-layers.js", import.meta.url),
)
