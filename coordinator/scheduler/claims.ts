import { every, type Clock } from "../../protocol/base/clock.ts"
import { sha256Hex } from "../../protocol/base/digest.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import type { Log } from "../../protocol/base/log.ts"
import { slices } from "../../protocol/base/slices.ts"
import type { ClaimNumber, PeerId } from "../../protocol/domain/ids.ts"
import {
  BATCH_ITEMS,
  type Hello,
  type ItemVerdict,
  type ResultItem,
  type ToCoordinator,
  type Welcome,
} from "../../protocol/wire/control.ts"
import type { JobWatch } from "../events/watch.ts"
import { isInReach } from "../fleet/liveness.ts"
import type { HeldAttempt, Member, Members } from "../fleet/members.ts"
import type { Reputation } from "../fleet/reputation.ts"
import type { KnownJobs } from "../jobs/job-facts.ts"
import { NOT_YOURS, reportResults, type ReportOutcome, type ReportParts } from "../jobs/report.ts"
import { recordStarts, type Start } from "../jobs/start.ts"
import type { Store } from "../store/store.ts"
import type { ContactWatch } from "./contact.ts"
import { disproveLosses, returnAttempt } from "./give-up.ts"
import type { Pace } from "./pace.ts"
import type { ReadyQueue } from "./ready-queue.ts"

/**
 * What happens to claims after they were granted: accepted, started, renewed, reported, given back (architecture §5.4). Each change is a write that names the number; memory follows.
 */
export interface Claims extends AsyncDisposable {
  /** Reconciles what the node holds with what the rows say; the answer goes into its welcome. */
  hello(member: Member, held: Hello["attempts"]): Promise<Welcome["attempts"]>
  accepted(member: Member, claims: readonly number[]): void
  started(member: Member, claims: readonly number[]): void
  heartbeat(member: Member, attempts: Heartbeat): { renewed: number[]; spent: number[] }
  progress(member: Member, items: Progress): void
  report(member: Member, items: readonly ResultItem[]): Promise<ItemVerdict[]>
  /** Granted and never sent: back to the queue, no loss. */
  takeBack(claims: readonly ClaimNumber[]): Promise<void>
  /** Not started, and never will be: back to the queue, no loss. */
  gaveBack(member: Member, items: readonly { claim: number; reason: string }[]): Promise<void>
  /** Granted, and what they ask for is not there: their tasks fail as if their node had told it, and it is told nothing. */
  unresolved(member: Member, attempts: readonly { claim: ClaimNumber; problem: string }[]): Promise<void>
  /** Their numbers are spent by somebody else's write: room is free, and nodes are told to stop. */
  spend(claims: readonly ClaimNumber[], reason: string): void
  /** Asks the node whether it has started these; what it has not is given back. */
  askBack(member: Member, claims: readonly ClaimNumber[]): void
  /** The node gets nothing more: asks back what it has not started. */
  drain(member: Member): void
  /** The node is out for good: all it held waits again, and is no loss. What it still reports is spent. */
  revoke(member: Member): Promise<void>
  /** The node sent something: it has contact. */
  heard(member: Member): void
  /** The witness was connected to that peer a moment ago, and its address now refuses. */
  refusedTo(witness: Member, peer: PeerId): void
}

type Heartbeat = Extract<ToCoordinator, { type: "heartbeat" }>["attempts"]
type Progress = Extract<ToCoordinator, { type: "progress" }>["items"]

export interface ClaimsParts extends ReportParts {
  store: Store
  clock: Clock
  log: Log
  members: Members
  known: KnownJobs
  queue: ReadyQueue
  pace: Pace
  watch: JobWatch
  contact: Pick<ContactWatch, "heard" | "renew" | "forgotten" | "giveUp" | "refusedTo">
  reputation: Pick<Reputation, "ended" | "failedElsewhere" | "wasted" | "offence" | "setback" | "succeeded">
  timing: { claimLifetimeMs: number }
  /** How long preparing a revision may take: its project says. */
  preparationMs: (revision: string) => number
  /** Work may start somewhere: look again. */
  wake: () => void
  /** Tasks of these jobs wait again that were with a node: what could not be run there may be unable to run anywhere. */
  returned: (jobs: ReadonlySet<number>) => void
  /** All tasks of these jobs are final. */
  finish: (jobs: readonly number[]) => void
  /** A task of these jobs failed for good: strict ones end by it. */
  taskFailed: (jobs: ReadonlySet<number>) => void
}

/** Starts are written together, soon enough for who watches; one that is reported before needs no write of its own. */
const START_DELAY_MS = 50
/** Starts, and ends, in one write: 5 to 8 ms, so that other requests go between (architecture §4). */
const STARTS_AT_ONCE = 128
const REPORTS_AT_ONCE = 64
const LOOK_INTERVAL_MS = 500
/** Accepts come within milliseconds; one that takes this long will not come. */
const OFFER_TIMEOUT_MS = 10_000
/** A look that comes this much late: this process was stopped, not the nodes. */
const PAUSE_MS = 2_000
/** So many reports of numbers that were never the node's are an offence: after a restored backup it may have some. */
const STRANGE_REPORTS = 256
/** A running attempt is renewed for so long past its timeout: the node enforces that by itself (architecture §5.4). */
const RUNNING_GRACE_MS = 60_000

export function createClaims(parts: ClaimsParts): Claims {
  const { clock, log, members, queue, timing } = parts
  const starts = new Map<Member, Map<number, Start>>()
  const strangeReports = new WeakMap<Member, number>()
  /** These were asked for: giving them back is no more than an answer. */
  const askedBack = new WeakSet<HeldAttempt>()
  /** When members were last seen without contact (monotonic ms). */
  const unheard = new WeakMap<Member, number>()
  const stopped = new AbortController()
  let writing: Promise<unknown> = Promise.resolve()
  let lastLookMs = clock.monotonicMs()
  /** When this process went on after it had been stopped: what nodes answered meanwhile is still to be read. */
  let resumedMs = Number.NEGATIVE_INFINITY
  const looking = every(clock, LOOK_INTERVAL_MS, takeStaleOffers)

  function held(member: Member, claim: number): HeldAttempt | undefined {
    const attempt = members.attempt(claim)
    return attempt?.node === member.id ? attempt : undefined
  }

  // ── starts ────────────────────────────────────────────────────────────────────────────────────────────────────────

  function started(member: Member, claims: readonly number[]): void {
    const at = clock.now()
    let waiting = starts.get(member)
    for (const claim of claims) {
      const attempt = held(member, claim)
      if (!attempt || attempt.state === "running") continue
      attempt.state = "running"
      attempt.acceptedAt ??= at
      attempt.startedAt = at
      if (!waiting) {
        waiting = new Map()
        starts.set(member, waiting)
        clock.after(START_DELAY_MS, () => writeStarts(member))
      }
      waiting.set(claim, { claim: attempt.claim, at })
    }
  }

  function writeStarts(member: Member): void {
    const waiting = starts.get(member)
    starts.delete(member)
    if (!waiting || waiting.size === 0 || stopped.signal.aborted) return
    for (const some of slices([...waiting.values()], STARTS_AT_ONCE)) {
      follow(
        recordStarts(parts.store, member.id, some).then((jobs) => parts.watch.changed(jobs)),
        "starts were not stored",
      )
    }
  }

  /** Follows a write nobody waits for; a failure is told, and reconciliation or the report's own write makes up for it. */
  function follow(write: Promise<unknown>, failure: string): void {
    writing = Promise.allSettled([
      writing,
      write.catch((error: unknown) => log.error(failure, { error: errorText(error) })),
    ])
  }

  // ── reports ───────────────────────────────────────────────────────────────────────────────────────────────────────

  async function report(member: Member, items: readonly ResultItem[]): Promise<ItemVerdict[]> {
    const verdicts: ItemVerdict[] = []
    for (const some of slices(items, REPORTS_AT_ONCE)) verdicts.push(...(await reportSome(member, some)))
    return verdicts
  }

  async function reportSome(member: Member, items: readonly ResultItem[]): Promise<ItemVerdict[]> {
    const ends = items.map((item) => {
      const attempt = held(member, item.claim)
      starts.get(member)?.delete(item.claim)
      return {
        item,
        job: (attempt && parts.known.get(attempt.job)) ?? null,
        acceptedAt: attempt?.acceptedAt ?? null,
        startedAt: attempt?.startedAt ?? null,
        progress: attempt?.progress ?? null,
      }
    })
    const outcome = await reportResults(parts, member.id, ends)
    member.tasksEnded += outcome.ended.length
    judge(member, items, outcome)
    for (const { claim, job, runtimeMs, chargedMicro } of outcome.ended) {
      const attempt = members.release(claim)
      if (attempt?.claimable) queue.add(job, -1)
      if (attempt) queue.ended(job, Number(chargedMicro))
      parts.pace.took(job, runtimeMs)
    }
    releaseOver(member, outcome.verdicts)
    for (const [job, tasks] of outcome.requeued) queue.add(job, tasks)
    for (const { job } of outcome.ended) queue.unblock(job)
    parts.watch.changed(outcome.changed)
    if (outcome.failed.size > 0) parts.taskFailed(outcome.failed)
    if (outcome.finishing.length > 0) parts.finish(outcome.finishing)
    parts.wake()
    return outcome.verdicts
  }

  /** What the report says of this node, and of those that had the tasks before it (architecture §5.7). */
  function judge(member: Member, items: readonly ResultItem[], { ended, blamed, verdicts }: ReportOutcome): void {
    if (ended.length > 0) parts.reputation.ended(member, ended.length)
    if (blamed.length > 0) parts.reputation.failedElsewhere(blamed)
    const completed = new Set(items.filter(({ failure_kind }) => failure_kind === null).map(({ claim }) => claim))
    if (ended.some(({ claim }) => completed.has(claim))) parts.reputation.succeeded(member)
    const strange = verdicts.filter(({ reason }) => reason === NOT_YOURS).length
    const before = strangeReports.get(member) ?? 0
    strangeReports.set(member, (before + strange) % STRANGE_REPORTS)
    if (before + strange >= STRANGE_REPORTS) parts.reputation.offence(member, "reports of attempts that it never had")
  }

  /** Whatever the rows call over is not held. A refused end is a loss: the node will not run it again (architecture §5.3). */
  function releaseOver(member: Member, verdicts: readonly ItemVerdict[]): void {
    const refused: HeldAttempt[] = []
    for (const { claim, verdict, reason } of verdicts) {
      const attempt = held(member, claim)
      if (!attempt) continue
      if (verdict !== "refused") {
        members.release(claim)
        queue.returned(attempt.job, 1)
        continue
      }
      log.warn("a report was refused", { claim, node: member.id, reason })
      parts.reputation.wasted(member, "refused_report", attempt.job)
      refused.push(attempt)
    }
    if (refused.length === 0) return
    parts.reputation.setback(member)
    parts.contact.giveUp(refused)
  }

  async function gaveBack(member: Member, items: readonly { claim: number; reason: string }[]): Promise<void> {
    const attempts = items.map(({ claim }) => held(member, claim)).filter((attempt) => attempt !== undefined)
    if (attempts.length === 0) return
    const isAnswer = attempts.every((attempt) => askedBack.has(attempt))
    if (member.state === "active" && !isAnswer) parts.reputation.setback(member)
    await takeReturned(attempts.map(({ claim }) => claim))
    for (const { claim, reason } of items) log.info("claim returned", { claim, node: member.id, reason })
  }

  async function takeReturned(claims: readonly ClaimNumber[]): Promise<void> {
    const at = clock.now()
    const returned = await parts.store.write((tx) => returnAttempt(tx, claims, at))
    for (const { claim, job, requeued } of returned) {
      const attempt = members.release(claim)
      if (attempt) queue.returned(job, 1)
      if (requeued && attempt?.claimable !== true) queue.add(job, 1)
      queue.unblock(job)
    }
    const jobs = new Set(returned.map(({ job }) => job))
    parts.watch.changed(jobs)
    parts.returned(jobs)
    parts.wake()
  }

  // ── heartbeats and hellos ─────────────────────────────────────────────────────────────────────────────────────────

  /** May a heartbeat renew it? Not past preparation, and not past its timeout and a minute (architecture §5.4). */
  function isWithinLimits(attempt: HeldAttempt): boolean {
    const job = parts.known.get(attempt.job)
    if (!job) return true
    if (attempt.runningMs !== null) return attempt.runningMs <= job.timeoutSeconds * 1000 + RUNNING_GRACE_MS
    const preparingMs = clock.monotonicMs() - attempt.grantedAtMs
    return attempt.state === "running" || preparingMs <= parts.preparationMs(job.revision)
  }

  async function hello(member: Member, listed: Hello["attempts"]): Promise<Welcome["attempts"]> {
    const named = new Set(listed.map(({ claim }) => claim))
    const gone = [...member.attempts.values()].filter(({ claim }) => !named.has(claim))
    // A grant that never arrived is no loss and goes back at once; an attempt the node forgot is lost.
    const neverArrived = gone.filter(({ state }) => state === "offered").map(({ claim }) => claim)
    if (neverArrived.length > 0) await takeReturned(neverArrived)
    const forgotten = gone.filter(({ state, claimable }) => state !== "offered" && !claimable)
    if (forgotten.length > 0) parts.reputation.setback(member)
    for (const attempt of gone) if (attempt.state !== "offered") parts.contact.forgotten(attempt)
    // An agent that was not started again has no reason to forget.
    for (const { job, bootId } of forgotten) {
      if (bootId !== null && bootId === member.facts?.bootId) parts.reputation.wasted(member, "idle_claim", job)
    }
    const unknown = listed.filter(({ claim, state }) => state !== "accepted" && !held(member, claim))
    if (unknown.length > 0)
      await disprove(
        member,
        unknown.map(({ claim }) => claim),
      )
    return listed.map(({ claim, state }) => {
      const attempt = held(member, claim)
      if (!attempt)
        return { claim, verdict: state === "done" ? ("keep" as const) : ("spent" as const), expires_in_ms: null }
      // Its accept was not heard, or not by this start: the earliest it can have been is what bounds the bill.
      attempt.acceptedAt ??= attempt.grantedAt
      if (attempt.state === "offered") attempt.state = "accepted"
      if (state === "running") started(member, [claim])
      parts.contact.renew(attempt)
      return { claim, verdict: "keep" as const, expires_in_ms: timing.claimLifetimeMs }
    })
  }

  /** They ran on while their tasks were given to others: too late for their results, but no losses. */
  async function disprove(member: Member, claims: readonly number[]): Promise<void> {
    const disproved = await parts.store.write((tx) => disproveLosses(tx, member.id, claims))
    if (disproved > 0) log.info("losses were taken back", { node: member.id, losses: disproved })
  }

  /**
   * A grant that was sent as its stream broke is never answered: it goes back to the queue, and is no loss. While nothing is
   * heard of its node the task may run there, and is waited for as any other (architecture §5.5).
   */
  function takeStaleOffers(): void {
    const nowMs = clock.monotonicMs()
    if (nowMs - lastLookMs - LOOK_INTERVAL_MS > PAUSE_MS) resumedMs = nowMs
    lastLookMs = nowMs
    for (const member of members.all()) {
      if (!member.session || !isInReach(members.contact(member))) {
        unheard.set(member, nowMs)
        continue
      }
      const heardSinceMs = Math.max(resumedMs, unheard.get(member) ?? resumedMs)
      const stale = [...member.attempts.values()].filter(
        ({ state, grantedAtMs }) =>
          state === "offered" && nowMs - Math.max(grantedAtMs, heardSinceMs) > OFFER_TIMEOUT_MS,
      )
      if (stale.length === 0) continue
      const claims = stale.map(({ claim }) => claim)
      cancel(member, claims, "the grant was not accepted in time")
      parts.reputation.setback(member, true)
      for (const { job } of stale) parts.reputation.wasted(member, "idle_claim", job)
      follow(takeReturned(claims), "unanswered grants were not taken back")
    }
  }

  // ── ends that others decide ───────────────────────────────────────────────────────────────────────────────────────

  function spend(claims: readonly ClaimNumber[], reason: string): void {
    const byMember = new Map<Member, number[]>()
    for (const claim of claims) {
      const attempt = members.release(claim)
      const member = attempt && members.byNode(attempt.node)
      if (!attempt || !member) continue
      queue.returned(attempt.job, 1)
      const its = byMember.get(member)
      if (its) its.push(claim)
      else byMember.set(member, [claim])
    }
    for (const [member, its] of byMember) cancel(member, its, reason)
    if (byMember.size > 0) parts.wake()
  }

  function askBack(member: Member, claims: readonly ClaimNumber[]): void {
    for (const claim of claims) {
      const attempt = held(member, claim)
      if (attempt) askedBack.add(attempt)
    }
    for (const some of slices(claims, BATCH_ITEMS)) member.session?.send({ type: "take_back", claims: some })
  }

  function cancel(member: Member, claims: readonly number[], reason: string): void {
    for (const some of slices(claims, BATCH_ITEMS)) {
      member.session?.send({ type: "cancel", claims: some, reason: reason.slice(0, LONGEST_REASON) })
    }
  }

  return {
    hello,
    accepted(member, claims) {
      const at = clock.now()
      for (const claim of claims) {
        const attempt = held(member, claim)
        if (attempt?.state !== "offered") continue
        attempt.state = "accepted"
        attempt.acceptedAt = at
        if (attempt.claimable) parts.contact.renew(attempt)
      }
    },
    started,
    heartbeat(member, attempts) {
      const renewed: number[] = []
      const spent: number[] = []
      for (const { claim, running_ms } of attempts) {
        const attempt = held(member, claim)
        if (!attempt) {
          spent.push(claim)
          continue
        }
        // An attempt that has ended and still uploads has stopped running: what it ran stays.
        attempt.runningMs = running_ms ?? attempt.runningMs
        if (!isWithinLimits(attempt)) continue
        parts.contact.renew(attempt)
        renewed.push(claim)
      }
      return { renewed, spent }
    },
    progress(member, items) {
      const at = clock.now()
      for (const { claim, progress, output_tail } of items) {
        const attempt = held(member, claim)
        if (!attempt) continue
        if (progress !== null) attempt.progress = progress
        if (output_tail !== null) attempt.outputTail = output_tail
        attempt.feedbackAt = at
        parts.watch.spoke(attempt.job, attempt.index)
      }
    },
    report,
    async unresolved(member, failed) {
      await report(
        member,
        failed.map(({ claim, problem }) => unresolvedEnd(claim, problem)),
      )
    },
    takeBack: takeReturned,
    gaveBack,
    spend,
    askBack,
    drain(member) {
      const waiting = [...member.attempts.values()].filter(({ state }) => state !== "running")
      askBack(
        member,
        waiting.map(({ claim }) => claim),
      )
    },
    async revoke(member) {
      const claims = [...member.attempts.values()].map(({ claim }) => claim)
      if (claims.length > 0) await takeReturned(claims)
    },
    heard: (member) => parts.contact.heard(member),
    refusedTo: (witness, peer) => parts.contact.refusedTo(witness, peer),
    async [Symbol.asyncDispose]() {
      looking[Symbol.dispose]()
      for (const member of starts.keys()) writeStarts(member)
      stopped.abort()
      await writing
    },
  }
}

/** No retry, nothing billed (rulings, Shared state). */
function unresolvedEnd(claim: ClaimNumber, problem: string): ResultItem {
  return {
    claim,
    digest: sha256Hex(`${claim}: ${problem}`),
    failure_kind: "shared_unresolved",
    exit_code: null,
    signal: null,
    message: problem,
    runtime_ms: 0,
    cpu_ms: null,
    peak_memory_bytes: null,
    output: "",
    error_tail: "",
    result: null,
    result_problem: null,
    artifacts: [],
  }
}

/** Characters of a cancel's reason: what the frame allows. */
const LONGEST_REASON = 1000
