import type { Instant } from "../../protocol/base/clock.ts"
import { LARGEST_STATE_VALUE_BYTES } from "../../protocol/domain/shared-state.ts"
import type { TerminalJobStatus } from "../../protocol/domain/statuses.ts"
import type { ObjectFiles } from "../artifacts/object-files.ts"
import { appendEvent } from "../events/event-log.ts"
import type { JobRow } from "../store/jobs.ts"
import { putKvEntry } from "../store/project-kv.ts"
import { findProject } from "../store/projects.ts"
import type { Store, Tx } from "../store/store.ts"
import { outcomeValue, type OutcomeValue } from "./outcome-value.ts"
import type { Publish, Submission } from "./submission/submission.ts"

/** What `state.publish` comes to for one job (SS-004): values as JSON texts, and what cannot be published. */
export interface Publication {
  values: { key: string; text: string }[]
  failures: { key: string; reason: string }[]
}

const NOTHING: Publication = { values: [], failures: [] }

/** Reads what a job is to publish; before its last write, for results may lie in files. Failed jobs publish nothing. */
export async function preparePublication(
  parts: { store: Store; files: ObjectFiles },
  job: JobRow,
  end: { submission: Submission; status: TerminalJobStatus; outcome: string },
): Promise<Publication> {
  const { publish } = end.submission
  if (!publish || (end.status !== "completed" && end.status !== "partial")) return NOTHING
  const ended = { head: job, status: end.status, outcome: end.outcome }
  const publication: Publication = { values: [], failures: [] }
  for (const one of publish) {
    const value = await valueOf(one)
    if ("problem" in value) publication.failures.push({ key: one.key, reason: value.problem })
    else publication.values.push({ key: one.key, text: value.text })
  }
  return publication

  async function valueOf(one: Publish): Promise<OutcomeValue> {
    if ("value" in one) return withinLimit({ text: JSON.stringify(one.value) }, "the value")
    const path = `the path ${one.path}`
    return withinLimit(await outcomeValue(parts, ended, one.path, LARGEST_STATE_VALUE_BYTES), path)
  }
}

function withinLimit(value: OutcomeValue, what: string): OutcomeValue {
  if ("problem" in value) return { problem: `${what} ${value.problem}` }
  const bytes = Buffer.byteLength(value.text)
  if (bytes <= LARGEST_STATE_VALUE_BYTES) return value
  return { problem: `${what} gives ${bytes} bytes as JSON: at most ${LARGEST_STATE_VALUE_BYTES} are kept` }
}

/** Writes it into the project's shared state, in the write that ends the job: dependents that it releases find it there. */
export async function publishState(
  tx: Tx,
  job: Pick<JobRow, "seq" | "id" | "account" | "project">,
  { values, failures }: Publication,
  at: Instant,
): Promise<void> {
  if (values.length + failures.length === 0) return
  const project = await findProject(tx, job.account, job.project)
  if (project !== null) {
    const written = { ttlSeconds: null, expiresAt: null, updatedAt: at, account: job.account, job: job.id }
    for (const { key, text } of values) await putKvEntry(tx, project.id, { key, value: text, ...written })
  }
  for (const { key, reason } of failures) {
    await appendEvent(tx, {
      job: job.seq,
      type: "state.publish_failed",
      message: `${key} was not published: ${reason}`,
      data: { key, reason },
      at,
    })
  }
}
