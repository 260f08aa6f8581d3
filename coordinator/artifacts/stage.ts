import type { Instant } from "../../protocol/base/clock.ts"
import type { AccountId, ArtifactId, ClaimNumber, Digest, JobId, TaskId } from "../../protocol/domain/ids.ts"
import { insertArtifact, type LocalArtifact } from "../store/artifacts.ts"
import { addBlobReference, claimsWithStagedBlobs, dropStagedBlobs, stagedSize, type BlobOwner } from "../store/blobs.ts"
import type { Store, Tx, View } from "../store/store.ts"

/** An artifact as a report names it; its bytes were staged under the same claim. */
export interface ReportedArtifact {
  /** Made by the caller: a write may run again. */
  id: ArtifactId
  name: string | null
  filename: string
  contentType: string
  digest: Digest
  size: number
}

/**
 * Makes what a claim staged visible, in the write of its report. Either every named artifact becomes a record, or none and
 * the answer names the digests whose bytes are missing: the report is then to be refused. The caller has checked the claim
 * number, calls this once for it, and drops what is left with `dropStagedBlobs`.
 */
export async function publishStaged(
  tx: Tx,
  report: {
    claim: ClaimNumber
    account: AccountId
    job: JobId
    task: TaskId
    artifacts: readonly ReportedArtifact[]
    at: Instant
    expiresAt: Instant
  },
): Promise<{ published: LocalArtifact[]; missing: Digest[] }> {
  const missing: Digest[] = []
  for (const { digest, size } of report.artifacts) {
    if ((await stagedSize(tx, report.claim, digest)) !== size) missing.push(digest)
  }
  if (missing.length > 0) return { published: [], missing }
  const published: LocalArtifact[] = []
  for (const reported of report.artifacts) {
    const { account, job, task } = report
    const artifact: LocalArtifact = {
      ...reported,
      account,
      job,
      task,
      source: "local",
      createdAt: report.at,
      expiresAt: report.expiresAt,
    }
    await insertArtifact(tx, artifact)
    await addBlobReference(tx, artifact.digest, { kind: "artifact", owner: artifact.id })
    published.push(artifact)
  }
  return { published, missing }
}

/** The same for one blob that becomes no artifact (a large result, a layer of an image). False: these bytes were never staged. */
export async function keepStaged(tx: Tx, claim: ClaimNumber, digest: Digest, owner: BlobOwner): Promise<boolean> {
  if ((await stagedSize(tx, claim, digest)) === null) return false
  await addBlobReference(tx, digest, owner)
  return true
}

/**
 * Drops what spent claims staged and never reported. `liveClaims` answers which of the given ones may still report. Uploads
 * of the last minute are left alone: their claim was live in the write that staged them.
 */
export async function sweepStaged(
  parts: { store: Store; liveClaims: (view: View, claims: ClaimNumber[]) => Promise<ReadonlySet<ClaimNumber>> },
  now: Instant,
): Promise<number> {
  const spent = await parts.store.read(async (view) => {
    const claims = await claimsWithStagedBlobs(view, now - 60_000, CLAIMS_AT_ONCE)
    const live = await parts.liveClaims(view, claims)
    return claims.filter((claim) => !live.has(claim))
  })
  for (const claim of spent) await parts.store.write((tx) => dropStagedBlobs(tx, claim))
  return spent.length
}

const CLAIMS_AT_ONCE = 500
