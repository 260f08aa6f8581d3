import type { Instant } from "../../protocol/base/clock.ts"
import { feedbackId, type FeedbackId } from "../../protocol/domain/ids.ts"
import type { FeedbackType } from "../../protocol/domain/statuses.ts"
import type { Tx, View } from "./store.ts"

export interface FeedbackRow {
  id: FeedbackId
  type: FeedbackType
  title: string
  description: string
  /** As sent: it need not name a job. */
  job: string | null
  /** JSON text. */
  metadata: string | null
  createdAt: Instant
}

/** Keeps it, and forgets the oldest beyond `kept`. */
export async function insertFeedback(tx: Tx, row: FeedbackRow, kept: number): Promise<void> {
  await tx.run(
    "INSERT INTO feedback (id, type, title, description, job, metadata, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
    row.id,
    row.type,
    row.title,
    row.description,
    row.job,
    row.metadata,
    row.createdAt,
  )
  await tx.run("DELETE FROM feedback WHERE seq <= (SELECT max(seq) FROM feedback) - ?", kept)
}

/** Newest first, and how many there are. */
export async function pageOfFeedback(
  view: View,
  { limit, offset }: { limit: number; offset: number },
): Promise<{ rows: FeedbackRow[]; total: number }> {
  const rows = await view.all<RawFeedback>(
    `SELECT id, type, title, description, job, metadata, created_at FROM feedback ORDER BY seq DESC LIMIT ? OFFSET ?`,
    limit,
    offset,
  )
  const count = await view.get<{ total: number }>("SELECT count(*) AS total FROM feedback")
  return {
    rows: rows.map(({ created_at, ...row }) => ({ ...row, id: feedbackId(row.id), createdAt: created_at })),
    total: count?.total ?? 0,
  }
}

interface RawFeedback {
  id: string
  type: FeedbackType
  title: string
  description: string
  job: string | null
  metadata: string | null
  created_at: number
}
