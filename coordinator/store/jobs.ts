import type { Instant } from "../../protocol/base/clock.ts"
import { assert } from "../../protocol/base/assert.ts"
import { accountId, holdId, jobId, type AccountId, type HoldId, type JobId } from "../../protocol/domain/ids.ts"
import type { JobStatus, JobType, Priority, TerminalJobStatus } from "../../protocol/domain/statuses.ts"
import type { SqlValue, Tx, View } from "./store.ts"

/** `finishing`: all tasks are final and the aggregate is being made. Clients read it as running. */
export type StoredJobStatus = JobStatus | "finishing"

export interface JobRow {
  seq: number
  id: JobId
  account: AccountId
  project: string
  revision: string
  contentHash: string
  type: JobType
  status: StoredJobStatus
  priority: Priority
  request: string
  submission: string
  tags: string[]
  clientRef: string | null
  taskCount: number
  plannedUpto: number
  queued: number
  granted: number
  running: number
  completed: number
  failed: number
  cancelled: number
  suspect: number
  qualitySum: number
  attempts: number
  losses: number
  runtimeMsSum: number
  runtimeMsMax: number
  cpuMsSum: number
  /** 1, and one more with each retry of the job after its end. */
  round: number
  /** Failed tasks that this round leaves as they are. */
  failedBefore: number
  /** Of this round. */
  hold: HoldId
  reserveMicro: bigint
  /** JSON: the rate as it was at submit, and the estimate of this round. */
  billing: string
  error: string | null
  /** JSON of the aggregate, null before the last write. */
  outcome: string | null
  /** JSON of what is being put back into the queue; null but in the first moments of a large retry. */
  retrying: string | null
  createdAt: Instant
  queuedAt: Instant | null
  startedAt: Instant | null
  completedAt: Instant | null
}

export interface NewJob {
  id: JobId
  account: AccountId
  userId: number | null
  project: string
  revision: string
  contentHash: string
  type: JobType
  priority: Priority
  request: string
  submission: string
  tags: readonly string[]
  clientRef: string | null
  taskCount: number
  hold: HoldId
  reserveMicro: bigint
  billing: string
  createdAt: Instant
  /** All its tasks are written beside it: it is queued since then. Null: they follow, and it is planning until they are there. */
  queuedAt: Instant | null
}

/** Inserts the job as `planning`, or as `queued`, and gives its seq. */
export async function insertJob(tx: Tx, job: NewJob): Promise<number> {
  const planned = job.queuedAt === null ? 0 : job.taskCount
  const row = await tx.get<{ seq: number }>(
    `INSERT INTO jobs (id, account, user_id, project, revision, content_hash, type, status, priority, request, submission,
       tags, client_ref, task_count, hold, reserve_micro, billing, created_at, planned_upto, queued, queued_at)
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING seq`,
    job.id,
    job.account,
    job.userId,
    job.project,
    job.revision,
    job.contentHash,
    job.type,
    job.queuedAt === null ? "planning" : "queued",
    job.priority,
    job.request,
    job.submission,
    JSON.stringify(job.tags),
    job.clientRef,
    job.taskCount,
    job.hold,
    job.reserveMicro,
    job.billing,
    job.createdAt,
    planned,
    planned,
    job.queuedAt,
  )
  assert(row, "an insert gives its seq")
  for (const tag of new Set(job.tags)) {
    await tx.run("INSERT INTO job_tags (account, tag, job) VALUES (?, ?, ?)", job.account, tag, row.seq)
  }
  return row.seq
}

export async function jobBySeq(view: View, seq: number): Promise<JobRow | null> {
  const row = await view.get<RawJob>("SELECT * FROM jobs WHERE seq = ?", seq)
  return row ? jobFrom(row) : null
}

/** The job, if this account may see it; `account` null sees every job (admins). */
export async function jobById(view: View, id: JobId, account: AccountId | null): Promise<JobRow | null> {
  const row = await view.get<RawJob>("SELECT * FROM jobs WHERE id = ?", id)
  return row && (account === null || row.account === account) ? jobFrom(row) : null
}

/** What a grant or report decides on: thin, whatever the job's request weighs. */
export interface JobCounts {
  status: StoredJobStatus
  round: number
  account: AccountId
  hold: HoldId
  reserveMicro: bigint
  taskCount: number
  queued: number
  granted: number
  running: number
  completed: number
  failed: number
  cancelled: number
}

export async function jobCounts(view: View, seq: number): Promise<JobCounts | null> {
  const row = await view.get<RawCounts>(
    `SELECT status, round, account, hold, reserve_micro, task_count, queued, granted, running, completed, failed, cancelled
     FROM jobs WHERE seq = ?`,
    seq,
  )
  if (!row) return null
  const { reserve_micro, task_count, account, hold, ...counts } = row
  return {
    ...counts,
    account: accountId(account),
    hold: holdId(hold),
    reserveMicro: BigInt(reserve_micro),
    taskCount: task_count,
  }
}

/** The rate and the estimate of a job, as JSON. */
export async function jobBilling(view: View, seq: number): Promise<string | null> {
  return (await view.get<{ billing: string }>("SELECT billing FROM jobs WHERE seq = ?", seq))?.billing ?? null
}

/** Jobs that are not wholly done, oldest first: what a starting coordinator goes on with. Terminal ones lack their aggregate. */
export async function unfinishedJobs(view: View): Promise<JobRow[]> {
  const rows = await view.all<RawJob>("SELECT * FROM jobs WHERE outcome IS NULL ORDER BY seq")
  return rows.map(jobFrom)
}

/** A job without its large texts: what most readers need. */
export type JobHead = Omit<JobRow, "request" | "outcome" | "retrying">

/** As `jobById`, without the large texts. */
export async function jobHeadById(view: View, id: JobId, account: AccountId | null): Promise<JobHead | null> {
  const row = await view.get<RawHead>(`SELECT ${HEAD_COLUMNS} FROM jobs WHERE id = ?`, id)
  return row && (account === null || row.account === account) ? headFrom(row) : null
}

export async function jobHeadBySeq(view: View, seq: number): Promise<JobHead | null> {
  const row = await view.get<RawHead>(`SELECT ${HEAD_COLUMNS} FROM jobs WHERE seq = ?`, seq)
  return row ? headFrom(row) : null
}

/** The job's large texts, null when it is gone. */
export async function jobTexts(view: View, seq: number): Promise<{ request: string; outcome: string | null } | null> {
  const row = await view.get<{ request: string; outcome: string | null }>(
    "SELECT request, outcome FROM jobs WHERE seq = ?",
    seq,
  )
  return row ?? null
}

/** The stored aggregate alone; null before the job's last write, and when the job is gone. */
export async function jobOutcome(view: View, seq: number): Promise<string | null> {
  return (await view.get<{ outcome: string | null }>("SELECT outcome FROM jobs WHERE seq = ?", seq))?.outcome ?? null
}

export interface JobFilter {
  /** Null: all accounts. */
  account: AccountId | null
  statuses: readonly StoredJobStatus[] | null
  project: string | null
  type: JobType | null
  tag: string | null
  clientRef: string | null
  /** What the client calls `user_id`: the number of an account (GAP-73). */
  userId: number | null
  ids: readonly JobId[] | null
  /** Leaves out what ended at or before then. */
  expiredUpto?: Instant
}

/** A page of jobs by seq, newest first by `created_at`, then id, and how many match in all. Their rows may be large: thin here. */
export async function pageOfJobs(
  view: View,
  filter: JobFilter,
  limit: number,
  offset: number,
): Promise<{ seqs: number[]; total: number }> {
  const wanted = await withoutIdleExpiry(view, filter)
  const tagged = await countTagged(view, wanted)
  const { where, parameters } = conditionsOf(wanted, tagged)
  const rows = await view.all<{ seq: number }>(
    `SELECT seq FROM jobs ${where} ORDER BY created_at DESC, id DESC LIMIT ? OFFSET ?`,
    ...parameters,
    limit,
    offset,
  )
  const seqs = rows.map(({ seq }) => seq)
  if (tagged !== null && isOfTagAlone(wanted)) return { seqs, total: tagged }
  const counted = conditionsOf(wanted)
  const count = await view.get<{ total: number }>(
    `SELECT count(*) AS total FROM jobs ${counted.where}`,
    ...counted.parameters,
  )
  return { seqs, total: count?.total ?? 0 }
}

/** How many jobs of the account have the tag; null where no tag is asked for, or of all accounts. */
async function countTagged(view: View, { account, tag }: JobFilter): Promise<number | null> {
  if (account === null || tag === null) return null
  const sql = "SELECT count(*) AS jobs FROM job_tags WHERE account = ? AND tag = ?"
  return (await view.get<{ jobs: number }>(sql, account, tag))?.jobs ?? 0
}

const isOfTagAlone = ({ statuses, project, type, clientRef, userId, ids, expiredUpto }: JobFilter): boolean =>
  [statuses, project, type, clientRef, userId, ids].every((each) => each === null) && expiredUpto === undefined

/** How many of the matching jobs have each value of `by`, by status. A job counts under each of its tags, or under null. */
export async function groupJobs(
  view: View,
  filter: JobFilter,
  by: "project" | "client_ref" | "tag" | "type" | "status" | "nothing",
): Promise<{ key: string | null; status: StoredJobStatus; jobs: number }[]> {
  const { where, parameters } = conditionsOf(await withoutIdleExpiry(view, filter))
  const key = by === "tag" ? "job_tags.tag" : "key"
  const tags = by === "tag" ? "LEFT JOIN job_tags ON job_tags.job = matching.seq" : ""
  // In the order of lists, because the index of that order has all columns: grouped directly the rows themselves would be read.
  return view.all(
    `SELECT ${key} AS key, status, count(*) AS jobs FROM (
       SELECT seq, ${by === "tag" || by === "nothing" ? "NULL" : by} AS key, status FROM jobs ${where}
       ORDER BY created_at DESC, id DESC LIMIT ?) AS matching ${tags}
     GROUP BY 1, 2 ORDER BY 1, 2`,
    ...parameters,
    Number.MAX_SAFE_INTEGER,
  )
}

/** When the first of those jobs ended that ended behind `upto`; null where none did. */
export async function firstEndAfter(view: View, upto: Instant): Promise<Instant | null> {
  const row = await view.get<{ at: Instant | null }>(
    "SELECT min(completed_at) AS at FROM jobs WHERE completed_at > ? + 0",
    upto,
  )
  return row?.at ?? null
}

/** Most of the time nothing waits to be removed, and a condition that holds for every row is asked of every row. */
async function withoutIdleExpiry(view: View, { expiredUpto, ...filter }: JobFilter): Promise<JobFilter> {
  if (expiredUpto === undefined) return filter
  const expired = await view.get("SELECT 1 FROM jobs WHERE completed_at <= ? + 0 LIMIT 1", expiredUpto)
  return expired === undefined ? filter : { ...filter, expiredUpto }
}

/** A tag that many jobs have is looked for job by job: the page is full soon. Of others a list is made, and all are counted by it. */
const MANY_TAGGED = 1_000

/** @param tagged how many jobs have the tag, where that is known: for pages */
function conditionsOf(filter: JobFilter, tagged: number | null = null): { where: string; parameters: SqlValue[] } {
  const conditions: string[] = []
  const parameters: SqlValue[] = []
  const add = (condition: string, ...values: SqlValue[]): void => {
    conditions.push(condition)
    parameters.push(...values)
  }
  const { account, statuses, ids } = filter
  if (account !== null) add("jobs.account = ?", account)
  if (statuses) add(`status IN (${statuses.map(() => "?").join(", ")})`, ...statuses)
  if (filter.project !== null) add("project = ?", filter.project)
  if (filter.type !== null) add("type = ?", filter.type)
  if (filter.clientRef !== null) add("client_ref = ?", filter.clientRef)
  if (filter.userId !== null) add("jobs.account = ?", filter.userId)
  // Few, and none at most times: a list of them is made once, and the statement still reads indexes only.
  if (filter.expiredUpto !== undefined)
    add("jobs.seq NOT IN (SELECT seq FROM jobs WHERE completed_at <= ?)", filter.expiredUpto)
  if (ids) add(ids.length === 0 ? "FALSE" : `id IN (${ids.map(() => "?").join(", ")})`, ...ids)
  if (filter.tag !== null && account !== null) {
    const isCommon = tagged !== null && tagged > MANY_TAGGED
    const one = "EXISTS (SELECT 1 FROM job_tags WHERE account = ? AND tag = ? AND job = jobs.seq)"
    const list = "seq IN (SELECT job FROM job_tags WHERE account = ? AND tag = ?)"
    add(isCommon ? one : list, account, filter.tag)
  }
  if (filter.tag !== null && account === null) add("seq IN (SELECT job FROM job_tags WHERE tag = ?)", filter.tag)
  return { where: conditions.length > 0 ? `WHERE ${conditions.join(" AND ")}` : "", parameters }
}

/** Jobs of a project that are not terminal. */
export async function countActiveJobs(view: View, account: AccountId, project: string): Promise<ProjectLoad> {
  const row = await view.get<{ jobs: number; queued: number; running: number }>(
    `SELECT count(*) AS jobs, coalesce(sum(queued + granted + task_count - planned_upto), 0) AS queued,
       coalesce(sum(running), 0) AS running
     FROM jobs WHERE account = ? AND project = ? AND status IN ('planning', 'queued', 'running', 'finishing')`,
    account,
    project,
  )
  return { activeJobs: row?.jobs ?? 0, queuedTasks: row?.queued ?? 0, activeTasks: row?.running ?? 0 }
}

export interface ProjectLoad {
  activeJobs: number
  queuedTasks: number
  activeTasks: number
}

/** Tasks up to `upto` are inserted; the last slice makes the job queued. False when the job is no longer planning. */
export async function advancePlanning(tx: Tx, seq: number, from: number, upto: number, at: Instant): Promise<boolean> {
  const { changes } = await tx.run(
    `UPDATE jobs SET planned_upto = ?, queued = queued + ?,
       status = CASE WHEN ? = task_count THEN 'queued' ELSE status END,
       queued_at = CASE WHEN ? = task_count THEN ? ELSE queued_at END
     WHERE seq = ? AND status = 'planning' AND planned_upto = ?`,
    upto,
    upto - from,
    upto,
    upto,
    at,
    seq,
    from,
  )
  return changes === 1
}

/** How the running sums of a job change in one write. */
export interface JobDelta {
  queued?: number
  granted?: number
  running?: number
  completed?: number
  failed?: number
  cancelled?: number
  suspect?: number
  qualitySum?: number
  attempts?: number
  losses?: number
  runtimeMs?: number
  runtimeMsMax?: number
  cpuMs?: number
}

/** Adds to the running sums of a job that is queued or running. False when it is not (any more). */
export async function addToJob(tx: Tx, seq: number, delta: JobDelta): Promise<boolean> {
  const { changes } = await tx.run(
    `UPDATE jobs SET queued = queued + ?, granted = granted + ?, running = running + ?, completed = completed + ?,
       failed = failed + ?, cancelled = cancelled + ?, suspect = suspect + ?, quality_sum = quality_sum + ?,
       attempts = attempts + ?, losses = losses + ?, runtime_ms_sum = runtime_ms_sum + ?,
       runtime_ms_max = CASE WHEN runtime_ms_max < ? THEN ? ELSE runtime_ms_max END, cpu_ms_sum = cpu_ms_sum + ?
     WHERE seq = ? AND status IN ('queued', 'running')`,
    delta.queued ?? 0,
    delta.granted ?? 0,
    delta.running ?? 0,
    delta.completed ?? 0,
    delta.failed ?? 0,
    delta.cancelled ?? 0,
    delta.suspect ?? 0,
    delta.qualitySum ?? 0,
    delta.attempts ?? 0,
    delta.losses ?? 0,
    delta.runtimeMs ?? 0,
    delta.runtimeMsMax ?? 0,
    delta.runtimeMsMax ?? 0,
    delta.cpuMs ?? 0,
    seq,
  )
  return changes === 1
}

/** The first task of the job runs. False when it was running already, or is not to run any more. */
export async function markJobRunning(tx: Tx, seq: number, at: Instant): Promise<boolean> {
  const { changes } = await tx.run(
    "UPDATE jobs SET status = 'running', started_at = ? WHERE seq = ? AND status = 'queued'",
    at,
    seq,
  )
  return changes === 1
}

/** Every task is final: the job is to be finished. False when tasks are left or another write did it. */
export async function markJobFinishing(tx: Tx, seq: number): Promise<boolean> {
  const { changes } = await tx.run(
    `UPDATE jobs SET status = 'finishing'
     WHERE seq = ? AND status IN ('queued', 'running') AND completed + failed + cancelled = task_count`,
    seq,
  )
  return changes === 1
}

/** The last write of a job that ran to its end. False when it is not finishing (any more). */
export async function endFinishedJob(
  tx: Tx,
  seq: number,
  end: { status: TerminalJobStatus; error: string | null; outcome: string; at: Instant },
): Promise<boolean> {
  const { changes } = await tx.run(
    "UPDATE jobs SET status = ?, error = ?, outcome = ?, completed_at = ? WHERE seq = ? AND status = 'finishing'",
    end.status,
    end.error,
    end.outcome,
    end.at,
    seq,
  )
  return changes === 1
}

/** Ends a job before its tasks have: their rows follow and read as cancelled meanwhile. False when it is terminal. */
export async function endJobEarly(
  tx: Tx,
  seq: number,
  end: { status: "cancelled" | "failed"; error: string; at: Instant },
): Promise<boolean> {
  const { changes } = await tx.run(
    `UPDATE jobs SET status = ?, error = ?, completed_at = ?,
       cancelled = task_count - completed - failed, queued = 0, granted = 0, running = 0
     WHERE seq = ? AND status IN ('planning', 'queued', 'running', 'finishing')`,
    end.status,
    end.error,
    end.at,
    seq,
  )
  return changes === 1
}

/** Stores the aggregate of a job that was ended early; of one that runs again there is none yet. */
export async function storeOutcome(tx: Tx, seq: number, outcome: string): Promise<void> {
  await tx.run("UPDATE jobs SET outcome = ? WHERE seq = ? AND completed_at IS NOT NULL", outcome, seq)
}

interface RawCounts {
  status: StoredJobStatus
  round: number
  account: number
  hold: string
  reserve_micro: number
  task_count: number
  queued: number
  granted: number
  running: number
  completed: number
  failed: number
  cancelled: number
}

interface RawJob {
  seq: number
  id: string
  account: number
  project: string
  revision: string
  content_hash: string
  type: JobType
  status: StoredJobStatus
  priority: Priority
  request: string
  submission: string
  tags: string
  client_ref: string | null
  task_count: number
  planned_upto: number
  queued: number
  granted: number
  running: number
  completed: number
  failed: number
  cancelled: number
  suspect: number
  quality_sum: number
  attempts: number
  losses: number
  runtime_ms_sum: number
  runtime_ms_max: number
  cpu_ms_sum: number
  round: number
  failed_before: number
  hold: string
  reserve_micro: number
  billing: string
  error: string | null
  outcome: string | null
  retrying: string | null
  created_at: number
  queued_at: number | null
  started_at: number | null
  completed_at: number | null
}

type RawHead = Omit<RawJob, "request" | "outcome" | "retrying">

const HEAD_COLUMNS = `seq, id, account, project, revision, content_hash, type, status, priority, submission, tags,
  client_ref, task_count, planned_upto, queued, granted, running, completed, failed, cancelled, suspect, quality_sum,
  attempts, losses, runtime_ms_sum, runtime_ms_max, cpu_ms_sum, round, failed_before, hold, reserve_micro, billing, error,
  created_at, queued_at, started_at, completed_at`

function jobFrom(row: RawJob): JobRow {
  return { ...headFrom(row), request: row.request, outcome: row.outcome, retrying: row.retrying }
}

function headFrom(row: RawHead): JobHead {
  return {
    seq: row.seq,
    id: jobId(row.id),
    account: accountId(row.account),
    project: row.project,
    revision: row.revision,
    contentHash: row.content_hash,
    type: row.type,
    status: row.status,
    priority: row.priority,
    submission: row.submission,
    tags: JSON.parse(row.tags) as string[],
    clientRef: row.client_ref,
    taskCount: row.task_count,
    plannedUpto: row.planned_upto,
    queued: row.queued,
    granted: row.granted,
    running: row.running,
    completed: row.completed,
    failed: row.failed,
    cancelled: row.cancelled,
    suspect: row.suspect,
    qualitySum: row.quality_sum,
    attempts: row.attempts,
    losses: row.losses,
    runtimeMsSum: row.runtime_ms_sum,
    runtimeMsMax: row.runtime_ms_max,
    cpuMsSum: row.cpu_ms_sum,
    round: row.round,
    failedBefore: row.failed_before,
    hold: holdId(row.hold),
    reserveMicro: BigInt(row.reserve_micro),
    billing: row.billing,
    error: row.error,
    createdAt: row.created_at,
    queuedAt: row.queued_at,
    startedAt: row.started_at,
    completedAt: row.completed_at,
  }
}
