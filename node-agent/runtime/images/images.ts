import { ComputalotError } from "../../../protocol/domain/errors.ts"
import { digest, type Digest } from "../../../protocol/domain/ids.ts"
import { imageDigest, type ImageRecord } from "../../../protocol/domain/image.ts"
import { readBases } from "./bases.ts"
import { LayerRefused, type LayerStore } from "./layer-store.ts"

/** Images as drivers take them: unpacked layers, held while in use. */
export interface ImageStore {
  /**
   * Unpacks what is missing and pins all layers until the answer is disposed of. Layers that the bases directory has come from
   * there, others from `fetchLayer`. Rejects with `ImageUnavailable` when this node cannot have the image,
   * with `LayerRefused` when a layer is hostile. A second call at once fetches nothing twice.
   */
  ready(image: ImageRecord, options: ReadyOptions): Promise<ReadyImage>
}

export interface ReadyOptions {
  /** Gives the layer's zstd blob as a file, fetched and verified against `blob.digest`. Called for missing layers only. */
  fetchLayer(layer: FetchedLayer, signal: AbortSignal | undefined): Promise<{ path: string; release?(): void }>
  signal?: AbortSignal | undefined
}

export interface FetchedLayer {
  diffId: Digest
  /** Of a base image: only nodes have it, the coordinator does not. */
  base: boolean
  blob: { digest: Digest; size: number; pieceList: Digest | null }
}

export interface ReadyImage extends Disposable {
  /** Directories on this machine, lowest first. Never to be written. */
  layers: string[]
  config: ImageRecord["config"]
}

/** This node cannot have the image: the message says why and what the operator can do, without paths of this machine. */
export class ImageUnavailable extends Error {
  override name = "ImageUnavailable"
  /** The blob that nobody could give, where that is why. */
  readonly missing: Digest | null
  constructor(message: string, missing: Digest | null = null, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause })
    this.missing = missing
  }
}

export function createImageStore(parts: { layers: LayerStore; basesDirectory: string }): ImageStore {
  const { layers: store } = parts
  const fetching = new Map<Digest, Promise<void>>()
  let lastHolder = 0

  async function bring(layer: ImageRecord["layers"][number], options: ReadyOptions): Promise<void> {
    const diffId = digest(layer.diff_id)
    if (await unpackLocal(diffId, layer.blob !== null)) return
    if (layer.blob === null) {
      throw new ImageUnavailable(
        "a base layer of the image is not in this node's bases directory, and the image's record names no blob of it; make or copy the same bases there, or push again",
      )
    }
    const { digest: name, size, piece_list: list } = layer.blob
    const blob = { digest: digest(name), size, pieceList: list === null ? null : digest(list) }
    const wanted = { diffId, base: layer.base, blob }
    const fetched = await options.fetchLayer(wanted, options.signal).catch((error: unknown) => {
      throw isUnavailable(error) ? unavailable(wanted, error) : error
    })
    try {
      await store.add(diffId, fetched.path)
    } finally {
      fetched.release?.()
    }
  }

  /** False when this node's bases lack the layer, or have it broken and `others` may have it whole. */
  async function unpackLocal(diffId: Digest, others: boolean): Promise<boolean> {
    const base = (await readBases(parts.basesDirectory)).layer(diffId)
    if (base === null) return false
    try {
      await store.add(diffId, base.path)
      return true
    } catch (error) {
      if (others && error instanceof LayerRefused) return false
      throw error
    }
  }

  /** One fetch and one unpacking for all who want the layer. Whoever waits for another's fetch that fails tries itself. */
  async function have(layer: ImageRecord["layers"][number], options: ReadyOptions): Promise<void> {
    const diffId = digest(layer.diff_id)
    const running = fetching.get(diffId)
    if (running !== undefined) await orAborted(running, options.signal).catch(() => options.signal?.throwIfAborted())
    if (store.has(diffId)) return
    if (fetching.has(diffId)) return await have(layer, options)
    const started = bring(layer, options).finally(() => fetching.delete(diffId))
    fetching.set(diffId, started)
    await orAborted(started, options.signal)
  }

  return {
    async ready(image, options) {
      options.signal?.throwIfAborted()
      const diffIds = image.layers.map((layer) => digest(layer.diff_id))
      if (imageDigest(image.config, diffIds) !== image.digest) {
        throw new ImageUnavailable(`the record of image ${image.digest} does not have that digest`)
      }
      const holder = `image-${++lastHolder}`
      try {
        for (const layer of image.layers) {
          await have(layer, options)
          store.pin(digest(layer.diff_id), holder)
        }
      } catch (error) {
        store.unpin(holder)
        throw error
      }
      return {
        layers: diffIds.map((diffId) => store.path(diffId)),
        config: image.config,
        [Symbol.dispose]: () => store.unpin(holder),
      }
    },
  }
}

const isUnavailable = (error: unknown): boolean => error instanceof ComputalotError && error.code === "unavailable"

function unavailable({ base, blob }: FetchedLayer, cause: unknown): ImageUnavailable {
  const mb = Math.ceil(blob.size / 1e6)
  const message = base
    ? `a base layer of the image (${mb} MB) is not in this node's bases directory, and no connected node could give it`
    : `a layer of the image (${mb} MB) could be had neither from a connected node nor from the coordinator`
  return new ImageUnavailable(message, blob.digest, cause)
}

/** The promise, or the signal's reason when it is aborted first; what was started goes on for others. */
function orAborted<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return promise
  return new Promise((resolve, reject) => {
    const aborted = (): void => reject(signal.reason as Error)
    signal.addEventListener("abort", aborted, { once: true })
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", aborted))
  })
}
