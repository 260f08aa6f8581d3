import { mkdir, rm } from "node:fs/promises"
import { join } from "node:path"
import { createBackoff } from "../../protocol/base/backoff.ts"
import { sleep, type Clock } from "../../protocol/base/clock.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import type { Log } from "../../protocol/base/log.ts"
import type { Random } from "../../protocol/base/random.ts"
import { ComputalotError } from "../../protocol/domain/errors.ts"
import { claimNumber, type ClaimNumber, type Digest } from "../../protocol/domain/ids.ts"
import { fromWireRef } from "../../protocol/wire/content-source.ts"
import { lastThatFits, type BuildOrder, type ItemVerdict, type ToCoordinator } from "../../protocol/wire/control.ts"
import type { Blobs } from "../cache/blobs.ts"
import type { ContentHolder } from "../mesh/content-stream.ts"
import type { FetchContent } from "../mesh/fetch-content.ts"
import { BuildFailure, type ImageBuilder, type LayerBlob } from "../runtime/images/build.ts"
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
  /**
   * A member with leave for this blob asks for it, and it is not in the cache. True while it is being made again; it is not
   * where it is no layer that was built here, or could not be made a moment ago.
   */
  remakes(blob: Digest): boolean
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

/** A blob that could not be made again is not tried again within this. */
const REMAKE_RESTS_MS = 60_000
/** For the spared blobs of bases: as long as this agent builds. */
const BASES = "bases"

type Built = Extract<ToCoordinator, { type: "built" }>

export async function openBuildOrders(parts: BuildOrdersParts): Promise<BuildOrders> {
  const { clock, log } = parts
  const closing = new AbortController()
  const running = new Map<number, AbortController>()
  const ends = new Map<number, Built>()
  const work = new Set<Promise<void>>()
  const remaking = new Set<Digest>()
  const notRemadeAtMs = new Map<Digest, number>()
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
      await shareLayers(order, built.layerBlobs, holder, signal)
      return {
        type: "built",
        claim: order.claim,
        outcome: { ok: true, image: built.image },
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
   * Every layer blob goes into the cache, where other nodes fetch it; the project's own also go to the coordinator, so that a
   * last resort exists before the revision counts as built (architecture §5.6).
   */
  async function shareLayers(
    order: BuildOrder,
    blobs: readonly LayerBlob[],
    holder: string,
    signal: AbortSignal,
  ): Promise<void> {
    for (const blob of blobs) {
      if (blob.base) await shareBase(blob, holder, signal)
      else await cache(blob, holder, signal)
    }
    for (const { base, digest } of blobs) {
      if (base) continue
      const file = await parts.blobs.open(digest, holder)
      if (file !== null) await uploadUntilTaken(claimNumber(order.claim), { digest, ...file }, signal)
    }
  }

  /** Without room for it the image is still built: nodes that have the base need no blob, and it is made again when asked for. */
  async function shareBase(blob: LayerBlob, holder: string, signal: AbortSignal): Promise<void> {
    parts.blobs.spare(blob.digest, BASES)
    try {
      await cache(blob, holder, signal)
    } catch (error) {
      if (!(error instanceof ComputalotError && error.code === "storage_full")) throw error
      log.warn("the cache has no room for a base layer", { blob: blob.digest, bytes: blob.size })
    }
  }

  /** What an earlier build put there is neither copied nor hashed again. */
  async function cache(blob: LayerBlob, holder: string, signal: AbortSignal): Promise<void> {
    if (parts.blobs.find(blob.digest) !== null) return parts.blobs.pin(blob.digest, holder)
    const stored = await parts.blobs.put({ file: blob.path }, { holder, signal })
    if (stored.digest === blob.digest) return
    throw await damaged(blob.digest)
  }

  async function remake(blob: Digest): Promise<void> {
    const path = await parts.builder.remake(blob)
    if (path === null) throw new Error("what it was made of is not here any more, or gives other bytes")
    const stored = await parts.blobs.put({ file: path }, { signal: closing.signal })
    if (stored.digest !== blob) throw await damaged(blob)
    log.info("blob made again", { blob, bytes: stored.size })
  }

  async function damaged(blob: Digest): Promise<Error> {
    await parts.builder.dropBlob(blob)
    return new Error(`the layer blob ${blob} was damaged on this node's disk; it is packed again`)
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
    remakes(blob) {
      if (remaking.has(blob)) return true
      const restsSinceMs = notRemadeAtMs.get(blob) ?? Number.NEGATIVE_INFINITY
      const rests = clock.monotonicMs() - restsSinceMs < REMAKE_RESTS_MS
      if (rests || closing.signal.aborted || !parts.builder.makes(blob)) return false
      remaking.add(blob)
      const done = remake(blob)
        .then(
          () => void notRemadeAtMs.delete(blob),
          (error: unknown) => {
            notRemadeAtMs.set(blob, clock.monotonicMs())
            log.warn("a blob could not be made again", { blob, error: errorText(error) })
          },
        )
        .finally(() => {
          remaking.delete(blob)
          work.delete(done)
        })
      work.add(done)
      return true
    },
    async [Symbol.asyncDispose]() {
      closing.abort(new Error("the agent stops"))
      await Promise.all(work)
    },
  }
}

/** As the frame carries it, beside an image's layers. */
const LOG_TAIL_BYTES = 60_000
