import { sleep, type Clock } from "../../protocol/base/clock.ts"
import type { Log } from "../../protocol/base/log.ts"
import { revisionId, type AccountId, type ClaimNumber, type JobId } from "../../protocol/domain/ids.ts"
import type { ObjectFiles } from "../artifacts/object-files.ts"
import type { JobWatch } from "../events/watch.ts"
import type { Background } from "../jobs/background.ts"
import { cancelQueued } from "../jobs/cancel-queued.ts"
import { settleDependents } from "../jobs/dependencies.ts"
import { cancelJob, cancelWaiting, endEarly, sweepTasks, type EndEarlyParts } from "../jobs/end-early.ts"
import { expandJob } from "../jobs/expand.ts"
import { failWaitingTasks } from "../jobs/fail-waiting.ts"
import { finishJob } from "../jobs/finish.ts"
import { jobFacts, rateOfJob, type JobFacts, type KnownJobs } from "../jobs/job-facts.ts"
import { isEnded } from "../jobs/job-state.ts"
import { putBackTasks } from "../jobs/retry-slices.ts"
import { openDependencies, openDependents } from "../store/dependencies.ts"
import { jobBySeq, unfinishedJobs, type JobHead, type JobRow } from "../store/jobs.ts"
import type { Store } from "../store/store.ts"
import { countTasks, firstFailure } from "../store/tasks.ts"
import { shareInUse } from "./fairness.ts"
import type { Pace } from "./pace.ts"
import type { ReadyQueue } from "./ready-queue.ts"
import type { Reservations } from "./reservations.ts"
import type { RuntimeSpecs } from "./runtime-specs.ts"

/**
 * A job from its submission to its last write: planned, made grantable, ended, merged. Every step is resumable from rows, so
 * a start goes on where the last one stopped.
 */
export interface JobLife {
  /** Writes the tasks of a submitted job and makes it grantable. */
  plan(job: JobRow): void
  /** The job was retried after its end: puts back the tasks that are not yet, and makes it grantable. */
  again(job: JobRow): void
  /** Resolves once nothing of the job's end is being worked on. */
  settled(job: number): Promise<void>
  /** All tasks of these jobs are final: merges and ends them. */
  finish(jobs: readonly number[]): void
  /** A task failed for good: a strict job ends by it (L-003). */
  taskFailed(jobs: ReadonlySet<number>): void
  /** Nothing of the job runs and its hold covers no further task. */
  budgetSpent(job: number): void
  /** No node can be told how to run this job: its waiting tasks fail. */
  cannotRun(job: number, message: string): void
  /** Tasks of these jobs wait again: those of a revision that can never run fail. */
  returned(jobs: ReadonlySet<number>): void
  /** The revision can never be run: its waiting tasks fail (rulings, Failed set-up). */
  setupFailed(revision: string, message: string, logTail: string): void
  cancel(id: JobId, account: AccountId | null, reason: string): Promise<JobHead>
  /** Planning and queued jobs of a project (P-028). */
  cancelQueued(wanted: {
    account: AccountId
    project: string
    reason: string | null
    tag: string | null
  }): Promise<{ queuedBefore: number; cancelledJobs: number }>
  /** It waited too long: cancelled, unless something of it was handed to a node by then (L-006). */
  cancelWaiting(job: number, reason: string): Promise<void>
  /** Puts right what memory believes of waiting tasks: rows decide, and a hint that was lost must not strand a job (L-005). */
  recount(): Promise<void>
  /** Goes on with a job where its rows say it is. One that is being worked on already is fine. */
  takeUp(job: number): Promise<void>
  /** Takes up every job that an earlier start left unfinished. Once, before a door opens. */
  resume(): Promise<void>
}

export interface JobLifeParts extends EndEarlyParts {
  store: Store
  files: ObjectFiles
  clock: Clock
  log: Log
  background: Background
  known: KnownJobs
  queue: ReadyQueue
  reservations: Pick<Reservations, "know" | "over">
  pace: Pace
  watch: JobWatch
  specs: RuntimeSpecs
  /** What preparing the revision left to read, once it failed on so many nodes that the project is at fault. */
  cannotPrepare: (revision: string) => { message: string; logTail: string } | null
  wake: () => void
  /** Spent numbers: their nodes stop. */
  spend: (claims: readonly ClaimNumber[], reason: string) => void
}

/** What works on the end of a job, by the names below. */
const ENDING_ACTS = ["fail", "budget", "strict", "end", "sweep", "finish", "dependents of"]
/** A client that waits for more than this is told to come again. */
const LONGEST_END_MS = 10_000
const REASON_DEFAULT = "cancelled by its owner"

export function createJobLife(parts: JobLifeParts): JobLife {
  const { store, background, known, queue, watch } = parts

  function plan(job: JobRow): void {
    if (isEnded(job.status)) return sweep(job.seq)
    background.run(`plan ${job.id}`, async (signal) => {
      // A small job was written whole: it only has to become known.
      const now = job.status === "queued" ? job : await store.read((view) => jobBySeq(view, job.seq))
      if (!now || (now.status !== "planning" && now !== job)) return
      const facts = jobFacts(now)
      if (facts.dependsOnJobs) return await planDependent(now, signal)
      await know(facts)
      if ((await expandJob(parts, now, signal)) === "over") return known.forget(job.seq)
      watch.changed([job.seq])
      ready(facts, facts.taskCount)
      failBroken(facts)
    })
  }

  /** Memory knows a job that waits for others only once it is released: nothing befalls it before but a cancel. */
  async function planDependent(job: JobRow, signal: AbortSignal): Promise<void> {
    if ((await expandJob(parts, job, signal)) === "over") return
    watch.changed([job.seq])
    await takeUp(job.seq)
  }

  function again(job: Pick<JobRow, "seq" | "id">): void {
    background.run(`retry ${job.id}`, async (signal) => {
      await putBackTasks(parts, job.seq, signal)
      const now = await store.read((view) => jobBySeq(view, job.seq))
      watch.changed([job.seq])
      if (!now || (now.status !== "queued" && now.status !== "running")) return
      if (known.get(now.seq)?.round === now.round) return
      try {
        await resumeRunning(now)
      } catch (error) {
        // Known and not queued it would be passed over when this is tried again.
        known.forget(now.seq)
        throw error
      }
    })
  }

  /** Its revision is known before it is put into the queue. */
  async function know(facts: JobFacts): Promise<void> {
    if (!parts.specs.known(facts.revision)) await parts.specs.refresh(revisionId(facts.revision))
    known.put(facts)
    parts.reservations.know(facts)
  }

  function ready(facts: JobFacts, tasks: number, since = facts.readySince): void {
    queue.put({
      seq: facts.seq,
      account: facts.account,
      priority: facts.priority,
      kind: facts.kind,
      readySince: since,
      tasks,
      cost: shareInUse(rateOfJob(facts)),
    })
    parts.wake()
  }

  /** A revision whose build failed before the job came can never run. */
  function failBroken(facts: JobFacts): void {
    const one = parts.specs.known(facts.revision)
    if (!one) return failWaiting(facts.seq, "the project or its revision was deleted", "")
    if (one.revision.build === "failed") return failWaiting(facts.seq, "the image could not be built", "")
    const failure = parts.cannotPrepare(facts.revision)
    if (failure) failWaiting(facts.seq, failure.message, failure.logTail)
  }

  function failWaiting(seq: number, message: string, preflight: string): void {
    queue.add(seq, -Number.MAX_SAFE_INTEGER)
    background.run(`fail ${seq}`, async (signal) => {
      await failAll(seq, { kind: "setup_failed", message, preflight }, signal)
    })
  }

  async function failAll(
    seq: number,
    failure: { kind: "setup_failed" | "budget_spent"; message: string; preflight: string },
    signal: AbortSignal,
  ): Promise<void> {
    const { isOver, spent } = await failWaitingTasks(parts, seq, failure, signal)
    parts.spend(spent, failure.message)
    watch.changed([seq])
    if (isOver) finish([seq])
    else failedForGood(seq)
  }

  function finish(jobs: readonly number[]): void {
    for (const seq of jobs) {
      forgetQueued(seq)
      background.run(`finish ${seq}`, async (signal) => {
        const facts = known.get(seq)
        await finishJob(parts, seq, signal)
        // Retried within the same moment it is known anew.
        if (known.get(seq) === facts) known.forget(seq)
        parts.pace.forget(seq)
        watch.changed([seq])
        settle(seq)
      })
    }
  }

  /** The job has ended, and the write that ended it is done: jobs that wait for it are released or cancelled. */
  function settle(seq: number): void {
    background.run(`dependents of ${seq}`, async (signal) => {
      if ((await store.read((view) => openDependents(view, seq, 1))).length === 0) return
      for (let more = true; more;) {
        signal.throwIfAborted()
        const slice = await settleDependents(parts, seq)
        more = slice.more
        for (const { job, spent } of slice.cancelled) over(job, spent, job.error ?? "")
        for (const released of slice.released) release(released)
      }
    })
  }

  function release(seq: number): void {
    watch.changed([seq])
    background.run(`take up ${seq}`, () => takeUp(seq))
  }

  /** Nothing more of it will start: what was reserved for it is free. */
  function forgetQueued(seq: number): void {
    queue.remove(seq)
    if (parts.reservations.over(seq)) parts.wake()
  }

  function endBy(seq: number, end: { status: "cancelled" | "failed"; error: string }): void {
    background.run(`end ${seq}`, async () => {
      const ended = await endEarly(parts, seq, end)
      if (ended) over(ended.job, ended.spent, end.error)
    })
  }

  /** The job has ended before its tasks: nodes stop, rows and dependents follow, what was done is merged. */
  function over(job: JobHead, spent: readonly ClaimNumber[], reason: string): void {
    forgetQueued(job.seq)
    parts.spend(spent, reason)
    watch.changed([job.seq])
    settle(job.seq)
    sweep(job.seq)
  }

  function sweep(seq: number): void {
    background.run(`sweep ${seq}`, async (signal) => {
      await sweepTasks(parts, seq, signal)
      finish([seq])
    })
  }

  /** A strict job cannot succeed any more: what else of it runs stops (L-003). */
  function failedForGood(seq: number): void {
    const facts = known.get(seq)
    if (facts?.reliability === "strict_complete" && facts.taskCount > 1) {
      background.run(`strict ${seq}`, () => endStrict(seq))
    }
  }

  async function endStrict(seq: number): Promise<void> {
    const job = await store.read((view) => jobBySeq(view, seq))
    if (!job || job.failed <= job.failedBefore || (job.status !== "queued" && job.status !== "running")) return
    const failure = await store.read((view) => firstFailure(view, seq))
    endBy(seq, {
      status: "failed",
      error: `${job.failed} of ${job.taskCount} tasks failed; first: ${failure?.error ?? "a task failed"}`,
    })
  }

  return {
    plan,
    again,
    async settled(seq) {
      const enough = new AbortController()
      const tooLong = sleep(parts.clock, LONGEST_END_MS, enough.signal).catch(() => undefined)
      await Promise.race([background.settled(ENDING_ACTS.map((act) => `${act} ${seq}`)), tooLong])
      enough.abort()
    },
    finish,
    taskFailed(jobs) {
      for (const seq of jobs) failedForGood(seq)
    },
    budgetSpent(seq) {
      background.run(`budget ${seq}`, async (signal) => {
        const message = "the job's hold is spent: nothing more of it can start"
        await failAll(seq, { kind: "budget_spent", message, preflight: "" }, signal)
      })
    },
    cannotRun: (seq, message) => failWaiting(seq, message, ""),
    returned(jobs) {
      for (const seq of jobs) {
        const facts = known.get(seq)
        if (facts) failBroken(facts)
      }
    },
    setupFailed(revision, message, logTail) {
      for (const facts of known.all()) if (facts.revision === revision) failWaiting(facts.seq, message, logTail)
    },
    async cancel(id, account, reason) {
      const why = reason === "" ? REASON_DEFAULT : reason
      const { job, spent, isNews } = await cancelJob(parts, id, account, why)
      if (isNews) over(job, spent, why)
      return job
    },
    async cancelQueued(wanted) {
      const reason = wanted.reason ?? REASON_DEFAULT
      return await cancelQueued(parts, { ...wanted, reason }, ({ job, spent }) => over(job, spent, reason))
    },
    async cancelWaiting(seq, reason) {
      const ended = await cancelWaiting(parts, seq, reason)
      if (ended) over(ended.job, ended.spent, reason)
    },
    async recount() {
      for (const { seq } of known.all()) {
        // What was set aside for want of money is tried again: what would have unblocked it may have been missed.
        queue.unblock(seq)
        const waiting = await store.read((view) => countTasks(view, seq, ["queued", "lost"]))
        const believed = queue.waiting(seq)
        // Only ever upward: tasks on their way to a node are waiting in the rows until the grant commits.
        if (waiting > believed) queue.add(seq, waiting - believed)
        const facts = known.get(seq)
        if (facts && waiting > 0) failBroken(facts)
      }
      parts.wake()
    },
    takeUp,
    async resume() {
      for (const job of await store.read(unfinishedJobs)) await goOn(job)
    },
  }

  async function takeUp(seq: number): Promise<void> {
    const job = await store.read((view) => jobBySeq(view, seq))
    if (job && job.outcome === null) await goOn(job)
  }

  async function goOn(job: JobRow): Promise<void> {
    if (isEnded(job.status)) sweep(job.seq)
    else if (job.status === "finishing") finish([job.seq])
    else if (job.status === "planning") plan(job)
    else if (job.retrying !== null) again(job)
    else await resumeRunning(job)
  }

  async function resumeRunning(job: JobRow): Promise<void> {
    const facts = jobFacts(job)
    if (facts.dependsOnJobs && (await waitsStill(job.seq))) return
    await know(facts)
    const waiting = await store.read((view) => countTasks(view, job.seq, ["queued", "lost"]))
    ready(facts, waiting, job.round > 1 ? (job.queuedAt ?? undefined) : undefined)
    failBroken(facts)
    const isStrict = facts.reliability === "strict_complete" && facts.taskCount > 1
    if (job.failed > job.failedBefore && isStrict) await endStrict(job.seq)
  }

  /** Does it wait for other jobs? What has become of those that ended while nobody looked is settled now. */
  async function waitsStill(seq: number): Promise<boolean> {
    const open = await store.read((view) => openDependencies(view, seq))
    for (const { seq: upstream, status } of open) if (isEnded(status)) settle(upstream)
    return open.length > 0
  }
}
