import type { Clock } from "../../protocol/base/clock.ts"
import type { Random } from "../../protocol/base/random.ts"
import { notFound } from "../../protocol/domain/errors.ts"
import { newArtifactId, type AccountId, type JobId } from "../../protocol/domain/ids.ts"
import { insertArtifact, isJobOf, type LocalArtifact } from "../store/artifacts.ts"
import { addBlobReference } from "../store/blobs.ts"
import type { Store, Tx } from "../store/store.ts"
import type { ObjectFiles } from "./object-files.ts"

export interface ArtifactParts {
  store: Store
  files: ObjectFiles
  clock: Clock
  random: Random
  /** How long an artifact lasts (AR-020). */
  ttlMs: number
}

/** Through the coordinator, inclusive (AR-003, GAP-13). */
const LARGEST_UPLOAD_BYTES = 2 * 2 ** 30

export interface Upload {
  account: AccountId
  filename: string
  contentType: string
  /** The job it belongs to. */
  job: JobId | null
}

/** Refuses with `not_found` when the upload names a job that is not the account's: asked before any byte is read (GAP-49). */
export async function checkUpload(parts: ArtifactParts, account: AccountId, job: JobId | null): Promise<void> {
  if (job === null) return
  if (!(await parts.store.read((view) => isJobOf(view, job, account)))) throw notFound(`the job ${job}`)
}

/**
 * Stores a stream of bytes as a new artifact: every upload is a new record, equal bytes are stored once (AR-004). A stream
 * that ends in an error, or an abort, leaves nothing. `also` runs in the write that makes the record.
 */
export async function putArtifact(
  parts: ArtifactParts,
  upload: Upload,
  bytes: AsyncIterable<Uint8Array>,
  options: { signal?: AbortSignal; also?: (tx: Tx, artifact: LocalArtifact) => Promise<void> } = {},
): Promise<LocalArtifact> {
  const { signal, also } = options
  using blob = await parts.files.put(bytes, { maxBytes: LARGEST_UPLOAD_BYTES, ...(signal && { signal }) })
  const createdAt = parts.clock.now()
  const artifact: LocalArtifact = {
    ...upload,
    id: newArtifactId(parts.random),
    task: null,
    name: null,
    source: "local",
    digest: blob.digest,
    size: blob.size,
    createdAt,
    expiresAt: createdAt + parts.ttlMs,
  }
  await parts.store.write(async (tx) => {
    await insertArtifact(tx, artifact)
    await addBlobReference(tx, artifact.digest, { kind: "artifact", owner: artifact.id })
    await also?.(tx, artifact)
  })
  return artifact
}
