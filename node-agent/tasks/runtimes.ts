import { existsSync, lstatSync, readdirSync, readFileSync } from "node:fs"
import { mkdir, rename, rm, symlink, writeFile } from "node:fs/promises"
import { dirname, join } from "node:path"
import type { Clock } from "../../protocol/base/clock.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import type { Log } from "../../protocol/base/log.ts"
import { digest, peerId, type Digest } from "../../protocol/domain/ids.ts"
import { fromWireRef, type ContentRef } from "../../protocol/wire/content-source.ts"
import type { RuntimeSpec, ToCoordinator } from "../../protocol/wire/control.ts"
import type { Blobs } from "../cache/blobs.ts"
import type { ContentHolder } from "../mesh/content-stream.ts"
import type { FetchContent } from "../mesh/fetch-content.ts"
import { viewImage } from "../runtime/image-view.ts"
import { ImageUnavailable, type ImageStore, type ReadyImage } from "../runtime/images/images.ts"
import { LayerRefused, type LayerStore } from "../runtime/images/layer-store.ts"
import { listSmallTree, treeBytes, TreeRefused, unpackTree } from "../runtime/project-tree.ts"
import { validateRuntime, type ValidateParts } from "./validate.ts"
import type { RuntimeFiles } from "./workspace.ts"

/** Revisions made ready on this node: fetched, unpacked and checked once, shared by all their attempts. */
export interface Runtimes extends AsyncDisposable {
  /**
   * The revision's files, held until the answer is disposed of. Calls at once share the work; it goes on for the others when
   * one signal is aborted. Rejects with `RuntimeFailure`, or with the signal's reason.
   */
  ready(spec: RuntimeSpec, signal: AbortSignal): Promise<HeldRuntime>
  /** As `ready`, for a runtime that is warm: at once, or null. */
  readyNow(spec: RuntimeSpec): HeldRuntime | null
  /** Starts early what will be wanted; failures are told to the coordinator alone. What failed before is tried again. */
  prepare(spec: RuntimeSpec): void
  /** Revisions that are ready, most recently used first. */
  warm(): string[]
  /** Is it ready here, being made, or did making it fail? */
  knows(revision: string): boolean
  /** Tells the coordinator every state again: what was said on an earlier connection may be lost. */
  announce(): void
  /** Finds what an earlier agent made ready. Before the first `ready`. */
  restore(): Promise<void>
}

export interface HeldRuntime extends Disposable {
  files: RuntimeFiles
}

export class RuntimeFailure extends Error {
  override name = "RuntimeFailure"
  /** `project`: would fail on every node. `validation`: its checks fail here. `node`: this node cannot have it now. */
  readonly kind: "project" | "validation" | "node"
  readonly logTail: string
  /** The blob that nobody could give, where that is why. */
  readonly missing: Digest | null
  constructor(kind: RuntimeFailure["kind"], message: string, logTail = "", cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause })
    this.kind = kind
    this.logTail = logTail
    this.missing = cause instanceof ImageUnavailable ? cause.missing : null
  }
}

export interface RuntimesParts {
  /** Ours alone. */
  directory: string
  blobs: Blobs
  fetch: FetchContent
  /** For sandboxes; null: the process runtime, where the pushed tree is the workspace. */
  images: { store: ImageStore; layers: LayerStore } | null
  validate: ValidateParts
  /** Asked last for pieces; null before the first enrolment. */
  origin: () => ContentHolder | null
  /** Members that said they have the revision warm. */
  holdersOf: (revision: string) => ContentHolder[]
  send: (message: ToCoordinator) => void
  /** The list of warm revisions changed. */
  changed: () => void
  /** What unpacked trees of the process runtime may take. */
  treeQuotaBytes: number
  clock: Clock
  log: Log
}

interface Entry {
  spec: RuntimeSpec
  key: string
  state: "initializing" | "ready" | "failed"
  made: Promise<void>
  files: RuntimeFiles | null
  image: ReadyImage | null
  bytes: number
  failure: RuntimeFailure | null
  failedAtMs: number
  users: number
  usedAt: number
}

/** A revision that failed is not tried again by grants within this: each would fetch and check for nothing. */
export const FAILURE_RESTS_MS = 10_000
/** A prepare asks again on purpose, but a coordinator that asks at every failure must not spin. */
const ASKED_AGAIN_MS = 2_000
/** As many as the standing claim can name. */
const MOST_WARM = 256

export function createRuntimes(parts: RuntimesParts): Runtimes {
  const { clock, log } = parts
  const entries = new Map<string, Entry>()
  const closing = new AbortController()
  let uses = 0
  let checks = 0

  function start(spec: RuntimeSpec): Entry {
    const entry: Entry = {
      spec,
      key: keyOf(spec),
      state: "initializing",
      made: Promise.resolve(),
      files: null,
      image: null,
      bytes: 0,
      failure: null,
      failedAtMs: 0,
      users: 0,
      usedAt: ++uses,
    }
    entries.set(entry.key, entry)
    say(entry)
    entry.made = make(entry).catch((error: unknown) => {
      entry.state = "failed"
      entry.failedAtMs = clock.monotonicMs()
      entry.failure = asFailure(error)
      entry.image?.[Symbol.dispose]()
      entry.image = null
      parts.blobs.unpinAll(entry.key)
      log.warn("runtime failed", { revision: spec.revision, kind: entry.failure.kind, error: errorText(error) })
      say(entry)
    })
    return entry
  }

  async function make(entry: Entry): Promise<void> {
    const { spec } = entry
    const startedMs = clock.monotonicMs()
    const timeout = AbortSignal.timeout(Math.ceil(spec.setup_timeout_ms))
    const signal = AbortSignal.any([closing.signal, timeout])
    let checkedFromMs = Infinity
    try {
      entry.files = spec.image === null ? await makeTree(entry, signal) : await makeImage(entry, signal)
      checkedFromMs = clock.monotonicMs()
      await check(entry, signal)
    } catch (error) {
      if (!timeout.aborted || error instanceof RuntimeFailure) throw error
      const limit = `${spec.setup_timeout_ms / 1000} s`
      // Checks that had most of the time to themselves are too slow (P-031); ones that came late waited for the network.
      const hadTime = clock.monotonicMs() - checkedFromMs > spec.setup_timeout_ms / 2
      if (hadTime) throw new RuntimeFailure("validation", `its checks did not end within ${limit}`, "", error)
      throw new RuntimeFailure("node", `it was not ready within ${limit}`, "", error)
    }
    await writeFile(join(folderOf(entry), RECORD), JSON.stringify({ spec, bytes: entry.bytes }))
    becomeReady(entry)
    log.info("runtime ready", { revision: spec.revision, ms: Math.round(clock.monotonicMs() - startedMs) })
  }

  function becomeReady(entry: Entry): void {
    entry.state = "ready"
    entry.usedAt = ++uses
    say(entry)
    parts.changed()
    evict()
  }

  // ── the process runtime ───────────────────────────────────────────────────────────────────────────────────────────

  async function makeTree(entry: Entry, signal: AbortSignal): Promise<RuntimeFiles> {
    if (parts.images !== null)
      throw new RuntimeFailure("node", "the revision has no image, and this node runs images only")
    const folder = folderOf(entry)
    await rm(folder, { recursive: true, force: true })
    const draft = join(folder, "unpacking")
    await withBlob(entry.spec, fromWireRef(entry.spec.tarball), signal, (path) => unpackTree(path, draft, signal))
    await rename(draft, join(folder, TREE))
    entry.bytes = await treeBytes(join(folder, TREE))
    return treeFiles(entry)
  }

  function treeFiles(entry: Entry): RuntimeFiles {
    const directory = join(folderOf(entry), TREE)
    return {
      kind: "tree",
      directory,
      entries: listSmallTree(directory),
      venv: existsSync(join(directory, ".venv", "bin", "python")),
      workdir: workdirOf(entry.spec),
    }
  }

  // ── images ────────────────────────────────────────────────────────────────────────────────────────────────────────

  async function makeImage(entry: Entry, signal: AbortSignal): Promise<RuntimeFiles> {
    const { spec } = entry
    if (parts.images === null || spec.image === null) {
      throw new RuntimeFailure("node", "this node runs pushed trees, not images")
    }
    makeRoomForLayers(spec.image)
    spareBases(entry, spec.image)
    entry.image = await parts.images.store.ready(spec.image, {
      signal,
      async fetchLayer({ base, blob }) {
        const ref: ContentRef = { digest: blob.digest, size: blob.size, pieceListDigest: blob.pieceList }
        return await holdBlob(spec, ref, base ? null : parts.origin(), signal)
      },
    })
    await mkdir(folderOf(entry), { recursive: true })
    return await imageFiles(entry, entry.image)
  }

  /** Base layers are nowhere but on nodes: while the revision is here, what else the cache holds goes before their blobs. */
  function spareBases(entry: Entry, image: NonNullable<RuntimeSpec["image"]>): void {
    for (const { base, blob } of image.layers) {
      if (base && blob !== null) parts.blobs.spare(digest(blob.digest), entry.key)
    }
  }

  async function imageFiles(entry: Entry, image: ReadyImage): Promise<RuntimeFiles> {
    const workdir = workdirOf(entry.spec)
    const links = await linkRemoteDir(entry, image.layers, workdir ?? "/")
    return { kind: "image", layers: [...image.layers, ...links], env: image.config.env, workdir }
  }

  /**
   * A layer of our own on top, whose one link makes `remote_dir` lead to the code (C-06), where the image itself has nothing
   * there and neither path lies in the other.
   */
  async function linkRemoteDir(entry: Entry, layers: string[], workdir: string): Promise<string[]> {
    const remote = entry.spec.remote_dir?.replace(/\/+$/, "") ?? ""
    const within = (inner: string, outer: string): boolean => `${inner}/`.startsWith(`${outer.replace(/\/+$/, "")}/`)
    if (!/^(\/[^/]+)+$/.test(remote) || /\/\.\.?(\/|$)/.test(remote)) return []
    if (within(remote, workdir) || within(workdir, remote)) return []
    if (RESERVED.some((path) => within(remote, path)) || viewImage(layers).find(remote) !== null) return []
    const layer = join(folderOf(entry), "links")
    await rm(layer, { recursive: true, force: true })
    await mkdir(dirname(join(layer, remote)), { recursive: true, mode: 0o755 })
    await symlink(workdir, join(layer, remote))
    return [layer]
  }

  /** Unused revisions let go of their layers, oldest first, until the new ones fit: pinned layers are never evicted. */
  function makeRoomForLayers(image: NonNullable<RuntimeSpec["image"]>): void {
    const { bytes, quotaBytes } = parts.images?.layers.usage() ?? { bytes: 0, quotaBytes: 0 }
    let wanted = bytes + image.layers.reduce((sum, layer) => sum + layer.unpacked_bytes, 0) - quotaBytes
    for (const entry of unused()) {
      if (wanted <= 0) return
      wanted -= entry.spec.image?.layers.reduce((sum, layer) => sum + layer.unpacked_bytes, 0) ?? 0
      void drop(entry)
    }
  }

  // ── blobs ─────────────────────────────────────────────────────────────────────────────────────────────────────────

  async function holdBlob(
    spec: RuntimeSpec,
    blob: ContentRef,
    origin: ContentHolder | null,
    signal: AbortSignal,
  ): Promise<{ path: string; release(): void }> {
    const holder = `runtime-${spec.revision}-${++uses}`
    const release = (): void => parts.blobs.unpinAll(holder)
    parts.blobs.pin(blob.digest, holder)
    try {
      const named = spec.holders.map(({ peer_id, addresses }) => ({ peer: peerId(peer_id), addresses }))
      await parts.fetch.fetchBlob(blob, {
        holders: [...named, ...parts.holdersOf(spec.revision)],
        origin,
        grant: spec.content_grant,
        signal,
      })
      const file = await parts.blobs.open(blob.digest, holder)
      if (file === null) throw new Error(`blob ${blob.digest} was damaged on this node's disk`)
      return { path: file.path, release }
    } catch (error) {
      release()
      throw error
    }
  }

  async function withBlob(
    spec: RuntimeSpec,
    blob: ContentRef,
    signal: AbortSignal,
    use: (path: string) => Promise<void>,
  ): Promise<void> {
    const held = await holdBlob(spec, blob, parts.origin(), signal)
    try {
      await use(held.path)
    } finally {
      held.release()
    }
  }

  // ── checks, eviction ──────────────────────────────────────────────────────────────────────────────────────────────

  async function check({ spec, files }: Entry, signal: AbortSignal): Promise<void> {
    if (spec.validation === null || files === null) return
    const name = `check-${clock.now().toString(36)}-${++checks}`
    const failed = await validateRuntime(parts.validate, name, files, spec.validation, signal)
    if (failed !== null) throw new RuntimeFailure("validation", failed.message, failed.logTail)
  }

  function unused(): Entry[] {
    return [...entries.values()]
      .filter((entry) => entry.state === "ready" && entry.users === 0)
      .toSorted((a, b) => a.usedAt - b.usedAt)
  }

  /** Least recently used first, never what is in use. */
  function evict(): void {
    let ready = 0
    let bytes = 0
    for (const entry of entries.values()) {
      if (entry.state !== "ready") continue
      ready += 1
      bytes += entry.bytes
    }
    for (const entry of unused()) {
      if (ready <= MOST_WARM && bytes <= parts.treeQuotaBytes) return
      ready -= 1
      bytes -= entry.bytes
      void drop(entry)
    }
  }

  async function drop(entry: Entry): Promise<void> {
    entries.delete(entry.key)
    entry.image?.[Symbol.dispose]()
    parts.blobs.unpinAll(entry.key)
    log.info("runtime dropped", { revision: entry.spec.revision })
    parts.send({ type: "replica", revision: entry.spec.revision, state: "removed", message: null, log_tail: null })
    parts.changed()
    const folder = folderOf(entry)
    // Renamed first: the same revision may be made again meanwhile.
    const leaving = `${folder}${LEAVING}${++uses}`
    await rename(folder, leaving).catch(() => {})
    await rm(leaving, { recursive: true, force: true })
  }

  /** This node's own trouble is no verdict about the revision: then there is just no replica here, and the reason. */
  function say({ spec, state, failure }: Entry): void {
    parts.send({
      type: "replica",
      revision: spec.revision,
      state: failure?.kind === "node" ? "unable" : state,
      message: failure && (failure.kind === "node" ? withoutPaths(failure.message) : failure.message).slice(0, 2000),
      log_tail: failure === null ? null : failure.logTail.slice(-16_000),
      ...(failure?.missing != null && { missing: failure.missing }),
    })
  }

  function wanted(spec: RuntimeSpec, failureRestsMs: number): Entry {
    const known = entries.get(keyOf(spec))
    if (known === undefined) return start(spec)
    // Other blobs may be had where the former could not.
    const rested = clock.monotonicMs() - known.failedAtMs > failureRestsMs || blobsOf(known.spec) !== blobsOf(spec)
    return known.state === "failed" && rested ? start(spec) : known
  }

  function hold(entry: Entry): HeldRuntime {
    const { files } = entry
    if (files === null || entry.state !== "ready") {
      throw entry.failure ?? new RuntimeFailure("node", "the runtime was dropped")
    }
    entry.users += 1
    entry.usedAt = ++uses
    let held = true
    return {
      files,
      [Symbol.dispose]() {
        if (held) entry.users -= 1
        held = false
      },
    }
  }

  const folderOf = (entry: Entry): string => join(parts.directory, entry.key)

  return {
    async ready(spec, signal) {
      signal.throwIfAborted()
      const entry = wanted(spec, FAILURE_RESTS_MS)
      if (entry.state === "initializing") await untilAborted(entry.made, signal)
      return hold(entry)
    },
    readyNow(spec) {
      const entry = entries.get(keyOf(spec))
      return entry?.state === "ready" ? hold(entry) : null
    },
    prepare(spec) {
      wanted(spec, ASKED_AGAIN_MS)
    },
    warm: () =>
      [...entries.values()]
        .filter(({ state }) => state === "ready")
        .toSorted((a, b) => b.usedAt - a.usedAt)
        .map(({ spec }) => spec.revision),
    knows: (revision) => [...entries.values()].some(({ spec }) => spec.revision === revision),
    announce() {
      for (const entry of entries.values()) say(entry)
    },
    async restore() {
      await mkdir(parts.directory, { recursive: true, mode: 0o755 })
      for (const name of readdirSync(parts.directory)) {
        const folder = join(parts.directory, name)
        const record = readRecord(folder)
        const entry = record === null ? null : await restored(record)
        if (entry === null) await rm(folder, { recursive: true, force: true })
        else entries.set(entry.key, entry)
      }
    },
    async [Symbol.asyncDispose]() {
      closing.abort(new Error("the agent stops"))
      await Promise.all([...entries.values()].map((entry) => entry.made))
      for (const entry of entries.values()) entry.image?.[Symbol.dispose]()
    },
  }

  async function restored({ spec, bytes }: RuntimeRecord): Promise<Entry | null> {
    const entry: Entry = {
      spec,
      key: keyOf(spec),
      state: "ready",
      made: Promise.resolve(),
      files: null,
      image: null,
      bytes,
      failure: null,
      failedAtMs: 0,
      users: 0,
      usedAt: ++uses,
    }
    try {
      if (spec.image === null) {
        if (parts.images !== null || !lstatSync(join(folderOf(entry), TREE)).isDirectory()) return null
        entry.files = treeFiles(entry)
        return entry
      }
      if (parts.images === null) return null
      const fetchLayer = (): Promise<never> => Promise.reject(new Error("it is not on this node any more"))
      entry.image = await parts.images.store.ready(spec.image, { fetchLayer })
      spareBases(entry, spec.image)
      entry.files = await imageFiles(entry, entry.image)
      return entry
    } catch {
      return null
    }
  }
}

const TREE = "tree"
const RECORD = "runtime.json"
const LEAVING = ".leaving-"
/** Places inside a sandbox that are not the image's. */
const RESERVED = ["/proc", "/dev", "/sys", "/tmp", "/computalot", "/etc"]

interface RuntimeRecord {
  spec: RuntimeSpec
  bytes: number
}

function readRecord(folder: string): RuntimeRecord | null {
  if (folder.includes(LEAVING)) return null
  try {
    return JSON.parse(readFileSync(join(folder, RECORD), "utf8")) as RuntimeRecord
  } catch {
    return null
  }
}

/** A revision that was built again has another image: both names make it one runtime. */
function keyOf(spec: RuntimeSpec): string {
  const revision = spec.revision.replaceAll(/[^\w-]/g, "_")
  return spec.image === null ? revision : `${revision}-${spec.image.digest.slice(0, 16)}`
}

/** Of what bytes the image is made: a revision that was built again may have the same image in other blobs. */
function blobsOf({ image }: RuntimeSpec): string {
  return image?.layers.map(({ blob }) => blob?.digest ?? "").join() ?? ""
}

function workdirOf(spec: RuntimeSpec): string | null {
  const ofImage = spec.image?.config.workdir ?? ""
  return spec.workdir ?? (ofImage === "" || ofImage === "/" ? spec.remote_dir : ofImage)
}

function asFailure(error: unknown): RuntimeFailure {
  if (error instanceof RuntimeFailure) return error
  const kind = error instanceof LayerRefused || error instanceof TreeRefused ? "project" : "node"
  return new RuntimeFailure(kind, errorText(error), "", error)
}

/** Clients read why a node was unable: where its files lie is its operator's business, and stands in its log. */
function withoutPaths(text: string): string {
  return text.replaceAll(/(?<![\w.])(?:\/[\w.@+~-]+){2,}/g, "[path]")
}

function untilAborted(promise: Promise<void>, signal: AbortSignal): Promise<void> {
  const { promise: aborted, reject } = Promise.withResolvers<never>()
  const abort = (): void => reject(signal.reason as Error)
  signal.addEventListener("abort", abort, { once: true })
  return Promise.race([promise, aborted]).finally(() => signal.removeEventListener("abort", abort))
}
