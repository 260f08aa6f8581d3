import { z } from "zod"
import { sha256Hex } from "../base/digest.ts"
import { DIGEST_PATTERN, digest as asDigest, type Digest } from "./ids.ts"

const digest = z.string().regex(DIGEST_PATTERN)

/**
 * A built image as builder, coordinator and nodes speak of it. Layers are keyed by diff_id (sha256 of the plain tar); the
 * blob on the wire is our own zstd of it, made once by whoever first has the layer (architecture §5.6).
 */
export const imageRecord = z.object({
  /** Names the image: sha256 of the canonical JSON of `config` and the diff_ids. */
  digest,
  config: z.object({
    env: z.record(z.string(), z.string()),
    workdir: z.string(),
    user: z.string(),
  }),
  /** Lowest first. */
  layers: z
    .array(
      z.object({
        diff_id: digest,
        /** Of the plain tar, in bytes. */
        unpacked_bytes: z.int().nonnegative(),
        /** Of a base image of the builder's: only nodes have the blob, and whoever has the base itself does not fetch it. */
        base: z.boolean().default(false),
        /** The zstd blob; null in records of builders that did not make it of bases: only bases directories have the layer. */
        blob: z.object({ digest, size: z.int().nonnegative(), piece_list: digest.nullable() }).nullable(),
      }),
    )
    .max(127),
})
export type ImageRecord = z.infer<typeof imageRecord>

/** The image's name by its content; a record whose `digest` differs is broken or forged. Blobs may differ, the image stays. */
export function imageDigest(config: ImageRecord["config"], diffIds: readonly string[]): Digest {
  const env = Object.entries(config.env).toSorted(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0))
  return asDigest(sha256Hex(JSON.stringify({ env, workdir: config.workdir, user: config.user, layers: diffIds })))
}
