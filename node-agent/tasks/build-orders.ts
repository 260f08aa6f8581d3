import { mkdir, rm } from "node:fs/promises"
import { join } from "node:path"
import { createBackoff } from "../../protocol/base/backoff.ts"
import { sleep, type Clock } from "../../protocol/base/clock.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import type { Log } from "../../protocol/base/log.ts"
import type { Random } from "../../protocol/base/random.ts"
import { claimNumber, digest, type ClaimNumber } from "../../protocol/domain/ids.ts"
import type { ImageRecord } from "../../protocol/domain/image.ts"
import { fromWireRef } from "../../protocol/wire/content-source.ts"
import { lastThatFits, type BuildOrder, type ItemVerdict, type ToCoordinator } from "../../protocol/wire/control.ts"
import type { Blobs } from "../cache/blobs.ts"
import type { ContentHolder } from "../mesh/content-stream.ts"
import type { FetchContent } from "../mesh/fetch-content.ts"
import { BuildFailure, type ImageBuilder } from "../runtime/images/build.ts"
import { TreeRefused, unpackTree } from "../runtime/project-tree.ts"
import type { StoredEnd } from "../outbox/outbox.ts"
import { UploadRefused } from "./deliver.ts"

/** Images this node builds for others: each order ends in one `built` message that is sent until it is answered. */
export interface BuildOrders extends AsyncDisposable {
  order(order: BuildOrder): void
  cancel(claim: number): void
  /** A new connection: ends without an answer are sent again. */
  welcome(): void
  verdicts(items: readonly ItemVerdict[]): void
}

export interface BuildOrdersParts {
  builder: ImageBuilder
  /** Ours alone: trees of running builds. Emptied at the start. */
  directory: string
  blobs: Blobs
  fetch: FetchContent
  origin: () => ContentHolder | null
  upload: (claim: ClaimNumber, file: StoredEnd["files"][number], signal: AbortSignal) => Promise<void>
  send: (message: ToCoordinator) => void
  clock: Clock
  random: Random
  log: Log
}

type Built = Extract<ToCoordinator, { type: "built" }>

export async function openBuildOrders(parts: BuildOrdersParts): Promise<BuildOrders> {
  const { clock, log } = parts
  const closing = new AbortController()
  const running = new Map<number, AbortController>()
  const ends = new Map<number, Built>()
  const work = new Set<Promise<void>>()
  await rm(parts.directory, { recursive: true, force: true })
  await mkdir(parts.directory, { recursive: true, mode: 0o700 })

  async function run(order: BuildOrder, signal: AbortSignal): Promise<Built> {
    const directory = join(parts.directory, `b${order.claim}`)
    const holder = `build-${order.claim}`
    try {
      const tree = await unpacked(order, join(directory, "tree"), holder, signal)
      const built = await parts.builder.build({
        treeDirectory: tree,
        dockerfile: order.dockerfile,
        context: order.context,
        target: order.target ?? undefined,
        args: order.args,
        timeoutMs: order.timeout_ms,
        signal,
      })
      const image = await shareLayers(order, built.image, built.layerBlobs, holder, signal)
      return {
        type: "built",
        claim: order.claim,
        outcome: { ok: true, image },
        log_tail: lastThatFits(built.logTail, LOG_TAIL_BYTES),
      }
    } finally {
      parts.blobs.unpinAll(holder)
      await rm(directory, { recursive: true, force: true })
    }
  }

  async function unpacked(order: BuildOrder, tree: string, holder: string, signal: AbortSignal): Promise<string> {
    const tarball = fromWireRef(order.tarball)
    parts.blobs.pin(tarball.digest, holder)
    await parts.fetch.fetchBlob(tarball, { holders: [], origin: parts.origin(), grant: order.content_grant, signal })
    const file = await parts.blobs.open(tarball.digest, holder)
    if (file === null) throw new Error("the tarball was damaged on this node's disk")
    await unpackTree(file.path, tree, signal)
    return tree
  }

  /**
   * Every layer blob goes into the cache, where other nodes fetch it; those that the image names as its own also go to the
   * coordinator, so that a last resort exists before the revision counts as built (architecture §5.6).
   */
  async function shareLayers(
    order: BuildOrder,
    image: ImageRecord,
    blobs: readonly { diffId: string; path: string; digest: string; size: number }[],
    holder: string,
    signal: AbortSignal,
  ): Promise<ImageRecord> {
    const refs = new Map<string, { digest: string; size: number; piece_list: string | null }>()
    for (const blob of blobs) {
      const stored = await parts.blobs.put({ file: blob.path }, { holder, signal })
      refs.set(blob.diffId, { digest: stored.digest, size: stored.size, piece_list: stored.pieceListDigest })
    }
    const layers = image.layers.map((layer) => ({ ...layer, blob: refs.get(layer.diff_id) ?? layer.blob }))
    for (const { blob } of layers) {
      if (blob === null) continue
      const file = await parts.blobs.open(digest(blob.digest), holder)
      if (file !== null) await uploadUntilTaken(claimNumber(order.claim), { digest: blob.digest, ...file }, signal)
    }
    return { ...image, layers }
  }

  async function uploadUntilTaken(
    claim: ClaimNumber,
    file: StoredEnd["files"][number],
    signal: AbortSignal,
  ): Promise<void> {
    const backoff = createBackoff(parts.random, 500, 10_000)
    for (;;) {
      try {
        return await parts.upload(claim, file, signal)
      } catch (error) {
        signal.throwIfAborted()
        if (error instanceof UploadRefused) throw error
        log.warn("a layer's upload will be tried again", { claim, error: errorText(error) })
      }
      await sleep(clock, backoff.next(), signal)
    }
  }

  function failure(order: BuildOrder, error: unknown): Built {
    const kind = error instanceof BuildFailure ? error.kind : error instanceof TreeRefused ? "project" : "node"
    const logTail = error instanceof BuildFailure ? error.logTail : ""
    const outcome = { ok: false as const, kind, message: errorText(error).slice(0, 2000) }
    return { type: "built", claim: order.claim, outcome, log_tail: lastThatFits(logTail, LOG_TAIL_BYTES) }
  }

  return {
    order(order) {
      if (running.has(order.claim) || ends.has(order.claim) || closing.signal.aborted) return
      const abort = new AbortController()
      running.set(order.claim, abort)
      log.info("build started", { claim: order.claim, revision: order.revision })
      const startedMs = clock.monotonicMs()
      const signal = AbortSignal.any([abort.signal, closing.signal])
      const done = run(order, signal)
        .catch((error: unknown) => failure(order, error))
        .then((end) => {
          running.delete(order.claim)
          work.delete(done)
          // Nobody waits for a cancelled build.
          if (signal.aborted) return
          ends.set(order.claim, end)
          log.info("build ended", {
            claim: order.claim,
            ok: end.outcome.ok,
            ms: Math.round(clock.monotonicMs() - startedMs),
          })
          parts.send(end)
        })
      work.add(done)
    },
    cancel(claim) {
      running.get(claim)?.abort(new Error("a newer push made this build pointless"))
      ends.delete(claim)
    },
    welcome() {
      for (const end of ends.values()) parts.send(end)
    },
    verdicts(items) {
      for (const { claim } of items) ends.delete(claim)
    },
    async [Symbol.asyncDispose]() {
      closing.abort(new Error("the agent stops"))
      await Promise.all(work)
    },
  }
}

/** As the frame carries it, beside an image's layers. */
const LOG_TAIL_BYTES = 60_000
