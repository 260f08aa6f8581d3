import { present } from "../../protocol/base/assert.ts"
import type { JsonObject } from "../../protocol/base/json-text.ts"
import { ComputalotError } from "../../protocol/domain/errors.ts"
import { newRevisionId, type AccountId } from "../../protocol/domain/ids.ts"
import type { ObjectFiles } from "../artifacts/object-files.ts"
import { addBlobReference } from "../store/blobs.ts"
import {
  cancelOlderBuilds,
  deleteDiagnostics,
  deleteInitRequest,
  findProjectById,
  insertRevision,
  outdateReplicas,
  putInitRequest,
  replicasOf,
  setActiveRevision,
  type Revision,
} from "../store/projects.ts"
import type { Tx } from "../store/store.ts"
import { requireProject, type ProjectParts } from "./project.ts"
import { isBusy } from "./readiness.ts"
import { lookUpStatus, type ProjectStatus } from "./status.ts"
import type { TarballScanner } from "./tarball.ts"
import type { TarballDiff } from "./tree.ts"

/** 100 MB, inclusive (P-014, GAP-13). */
const LARGEST_PUSH_BYTES = 100 * 2 ** 20

export interface PushParts extends ProjectParts {
  files: ObjectFiles
  scanner: TarballScanner
}

export interface Pushed extends ProjectStatus {
  revision: Revision
  /** Bytes of the body. */
  sizeBytes: number
  manifestPresent: boolean
  /** Against the revision before; null at the first push. */
  diff: TarballDiff | null
}

/** Refuses with `not_found`, and with `project_busy` while the project initializes or refreshes: asked before the body is read. */
export async function checkPush(parts: ProjectParts, account: AccountId | null, name: string): Promise<void> {
  const fleet = parts.fleet()
  const now = parts.clock.now()
  await parts.store.read(async (view) => {
    refuseWhileBusy(await lookUpStatus(view, await requireProject(view, account, name), fleet, now))
  })
}

/**
 * Takes a pushed tarball: reads and checks it, then publishes it as the active revision in one write (P-021). Its image is
 * built afterwards; a newer push cancels an older build. Refuses with `not_gzip`, `invalid_tarball`, `invalid_manifest`,
 * `body_too_large`, and `project_busy` when an init came meanwhile; then the former revision stays as it was.
 */
export async function pushProject(
  parts: PushParts,
  account: AccountId | null,
  name: string,
  body: AsyncIterable<Uint8Array>,
  options: { signal?: AbortSignal; also?: (tx: Tx, pushed: Pushed) => Promise<void> } = {},
): Promise<Pushed> {
  const { signal, also } = options
  const received = await parts.files.receive(body, { maxBytes: LARGEST_PUSH_BYTES, ...(signal && { signal }) })
  try {
    const before = await parts.store.read((view) => requireProject(view, account, name))
    const scan = await parts.scanner.scan(
      {
        path: received.path,
        size: received.size,
        tarballPath: parts.files.incomingPath(),
        listingPath: parts.files.incomingPath(),
        previousListingPath: before.contentHash === null ? null : parts.files.path(before.contentHash),
        projectManifest: before.manifest,
        imageRef: before.imageRef,
      },
      signal,
    )
    using tarball = await parts.files.keep(scan.tarball)
    using listing = await parts.files.keep(scan.listing)
    const at = parts.clock.now()
    const fleet = parts.fleet()
    const revision: Revision = {
      id: newRevisionId(parts.random),
      project: before.id,
      contentHash: scan.contentHash,
      tarball: { digest: tarball.digest, size: tarball.size },
      manifest: scan.manifest,
      hasDockerfile: scan.hasDockerfile,
      env: scan.env,
      build: "queued",
      builder: null,
      image: null,
      buildChangedAt: at,
      pushedAt: at,
    }
    const pushed = await parts.store.write(async (tx) => {
      const project = await requireProject(tx, account, name)
      refuseWhileBusy(await lookUpStatus(tx, project, fleet, at))
      await insertRevision(tx, { ...revision, project: project.id })
      await addBlobReference(tx, tarball.digest, { kind: "revision", owner: revision.id })
      await addBlobReference(tx, listing.digest, { kind: "revision", owner: revision.id })
      await cancelOlderBuilds(tx, project.id, revision.id, at)
      await outdateReplicas(tx, project.id, at)
      await deleteDiagnostics(tx, project.id)
      const wasWarm = (await replicasOf(tx, project.id)).some(({ node }) => fleet.isLive(node))
      if (wasWarm) {
        const endsAt = at + project.setupTimeoutSeconds * 1000
        const request = { project: project.id, revision: revision.id, maxNodes: null, requestedAt: at, endsAt }
        await putInitRequest(tx, { ...request, kind: "refresh" })
      } else {
        await deleteInitRequest(tx, project.id)
      }
      await setActiveRevision(tx, project.id, {
        revision: revision.id,
        manifest: scan.manifest as JsonObject | null,
        at,
      })
      const published = present(await findProjectById(tx, project.id), "the project just pushed to")
      const result: Pushed = {
        ...(await lookUpStatus(tx, published, fleet, at)),
        revision,
        sizeBytes: received.size,
        manifestPresent: scan.manifest !== null,
        diff: scan.diff,
      }
      await also?.(tx, result)
      return result
    })
    parts.changed()
    return pushed
  } finally {
    await received.discard()
  }
}

function refuseWhileBusy({ project, readiness }: ProjectStatus): void {
  if (!isBusy(readiness)) return
  const { initState, readyForJobs, nextAction } = readiness
  throw new ComputalotError("project_busy", `${project.name} is ${initState}`, {
    recommendedAction: "Push again once init_state is neither initializing nor refreshing.",
    body: { init_state: initState, ready_for_jobs: readyForJobs, next_action: nextAction },
  })
}
