import { timestampText } from "../../protocol/api/common.ts"
import { joinJsonObject, splitJsonObject } from "../../protocol/base/json-text.ts"
import { resumeText } from "../../protocol/domain/resume.ts"
import type { CheckpointRow } from "../store/checkpoints.ts"

/** A checkpoint as clients see it: its own fields, and what became of its file (CK-005, rulings). JSON text. */
export function checkpointText(row: CheckpointRow): string {
  return withFields(row.state, publicationOf(row))
}

/** The same for the program that goes on from it: with what it needs to tell the artifact's bytes (CK-009). */
export function resumedCheckpointText(row: CheckpointRow): string {
  const artifact = row.blob === null ? {} : { artifact_sha256: row.blob, artifact_size: row.bytes }
  return withFields(row.state, { ...publicationOf(row), ...artifact })
}

/** What a task has to go on from. */
export interface Remains {
  /** The last progress line, where it may be handed on. */
  progress: string | null
  /** Latest first. */
  points: CheckpointRow[]
}

/**
 * What a next attempt may go on from: `rows` are the task's checkpoints, latest first. Where the latest cannot be gone on
 * from, progress that was made after the one before it is not handed on either: it would tell of work that is lost.
 */
export function remainsOf(rows: readonly CheckpointRow[], progress: string | null): Remains {
  const points = rows.filter(({ durable }) => durable)
  return { progress: rows[0] === points[0] ? progress : null, points }
}

/** `resume_state`: what the next attempt would get, as JSON text; null: nothing. */
export function resumeStateText({ progress, points }: Remains): string | null {
  const point = points[0]
  const checkpoint = point ? resumedCheckpointText(point) : null
  return resumeText({ progress, line: point?.line ?? null, checkpoint })
}

function publicationOf(row: CheckpointRow): Record<string, unknown> {
  return {
    artifact_id: row.artifact,
    artifact_source: row.artifactSource,
    publish_status: row.publishStatus,
    published_at: row.publishStatus === "published" ? timestampText(row.at) : null,
    ...(row.problem !== null && { publish_error: row.problem }),
  }
}

function withFields(state: string, fields: Record<string, unknown>): string {
  const members = splitJsonObject(state) ?? new Map<string, string>()
  for (const [name, value] of Object.entries(fields)) members.set(name, JSON.stringify(value))
  return joinJsonObject(members)
}
