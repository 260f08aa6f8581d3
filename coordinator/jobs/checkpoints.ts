import type { Clock, Instant } from "../../protocol/base/clock.ts"
import { isJsonObject, type JsonObject } from "../../protocol/base/json-text.ts"
import type { Random } from "../../protocol/base/random.ts"
import { artifactId, digest, newArtifactId, taskId, type ArtifactId, type NodeId } from "../../protocol/domain/ids.ts"
import type { CheckpointItem, ItemVerdict } from "../../protocol/wire/control.ts"
import { appendEvent } from "../events/event-log.ts"
import { deleteArtifact, endArtifactAt, findArtifact, insertArtifact, keepArtifactUntil } from "../store/artifacts.ts"
import { addBlobReference, dropBlobReferences, dropStagedBlob, isBlobNeeded, stagedSize } from "../store/blobs.ts"
import {
  checkpointOwner,
  checkpointsOfTasks,
  deleteRemains,
  heldCheckpoints,
  holdAgain,
  insertCheckpoint,
  latestCheckpoint,
  letGo,
  removeSuperseded,
  type CheckpointRow,
  type NewCheckpoint,
} from "../store/checkpoints.ts"
import type { Store, Tx } from "../store/store.ts"
import { attemptByClaim, indexOfTask, type AttemptRow, type TaskKey } from "../store/tasks.ts"
import type { JobFacts } from "./job-facts.ts"

export interface CheckpointParts {
  store: Store
  clock: Clock
  random: Random
  artifactTtlMs: number
}

export interface CheckpointOutcome {
  verdict: ItemVerdict["verdict"]
  reason: string | null
  /** A next attempt can go on from it: the work before it is safe. */
  durable: boolean
}

/** Architecture §5.6: one to go on from, and one to fall back to. */
const DURABLE_KEPT = 2

/**
 * Stores what a running attempt left to go on from, in one write with its artifact and its event. The claim number decides: a
 * spent one changes nothing. Within it `n` must grow; an earlier one that comes late is not needed any more.
 */
export async function storeCheckpoint(
  parts: CheckpointParts,
  node: NodeId,
  item: CheckpointItem,
  job: JobFacts | null,
): Promise<CheckpointOutcome> {
  const at = parts.clock.now()
  const fresh = newArtifactId(parts.random)
  return await parts.store.write(async (tx) => {
    const attempt = await attemptByClaim(tx, item.claim)
    if (!attempt || attempt.node !== node) return no("spent", "this number is not yours")
    if (attempt.endedAt !== null || !job) return no("spent", "its attempt is over")
    const write = { at, artifactExpiresAt: at + parts.artifactTtlMs, artifact: fresh, atEnd: false }
    return await storeCheckpointIn(tx, attempt, item, job, write)
  })
}

export interface CheckpointWrite {
  at: Instant
  artifactExpiresAt: Instant
  /** Made by the caller: a write may run again. */
  artifact: ArtifactId
  /** It comes with the attempt's end, which is not to be refused because its file never came. */
  atEnd: boolean
}

/** The same inside another write, for an attempt that the caller has seen to be live. */
export async function storeCheckpointIn(
  tx: Tx,
  attempt: AttemptRow,
  item: CheckpointItem,
  job: JobFacts,
  write: CheckpointWrite,
): Promise<CheckpointOutcome> {
  const state = objectIn(item.state)
  if (!job.checkpoints) return no("refused", "the job keeps no checkpoints")
  if (state === null || objectIn(item.line) === null) return no("refused", "it is no JSON object")
  const latest = await latestCheckpoint(tx, attempt.task)
  if (latest && (latest.claim > attempt.claim || (latest.claim === attempt.claim && latest.n >= item.n))) {
    if (latest.claim !== attempt.claim || latest.n !== item.n) return no("already", "a later one is stored")
    return latest.itemDigest === item.digest ? no("already", null) : no("refused", "another one has this number")
  }
  const publication = await publish(tx, attempt, item, state, job, latest, write)
  if (publication === "missing") return no("refused", "its bytes were not uploaded")
  await insertCheckpoint(tx, {
    task: attempt.task,
    claim: attempt.claim,
    n: item.n,
    itemDigest: item.digest,
    state: item.state,
    line: item.line,
    ...publication,
    at: write.at,
  })
  for (const superseded of await removeSuperseded(tx, attempt.task, DURABLE_KEPT)) await release(tx, superseded)
  const { publishStatus, problem, artifact } = publication
  await appendEvent(tx, {
    job: job.seq,
    type: "task.checkpoint",
    taskIndex: indexOfTask(attempt.task),
    message: problem === null ? "a checkpoint was stored" : `a checkpoint's file was not published: ${problem}`,
    data: { attempt: attempt.number, publish_status: publishStatus, artifact_id: artifact },
    at: write.at,
  })
  return { verdict: "stored", reason: null, durable: problem === null }
}

type Publication = Pick<
  NewCheckpoint,
  "publishStatus" | "problem" | "artifact" | "artifactSource" | "ownArtifact" | "blob" | "bytes" | "filename"
>

const NOT_PUBLISHED: Publication = {
  publishStatus: null,
  problem: null,
  artifact: null,
  artifactSource: null,
  ownArtifact: false,
  blob: null,
  bytes: null,
  filename: null,
}

/** Makes its file, or the artifact it names, durable (CK-005). */
async function publish(
  tx: Tx,
  attempt: AttemptRow,
  item: CheckpointItem,
  state: JsonObject,
  job: JobFacts,
  latest: CheckpointRow | null,
  write: CheckpointWrite,
): Promise<Publication | "missing"> {
  const key = { task: attempt.task, claim: attempt.claim, n: item.n }
  if (item.file !== null) {
    const blob = digest(item.file.digest)
    const { size, filename } = item.file
    // The same bytes again may have been staged for the one before, whose staging is over.
    const isHere =
      (await stagedSize(tx, attempt.claim, blob)) === size || (latest?.blob === blob && latest.bytes === size)
    if (isHere) return await publishFile(tx, key, { blob, size, filename }, job, write)
    if (!write.atEnd) return "missing"
    return { ...NOT_PUBLISHED, publishStatus: "failed", problem: "its bytes were not uploaded" }
  }
  const named = await publishNamed(tx, key, state["artifact_id"], job, write.at)
  if (named !== null && (named.problem === null || item.problem === null)) return named
  if (item.problem === null) return NOT_PUBLISHED
  return { ...NOT_PUBLISHED, publishStatus: item.problem.status, problem: item.problem.reason }
}

async function publishFile(
  tx: Tx,
  key: Pick<NewCheckpoint, "task" | "claim" | "n">,
  { blob, size, filename }: { blob: ReturnType<typeof digest>; size: number; filename: string },
  job: JobFacts,
  write: CheckpointWrite,
): Promise<Publication> {
  await insertArtifact(tx, {
    id: write.artifact,
    account: job.account,
    job: job.id,
    task: taskId(job.id, indexOfTask(key.task)),
    name: null,
    filename,
    contentType: "application/octet-stream",
    source: "local",
    digest: blob,
    size,
    createdAt: write.at,
    expiresAt: write.artifactExpiresAt + EXTENSION_MS,
  })
  await addBlobReference(tx, blob, { kind: "artifact", owner: write.artifact })
  await addBlobReference(tx, blob, checkpointOwner(key))
  const artifact = { artifact: write.artifact, artifactSource: "local", ownArtifact: true }
  return { publishStatus: "published", problem: null, ...artifact, blob, bytes: size, filename }
}

/** An artifact of the account that the program names: it is there already, and its bytes are to stay. Null: none is named. */
async function publishNamed(
  tx: Tx,
  key: Pick<NewCheckpoint, "task" | "claim" | "n">,
  named: unknown,
  job: JobFacts,
  at: Instant,
): Promise<Publication | null> {
  if (typeof named !== "string") return null
  const found = await findArtifact(tx, artifactId(named), job.account, at)
  if (!found) return { ...NOT_PUBLISHED, publishStatus: "failed", problem: "the artifact that it names is not there" }
  if (found.source === "local" && found.digest !== null) await addBlobReference(tx, found.digest, checkpointOwner(key))
  const blob = found.source === "local" ? found.digest : null
  const artifact = { artifact: found.id, artifactSource: found.source, ownArtifact: false }
  return { publishStatus: "published", problem: null, ...artifact, blob, bytes: found.size, filename: found.filename }
}

/** Nobody goes on from it any more. */
async function release(tx: Tx, row: CheckpointRow): Promise<void> {
  await dropBlobReferences(tx, checkpointOwner(row))
  if (!row.ownArtifact || row.artifact === null) return
  await dropBlobReferences(tx, { kind: "artifact", owner: row.artifact })
  await deleteArtifact(tx, row.artifact)
  if (row.blob !== null) await dropStagedBlob(tx, row.claim, row.blob)
}

/**
 * While a job lives, the artifacts of its kept checkpoints outlast their retention; once it has ended they get what every
 * artifact gets (architecture §5.6). Called before expired artifacts are swept, at least every `EXTENSION_MS`.
 */
export async function sweepCheckpoints(
  parts: Pick<CheckpointParts, "store" | "artifactTtlMs">,
  now: Instant,
): Promise<void> {
  let after = 0
  for (;;) {
    const page = await parts.store.read((view) => heldCheckpoints(view, after, ROWS_AT_ONCE))
    if (page.length > 0) {
      await parts.store.write(async (tx) => {
        for (const { row, endedAt } of page) {
          if (endedAt !== null) {
            await dropBlobReferences(tx, checkpointOwner(row))
            await letGo(tx, row.seq)
            if (row.ownArtifact && row.artifact !== null)
              await endArtifactAt(tx, row.artifact, endedAt + parts.artifactTtlMs)
          } else if (row.artifact !== null) {
            await keepArtifactUntil(tx, row.artifact, now + parts.artifactTtlMs + EXTENSION_MS)
          }
        }
      })
    }
    if (page.length < ROWS_AT_ONCE) return
    after = page.at(-1)?.row.seq ?? after
  }
}

/** The task runs again from its beginning: nothing is gone on from. The artifacts stay, as long as artifacts do. */
export async function forgetRemains(tx: Tx, task: TaskKey): Promise<void> {
  for (const row of await deleteRemains(tx, task)) await dropBlobReferences(tx, checkpointOwner(row))
}

/** The task's job runs again after its end: what the task goes on from is kept again, where the bytes are still there. */
export async function keepRemains(tx: Tx, task: TaskKey): Promise<void> {
  for (const row of await checkpointsOfTasks(tx, [task])) {
    if (row.blob === null || !(await isBlobNeeded(tx, row.blob))) continue
    await addBlobReference(tx, row.blob, checkpointOwner(row))
    await holdAgain(tx, row.seq)
  }
}

const ROWS_AT_ONCE = 200
/** Two sweeps may be missed. */
const EXTENSION_MS = 3 * 60_000

const no = (verdict: ItemVerdict["verdict"], reason: string | null): CheckpointOutcome => ({
  verdict,
  reason,
  durable: false,
})

/** A node's words: kept and embedded in replies only where they are what they should be. */
export function objectIn(text: string): JsonObject | null {
  try {
    const value: unknown = JSON.parse(text)
    return isJsonObject(value) ? value : null
  } catch {
    return null
  }
}
