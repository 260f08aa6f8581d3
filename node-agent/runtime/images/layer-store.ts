import { mkdir, readdir, readFile, rename, rm, stat, utimes, writeFile } from "node:fs/promises"
import { geteuid } from "node:process"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { z } from "zod"
import type { Clock, Instant } from "../../../protocol/base/clock.ts"
import { errorText } from "../../../protocol/base/error-text.ts"
import type { Log } from "../../../protocol/base/log.ts"
import { DIGEST_PATTERN, digest, type Digest } from "../../../protocol/domain/ids.ts"
import { chooseEvictions } from "../../cache/eviction.ts"
import { runTool } from "./run-tool.ts"
import type { UnpackAnswer, UnpackOrder } from "./unpack-layer.ts"

/**
 * Unpacked layers, one directory per diff_id, ready as lower directories of an overlay. Layers are never unpacked over one
 * another: a link of a lower one would lead the writes of an upper one out (reference/runtime.md §2.3).
 */
export interface LayerStore extends AsyncDisposable {
  has(diffId: Digest): boolean
  /** The layer's directory. Throws when it is not here. */
  path(diffId: Digest): string
  /**
   * Unpacks the blob (tar, gzip or zstd), its content verified against `diffId`. A layer that is here already is left
   * alone; of two calls at once the second waits for the first. Rejects with `LayerRefused` when the layer is hostile,
   * broken or too large. Least recently used layers make room.
   */
  add(diffId: Digest, blobPath: string): Promise<void>
  /** A pinned layer is not evicted. Pinning twice with the same holder is pinning once. */
  pin(diffId: Digest, holder: string): void
  /** Gives up all pins of the holder. */
  unpin(holder: string): void
  usage(): { bytes: number; quotaBytes: number; layers: number }
}

/** The layer itself is at fault: another node would refuse it too. */
export class LayerRefused extends Error {
  override name = "LayerRefused"
}

export interface LayerStoreParts {
  /** Ours alone, on a file system with room for `quotaBytes`. Made when absent; half-unpacked layers in it are swept. */
  directory: string
  quotaBytes: number
  clock: Clock
  log: Log
  limits?: LayerLimits
}

export interface LayerLimits {
  maxBytes: number
  maxEntries: number
  /** Unpacked over compressed. */
  maxRatio: number
}

/** CUDA and a framework come to about 10 GiB. */
const DEFAULT_LIMITS: LayerLimits = { maxBytes: 32 * 2 ** 30, maxEntries: 1_000_000, maxRatio: 200 }

/** Opens the store and removes what an earlier agent left half done. */
export async function openLayerStore(parts: LayerStoreParts): Promise<LayerStore> {
  const { directory, clock, log } = parts
  const limits = parts.limits ?? DEFAULT_LIMITS
  await mkdir(directory, { recursive: true, mode: 0o755 })
  const layers = await findLayers(directory)
  const unpacking = new Map<Digest, Promise<void>>()
  const closing = new AbortController()
  let lastTemporary = 0

  async function unpack(diffId: Digest, blobPath: string): Promise<void> {
    const temporary = join(directory, `${TEMPORARY}${process.pid}-${++lastTemporary}`)
    try {
      await mkdir(join(temporary, "root"), { recursive: true })
      const unpacked = await unpackInSandbox(directory, temporary, blobPath, { ...limits, diffId, asRoot: isRoot() })
      await makeRoom(unpacked.diskBytes)
      const facts: LayerFacts = { bytes: unpacked.diskBytes, entries: unpacked.entries }
      await writeFile(join(temporary, FACTS), JSON.stringify(facts))
      // What has the final name is trusted from then on, also after a power cut.
      await runTool(["sync", "--file-system", temporary])
      await rename(temporary, join(directory, diffId))
      layers.set(diffId, { bytes: unpacked.diskBytes, lastUsedAt: clock.now(), holders: new Set() })
      log.info("layer unpacked", { diffId, bytes: unpacked.diskBytes, entries: unpacked.entries })
    } catch (error) {
      await remove(temporary)
      throw error
    }
  }

  async function unpackInSandbox(
    hidden: string,
    temporary: string,
    blobPath: string,
    order: UnpackOrder,
  ): Promise<Extract<UnpackAnswer, { ok: true }>> {
    const end = await runTool(sandboxed(hidden, join(temporary, "root"), order), {
      inputPath: blobPath,
      signal: closing.signal,
    })
    if (end.ended !== null) throw new Error("the layer store is closed")
    const answer = readAnswer(end.output)
    if (answer?.ok) return answer
    if (answer?.refused) throw new LayerRefused(`layer ${order.diffId} is refused: ${answer.reason}`)
    throw new Error(`layer ${order.diffId} could not be unpacked: ${answer?.reason ?? end.output.slice(-2000)}`)
  }

  /** The quota is kept where it can be: layers in use are never taken away for it. */
  async function makeRoom(neededBytes: number): Promise<void> {
    const candidates = [...layers].map(([diffId, layer]) => {
      return {
        digest: diffId,
        bytes: layer.bytes,
        lastUsedAt: layer.lastUsedAt,
        kept: layer.holders.size > 0,
        spared: false,
      }
    })
    const chosen = chooseEvictions(candidates, neededBytes, parts.quotaBytes)
    if (chosen === null) {
      throw new Error(`no room for a layer of ${neededBytes} bytes: the quota of ${parts.quotaBytes} bytes is in use`)
    }
    for (const diffId of chosen) {
      layers.delete(diffId)
      const gone = join(directory, `${TEMPORARY}${process.pid}-${++lastTemporary}`)
      await rename(join(directory, diffId), gone)
      await remove(gone)
      log.info("layer evicted", { diffId })
    }
  }

  return {
    has: (diffId) => layers.has(diffId),

    path(diffId) {
      if (!layers.has(diffId)) throw new Error(`layer ${diffId} is not unpacked here`)
      return join(directory, diffId, "root")
    },

    async add(diffId, blobPath) {
      if (layers.has(diffId)) return
      let running = unpacking.get(diffId)
      if (running === undefined) {
        running = unpack(diffId, blobPath).finally(() => unpacking.delete(diffId))
        unpacking.set(diffId, running)
      }
      await running
    },

    pin(diffId, holder) {
      const layer = layers.get(diffId)
      if (layer === undefined) throw new Error(`layer ${diffId} is not unpacked here`)
      layer.holders.add(holder)
      layer.lastUsedAt = clock.now()
      const used = new Date(layer.lastUsedAt)
      utimes(join(directory, diffId, FACTS), used, used).catch((error: unknown) => {
        log.warn("layer use not noted", { diffId, problem: errorText(error) })
      })
    },

    unpin(holder) {
      for (const layer of layers.values()) {
        if (layer.holders.delete(holder)) layer.lastUsedAt = clock.now()
      }
    },

    usage() {
      const bytes = [...layers.values()].reduce((sum, layer) => sum + layer.bytes, 0)
      return { bytes, quotaBytes: parts.quotaBytes, layers: layers.size }
    },

    async [Symbol.asyncDispose]() {
      closing.abort()
      await Promise.allSettled(unpacking.values())
    },
  }
}

interface Layer {
  bytes: number
  lastUsedAt: Instant
  holders: Set<string>
}

const factsSchema = z.object({ bytes: z.int().nonnegative(), entries: z.int().nonnegative() })
type LayerFacts = z.infer<typeof factsSchema>

const FACTS = "layer.json"
const TEMPORARY = "half-"

async function findLayers(directory: string): Promise<Map<Digest, Layer>> {
  const layers = new Map<Digest, Layer>()
  for (const name of await readdir(directory)) {
    const path = join(directory, name)
    const facts = DIGEST_PATTERN.test(name) ? await readFacts(path) : null
    if (facts) layers.set(digest(name), { ...facts, holders: new Set() })
    else await remove(path)
  }
  return layers
}

async function readFacts(path: string): Promise<{ bytes: number; lastUsedAt: Instant } | null> {
  try {
    const { bytes } = factsSchema.parse(JSON.parse(await readFile(join(path, FACTS), "utf8")))
    return { bytes, lastUsedAt: (await stat(join(path, FACTS))).mtimeMs }
  } catch {
    return null
  }
}

/** A layer may have tens of thousands of files and directories nobody may enter: a child removes them. */
async function remove(path: string): Promise<void> {
  const end = await runTool(["rm", "-rf", "--one-file-system", "--", path])
  if (end.exitCode !== 0) await rm(path, { recursive: true, force: true })
}

/**
 * The child program inside bubblewrap: the machine read-only, no network, the store itself hidden, the layer's directory
 * alone writable. Root keeps what owners and whiteouts need and nothing else.
 */
function sandboxed(hidden: string, output: string, order: UnpackOrder): [string, ...string[]] {
  const namespaces = order.asRoot
    ? ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    : ["--unshare-all"]
  const kept = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_SETPCAP", "CAP_SYS_ADMIN"]
  const rights = order.asRoot ? ["--cap-drop", "ALL", ...kept.flatMap((right) => ["--cap-add", right])] : []
  const inside = join(hidden, "layer")
  const view = ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", hidden, "--bind", output, inside]
  const life = ["--remount-ro", hidden, "--chdir", inside, "--die-with-parent", "--new-session"]
  const program = [process.execPath, "--max-old-space-size=256", UNPACK_PROGRAM, JSON.stringify(order)]
  return ["bwrap", ...namespaces, ...rights, ...view, ...life, ...program]
}

/** The compiled agent runs the compiled program. */
const UNPACK_PROGRAM = fileURLToPath(
  new URL(import.meta.url.endsWith(".ts") ? "./unpack-layer.ts" : "./unpack-layer.js", import.meta.url),
)

const answerSchema = z.union([
  z.object({ ok: z.literal(true), tarBytes: z.int(), diskBytes: z.int(), entries: z.int() }),
  z.object({ ok: z.literal(false), refused: z.boolean(), reason: z.string() }),
])

function readAnswer(output: string): UnpackAnswer | null {
  try {
    return answerSchema.parse(JSON.parse(output))
  } catch {
    return null
  }
}

function isRoot(): boolean {
  return geteuid?.() === 0
}
