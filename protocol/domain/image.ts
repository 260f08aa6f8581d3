import { z } from "zod"
import { DIGEST_PATTERN } from "./ids.ts"

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
        /** The zstd blob; null for layers of a base image, which every node finds in its own bases directory. */
        blob: z.object({ digest, size: z.int().nonnegative(), piece_list: digest.nullable() }).nullable(),
      }),
    )
    .max(127),
})
export type ImageRecord = z.infer<typeof imageRecord>
