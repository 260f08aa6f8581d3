import type { JsonObject } from "../../protocol/base/json-text.ts"
import type { AccountId, HoldId, JobId } from "../../protocol/domain/ids.ts"
import type { Requirements } from "../../protocol/domain/requirements.ts"
import { DEFAULT_RESUME_KEY } from "../../protocol/domain/runner.ts"
import type { Priority, ReliabilityMode } from "../../protocol/domain/statuses.ts"
import type { Rate } from "../billing/pricing.ts"
import { requirementsKey } from "../fleet/fit.ts"
import type { JobHead } from "../store/jobs.ts"
import { qualitySchema } from "./quality.ts"
import type { ResultSchema, Submission } from "./submission/submission.ts"

/** What scheduling and reporting need of a job that is not over: small, whatever the job's payloads weigh. */
export interface JobFacts {
  seq: number
  id: JobId
  account: AccountId
  project: string
  revision: string
  /** 1, and one more with each retry of the job after its end. */
  round: number
  hold: HoldId
  reserveMicro: bigint
  billing: JobBilling
  priority: Priority
  reliability: ReliabilityMode
  requirements: Requirements
  command: string[]
  timeoutSeconds: number
  runtimeHintSeconds: number | null
  maxRetries: number
  /** `meta.env`: the last layer of the tasks' environment. */
  env: Record<string, string>
  quality: ResultSchema
  /** Are checkpoints kept (CK-001)? */
  checkpoints: boolean
  /** The payload's member in which a next attempt finds what an earlier one left; null: it starts anew (CK-003). */
  resumeKey: string | null
  taskCount: number
  createdAt: number
  /** When machines could take it for the first time: ageing counts from here. */
  readySince: number
  /** It names jobs that it waits for, or waited for. */
  dependsOnJobs: boolean
  /** Tasks that run side by side on capacity of the job's own, while its reservation lasts; 0: it has none. */
  guaranteed: number
  /** Runs where nobody but its project does (SC-006). */
  dedicated: boolean
  /** Work of one kind fits the same nodes: requirements and revision in one string. What has nodes of its own is a kind of its own. */
  kind: string
}

/** The rate is that of the submit: later prices change nothing for the job. Amounts are micro-dollars in digits. */
export interface JobBilling {
  rateNumerator: string
  resourceClass: string
  runtimeClass: string
  /** Of this round: its hold. */
  estimate: string
  /** What was available before the hold was placed. */
  available: string
}

export const rateOfJob = ({ billing }: JobFacts): Rate => ({ numerator: BigInt(billing.rateNumerator) })

export function jobFacts(row: JobHead): JobFacts {
  const submission = JSON.parse(row.submission) as Submission
  const guaranteed = submission.reservation.mode === "guaranteed" ? submission.reservation.parallelism : 0
  const dedicated = submission.placementPolicy === "dedicated"
  return {
    seq: row.seq,
    id: row.id,
    account: row.account,
    project: row.project,
    revision: row.revision,
    round: row.round,
    hold: row.hold,
    reserveMicro: row.reserveMicro,
    billing: JSON.parse(row.billing) as JobBilling,
    priority: row.priority,
    reliability: submission.reliabilityMode,
    requirements: submission.requirements,
    command: submission.command,
    timeoutSeconds: submission.timeoutSeconds,
    runtimeHintSeconds: submission.runtimeHintSeconds,
    maxRetries: submission.maxRetries,
    env: ((submission.meta as JsonObject | null)?.["env"] ?? {}) as Record<string, string>,
    quality: qualitySchema(submission),
    checkpoints: submission.checkpointing?.enabled === true,
    resumeKey: resumeKeyOf(submission),
    taskCount: row.taskCount,
    createdAt: row.createdAt,
    readySince: row.queuedAt ?? row.createdAt,
    dependsOnJobs: submission.dependsOn !== undefined,
    guaranteed,
    dedicated,
    kind: `${requirementsKey(submission.requirements)}|${row.revision}${guaranteed > 0 || dedicated ? `|${row.seq}` : ""}`,
  }
}

export function resumeKeyOf({ checkpointing }: Submission): string | null {
  if (!checkpointing?.enabled || !checkpointing.resumeFromLatest) return null
  return checkpointing.payloadKey ?? DEFAULT_RESUME_KEY
}

/** The facts of jobs that are not over, read once each. */
export interface KnownJobs {
  get(seq: number): JobFacts | undefined
  put(facts: JobFacts): void
  forget(seq: number): void
  all(): Iterable<JobFacts>
}

export function createKnownJobs(): KnownJobs {
  const jobs = new Map<number, JobFacts>()
  return {
    get: (seq) => jobs.get(seq),
    put: (facts) => void jobs.set(facts.seq, facts),
    forget: (seq) => void jobs.delete(seq),
    all: () => jobs.values(),
  }
}
