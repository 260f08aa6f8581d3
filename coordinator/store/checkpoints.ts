import type { Instant } from "../../protocol/base/clock.ts"
import {
  artifactId,
  claimNumber,
  digest as asDigest,
  type ArtifactId,
  type ClaimNumber,
  type Digest,
} from "../../protocol/domain/ids.ts"
import type { BlobOwner } from "./blobs.ts"
import type { Tx, View } from "./store.ts"
import { taskKey, type TaskKey } from "./tasks.ts"

export interface NewCheckpoint {
  task: TaskKey
  claim: ClaimNumber
  n: number
  itemDigest: string
  /** The checkpoint object, as its own JSON text. */
  state: string
  /** The other fields of the line that carried it, likewise. */
  line: string
  /** Null where it names neither a file nor an artifact. */
  publishStatus: "published" | "failed" | "skipped" | null
  /** Why it is not published. */
  problem: string | null
  artifact: ArtifactId | null
  artifactSource: string | null
  /** The artifact was made of the checkpoint's file, and goes with it. */
  ownArtifact: boolean
  blob: Digest | null
  bytes: number | null
  filename: string | null
  at: Instant
}

export interface CheckpointRow extends NewCheckpoint {
  /** Of all checkpoints: a later one's is greater. */
  seq: number
  /** A next attempt may go on from it. */
  durable: boolean
}

/** As long as the job lives this reference keeps the bytes, whatever becomes of the artifact. */
export const checkpointOwner = ({ task, claim, n }: Pick<NewCheckpoint, "task" | "claim" | "n">): BlobOwner => ({
  kind: "checkpoint",
  owner: `${task}/${claim}/${n}`,
})

/** The caller has seen that (claim, n) grows. */
export async function insertCheckpoint(tx: Tx, one: NewCheckpoint): Promise<void> {
  const durable = one.publishStatus === null || one.publishStatus === "published"
  await tx.run(
    `INSERT INTO checkpoints (task, claim, n, item_digest, state, line, publish_status, problem, artifact, artifact_source,
       own_artifact, blob, bytes, filename, durable, held, created_at)
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
    one.task,
    one.claim,
    one.n,
    one.itemDigest,
    one.state,
    one.line,
    one.publishStatus,
    one.problem,
    one.artifact,
    one.artifactSource,
    one.ownArtifact ? 1 : 0,
    one.blob,
    one.bytes,
    one.filename,
    durable ? 1 : 0,
    one.blob === null ? 0 : 1,
    one.at,
  )
}

/** The checkpoint of the greatest (claim, n). */
export async function latestCheckpoint(view: View, task: TaskKey): Promise<CheckpointRow | null> {
  const row = await view.get<RawCheckpoint>(
    "SELECT * FROM checkpoints WHERE task = ? ORDER BY claim DESC, n DESC LIMIT 1",
    task,
  )
  return row ? fromRow(row) : null
}

/** Everything kept of these tasks, latest first: three rows of a task at most. */
export async function checkpointsOfTasks(view: View, tasks: readonly TaskKey[]): Promise<CheckpointRow[]> {
  const rows = await view.all<RawCheckpoint>(
    `SELECT * FROM checkpoints WHERE task IN (${tasks.map(() => "?").join(", ")}) ORDER BY task, claim DESC, n DESC`,
    ...tasks,
  )
  return rows.map(fromRow)
}

/** When this attempt last left something durable. */
export async function lastDurableAt(view: View, task: TaskKey, claim: ClaimNumber): Promise<Instant | null> {
  const row = await view.get<{ created_at: number }>(
    "SELECT created_at FROM checkpoints WHERE task = ? AND claim = ? AND durable = 1 ORDER BY n DESC LIMIT 1",
    task,
    claim,
  )
  return row?.created_at ?? null
}

/** Removes all of a task's checkpoints but the latest `kept` durable ones and the latest of all. Gives what it removed. */
export async function removeSuperseded(tx: Tx, task: TaskKey, kept: number): Promise<CheckpointRow[]> {
  const rows = await tx.all<RawCheckpoint>(
    `DELETE FROM checkpoints WHERE task = ?
       AND seq NOT IN (SELECT seq FROM checkpoints WHERE task = ? AND durable = 1 ORDER BY claim DESC, n DESC LIMIT ?)
       AND seq <> (SELECT seq FROM checkpoints WHERE task = ? ORDER BY claim DESC, n DESC LIMIT 1)
     RETURNING *`,
    task,
    task,
    kept,
    task,
  )
  return rows.map(fromRow)
}

export interface HeldCheckpoint {
  row: CheckpointRow
  /** When its job ended; null while it lives. */
  endedAt: Instant | null
}

/** A page of the checkpoints whose bytes are held, after `after`. */
export async function heldCheckpoints(view: View, after: number, limit: number): Promise<HeldCheckpoint[]> {
  const rows = await view.all<RawCheckpoint & { ended_at: number | null }>(
    `SELECT c.*, j.completed_at AS ended_at FROM checkpoints c JOIN jobs j ON j.seq = c.task / ?
     WHERE c.held = 1 AND c.seq > ? ORDER BY c.seq LIMIT ?`,
    taskKey(1, 0),
    after,
    limit,
  )
  return rows.map((row) => ({ row: fromRow(row), endedAt: row.ended_at }))
}

/** The job has ended: from here the artifact's own retention decides. */
export async function letGo(tx: Tx, seq: number): Promise<void> {
  await tx.run("UPDATE checkpoints SET held = 0 WHERE seq = ?", seq)
}

/** The checkpoints of the tasks `from` … `upto` that keep bytes. */
export async function blobsOfCheckpoints(
  view: View,
  from: TaskKey,
  upto: TaskKey,
): Promise<Pick<NewCheckpoint, "task" | "claim" | "n">[]> {
  const rows = await view.all<{ task: number; claim: number; n: number }>(
    "SELECT task, claim, n FROM checkpoints WHERE task BETWEEN ? AND ? AND blob IS NOT NULL",
    from,
    upto,
  )
  return rows.map((row) => ({ ...row, claim: claimNumber(row.claim) }))
}

/** Its job runs again: the bytes stay for as long as that lives. */
export async function holdAgain(tx: Tx, seq: number): Promise<void> {
  await tx.run("UPDATE checkpoints SET held = 1 WHERE seq = ? AND blob IS NOT NULL", seq)
}

/** Forgets what a task left to go on from; gives its checkpoints. */
export async function deleteRemains(tx: Tx, task: TaskKey): Promise<CheckpointRow[]> {
  await tx.run("DELETE FROM task_progress WHERE task = ?", task)
  return (await tx.all<RawCheckpoint>("DELETE FROM checkpoints WHERE task = ? RETURNING *", task)).map(fromRow)
}

/** How many of a job's tasks left a checkpoint, how many one to go on from, and the one that came last. */
export async function checkpointTotals(
  view: View,
  job: number,
): Promise<{ tasks: number; durableTasks: number; latest: CheckpointRow | null }> {
  const [from, upto] = [taskKey(job, 0), taskKey(job + 1, 0)]
  const totals = await view.get<{ tasks: number; durable: number; latest: number | null }>(
    `SELECT count(DISTINCT task) AS tasks, count(DISTINCT CASE WHEN durable = 1 THEN task END) AS durable,
       max(seq) AS latest FROM checkpoints WHERE task >= ? AND task < ?`,
    from,
    upto,
  )
  const latest = await view.get<RawCheckpoint>("SELECT * FROM checkpoints WHERE seq = ?", totals?.latest ?? 0)
  return { tasks: totals?.tasks ?? 0, durableTasks: totals?.durable ?? 0, latest: latest ? fromRow(latest) : null }
}

/** The last progress line of a task, unless a later claim's is there. */
export async function putTaskProgress(tx: Tx, task: TaskKey, claim: ClaimNumber, progress: string): Promise<void> {
  await tx.run(
    `INSERT INTO task_progress (task, claim, progress) VALUES (?, ?, ?)
     ON CONFLICT (task) DO UPDATE SET claim = excluded.claim, progress = excluded.progress
     WHERE excluded.claim >= task_progress.claim`,
    task,
    claim,
    progress,
  )
}

export async function progressOfTasks(view: View, tasks: readonly TaskKey[]): Promise<Map<TaskKey, string>> {
  const rows = await view.all<{ task: number; progress: string }>(
    `SELECT task, progress FROM task_progress WHERE task IN (${tasks.map(() => "?").join(", ")})`,
    ...tasks,
  )
  return new Map(rows.map(({ task, progress }) => [task, progress]))
}

/** Which of these tasks left anything to go on from. */
export async function tasksWithRemains(view: View, tasks: readonly TaskKey[]): Promise<Set<TaskKey>> {
  const places = tasks.map(() => "?").join(", ")
  const rows = await view.all<{ task: number }>(
    `SELECT task FROM task_progress WHERE task IN (${places})
     UNION SELECT task FROM checkpoints WHERE task IN (${places})`,
    ...tasks,
    ...tasks,
  )
  return new Set(rows.map(({ task }) => task))
}

interface RawCheckpoint {
  seq: number
  task: number
  claim: number
  n: number
  item_digest: string
  state: string
  line: string
  publish_status: NewCheckpoint["publishStatus"]
  problem: string | null
  artifact: string | null
  artifact_source: string | null
  own_artifact: number
  blob: string | null
  bytes: number | null
  filename: string | null
  durable: number
  created_at: number
}

function fromRow(row: RawCheckpoint): CheckpointRow {
  return {
    seq: row.seq,
    task: row.task,
    claim: claimNumber(row.claim),
    n: row.n,
    itemDigest: row.item_digest,
    state: row.state,
    line: row.line,
    publishStatus: row.publish_status,
    problem: row.problem,
    artifact: row.artifact === null ? null : artifactId(row.artifact),
    artifactSource: row.artifact_source,
    ownArtifact: row.own_artifact === 1,
    blob: row.blob === null ? null : asDigest(row.blob),
    bytes: row.bytes,
    filename: row.filename,
    durable: row.durable === 1,
    at: row.created_at,
  }
}
