import type { Instant } from "../../protocol/base/clock.ts"
import { digest as asDigest, type ClaimNumber, type NodeId, type RevisionId } from "../../protocol/domain/ids.ts"
import type { ImageRecord } from "../../protocol/domain/image.ts"
import { addBlobReference } from "../store/blobs.ts"
import {
  changeBuild,
  deleteReplica,
  deleteReplicasOfNode,
  findProjectById,
  findRevision,
  putDiagnostic,
  putReplica,
  setLastReady,
  type Project,
} from "../store/projects.ts"
import type { Tx } from "../store/store.ts"
import { sanitise } from "./sanitise.ts"

/** `id` is new and opaque: it names the diagnostics entry that this may make. A write may run again, so the caller makes it. */
interface Recorded {
  revision: RevisionId
  node: NodeId
  id: string
  at: Instant
}

/** A builder took the build. False when it is no longer queued: then the builder is not to start. */
export async function recordBuildStarted(
  tx: Tx,
  { revision, node, claim, id, at }: Recorded & { claim: ClaimNumber },
): Promise<boolean> {
  const from = { build: "queued", builder: null } as const
  if (!(await changeBuild(tx, revision, from, { build: "building", builder: node, claim }, at))) return false
  await describe(tx, { revision, id, at }, "build", {
    status: "running",
    phase: "build",
    message: "The image is being built.",
  })
  return true
}

/** The project's own: a base is nowhere but on nodes (architecture §5.6). */
export const ownLayers = ({ layers }: ImageRecord): ImageRecord["layers"] => layers.filter(({ base }) => !base)

/**
 * The image is built. Its own layers must lie here, pinned or staged, as the last resort (architecture §5.6): from now on they
 * stay as long as the revision. False when this node's build no longer counts: nothing changes.
 */
export async function recordBuilt(
  tx: Tx,
  { revision, node, id, at, image, logTail }: Recorded & { image: ImageRecord; logTail: string },
): Promise<boolean> {
  // Others fetch the layers from it (architecture §5.6).
  const built = { build: "built", builder: node, image } as const
  if (!(await changeBuild(tx, revision, { build: "building", builder: node }, built, at))) return false
  await keepImage(tx, revision, image)
  await describe(tx, { revision, id, at }, "build", {
    status: "ready",
    phase: "build",
    message: "The image is built.",
    logTail,
  })
  return true
}

/** The layers of an image stay while this revision does; those of its base are not here. */
export async function keepImage(tx: Tx, revision: RevisionId, image: ImageRecord): Promise<void> {
  for (const { blob } of ownLayers(image)) {
    if (blob !== null) await addBlobReference(tx, asDigest(blob.digest), { kind: "image", owner: revision })
  }
}

/**
 * The build ended without an image. `project`: by its own doing, which fails it (waiting tasks then fail with
 * `setup_failed`); `node`: the builder's trouble, so that it is queued again. False when this node's build no longer counts.
 */
export async function recordBuildFailed(
  tx: Tx,
  failure: Recorded & { kind: "project" | "node"; message: string; logTail: string | null },
): Promise<boolean> {
  const { revision, node, id, at, kind, message, logTail } = failure
  const to = kind === "project" ? ("failed" as const) : ("queued" as const)
  if (!(await changeBuild(tx, revision, { build: "building", builder: node }, { build: to }, at))) return false
  await describe(tx, { revision, id, at }, "build", {
    status: kind === "project" ? "failed" : "info",
    phase: "build",
    message: kind === "project" ? message : "The build was interrupted and starts again.",
    logTail,
    ...(kind === "project" && {
      recommendedAction: "Correct the Dockerfile or the manifest by the log, then push again.",
    }),
  })
  return true
}

/**
 * Nobody has a layer of the built image any more: the tarball is built again (architecture §5.6). False when this image of
 * this builder's is not the revision's any more.
 */
export async function recordImageLost(
  tx: Tx,
  { revision, node, id, at }: Omit<Recorded, "node"> & { node: NodeId | null },
): Promise<boolean> {
  if (!(await changeBuild(tx, revision, { build: "built", builder: node }, { build: "queued" }, at))) return false
  await describe(tx, { revision, id, at }, "build", {
    status: "info",
    phase: "build",
    message: "No connected machine has all layers of the image any more: it is built again.",
  })
  return true
}

/** A failed build may be tried again: an owner asked for it. False when it had not failed. */
export function retryFailedBuild(tx: Tx, revision: RevisionId, at: Instant): Promise<boolean> {
  return changeBuild(tx, revision, { build: "failed", builder: null }, { build: "queued" }, at)
}

/**
 * How far a node is with preparing a revision; `removed` when it dropped it, `unable` when it cannot have it by its own
 * fault, which is no replica either. A word about another than the active revision
 * changes nothing and answers false.
 */
export async function recordReplica(
  tx: Tx,
  report: Recorded & {
    state: "initializing" | "ready" | "failed" | "unable" | "removed"
    message: string | null
    logTail: string | null
  },
): Promise<boolean> {
  const { revision, node, state, at, id } = report
  const project = await projectOfActive(tx, revision)
  if (project === null) return false
  if (state === "removed") {
    await deleteReplica(tx, project.id, node)
    return true
  }
  if (state === "unable") await deleteReplica(tx, project.id, node)
  else await putReplica(tx, project.id, { node, revision, state, changedAt: at })
  if (state === "ready") await setLastReady(tx, project.id, at)
  const texts = {
    initializing: { status: "running", message: "The runtime is being prepared." },
    ready: { status: "ready", message: "The runtime is ready." },
    failed: { status: "failed", message: "Preparing the runtime failed." },
    unable: { status: "failed", message: "A machine could not prepare the runtime." },
  } as const
  await describe(tx, { revision, id, at }, node, {
    status: texts[state].status,
    phase: "prepare",
    message: report.message ?? texts[state].message,
    logTail: report.logTail,
    ...(state === "failed" && {
      recommendedAction: "Correct what the log shows (validation, files, dependencies), then push again.",
    }),
    ...(state === "unable" && {
      recommendedAction: "Nothing to correct in the project: it is tried again, and on every machine that connects.",
    }),
  })
  return true
}

/** The node is gone for good (revoked), or lost all it had prepared. */
export async function recordNodeGone(tx: Tx, node: NodeId): Promise<void> {
  await deleteReplicasOfNode(tx, node)
}

/** Names what a runtime does not do, so that nobody looks for it (rulings, Process runtime). */
export async function recordRuntimeNote(tx: Tx, { revision, id, at }: Omit<Recorded, "node">): Promise<void> {
  await describe(tx, { revision, id, at }, "runtime", {
    status: "info",
    phase: "prepare",
    message:
      "A worker without images runs this project: its Dockerfile (FROM, RUN, ENV) is not executed there; the pushed tree is the working directory and commands come from the machine's own PATH.",
  })
}

interface Entry {
  status: "info" | "running" | "ready" | "failed"
  phase: string
  message: string
  logTail?: string | null
  recommendedAction?: string
}

async function describe(
  tx: Tx,
  { revision, id, at }: { revision: RevisionId; id: string; at: Instant },
  subject: string,
  entry: Entry,
): Promise<void> {
  const project = await projectOfActive(tx, revision)
  if (project === null) return
  await putDiagnostic(tx, {
    id,
    project: project.id,
    revision,
    subject,
    status: entry.status,
    phase: entry.phase,
    message: sanitise(entry.message, LONGEST_MESSAGE),
    logTail: entry.logTail == null ? null : sanitise(entry.logTail, LONGEST_LOG_TAIL),
    recommendedAction: entry.recommendedAction ?? null,
    at,
  })
}

/** Characters. */
const LONGEST_MESSAGE = 1000
const LONGEST_LOG_TAIL = 8000

async function projectOfActive(tx: Tx, id: RevisionId): Promise<Project | null> {
  const revision = await findRevision(tx, id)
  const project = revision === null ? null : await findProjectById(tx, revision.project)
  return project?.activeRevision === id ? project : null
}
