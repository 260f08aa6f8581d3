import { copyFile, mkdir, readFile, realpath, rm, stat, statfs, writeFile } from "node:fs/promises"
import { geteuid } from "node:process"
import { dirname, join, resolve } from "node:path"
import { present } from "../../../protocol/base/assert.ts"
import { errorText } from "../../../protocol/base/error-text.ts"
import type { Log } from "../../../protocol/base/log.ts"
import type { Digest } from "../../../protocol/domain/ids.ts"
import { imageDigest, type ImageRecord } from "../../../protocol/domain/image.ts"
import { readBases, type Base, type Bases } from "./bases.ts"
import { UNBOUNDED, type BuildBounds } from "./build-bounds.ts"
import { openBuildah, type BuildWork } from "./buildah.ts"
import { checkDockerfile } from "./dockerfile-policy.ts"
import { readLayout, type LayoutImage } from "./oci.ts"
import { openPackedLayers } from "./packed-layers.ts"
import { CA_BUNDLE, shimScript, type PackageSettings } from "./run-shim.ts"
import { runTool, type ToolEnd } from "./run-tool.ts"

/** Builds project images with buildah; every RUN happens inside runsc (reference/runtime.md §1). */
export interface ImageBuilder extends AsyncDisposable {
  /** Really builds a small image. The first call decides for good; later ones give the same. */
  probe(): Promise<BuilderProbe>
  /**
   * Builds one image at a time; others wait. Rejects with `BuildFailure`; a failed, timed-out or aborted build leaves no
   * process, mount or container behind.
   */
  build(request: BuildRequest): Promise<BuiltImage>
  /** Is this the blob of a layer that this builder packed? Then `remake` may have it. */
  makes(blob: Digest): boolean
  /**
   * The file of such a blob, packed again from its base where it was trimmed. Null when it can not be had any more: the bases
   * directory changed, or this program packs in other bytes.
   */
  remake(blob: Digest): Promise<string | null>
  /** The file of this blob is not what it was: it is packed again when it is wanted. */
  dropBlob(blob: Digest): Promise<void>
}

export interface BuilderProbe {
  available: boolean
  /** Whether a RUN can be kept from this machine. Without it, Dockerfiles with RUN are refused here. */
  canRun: boolean
  /** What does not work and what the operator can do: one sentence each. */
  problems: string[]
}

export interface BuildRequest {
  /** The unpacked tarball. */
  treeDirectory: string
  /** Paths in the tree, of the manifest's `build` block; default `Dockerfile` and `.`. */
  dockerfile?: string | undefined
  context?: string | undefined
  target?: string | undefined
  args?: Record<string, string> | undefined
  timeoutMs: number
  signal?: AbortSignal | undefined
  /** The build's output as it comes, as the build log shows it. */
  onOutput?: (text: string) => void
}

export interface BuiltImage {
  image: ImageRecord
  /** The blobs the image names, in files that stay until the builder trims its cache: copy what is to be kept. */
  layerBlobs: LayerBlob[]
  /** At most 64 KiB, without paths of this machine. */
  logTail: string
}

export interface LayerBlob {
  diffId: Digest
  /** Of a base in the bases directory. */
  base: boolean
  path: string
  digest: Digest
  size: number
}

/** `project`: the Dockerfile, the manifest or a step is at fault, and would be elsewhere too. `node`: this machine is. */
export class BuildFailure extends Error {
  override name = "BuildFailure"
  readonly kind: "project" | "node"
  readonly reason:
    | "dockerfile"
    | "missing_base"
    | "step_failed"
    | "memory_exceeded"
    | "timeout"
    | "cancelled"
    | "no_sandbox"
    | "unavailable"
  readonly logTail: string
  constructor(reason: BuildFailure["reason"], message: string, logTail = "", cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause })
    this.reason = reason
    this.kind = NODE_REASONS.has(reason) ? "node" : "project"
    this.logTail = logTail
  }
}

export interface BuilderParts {
  /** Ours alone: image storage, layer cache, work directories. */
  directory: string
  basesDirectory: string
  /** Program to run; default `runsc`. */
  runsc?: string | undefined
  /** Bases that the directory lacks come from their registries (`--pull-bases`). */
  pullBases?: boolean | undefined
  packages?: PackageSettings | undefined
  /** What a build in this directory may use, made for each build. Absent: no limits, and no network. */
  bounds?: ((directory: string) => Promise<BuildBounds>) | undefined
  /** What the image storage may grow to before it is dropped. */
  maxStorageBytes?: number | undefined
  log: Log
}

/** Opens the builder and removes what a killed agent's builds left. */
export async function createImageBuilder(parts: BuilderParts): Promise<ImageBuilder> {
  const buildah = await openBuildah(parts.directory)
  const packed = await openPackedLayers(join(parts.directory, "packed"))
  const closing = new AbortController()
  let line: Promise<unknown> = Promise.resolve()
  let probed: Promise<BuilderProbe> | null = null
  let runscFlags: readonly string[] | null = null
  if (isRoot()) await buildah.sweep()

  /** One after another: builds share the storage, and a node has other work too. */
  function inLine<T>(act: () => Promise<T>): Promise<T> {
    const turn = line.then(act)
    line = turn.catch(() => {})
    return turn
  }

  interface BoundedWork extends BuildWork {
    bounds: BuildBounds
  }

  async function withWork<T>(act: (work: BoundedWork) => Promise<T>): Promise<T> {
    const work = await buildah.openWork()
    let bounds = UNBOUNDED
    let whole = false
    try {
      bounds = (await parts.bounds?.(work.directory)) ?? UNBOUNDED
      const result = await act({ ...work, bounds })
      whole = true
      return result
    } finally {
      await bounds.release().catch((error: unknown) => {
        parts.log.error("a build's limits and network were not removed", { error: errorText(error) })
      })
      // A killed buildah leaves its working containers in the storage.
      if (!whole) await work.buildah(["rm", "--all"]).catch(() => {})
      await work.remove()
    }
  }

  async function tryProbe(): Promise<BuilderProbe> {
    const no = (problem: string): BuilderProbe => ({ available: false, canRun: false, problems: [problem] })
    if (!isRoot()) return no("images are built only by an agent that runs as root")
    const bases = await readBases(parts.basesDirectory)
    const problems = [...bases.problems]
    const smallest = bases.all().toSorted((a, b) => sizeOf(a.image) - sizeOf(b.image))[0]
    if (smallest === undefined) {
      return no(`there are no base images in ${parts.basesDirectory}; make some with scripts/make-bases`)
    }
    try {
      await withWork(async (work) => {
        const reference = await takeBase(work, smallest)
        const end = await probeBuild(work, `FROM ${reference}\nCOPY probe /probe\n`, null)
        if (end.exitCode !== 0) throw new Error(lastLine(end.output))
        for (const flags of RUNSC_FLAGS) {
          const run = await probeBuild(work, `FROM ${reference}\nRUN mkdir /computalot-probe\n`, flags)
          if (run.exitCode !== 0)
            problems.push(`RUN in ${parts.runsc ?? "runsc"} ${flags.join(" ")} fails: ${run.output.trim().slice(-600)}`)
          else if (await wroteLayer(work, "computalot-probe")) runscFlags = flags
          else problems.push(`${parts.runsc ?? "runsc"} ${flags.join(" ")} loses what RUN writes`)
          if (runscFlags !== null) break
        }
      })
    } catch (error) {
      return no(`buildah cannot build here: ${errorText(error)}`)
    }
    if (runscFlags !== null) return { available: true, canRun: true, problems: bases.problems }
    return { available: true, canRun: false, problems: [...problems, "Dockerfiles with RUN are refused on this node"] }
  }

  async function probeBuild(work: BoundedWork, dockerfile: string, flags: readonly string[] | null): Promise<ToolEnd> {
    const context = join(work.directory, "context")
    await mkdir(context, { recursive: true })
    await writeFile(join(context, "probe"), "")
    return await bud(work, {
      dockerfile,
      context,
      flags,
      timeoutMs: PROBE_TIMEOUT_MS,
      signal: closing.signal,
      extra: ["--no-cache"],
    })
  }

  /** Whether the top layer of the image just built has the directory. */
  async function wroteLayer(work: BuildWork, name: string): Promise<boolean> {
    const { image, layout } = await exported(work, new Set(), closing.signal)
    const listed = await runTool(["tar", "--list", "--file", present(image.layers.at(-1), "a layer").path])
    await rm(layout, { recursive: true })
    return listed.output.split("\n").some((entry) => entry === `${name}/`)
  }

  interface Bud {
    dockerfile: string
    context: string
    /** Null: no RUN in it. */
    flags: readonly string[] | null
    timeoutMs: number
    signal: AbortSignal
    extra?: readonly string[]
    onOutput?: (text: string) => void
  }

  async function bud(work: BoundedWork, order: Bud): Promise<ToolEnd> {
    const shim = join(work.directory, "runtime")
    const file = join(work.directory, "Dockerfile")
    const stateDirectory = join(work.directory, "runsc")
    await mkdir(stateDirectory, { recursive: true })
    const { outbound } = work.bounds
    const network = outbound === null ? "none" : "host"
    const dns = (outbound?.nameServers ?? []).flatMap((server) => ["--dns", server])
    const runDirectory = join(work.directory, "run")
    const packages = parts.packages ?? {}
    if (packages.caBundlePath !== undefined) {
      await mkdir(join(runDirectory, dirname(CA_BUNDLE)), { recursive: true })
      await copyFile(packages.caBundlePath, join(runDirectory, CA_BUNDLE))
    }
    const flags = order.flags ?? []
    const runsc = parts.runsc ?? "runsc"
    const script =
      order.flags === null
        ? "#!/bin/sh\nexit 1\n"
        : shimScript({ runsc, stateDirectory, flags, network, packages, runDirectory })
    await writeFile(shim, script, { mode: 0o700 })
    await writeFile(file, order.dockerfile)
    const sandbox = ["--isolation", "oci", "--runtime", shim, "--network", network, ...dns]
    const output = ["--layers", "--format", "oci", "--iidfile", join(work.directory, "image")]
    return await work.buildah(
      ["bud", "--pull-never", ...sandbox, ...output, ...(order.extra ?? []), "--file", file, order.context],
      {
        timeoutMs: order.timeoutMs,
        signal: order.signal,
        networkNamespace: outbound?.networkNamespace,
        confine: work.bounds.confine,
        ...(order.onOutput === undefined ? {} : { onOutput: order.onOutput }),
      },
    )
  }

  /** The base as a local image of buildah's, under a name that says its content. */
  async function takeBase(work: BuildWork, base: Base): Promise<string> {
    const reference = `localhost/computalot-base:${base.image.manifestDigest}`
    const known = await work.buildah(["inspect", "--type", "image", reference])
    if (known.exitCode === 0) return reference
    const taken = await work.importImage(base.path, reference, { signal: closing.signal })
    if (taken.exitCode !== 0) throw new Error(`base ${base.name}: ${lastLine(taken.output)}`)
    return reference
  }

  /** Beside the build, which takes longer; once for every base. Whoever needs the blobs hears of what fails. */
  function startPacking(base: Base): void {
    packed.pack(base.image.layers, closing.signal).catch(() => {})
  }

  async function resolveBases(work: BuildWork, names: readonly string[], bases: Bases): Promise<Map<string, string>> {
    const references = new Map<string, string>()
    for (const name of names) {
      const base = bases.find(name)
      if (base !== null) {
        startPacking(base)
        references.set(name, await takeBase(work, base))
      } else if (parts.pullBases === true) references.set(name, await pullBase(work, name))
      else throw new BuildFailure("missing_base", missingBase(name, bases))
    }
    return references
  }

  async function pullBase(work: BuildWork, name: string): Promise<string> {
    const pulled = await work.buildah(["pull", "--quiet", "--policy", "ifmissing", name], { signal: closing.signal })
    if (pulled.exitCode === 0) return name
    throw new BuildFailure("missing_base", `the base image ${name} could not be pulled: ${lastLine(pulled.output)}`)
  }

  async function buildInTurn(request: BuildRequest): Promise<BuiltImage> {
    const probe = await (probed ??= tryProbe())
    if (!probe.available) throw new BuildFailure("unavailable", probe.problems.join("; "))
    const { context, dockerfile } = await readContext(request)
    const checked = checkDockerfile(dockerfile, { target: request.target, args: request.args })
    if (!checked.ok) {
      const said = checked.problems.map(({ line, reason }) => (line === 0 ? reason : `line ${line}: ${reason}`))
      throw new BuildFailure("dockerfile", `the Dockerfile is refused: ${said.join("; ")}`, said.join("\n"))
    }
    if (checked.hasRun && runscFlags === null) throw new BuildFailure("no_sandbox", probe.problems.join("; "))
    const bases = await readBases(parts.basesDirectory)

    return await withWork(async (work) => {
      const references = await resolveBases(work, checked.bases, bases)
      const shown = [...references].map(([name, reference]): [string, string] => [reference, name])
      const hide = hider([...shown, [work.directory, "(build)"], [parts.directory, "(builder)"], [context, "."]])
      const lowDisk = watchDisk(buildah.storageDirectory)
      const signal = AbortSignal.any([closing.signal, lowDisk.signal, ...(request.signal ? [request.signal] : [])])
      const said = request.onOutput
      const end = await bud(work, {
        dockerfile: checked.render(references),
        context,
        flags: runscFlags,
        timeoutMs: request.timeoutMs,
        signal,
        extra: [
          ...(request.target === undefined ? [] : ["--target", request.target.toLowerCase()]),
          ...Object.entries(request.args ?? {}).flatMap(([name, value]) => ["--build-arg", `${name}=${value}`]),
        ],
        ...(said === undefined ? {} : { onOutput: (text) => said(hide(text)) }),
      }).finally(() => lowDisk.stop())
      const logTail = hide(end.output)
      if (end.ended === "timeout") {
        throw new BuildFailure("timeout", `the build took longer than ${request.timeoutMs / 1000} s`, logTail)
      }
      if (lowDisk.signal.aborted) throw new BuildFailure("unavailable", "the builder's disk is nearly full", logTail)
      if (end.ended === "aborted") throw new BuildFailure("cancelled", "the build was cancelled", logTail)
      const memoryBytes = end.exitCode === 0 ? null : work.bounds.memoryKilledAt()
      if (memoryBytes !== null) throw new BuildFailure("memory_exceeded", memoryExceeded(memoryBytes), logTail)
      if (end.exitCode !== 0) throw new BuildFailure("step_failed", `the build failed: ${lastLine(logTail)}`, logTail)
      const built = await describe(work, bases, signal)
      return { ...built, logTail }
    })
  }

  /** The record of the image just built; layers not seen before are packed into blobs. */
  async function describe(work: BuildWork, bases: Bases, signal: AbortSignal): Promise<Omit<BuiltImage, "logTail">> {
    const ofBases = bases.all().flatMap((base) => base.image.layers.map(({ diffId }) => diffId))
    const { image } = await exported(work, new Set([...packed.all(), ...ofBases]), signal)
    if (image.layers.length > MOST_LAYERS) {
      throw new BuildFailure("step_failed", `the image has ${image.layers.length} layers; ${MOST_LAYERS} are possible`)
    }
    const isBase = (diffId: Digest): boolean => bases.layer(diffId) !== null
    await packed.pack(
      image.layers.flatMap(({ diffId }) => bases.layer(diffId) ?? []),
      closing.signal,
    )
    await packed
      .pack(
        image.layers.filter(({ diffId }) => !isBase(diffId)),
        signal,
      )
      .catch((error: unknown) => {
        if (signal.aborted) throw new BuildFailure("cancelled", "the build was cancelled")
        throw error
      })
    const layers = image.layers.map(({ diffId }) => {
      return { base: isBase(diffId), ...present(packed.find(diffId), "a layer that was packed just now") }
    })
    const diffIds = layers.map(({ diffId }) => diffId)
    await packed.trim(parts.maxStorageBytes ?? DEFAULT_STORAGE_BYTES, diffIds, isBase)
    return {
      image: {
        digest: imageDigest(image.config, diffIds),
        config: image.config,
        layers: layers.map(({ diffId, base, unpackedBytes, blob }) => ({
          diff_id: diffId,
          unpacked_bytes: unpackedBytes,
          base,
          blob: { digest: blob.digest, size: blob.size, piece_list: blob.pieceList },
        })),
      },
      layerBlobs: layers.map(({ diffId, base, blob }) => {
        return { diffId, base, path: packed.path(diffId), digest: blob.digest, size: blob.size }
      }),
    }
  }

  /**
   * The image just built as a layout. For layers we know already an empty file lies where skopeo would write the tar: it
   * takes the blob for present and spares reading, writing and hashing a base of hundreds of megabytes.
   */
  async function exported(
    work: BuildWork,
    known: ReadonlySet<string>,
    signal: AbortSignal,
  ): Promise<{ image: LayoutImage; layout: string }> {
    const id = (await readFile(join(work.directory, "image"), "utf8")).replace(/^sha256:/, "").trim()
    const layout = join(work.directory, "layout")
    await mkdir(join(layout, "blobs", "sha256"), { recursive: true })
    for (const diffId of known) await writeFile(join(layout, "blobs", "sha256", diffId), "")
    const end = await work.exportImage(id, layout, { signal })
    if (end.ended === "aborted") throw new BuildFailure("cancelled", "the build was cancelled")
    if (end.exitCode !== 0)
      throw new BuildFailure("unavailable", `the image could not be read: ${lastLine(end.output)}`)
    return { image: await readLayout(layout), layout }
  }

  return {
    probe: () => (probed ??= inLine(tryProbe)),

    build(request) {
      return inLine(async () => {
        if (closing.signal.aborted || request.signal?.aborted)
          throw new BuildFailure("cancelled", "the build was cancelled")
        const built = await buildInTurn(request)
        await buildah.trim(parts.maxStorageBytes ?? DEFAULT_STORAGE_BYTES)
        parts.log.info("image built", { image: built.image.digest, layers: built.image.layers.length })
        return built
      })
    },

    makes: (blob) => packed.layerOf(blob) !== null,

    async remake(blob) {
      const diffId = packed.layerOf(blob)
      if (diffId === null) return null
      if (packed.find(diffId) === null) {
        const layer = (await readBases(parts.basesDirectory)).layer(diffId)
        if (layer === null) return null
        await packed.pack([layer], closing.signal)
      }
      return packed.layerOf(blob) === diffId ? packed.path(diffId) : null
    },

    dropBlob: (blob) => packed.drop(blob),

    async [Symbol.asyncDispose]() {
      closing.abort()
      await line
    },
  }
}

/** What is this machine's doing, and might go well on another. */
const NODE_REASONS: ReadonlySet<string> = new Set(["cancelled", "no_sandbox", "unavailable"])
/** Current builds of runsc lose what RUN writes without the first; Debian's does not know it. Found out by trying. */
const RUNSC_FLAGS: readonly (readonly string[])[] = [["--overlay2=none"], []]
const PROBE_TIMEOUT_MS = 120_000
/** overlayfs takes some 500 lower directories; registries and other tools stop at 127. */
const MOST_LAYERS = 127
const DEFAULT_STORAGE_BYTES = 20 * 2 ** 30
/** Below this a build is stopped: the agent's own files must not meet a full disk. */
const LEAST_FREE_BYTES = 2 ** 30
const DISK_WATCH_MS = 1_000

async function readContext(request: BuildRequest): Promise<{ context: string; dockerfile: string }> {
  const tree = await realpath(request.treeDirectory)
  const inside = async (path: string, what: string): Promise<string> => {
    const wanted = resolve(tree, path)
    const found = await realpath(wanted).catch(() => null)
    if (found === null) throw new BuildFailure("dockerfile", `${what} ${path} is not in the tarball`)
    const contained = found === wanted && (found === tree || found.startsWith(`${tree}/`))
    if (!contained) throw new BuildFailure("dockerfile", `${what} ${path} leads through a link or out of the tarball`)
    return found
  }
  const context = await inside(request.context ?? ".", "build.context")
  const dockerfile = await inside(request.dockerfile ?? "Dockerfile", "build.dockerfile")
  if (!(await stat(dockerfile)).isFile()) throw new BuildFailure("dockerfile", "build.dockerfile is no file")
  return { context, dockerfile: await readFile(dockerfile, "utf8") }
}

function missingBase(name: string, bases: Bases): string {
  const have = bases.all().map((base) => base.name)
  const listed = have.length === 0 ? "none" : have.join(", ")
  return `the base image ${name} is not on this node (it has ${listed}); its operator can add it to the bases directory as an OCI layout or start the node with --pull-bases`
}

function memoryExceeded(limitBytes: number): string {
  return `the build was killed: it needed more than the ${Math.floor(limitBytes / 1024 ** 2)} MB of memory that a build may use on this node`
}

function sizeOf(image: LayoutImage): number {
  return image.layers.reduce((sum, layer) => sum + layer.size, 0)
}

/** Replaces what a build log must not show: paths of this machine and the names bases have here. */
function hider(pairs: readonly [string, string][]): (text: string) => string {
  return (text) => {
    const plain = pairs.reduce((shown, [from, to]) => shown.replaceAll(from, to), text)
    // oxlint-disable-next-line no-control-regex
    return plain.replaceAll(/\u001b\[[0-9;?]*[A-Za-z]|[\u0000-\u0008\u000b-\u001f\u007f]/g, "")
  }
}

function lastLine(output: string): string {
  const lines = output.trim().split("\n")
  return (lines.findLast((line) => line.startsWith("Error: ")) ?? lines.at(-1) ?? "").slice(0, 1000)
}

/** Aborts when the disk is nearly full. */
function watchDisk(path: string): { signal: AbortSignal; stop(): void } {
  const low = new AbortController()
  const timer = setInterval(() => {
    statfs(path).then(
      ({ bavail, bsize }) => bavail * bsize < LEAST_FREE_BYTES && low.abort(),
      () => {},
    )
  }, DISK_WATCH_MS)
  return { signal: low.signal, stop: () => clearInterval(timer) }
}

function isRoot(): boolean {
  return geteuid?.() === 0
}
