import type RealDatabase from "better-sqlite3"
import { nextAttemptState, type AttemptEvent, type AttemptState } from "../../coordinator/jobs/attempt-state.ts"
import { nextJobState, type JobEvent, type JobState } from "../../coordinator/jobs/job-state.ts"
import { lastStep, stepsAfter, type Step } from "./traces.ts"

/** What the world was told and what it saw, kept outside of every machine: it must still be true after any crash. */
export class Watch {
  readonly problems: string[] = []
  /** Jobs that a client was told are there, by id, each with its submission. */
  readonly accepted = new Map<string, { name: string; atMs: number }>()
  /** The end that a client was shown. */
  readonly ends = new Map<string, { status: string; atMs: number }>()
  /** Claims of which a node was told that their result is stored, by claim, and when. */
  readonly stored = new Map<number, number>()
  /** Machines on which the program of a claim was started. */
  readonly starts = new Map<number, string[]>()
  /** Claims about which their own node lied: what it said of them is its affair. */
  readonly lied = new Set<number>()
  /** Jobs that a client asked to be retried: what ended may be queued again. */
  readonly mayRunAgain = new Set<string>()
  /** Streams that were followed to the job's end: what each showed behind its first snapshot, and the last event before done. */
  followed: { job: string; from: number; upto: number; seen: ReadonlySet<number> }[] = []
  /** Pushes that were answered, of the projects `p`. */
  pushed: { account: number; hash: string; askedMs: number; atMs: number }[] = []
  /** Accounts with a push of which nobody knows whether it was taken. */
  readonly unsurePushes = new Set<number>()
  /** Claims that could not read a checkpoint. */
  readonly unreadable = new Set<number>()
  /** Claims that exist twice because a disk was copied. */
  readonly cloned = new Set<number>()
  /** Machines with one key: what one of them holds, the other denies. */
  readonly twins = new Set<string>()
  /** How often each step of a state was taken. */
  readonly steps = new Map<string, number>()
  /** What a node was told to be durable: the last checkpoint of each claim, and when. */
  readonly #durable = new Map<number, { task: string; n: number; atMs: number }>()
  /** The last step that the program of a claim printed, its steps by the numbers of their checkpoints, and its task. */
  readonly #printed = new Map<number, number>()
  readonly #stepOf = new Map<string, number>()
  readonly #tasks = new Map<number, string>()
  readonly #runs = new Map<number, { startedMs: number; endedMs: number }>()
  /** Attempts whose end is committed, and programs that run now, by claim. */
  readonly #over = new Set<number>()
  readonly #completed = new Set<number>()
  readonly #running = new Set<number>()
  /** A revoked node's attempts are taken from it, whatever runs. */
  hasRevoked = false
  /** For so long the coordinator, which worked all the while, heard nothing of a member: it has told the contact lost. */
  #silences: { peer: string; fromMs: number; toMs: number }[] = []
  /** When the coordinator last heard each member, by peer, and since when it has worked without a break. */
  readonly #heardMs = new Map<string, number>()
  #disturbedUntilMs = 0
  /** The coordinator's wall clock was set while it worked: differences of its times say nothing. */
  clockStepped = false
  readonly #surelyLostMs: number
  /** The last step that was looked at; null: begin with the newest. */
  #seen: number | null = 0

  /** @param heartbeatMs the longest that a node is told */
  constructor(heartbeatMs: number) {
    this.#surelyLostMs = 4 * heartbeatMs + LOOKS_MS
  }

  wrong(problem: string): void {
    // One line for each thing that is wrong; a broken world repeats itself.
    if (this.problems.length < 20 && !this.problems.includes(problem)) this.problems.push(problem)
  }

  /** After each COMMIT: what changed may change so. */
  committed(database: RealDatabase.Database): void {
    this.#seen ??= lastStep(database)
    for (const step of stepsAfter(database, this.#seen)) {
      this.#seen = step.seq
      this.#judge(step)
    }
  }

  /** An answer may be overtaken by that to a later question: only what was asked after an end was shown must show it. */
  jobSeen(id: string, status: string, askedMs: number, atMs: number): void {
    if (this.mayRunAgain.has(id)) return
    const before = this.ends.get(id)
    if (before && before.status !== status && (askedMs >= before.atMs || TERMINAL.has(status)))
      this.wrong(`3: job ${id} was ${before.status} and is ${status}`)
    if (!before && TERMINAL.has(status)) this.ends.set(id, { status, atMs })
  }

  /** The coordinator goes on from a copy of that time: what was said since is void. Gives the jobs that are gone. */
  restored(copyMs: number): string[] {
    const gone = [...this.accepted].filter(([, { atMs }]) => atMs >= copyMs)
    for (const [id] of gone) this.accepted.delete(id)
    for (const [id, { atMs }] of this.ends) if (atMs >= copyMs) this.ends.delete(id)
    for (const [claim, atMs] of this.stored) if (atMs >= copyMs) this.stored.delete(claim)
    for (const [claim, { atMs }] of this.#durable) if (atMs >= copyMs) this.#durable.delete(claim)
    this.#seen = null
    this.#over.clear()
    this.followed = []
    this.#silences = []
    // What was under way as the copy was made may be in it or not.
    for (const { account, askedMs, atMs } of this.pushed) {
      if (askedMs < copyMs && atMs >= copyMs) this.unsurePushes.add(account)
    }
    this.pushed = this.pushed.filter(({ atMs }) => atMs < copyMs)
    return gone.map(([, { name }]) => name)
  }

  /** How long the program of a claim ran: 0 when it never did, without bound while it does. */
  ranMs(claim: number): number {
    const run = this.#runs.get(claim)
    return run === undefined ? 0 : run.endedMs - run.startedMs
  }

  programEnded(claim: number, atMs: number): void {
    const run = this.#runs.get(claim)
    if (run) run.endedMs = atMs
    this.#running.delete(claim)
  }

  /** With its machine: nobody can tell of it. */
  programDied(claim: number, atMs: number): void {
    this.programEnded(claim, atMs)
  }

  /** 5: the coordinator says that the claim lives on. */
  renewed(claim: number): void {
    if (this.#over.has(claim)) this.wrong(`5: claim ${claim} was renewed after its end`)
  }

  /** A frame of the member came to the coordinator. */
  heard(peer: string, atMs: number): void {
    if (atMs < this.#disturbedUntilMs) return
    const fromMs = this.#heardMs.get(peer) ?? atMs
    if (atMs - fromMs > this.#surelyLostMs) this.#silences.push({ peer, fromMs, toMs: atMs })
    this.#heardMs.set(peer, atMs)
  }

  /** Something is done to the coordinator itself: what it does not hear until then is not the nodes' silence. */
  disturbed(untilMs: number): void {
    this.#heardMs.clear()
    this.#disturbedUntilMs = Math.max(this.#disturbedUntilMs, untilMs)
  }

  /** Of these times, how long the member had surely lost contact. */
  silentMs(peer: string, fromMs: number, toMs: number): number {
    const its = this.#silences.filter((one) => one.peer === peer)
    return its.reduce((sum, one) => sum + Math.max(0, Math.min(toMs, one.toMs) - Math.max(fromMs, one.fromMs)), 0)
  }

  programStarted(claim: number, machine: string, atMs: number): void {
    this.#running.add(claim)
    this.#runs.set(claim, { startedMs: atMs, endedMs: Number.POSITIVE_INFINITY })
    const before = this.starts.get(claim) ?? []
    if (before.length > 0 && !this.cloned.has(claim)) {
      this.wrong(`5: the program of claim ${claim} was started on ${[...before, machine].join(" and ")}`)
    }
    this.starts.set(claim, [...before, machine])
  }

  stepped(claim: number, step: number, n: number): void {
    this.#printed.set(claim, Math.max(step, this.#printed.get(claim) ?? 0))
    this.#stepOf.set(`${claim}/${n}`, step)
  }

  checkpointStored(claim: number, n: number, atMs: number): void {
    const task = this.#tasks.get(claim)
    // Of an attempt that completed nothing goes on: its answer may come after its end was committed.
    if (task === undefined || this.#completed.has(claim)) return
    const before = this.#durable.get(claim)
    this.#durable.set(claim, { task, n: Math.max(n, before?.n ?? 0), atMs: before?.n === n ? before.atMs : atMs })
  }

  /** 6: an attempt goes on from the last that was called durable or a later one, made by a program that had come so far. */
  resumed(claim: number, task: string, text: string | null): void {
    this.#tasks.set(claim, task)
    const its = [...this.#durable].filter(([by, durable]) => durable.task === task && by < claim)
    if ([claim, ...its.map(([by]) => by)].some((one) => this.cloned.has(one))) return
    // What it could not read it said: then it goes on from an earlier one, or anew.
    const least = this.unreadable.has(claim) ? 0 : Math.max(0, ...its.map(([by]) => by))
    const found = text === null ? null : (JSON.parse(text) as Resumed)
    if (!found?.checkpoint) {
      if (least > 0)
        this.wrong(`6: claim ${claim} of ${task} begins anew; claim ${least} had left a durable checkpoint`)
      return
    }
    const { by, step } = found.checkpoint
    if (found.by !== by || found.step !== step)
      this.wrong(
        `6: claim ${claim} is told step ${found.step} of ${found.by} with the checkpoint of step ${step} of ${by}`,
      )
    if (by >= claim || step > (this.#printed.get(by) ?? 0))
      this.wrong(`6: claim ${claim} goes on from step ${step} of claim ${by}, which never came so far`)
    if (by < least)
      this.wrong(`6: claim ${claim} goes on from claim ${by}, though claim ${least} left a later checkpoint`)
    const durable = this.#durable.get(least)
    const leastStep = durable === undefined ? 0 : (this.#stepOf.get(`${least}/${durable.n}`) ?? 0)
    if (by === least && step < leastStep)
      this.wrong(`6: claim ${claim} goes on from step ${step} of claim ${by}, whose step ${leastStep} is durable`)
  }

  #forgetDurable(claim: number): void {
    const task = this.#tasks.get(claim)
    for (const [by, durable] of this.#durable) if (durable.task === task) this.#durable.delete(by)
  }

  #judge({ kind, id, from, to }: Step): void {
    const step = `${kind} ${from} → ${to}`
    this.steps.set(step, (this.steps.get(step) ?? 0) + 1)
    if (kind === "attempt" && to !== "running") this.#over.add(id)
    const excused = this.hasRevoked || this.cloned.has(id) || this.starts.get(id)?.some((on) => this.twins.has(on))
    if (kind === "attempt" && to === "returned" && this.#running.has(id) && !excused)
      this.wrong(`2: claim ${id} was given back as if it had not been started, and its program runs`)
    // A task that completed begins anew when its job is retried.
    if (kind === "attempt" && to === "completed") {
      this.#completed.add(id)
      this.#forgetDurable(id)
    }
    const isUncalled = this.mayRunAgain.size === 0 && RETRY_STEPS.has(step)
    if (!STEPS.has(step) || isUncalled) this.wrong(`3: ${kind} ${id} went from ${from} to ${to}`)
  }
}

/** Until the coordinator has looked, whatever else it does. */
const LOOKS_MS = 2_000

interface Resumed {
  step?: number
  by?: number
  checkpoint?: { step: number; by: number }
}

export const TERMINAL: ReadonlySet<string> = new Set(["completed", "partial", "failed", "cancelled"])

/** 3: a retry is the one way back from an end. */
const RETRY_STEPS: ReadonlySet<string> = new Set([
  ...["completed", "partial", "failed", "cancelled"].map((state) => `job ${state} → queued`),
  ...["completed", "failed", "cancelled"].map((state) => `task ${state} → queued`),
])

/** Every step that the tables allow, as the rows show it. */
export const STEPS: ReadonlySet<string> = new Set([
  ...RETRY_STEPS,
  ...jobSteps(),
  ...taskSteps(),
  ...attemptSteps(),
  "checkpoint live → stored",
])

function jobSteps(): string[] {
  const states: JobState[] = [
    "planning",
    "queued",
    "running",
    "finishing",
    "completed",
    "partial",
    "failed",
    "cancelled",
  ]
  const events: JobEvent[] = [
    "planned",
    "task_started",
    "all_tasks_ended",
    "completed",
    "partial",
    "failed",
    "cancelled",
  ]
  // A strict job fails by its first task; what else of it runs is stopped.
  return [...stepsOf("job", states, events, nextJobState), "job queued → failed", "job running → failed"]
}

/** Rows know more states than the table of facts: a granted task is queued there, a lost one waits with a loss pending. */
function taskSteps(): string[] {
  const from: Record<string, string[]> = {
    queued: ["granted", "failed", "cancelled"],
    granted: ["running", "queued", "lost", "completed", "failed", "cancelled"],
    running: ["queued", "lost", "completed", "failed", "cancelled"],
    lost: ["granted", "running", "queued", "completed", "failed", "cancelled"],
  }
  return Object.entries(from).flatMap(([state, next]) => next.map((to) => `task ${state} → ${to}`))
}

/** No row is ever `accepted`: that costs no write of its own, and comes with the start or the end. */
function attemptSteps(): string[] {
  const events: AttemptEvent[] = ["started", "succeeded", "failed", "lost", "cancelled", "returned"]
  const accepted = stepsOf<AttemptState, AttemptEvent>("attempt", ["accepted", "running"], events, nextAttemptState)
  return accepted.map((step) => step.replace("accepted", "offered"))
}

function stepsOf<State extends string, Event>(
  kind: string,
  states: readonly State[],
  events: readonly Event[],
  next: (state: State, event: Event) => State | null,
): string[] {
  return states.flatMap((state) =>
    events.flatMap((event) => {
      const to = next(state, event)
      return to === null || to === state ? [] : [`${kind} ${state} → ${to}`]
    }),
  )
}
