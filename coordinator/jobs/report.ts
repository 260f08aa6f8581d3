import { Readable } from "node:stream"
import type { Clock, Instant } from "../../protocol/base/clock.ts"
import type { JsonValue } from "../../protocol/base/json-text.ts"
import type { Random } from "../../protocol/base/random.ts"
import {
  claimNumber,
  digest,
  newArtifactId,
  taskId,
  type ArtifactId,
  type ClaimNumber,
  type NodeId,
} from "../../protocol/domain/ids.ts"
import { LARGEST_RESULT_BYTES } from "../../protocol/domain/runner.ts"
import { isProgramFailure, type FailureKind } from "../../protocol/domain/statuses.ts"
import type { ItemVerdict, ResultItem } from "../../protocol/wire/control.ts"
import type { ObjectFiles, PinnedBlob } from "../artifacts/object-files.ts"
import { keepStaged, publishStaged, type ReportedArtifact } from "../artifacts/stage.ts"
import { chargeAttempts, type Charge } from "../billing/holds.ts"
import { billedMilliseconds, costOf, withoutContactMs } from "../billing/pricing.ts"
import { appendEvent } from "../events/event-log.ts"
import { keepLateDigest } from "../store/attempt-contact.ts"
import { putTaskProgress } from "../store/checkpoints.ts"
import { dropStagedBlobs, stageBlob } from "../store/blobs.ts"
import { addToJob, markJobFinishing, markJobRunning, type JobDelta } from "../store/jobs.ts"
import { blameFailures, type Blame } from "../store/node-faults.ts"
import type { Store, Tx } from "../store/store.ts"
import {
  attemptByClaim,
  endAttempt,
  endTask,
  indexOfTask,
  putTaskResult,
  taskByKey,
  type AttemptRow,
  type TaskRow,
} from "../store/tasks.ts"
import { objectIn, storeCheckpointIn } from "./checkpoints.ts"
import { rateOfJob, type JobFacts } from "./job-facts.ts"
import { isSuspect, scoreResult, type LeftResult, type Quality } from "./quality.ts"
import { nextTask, type TaskFacts } from "./task-state.ts"
import { taskError } from "./text.ts"

export interface ReportParts {
  store: Store
  files: ObjectFiles
  clock: Clock
  random: Random
  artifactTtlMs: number
  /** Larger results become artifacts (GAP-55). */
  resultSpillBytes: number
}

/** A reported end, with what memory knows of its attempt that its row does not say yet. */
export interface ReportedEnd {
  item: ResultItem
  /** Null when the claim number is not live as far as memory knows: then it can only be spent, or told twice. */
  job: JobFacts | null
  acceptedAt: Instant | null
  startedAt: Instant | null
  /** The last progress line that was heard, as its own JSON text. */
  progress: string | null
}

export interface ReportOutcome {
  verdicts: ItemVerdict[]
  /** Spent by this report: their room is free. */
  ended: { claim: ClaimNumber; job: number; runtimeMs: number; chargedMicro: bigint }[]
  /** Tasks that wait again, by job. */
  requeued: Map<number, number>
  /** Jobs whose tasks are all final now. */
  finishing: number[]
  /** Jobs in which a task failed for good: strict ones end by it. */
  failed: Set<number>
  /** Jobs whose rows changed. */
  changed: number[]
  /** Nodes on which tasks failed that completed now, one entry for each of those attempts. */
  blamed: Blame[]
}

/**
 * Stores results of one node, each exactly once: the claim number decides, in the write (architecture §5.3, §5.4). A spent
 * number changes nothing and is told so; the same item again is `already`.
 */
export async function reportResults(
  parts: ReportParts,
  node: NodeId,
  ends: readonly ReportedEnd[],
): Promise<ReportOutcome> {
  const at = parts.clock.now()
  const judged: JudgedEnd[] = []
  using pins = new DisposableStack()
  for (const end of ends) judged.push(await judge(parts, end, pins))
  return await parts.store.write(async (tx) => {
    const batch = new Batch(at, at + parts.artifactTtlMs)
    for (const end of judged) {
      const verdict = await storeEnd(tx, node, end, batch)
      batch.outcome.verdicts.push({ claim: end.item.claim, kind: "result", ...verdict })
    }
    await batch.close(tx)
    return batch.outcome
  })
}

export const NOT_YOURS = "this number is not yours"

interface JudgedEnd extends ReportedEnd {
  quality: Quality | null
  /** To be stored in the row; null when there is none, or when it is an artifact. */
  resultText: string | null
  /** Bytes of a result that is too large for the row. */
  spilled: ReportedArtifact | null
  /** The bytes came with the report: they are staged in its write. */
  spilledHere: boolean
  /** Ids are made outside the write, which may be run again. */
  artifactIds: ArtifactId[]
  checkpointArtifact: ArtifactId | null
}

/** Everything that needs no write: the result's text, its quality, fresh ids. */
async function judge(parts: ReportParts, end: ReportedEnd, pins: DisposableStack): Promise<JudgedEnd> {
  const { item, job } = end
  const left = leftResult(item, await resultTextOf(parts, item))
  const quality = job && item.failure_kind === null ? scoreResult(job.quality, left.result) : null
  const isLarge = left.text !== null && Buffer.byteLength(left.text) > parts.resultSpillBytes
  // What a failed attempt uploaded is dropped, its large result too.
  const isSpilled = isLarge && item.failure_kind === null
  const uploaded = item.result !== null && "digest" in item.result ? item.result : null
  const spilled = isSpilled ? (uploaded ?? pins.use(await putText(parts.files, left.text ?? ""))) : null
  return {
    ...end,
    quality: quality && item.result_problem !== null ? { ...quality, warnings: [item.result_problem] } : quality,
    resultText: isLarge ? null : left.text,
    spilled: spilled && spillOf(spilled, newArtifactId(parts.random)),
    spilledHere: isSpilled && uploaded === null,
    artifactIds: item.artifacts.map(() => newArtifactId(parts.random)),
    checkpointArtifact: item.checkpoint ? newArtifactId(parts.random) : null,
  }
}

/** A limit below what fits into a report: its text becomes a blob here. */
async function putText(files: ObjectFiles, text: string): Promise<PinnedBlob> {
  const bytes = Buffer.from(text)
  return await files.put(Readable.from([bytes]), { maxBytes: bytes.length })
}

function spillOf(blob: { digest: string; size: number }, id: ArtifactId): ReportedArtifact {
  return {
    id,
    name: null,
    filename: "result.json",
    contentType: "application/json",
    digest: digest(blob.digest),
    size: blob.size,
  }
}

/** The result as JSON text, wherever it travelled; null when there is none or its bytes never came. */
async function resultTextOf({ files }: ReportParts, { result }: ResultItem): Promise<string | null> {
  if (result === null) return null
  if ("text" in result) return result.text
  const bytes = await files.read(digest(result.digest), Math.min(result.size, LARGEST_RESULT_BYTES))
  return bytes?.toString("utf8") ?? null
}

/**
 * What the attempt left, and its text where it is JSON. Only such text is ever stored: it is written into replies as it
 * stands, and a node that sends anything else must not break them.
 */
function leftResult(item: ResultItem, text: string | null): { result: LeftResult; text: string | null } {
  if (item.result_problem !== null) return { result: { left: "unreadable" }, text: null }
  if (text === null) return { result: { left: item.result === null ? "nothing" : "unreadable" }, text: null }
  try {
    return { result: { left: "value", value: JSON.parse(text) as JsonValue }, text }
  } catch {
    return { result: { left: "unreadable" }, text: null }
  }
}

/** What one write of many ends adds up to. */
class Batch {
  readonly outcome: ReportOutcome = {
    verdicts: [],
    ended: [],
    requeued: new Map(),
    finishing: [],
    failed: new Set(),
    changed: [],
    blamed: [],
  }
  readonly at: Instant
  readonly artifactsExpireAt: Instant
  readonly charges: Charge[] = []
  readonly #deltas = new Map<number, Required<JobDelta>>()
  readonly #starts = new Map<number, Instant>()

  constructor(at: Instant, artifactsExpireAt: Instant) {
    this.at = at
    this.artifactsExpireAt = artifactsExpireAt
  }

  delta(job: number): Required<JobDelta> {
    let delta = this.#deltas.get(job)
    if (!delta) {
      delta = { ...NO_CHANGE }
      this.#deltas.set(job, delta)
    }
    return delta
  }

  /** A task of the job was started, whether or not anybody said so before its end. */
  started(job: number, at: Instant): void {
    this.#starts.set(job, Math.min(this.#starts.get(job) ?? at, at))
  }

  async close(tx: Tx): Promise<void> {
    const charged = new Map((await chargeAttempts(tx, this.charges)).map(({ claim, amount }) => [claim, amount]))
    for (const end of this.outcome.ended) end.chargedMicro = charged.get(end.claim) ?? 0n
    for (const [job, delta] of this.#deltas) {
      const startedAt = this.#starts.get(job)
      if (startedAt !== undefined && (await markJobRunning(tx, job, startedAt))) {
        await appendEvent(tx, { job, type: "job.running", message: "the first task runs", at: startedAt })
      }
      await addToJob(tx, job, delta)
      if (await markJobFinishing(tx, job)) this.outcome.finishing.push(job)
      this.outcome.changed.push(job)
    }
  }
}

const NO_CHANGE: Required<JobDelta> = {
  queued: 0,
  granted: 0,
  running: 0,
  completed: 0,
  failed: 0,
  cancelled: 0,
  suspect: 0,
  qualitySum: 0,
  attempts: 0,
  losses: 0,
  runtimeMs: 0,
  runtimeMsMax: 0,
  cpuMs: 0,
}

async function storeEnd(
  tx: Tx,
  node: NodeId,
  end: JudgedEnd,
  batch: Batch,
): Promise<Pick<ItemVerdict, "verdict" | "reason">> {
  const { item, job } = end
  const { at } = batch
  const claim = claimNumber(item.claim)
  const attempt = await attemptByClaim(tx, claim)
  if (!attempt || attempt.node !== node) return { verdict: "spent", reason: NOT_YOURS }
  if (attempt.endedAt !== null) {
    const isItsEnd = attempt.state === "completed" || attempt.state === "failed"
    if (isItsEnd && attempt.itemDigest === item.digest) return { verdict: "already", reason: null }
    if (attempt.state === "lost") await keepLateDigest(tx, claim, item.digest)
    return { verdict: "spent", reason: null }
  }
  const task = await taskByKey(tx, attempt.task)
  if (!task || !job) return { verdict: "spent", reason: "its job is over" }

  await storeRemains(tx, attempt, end, job, batch)
  const published = await publishBlobs(tx, end, job, task, batch)
  if (published !== null) return { verdict: "refused", reason: published }

  const startedAt = attempt.startedAt ?? end.startedAt ?? startOf(item, at)
  const ran = item.failure_kind === null || isProgramFailure(item.failure_kind) || item.failure_kind === "budget_spent"
  const acceptedAt = attempt.acceptedAt ?? end.acceptedAt ?? attempt.grantedAt
  const runtimeMs = billedMilliseconds({
    measuredMs: item.runtime_ms,
    acceptedAtMs: acceptedAt,
    reportedAtMs: at,
    lostContactMs: withoutContactMs(attempt, at),
  })
  const step = nextTask(factsOf(task), eventOf(item, job))
  if (step.outcome === "refused") return { verdict: "spent", reason: "its task is over" }

  await endAttempt(tx, claim, {
    state: item.failure_kind === null ? "completed" : "failed",
    failureKind: item.failure_kind,
    runtimeMs,
    itemDigest: item.digest,
    at,
  })
  const next = step.retry ? "queued" : item.failure_kind === null ? "completed" : "failed"
  const failedByProgram = item.failure_kind !== null && step.facts.failures > task.failures
  await endTask(tx, task.key, claim, { state: next, failed: failedByProgram, startedAt: ran ? startedAt : null, at })
  await putTaskResult(tx, task.key, {
    claim,
    output: item.output,
    error: errorOf(item),
    failureKind: item.failure_kind,
    exitCode: item.exit_code,
    result: end.resultText,
    resultDigest: end.spilled?.digest ?? null,
    resultBytes: end.spilled?.size ?? null,
    quality: end.quality?.score ?? null,
    warnings: [...(end.quality?.warnings ?? []), ...(item.warnings ?? [])],
    runtimeMs,
    signal: item.signal,
    progress: item.progress ?? end.progress,
  })
  if (ran) {
    const amount = costOf(rateOfJob(job), runtimeMs)
    batch.charges.push({ claim, hold: job.hold, amount, milliseconds: runtimeMs, at })
  }
  await tellEnd(tx, {
    job,
    task,
    item,
    next,
    wasSaid: attempt.startedAt !== null,
    startedAt,
    ran,
    number: attempt.number,
    at,
  })

  const delta = batch.delta(job.seq)
  count(delta, task, next, end.quality)
  delta.losses += step.facts.losses - task.losses
  delta.runtimeMs += runtimeMs
  delta.runtimeMsMax = Math.max(delta.runtimeMsMax, runtimeMs)
  delta.cpuMs += Math.round(item.cpu_ms ?? 0)
  if (ran) batch.started(job.seq, startedAt)
  batch.outcome.ended.push({ claim, job: job.seq, runtimeMs, chargedMicro: 0n })
  if (next === "queued") batch.outcome.requeued.set(job.seq, (batch.outcome.requeued.get(job.seq) ?? 0) + 1)
  if (next === "failed") batch.outcome.failed.add(job.seq)
  if (next === "completed" && task.attempt > 1) {
    batch.outcome.blamed.push(...(await blameFailures(tx, { task: task.key, job: job.seq, witness: node, at })))
  }
  return { verdict: "stored", reason: null }
}

/** What the next attempt goes on from is there before this one has ended (rulings, Checkpoints). */
async function storeRemains(
  tx: Tx,
  attempt: AttemptRow,
  { item, progress: heard, checkpointArtifact }: JudgedEnd,
  job: JobFacts,
  { at, artifactsExpireAt }: Batch,
): Promise<void> {
  const progress = item.progress ?? heard
  const isKept = job.resumeKey !== null && progress !== null && objectIn(progress) !== null
  if (isKept) await putTaskProgress(tx, attempt.task, attempt.claim, progress)
  if (!item.checkpoint || checkpointArtifact === null || item.checkpoint.claim !== item.claim) return
  const write = { at, artifactExpiresAt: artifactsExpireAt, artifact: checkpointArtifact, atEnd: true }
  await storeCheckpointIn(tx, attempt, item.checkpoint, job, write)
}

/** Makes what the attempt uploaded readable; else what is missing. A failed attempt's uploads are dropped. */
async function publishBlobs(
  tx: Tx,
  { item, spilled, spilledHere, artifactIds }: JudgedEnd,
  job: JobFacts,
  task: TaskRow,
  batch: Batch,
): Promise<string | null> {
  const claim = claimNumber(item.claim)
  const inResult = item.result !== null && "digest" in item.result ? item.result : null
  if (item.artifacts.length === 0 && inResult === null && spilled === null && !item.checkpoint?.file) return null
  if (spilled && spilledHere) await stageBlob(tx, { claim, digest: spilled.digest, size: spilled.size, at: batch.at })
  if (item.failure_kind === null) {
    const artifacts: ReportedArtifact[] = item.artifacts.map((artifact, i) => ({
      id: artifactIds[i] ?? newIdMissing(),
      name: artifact.name,
      filename: artifact.filename,
      contentType: artifact.content_type,
      digest: digest(artifact.digest),
      size: artifact.size,
    }))
    const { missing } = await publishStaged(tx, {
      claim,
      account: job.account,
      job: job.id,
      task: taskId(job.id, indexOfTask(task.key)),
      artifacts: spilled ? [...artifacts, spilled] : artifacts,
      at: batch.at,
      expiresAt: batch.artifactsExpireAt,
    })
    if (missing.length > 0) return `bytes were not uploaded: ${missing.join(", ").slice(0, 300)}`
    if (spilled && !(await keepStaged(tx, claim, spilled.digest, { kind: "result", owner: String(task.key) }))) {
      return "the result was not uploaded"
    }
  }
  await dropStagedBlobs(tx, claim)
  return null
}

function newIdMissing(): never {
  throw new Error("each artifact of a report was given an id")
}

function factsOf({ state, failures, losses }: TaskRow): TaskFacts {
  if (state === "lost") return { status: "queued", failures, losses, lossPending: true }
  return { status: state === "granted" ? "queued" : state, failures, losses, lossPending: false }
}

function eventOf({ failure_kind: kind }: ResultItem, { maxRetries }: JobFacts): Parameters<typeof nextTask>[1] {
  return kind === null ? { event: "succeeded" } : { event: "failed", kind, maxRetries }
}

const startOf = (item: ResultItem, at: Instant): Instant => at - Math.round(item.runtime_ms)

/** C-20: the failure, then the tail of standard error if there is any, else of the output. Null where nothing failed. */
function errorOf(item: ResultItem): string | null {
  if (item.failure_kind === null) return null
  return taskError({
    kind: item.failure_kind,
    exitCode: item.exit_code,
    message: item.message,
    tail: item.error_tail === "" ? item.output : item.error_tail,
  })
}

async function tellEnd(
  tx: Tx,
  end: {
    job: JobFacts
    task: TaskRow
    item: ResultItem
    next: "completed" | "failed" | "queued"
    /** Was the start written before? */
    wasSaid: boolean
    startedAt: Instant
    ran: boolean
    number: number
    at: Instant
  },
): Promise<void> {
  const base = { job: end.job.seq, taskIndex: indexOfTask(end.task.key) }
  if (end.ran && !end.wasSaid) {
    await appendEvent(tx, {
      ...base,
      type: "task.started",
      message: "the task runs",
      data: { from: "queued", to: "running", attempt: end.number },
      at: end.startedAt,
    })
  }
  const kind: FailureKind | null = end.item.failure_kind
  if (kind === null) {
    return await appendEvent(tx, {
      ...base,
      type: "task.completed",
      message: "the task completed",
      data: { from: "running", to: "completed", attempt: end.number },
      at: end.at,
    })
  }
  await appendEvent(tx, {
    ...base,
    type: end.next === "queued" ? "task.retried" : "task.failed",
    message: end.next === "queued" ? `attempt ${end.number} failed and is tried again` : "the task failed",
    data: { from: "running", to: end.next, attempt: end.number, failure_kind: kind, exit_code: end.item.exit_code },
    at: end.at,
  })
}

function count(
  delta: Required<JobDelta>,
  task: TaskRow,
  next: "completed" | "failed" | "queued",
  quality: Quality | null,
): void {
  if (task.state === "granted") delta.granted -= 1
  else delta.running -= 1
  delta[next] += 1
  if (quality) {
    delta.qualitySum += quality.score
    if (isSuspect(quality.score)) delta.suspect += 1
  }
}
