import { createHash } from "node:crypto"
import { PassThrough, Transform, type Readable } from "node:stream"
import { pipeline } from "node:stream/promises"
import { createGunzip, createZstdDecompress } from "node:zlib"

/** A layer that must not be unpacked: what it did, for the log. Only used inside the child programs. */
export class LayerRefusal extends Error {
  override name = "LayerRefusal"
}

/** Past a compressed size this small the ratio says nothing: an empty file pads to 10 KiB of zeros. */
const SMALLEST_RATED_BYTES = 64 * 1024 * 1024

/**
 * The plain tar of a blob that is a tar, gzip or zstd by its first bytes, hashed on its way. `finished` resolves with its
 * diff_id and size once all of it went by; it rejects, and the stream breaks, when the tar grows past what is allowed.
 */
export async function plainTar(
  blob: Readable,
  allowed: { blobBytes: number; maxBytes: number; maxRatio: number },
): Promise<{ tar: Readable; finished: Promise<{ diffId: string; bytes: number }> }> {
  const first = await firstBytes(blob)
  const hash = createHash("sha256")
  let bytes = 0
  const counted = new Transform({
    transform(chunk: Buffer, _encoding, done) {
      hash.update(chunk)
      bytes += chunk.length
      if (bytes > allowed.maxBytes) return done(new LayerRefusal(`it unpacks to more than ${allowed.maxBytes} bytes`))
      if (bytes > SMALLEST_RATED_BYTES && bytes > allowed.blobBytes * allowed.maxRatio) {
        return done(new LayerRefusal(`it unpacks to more than ${allowed.maxRatio} times its size`))
      }
      return done(null, chunk)
    },
  })
  const tar = new PassThrough()
  const finished = pipeline(blob, decompressor(first), counted, tar).then(() => ({ diffId: hash.digest("hex"), bytes }))
  // Whoever reads the tar sees the same failure; this one is looked at only when they are through.
  finished.catch(() => {})
  return { tar, finished }
}

async function firstBytes(blob: Readable): Promise<Buffer> {
  for await (const chunk of blob.iterator({ destroyOnReturn: false })) {
    blob.unshift(chunk)
    return chunk as Buffer
  }
  throw new LayerRefusal("it is empty")
}

function decompressor(first: Buffer): Transform {
  if (first.subarray(0, 4).equals(ZSTD_MAGIC)) return createZstdDecompress()
  if (first.subarray(0, 2).equals(GZIP_MAGIC)) return createGunzip()
  return new PassThrough()
}

const ZSTD_MAGIC = Buffer.from([0x28, 0xb5, 0x2f, 0xfd])
const GZIP_MAGIC = Buffer.from([0x1f, 0x8b])
