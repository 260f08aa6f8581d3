import type { Instant } from "../../protocol/base/clock.ts"
import { deleteArtifact, deleteExpiredArtifacts } from "../store/artifacts.ts"
import { dropBlobReferences, isBlobNeeded, releaseBlob, takeReleasedBlobs } from "../store/blobs.ts"
import type { Store } from "../store/store.ts"
import type { ArtifactId, Digest } from "../../protocol/domain/ids.ts"
import type { ObjectFiles } from "./object-files.ts"

/** Removes one record. Its bytes go with the next sweep, unless another record needs them; a running download finishes. */
export async function removeArtifact(parts: { store: Store }, id: ArtifactId): Promise<boolean> {
  return parts.store.write(async (tx) => {
    await dropBlobReferences(tx, { kind: "artifact", owner: id })
    return deleteArtifact(tx, id)
  })
}

/**
 * Removes expired artifacts and the bytes that nothing needs any more. Reads already refuse an artifact from `expires_at` on;
 * this frees the room, and is called at least once a minute (rulings, Retention). Returns how many of each went.
 */
export async function sweepArtifacts(
  parts: { store: Store; files: ObjectFiles },
  now: Instant,
): Promise<{ expired: number; freed: number }> {
  let expired = 0
  for (let last = RECORDS_AT_ONCE; last === RECORDS_AT_ONCE; expired += last) {
    last = await parts.store.write(async (tx) => {
      const gone = await deleteExpiredArtifacts(tx, now, RECORDS_AT_ONCE)
      for (const id of gone) await dropBlobReferences(tx, { kind: "artifact", owner: id })
      return gone.length
    })
  }
  return { expired, freed: await freeReleasedBlobs(parts) }
}

/** A slice takes a few milliseconds. */
const RECORDS_AT_ONCE = 200

/** Frees the bytes of blobs that lost their last record. A pinned one is tried again at the next sweep. */
export async function freeReleasedBlobs(parts: { store: Store; files: ObjectFiles }): Promise<number> {
  let freed = 0
  const pinned: Digest[] = []
  for (;;) {
    const released = await parts.store.write((tx) => takeReleasedBlobs(tx, RECORDS_AT_ONCE))
    if (released.length === 0) break
    for (const digest of released) {
      const needed = await parts.store.read((view) => isBlobNeeded(view, digest))
      if (needed) continue
      if (await removeUnneeded(parts, digest)) freed++
      else pinned.push(digest)
    }
  }
  await parts.store.write(async (tx) => {
    for (const digest of pinned) await releaseBlob(tx, digest)
  })
  return freed
}

/**
 * Removes what no record names: leftovers of a crash between bytes and record. For the start of the program and once a day;
 * younger files than an hour may belong to a write that is under way.
 */
export async function sweepOrphans(
  parts: { store: Store; files: ObjectFiles },
  now: Instant,
  signal?: AbortSignal,
): Promise<{ files: number; blobs: number }> {
  const before = now - 60 * 60 * 1000
  const files = await parts.files.sweepIncoming(before)
  let blobs = 0
  for await (const digest of parts.files.blobs(before)) {
    signal?.throwIfAborted()
    if (await removeUnneeded(parts, digest)) blobs++
  }
  return { files, blobs }
}

const removeUnneeded = (parts: { store: Store; files: ObjectFiles }, digest: Digest): Promise<boolean> =>
  parts.files.remove(digest, () => parts.store.read((view) => isBlobNeeded(view, digest)))
