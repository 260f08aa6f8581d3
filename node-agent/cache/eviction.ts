import type { Digest } from "../../protocol/domain/ids.ts"
import type { Instant } from "../../protocol/base/clock.ts"

/** A cached blob as eviction sees it. */
export interface EvictionCandidate {
  digest: Digest
  /** What it occupies; a partial blob counts whole, because it will. */
  bytes: number
  lastUsedAt: Instant
  /** Somebody holds it, or it is being downloaded right now. */
  kept: boolean
  /** To go only after all that are not: nobody but nodes has it. */
  spared: boolean
}

/**
 * Which blobs must go so that `neededBytes` more fit into the quota: the least recently used first, spared ones last, none that is
 * kept, no more than needed. Null when even all of them would not do; then nothing is to be evicted.
 */
export function chooseEvictions(
  cached: readonly EvictionCandidate[],
  neededBytes: number,
  quotaBytes: number,
): Digest[] | null {
  let excess = cached.reduce((sum, blob) => sum + blob.bytes, 0) + neededBytes - quotaBytes
  const evictable = cached
    .filter((blob) => !blob.kept)
    .toSorted((a, b) => Number(a.spared) - Number(b.spared) || a.lastUsedAt - b.lastUsedAt)
  const chosen: Digest[] = []
  for (const blob of evictable) {
    if (excess <= 0) break
    chosen.push(blob.digest)
    excess -= blob.bytes
  }
  return excess <= 0 ? chosen : null
}
