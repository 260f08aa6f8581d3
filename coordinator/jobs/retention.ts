import type { Clock, Instant } from "../../protocol/base/clock.ts"
import type { ObjectFiles } from "../artifacts/object-files.ts"
import { freeReleasedBlobs } from "../artifacts/retention.ts"
import { dropBlobReferences } from "../store/blobs.ts"
import { blobsOfCheckpoints, checkpointOwner } from "../store/checkpoints.ts"
import {
  deleteAttempts,
  deleteEvents,
  deleteJob,
  deleteTasks,
  expiredJobs,
  tasksToDelete,
  tasksWithBlobs,
  weightOfJob,
} from "../store/expired-jobs.ts"
import type { Store, Tx } from "../store/store.ts"

export interface RetentionParts {
  clock: Clock
  /** How long a job and its results stay after its end (RS-014, L-008). */
  jobRetentionMs: number
}

/** A job that ended at or before this moment is gone for whoever asks, whether its rows are still there or not. */
export const expiredUpto = ({ clock, jobRetentionMs }: RetentionParts): Instant => clock.now() - jobRetentionMs

/** Who began to read a job or to open it again before it expired comes to an end before its rows go, one after another. */
const roomMs = ({ jobRetentionMs }: RetentionParts): number => Math.min(60_000, jobRetentionMs)

/**
 * Removes what expired jobs left, in slices, and frees the bytes of their results; from a minute after they expired. Money stays: holds, charges and entries
 * name their job for ever. An interrupted run is gone on with by the next one. Gives how many jobs went.
 */
export async function sweepExpiredJobs(
  parts: RetentionParts & { store: Store; files: ObjectFiles },
  signal: AbortSignal,
): Promise<number> {
  const upto = expiredUpto(parts) - roomMs(parts)
  if ((await parts.store.read((view) => expiredJobs(view, upto, 1))).length === 0) return 0
  let gone = 0
  for (;;) {
    signal.throwIfAborted()
    const slice = await parts.store.write((tx) => removeSlice(tx, upto))
    gone += slice.jobs
    if (slice.isLast) break
  }
  if (gone > 0) await freeReleasedBlobs(parts)
  return gone
}

/** What one write may delete: a few milliseconds. */
interface Room {
  rows: number
  /** SQLite follows a large text page by page to delete it. */
  bytes: number
}

async function removeSlice(tx: Tx, upto: Instant): Promise<{ jobs: number; isLast: boolean }> {
  const room: Room = { rows: ROWS_AT_ONCE, bytes: BYTES_AT_ONCE }
  const expired = await expiredJobs(tx, upto, JOBS_AT_ONCE)
  let jobs = 0
  for (const job of expired) {
    if (!(await removeJob(tx, job, room))) return { jobs, isLast: false }
    jobs += 1
  }
  return { jobs, isLast: expired.length < JOBS_AT_ONCE }
}

const ROWS_AT_ONCE = 500
const BYTES_AT_ONCE = 4 * 1024 * 1024
const JOBS_AT_ONCE = 50

/** False when there was no room for all of it: its row, by which it is found again, goes last. */
async function removeJob(tx: Tx, job: number, room: Room): Promise<boolean> {
  room.rows -= await deleteAttempts(tx, job, room.rows)
  if (isFull(room)) return false
  room.rows -= await deleteEvents(tx, job, room.rows)
  if (isFull(room)) return false
  await removeTasks(tx, job, room)
  if (isFull(room)) return false
  room.bytes -= await weightOfJob(tx, job)
  room.rows -= 1
  await deleteJob(tx, job)
  return true
}

const isFull = ({ rows, bytes }: Room): boolean => rows <= 0 || bytes <= 0

/** The first tasks of the job, as many as there is room for, and at least one. */
async function removeTasks(tx: Tx, job: number, room: Room): Promise<void> {
  const tasks = await tasksToDelete(tx, job, room.rows)
  const first = tasks[0]
  if (!first) return
  let last = first
  for (const task of tasks) {
    if (room.bytes <= 0) break
    room.bytes -= task.bytes
    room.rows -= 1
    last = task
  }
  for (const key of await tasksWithBlobs(tx, first.key, last.key)) {
    await dropBlobReferences(tx, { kind: "result", owner: String(key) })
  }
  for (const checkpoint of await blobsOfCheckpoints(tx, first.key, last.key)) {
    await dropBlobReferences(tx, checkpointOwner(checkpoint))
  }
  await deleteTasks(tx, first.key, last.key)
}
