import type { Instant } from "../../protocol/base/clock.ts"
import { claimNumber, digest as asDigest, type ClaimNumber, type Digest } from "../../protocol/domain/ids.ts"
import type { Tx, View } from "./store.ts"

/** The record that needs a blob: it goes into the table in the very write that makes the record. */
export interface BlobOwner {
  kind: "artifact" | "revision" | "image" | "payload" | "result" | "checkpoint"
  /** Names one record of that kind. */
  owner: string
}

/** From now on the blob stays. The caller holds it pinned, or it has another reference. A second call does nothing. */
export async function addBlobReference(tx: Tx, digest: Digest, { kind, owner }: BlobOwner): Promise<void> {
  await tx.run(
    "INSERT INTO blob_references (digest, kind, owner) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
    digest,
    kind,
    owner,
  )
}

/** The record needs none of its blobs any more. The bytes go at the next sweep, unless another record needs them. */
export async function dropBlobReferences(tx: Tx, { kind, owner }: BlobOwner): Promise<void> {
  const dropped = await tx.all<{ digest: string }>(
    "DELETE FROM blob_references WHERE kind = ? AND owner = ? RETURNING digest",
    kind,
    owner,
  )
  for (const { digest } of dropped) await releaseBlob(tx, asDigest(digest))
}

/** True while a record, or a live claim's staged upload, needs the blob. */
export async function isBlobNeeded(view: View, digest: Digest): Promise<boolean> {
  const row = await view.get(
    `SELECT 1 AS needed FROM blob_references WHERE digest = ?
     UNION ALL SELECT 1 FROM staged_blobs WHERE digest = ? LIMIT 1`,
    digest,
    digest,
  )
  return row !== undefined
}

export interface NeededBlob {
  digest: Digest
  /** One of the records that need it. */
  neededBy: BlobOwner
}

/** Blobs that records need, in the order of their digests, those behind `after`. */
export async function neededBlobs(view: View, after: string, most: number): Promise<NeededBlob[]> {
  const rows = await view.all<{ digest: string; kind: BlobOwner["kind"]; owner: string }>(
    `SELECT digest, MIN(kind) AS kind, MIN(owner) AS owner FROM blob_references WHERE digest > ?
     GROUP BY digest ORDER BY digest LIMIT ?`,
    after,
    most,
  )
  return rows.map(({ digest, kind, owner }) => ({ digest: asDigest(digest), neededBy: { kind, owner } }))
}

/** Marks a blob for the sweep, which asks whether it is still needed. */
export async function releaseBlob(tx: Tx, digest: Digest): Promise<void> {
  await tx.run("INSERT INTO released_blobs (digest) VALUES (?) ON CONFLICT DO NOTHING", digest)
}

/** Takes marks out of the table: a release that comes later marks anew, and so is not missed. */
export async function takeReleasedBlobs(tx: Tx, most: number): Promise<Digest[]> {
  const rows = await tx.all<{ digest: string }>(
    "DELETE FROM released_blobs WHERE digest IN (SELECT digest FROM released_blobs LIMIT ?) RETURNING digest",
    most,
  )
  return rows.map(({ digest }) => asDigest(digest))
}

/**
 * Bytes that an attempt sent ahead of its report (architecture §5.3, order of an ending): kept, readable by nobody. The caller
 * has checked in this write that the claim is live, and holds the blob pinned. A second call does nothing.
 */
export async function stageBlob(
  tx: Tx,
  staged: { claim: ClaimNumber; digest: Digest; size: number; at: Instant },
): Promise<void> {
  await tx.run(
    "INSERT INTO staged_blobs (claim, digest, size, staged_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
    staged.claim,
    staged.digest,
    staged.size,
    staged.at,
  )
}

/** The size of what this claim staged under this digest; null when it staged no such bytes. */
export async function stagedSize(view: View, claim: ClaimNumber, digest: Digest): Promise<number | null> {
  const row = await view.get<{ size: number }>(
    "SELECT size FROM staged_blobs WHERE claim = ? AND digest = ?",
    claim,
    digest,
  )
  return row?.size ?? null
}

/** The claim has ended: what no record took over goes at the next sweep. */
export async function dropStagedBlobs(tx: Tx, claim: ClaimNumber): Promise<void> {
  const dropped = await tx.all<{ digest: string }>("DELETE FROM staged_blobs WHERE claim = ? RETURNING digest", claim)
  for (const { digest } of dropped) await releaseBlob(tx, asDigest(digest))
}

/** The same for one blob, of a claim that goes on. */
export async function dropStagedBlob(tx: Tx, claim: ClaimNumber, digest: Digest): Promise<void> {
  await tx.run("DELETE FROM staged_blobs WHERE claim = ? AND digest = ?", claim, digest)
  await releaseBlob(tx, digest)
}

/** Claims with uploads older than `before`, oldest first. */
export async function claimsWithStagedBlobs(view: View, before: Instant, most: number): Promise<ClaimNumber[]> {
  const rows = await view.all<{ claim: number }>(
    "SELECT claim FROM staged_blobs WHERE staged_at < ? GROUP BY claim ORDER BY MIN(staged_at) LIMIT ?",
    before,
    most,
  )
  return rows.map(({ claim }) => claimNumber(claim))
}
