import { unreachable } from "../../protocol/base/assert.ts"
import type { Clock, Timer } from "../../protocol/base/clock.ts"
import { sha256Hex } from "../../protocol/base/digest.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import type { Log } from "../../protocol/base/log.ts"
import type { ClaimNumber } from "../../protocol/domain/ids.ts"
import {
  BATCH_BYTES,
  BATCH_ITEMS,
  LARGEST_INLINE_BYTES,
  type GrantedTask,
  type TaskSpec,
} from "../../protocol/wire/control.ts"
import type { JobWatch } from "../events/watch.ts"
import { mayRunProjects, slots, type PlacementPolicy } from "../fleet/fit.ts"
import { isCloned } from "../fleet/fleet.ts"
import { isInReach } from "../fleet/liveness.ts"
import { mostAttempts } from "../fleet/node-rules.ts"
import type { HeldAttempt, Member, Members } from "../fleet/members.ts"
import type { JobFacts, KnownJobs } from "../jobs/job-facts.ts"
import { withSharedValues } from "../jobs/inputs.ts"
import type { Plans } from "../jobs/plans.ts"
import type { CapacityWanted, HeldCapacity } from "../jobs/submit.ts"
import type { Store } from "../store/store.ts"
import { createAvoidedNodes } from "./avoided-nodes.ts"
import { awaitedById, choosePlaces, isOverfull, type Round } from "./choose-places.ts"
import type { TaskKey } from "../store/tasks.ts"
import { grantTasks, type GrantedTaskRow, type GrantOutcome, type Place, type Shortage } from "./grant.ts"
import type { KeptNodes } from "./kept-nodes.ts"
import type { Pace } from "./pace.ts"
import { occupy, type PlaceableNode, type Wanted } from "./place.ts"
import type { ReadyQueue } from "./ready-queue.ts"
import type { Granting, Reservations } from "./reservations.ts"
import { usedBeside } from "./tasks-ahead.ts"
import { createTakeBacks, type Ask } from "./take-back.ts"
import type { GivenInputs, GrantedInputs } from "./task-inputs.ts"

/** Matches waiting tasks with standing claims whenever either changes; nobody polls (architecture §5.4). */
export interface Dispatch extends AsyncDisposable {
  /** Something changed that may let work start. Many calls of one turn lead to one look. */
  wake(): void
  /** Holds capacity for a job that is about to be made; `no_capacity` when so much is not free now. */
  reserve(wanted: CapacityWanted): HeldCapacity
  /** Grants nothing any more: the coordinator stops. */
  stop(): void
}

/** How a task of a revision can run on a node; what it needs of the projects' side. */
export interface Runtimes {
  /** Can the node run tasks of this revision now? (Its image is built, or the node needs none.) Memory only. */
  canRun(revision: string, member: Member): boolean
  /** The part of a task's description that is the same for all tasks of the job on this node. */
  spec(job: JobFacts, member: Member): Promise<TaskSpec>
}

export interface DispatchParts {
  store: Store
  clock: Clock
  log: Log
  members: Members
  known: KnownJobs
  plans: Plans
  queue: ReadyQueue
  kept: KeptNodes
  reservations: Reservations
  pace: Pace
  watch: JobWatch
  runtimes: Runtimes
  policy: PlacementPolicy
  claimLifetimeMs: number
  /** Which of these tasks have something of an earlier attempt to go on from. */
  resuming: (rows: readonly GrantedTaskRow[]) => Promise<ReadonlySet<TaskKey>>
  /** What these are given beside their planned payloads. */
  inputs: Pick<GivenInputs, "granted">
  /** These were granted and cannot be given what they ask for: their tasks fail (rulings, Shared state). */
  unresolved: (member: Member, attempts: readonly { claim: ClaimNumber; problem: string }[]) => Promise<void>
  /** These were granted and cannot be sent: they wait again, and it is no loss. */
  takeBack: (claims: readonly ClaimNumber[]) => Promise<void>
  /** Asks the node whether it has started these; those it has not are free again. */
  askBack: (member: Member, claims: readonly ClaimNumber[]) => void
  /** The write spent these numbers: release them. */
  spend: (claims: GrantOutcome["spent"], reason: string) => void
  finish: (jobs: readonly number[]) => void
  /** A task of these jobs failed for good: strict ones end by it. */
  taskFailed: (jobs: ReadonlySet<number>) => void
  /** The job's hold is spent and nothing of it runs: the rest of its tasks fail. */
  budgetSpent: (job: number) => void
  /** No node can be told how to run the job. */
  cannotRun: (job: number, message: string) => void
}

/** Tasks granted in one write: some 6 ms, so that other requests go between (architecture §4). */
const GRANTS_AT_ONCE = 128

export function createDispatch(parts: DispatchParts): Dispatch {
  const { clock, log, members, queue } = parts
  const takeBacks = createTakeBacks(clock)
  const avoided = createAvoidedNodes(clock, wake)
  /** Placed, and not in the rows yet: admission must not count on that room. */
  let granting: (Granting & Pick<Place, "gpus">)[] = []
  let awaited: ReadonlyMap<string, number> = new Map()
  let waiting = false
  let stopped = false
  let running: Promise<void> | null = null
  let lookAgain: Timer | null = null

  function wake(): void {
    if (stopped) return
    if (running) {
      waiting = true
      return
    }
    running = look()
      .catch((error: unknown) => {
        log.error("dispatch failed and is tried again", { error: errorText(error) })
        clock.after(RETRY_MS, wake)
      })
      .finally(() => {
        running = null
        if (waiting) {
          waiting = false
          wake()
        }
      })
  }

  async function look(): Promise<void> {
    // Let everything of this turn arrive first: one write for all of it.
    await new Promise<void>((resolve) => setImmediate(resolve))
    while (!stopped) {
      const nodes = placeableNodes()
      const round = choosePlaces(
        {
          ...parts,
          awaited,
          reserved: parts.reservations.look(nodes),
          wanted,
          avoids: (job) => avoided.of(job),
          now: clock.now(),
          monotonicMs: clock.monotonicMs(),
          most: GRANTS_AT_ONCE,
        },
        nodes,
      )
      awaited = awaitedById(round)
      if (round.places.length > 0) await grant(round, nodes)
      if (round.places.length < GRANTS_AT_ONCE) return askBack(nodes, round)
    }
  }

  async function grant(round: Round<PlaceableMember>, nodes: readonly PlaceableMember[]): Promise<void> {
    const able = new Map<number, PlaceableMember[]>()
    const places = round.places.map(({ job, node, gpus }) => {
      const two = able.get(job) ?? ableNodes(job, nodes)
      able.set(job, two)
      return { job, node: node.member.id, gpus, hasOther: two.some((other) => other !== node) }
    })
    const at = clock.now()
    let outcome: GrantOutcome
    granting = places
    try {
      outcome = await parts.store.write((tx) => grantTasks(tx, places, at))
    } catch (error) {
      for (const [job, its] of Map.groupBy(places, ({ job }) => job)) queue.putBack(job, its.length)
      throw error
    } finally {
      granting = []
    }
    settle(places, outcome)
    await send(outcome.granted)
  }

  /** Nothing more can be placed: what stands ahead of slots may be in the way, or be run sooner elsewhere. */
  function askBack(nodes: readonly PlaceableMember[], { awaited, kept }: Round<PlaceableMember>): void {
    const now = clock.now()
    const asks = takeBacks.choose({
      nodes,
      awaited,
      kept,
      wanted,
      precedes: (job, other, tasks) => queue.precedes(job, other, tasks, now),
      isHeld: (claim) => members.attempt(claim) !== undefined,
    })
    for (const [member, its] of Map.groupBy(asks, ({ from }: Ask) => memberOf(from))) {
      parts.askBack(
        member,
        its.map(({ task }) => task.claim),
      )
    }
    // What stands ahead longer than it should is asked back too, and nothing else might happen until then.
    if ((awaited.size > 0 || kept.size > 0) && nodes.some(isOverfull)) lookAgain ??= clock.after(LOOK_AGAIN_MS, again)
  }

  function again(): void {
    lookAgain = null
    wake()
  }

  function placeableNodes(): PlaceableMember[] {
    const nodes: PlaceableMember[] = []
    const nowMs = clock.monotonicMs()
    const now = clock.now()
    for (const member of members.all()) {
      const { standing, facts, session, state } = member
      if (!session || !standing?.open || standing.draining || !facts || state !== "active") continue
      // The stream of a machine that stands still stays open: what it were granted would be lost at the next look.
      if (!isInReach(members.contact(member))) continue
      if (nowMs < member.restsUntilMs || isCloned(member, now)) continue
      if (!mayRunProjects({ ...facts, roles: member.roles.filter((role) => facts.roles.includes(role)) }, parts.policy))
        continue
      nodes.push({
        id: member.id,
        member,
        attempts: member.attempts,
        capacity: standing.capacity,
        used: { ...member.used, gpus: new Set(member.used.gpus) },
        held: member.attempts.size,
        most: mostAttempts(member.probation),
        heldAtFirst: member.attempts.size,
        credit: standing.credit,
        hasGpu: standing.capacity.gpus.length > 0,
        lookBeside: () => usedBeside(standing.capacity, member.attempts.values()),
      })
    }
    return nodes
  }

  /** As `placeableNodes`, less what is about to be granted. */
  function freeNodes(): PlaceableMember[] {
    const nodes = placeableNodes()
    const byId = new Map(nodes.map((node) => [node.id, node]))
    for (const { job, node: id, gpus } of granting) {
      const node = byId.get(id)
      const facts = parts.known.get(job)
      if (node && facts) occupy(node, facts.requirements, gpus)
    }
    return nodes
  }

  function wanted(job: number): Wanted | undefined {
    const facts = parts.known.get(job)
    if (!facts) return undefined
    const { reservations } = parts
    return {
      requirements: facts.requirements,
      paceMs: reservations.isGuaranteed(job) ? null : parts.pace.of(job),
      isWarm: (node) => memberOf(node).standing?.warm.has(facts.revision) ?? false,
      mayRun: (node) => reservations.mayUse(facts, node.id) && parts.runtimes.canRun(facts.revision, memberOf(node)),
    }
  }

  /** Two trusted nodes that could run the job, or as many as there are: where it can be tried elsewhere. */
  function ableNodes(job: number, nodes: readonly PlaceableMember[]): PlaceableMember[] {
    const facts = parts.known.get(job)
    const found: PlaceableMember[] = []
    for (const node of facts ? nodes : []) {
      if (found.length === 2) break
      if (!facts || node.member.probation !== null || slots(node.capacity, facts.requirements) === 0) continue
      if (parts.reservations.mayUse(facts, node.id) && parts.runtimes.canRun(facts.revision, node.member))
        found.push(node)
    }
    return found
  }

  function settle(places: readonly Place[], outcome: GrantOutcome): void {
    const nowMs = clock.monotonicMs()
    for (const row of outcome.granted) {
      const member = members.byNode(row.node)
      const job = parts.known.get(row.job)
      if (member && job) members.hold(member, heldAttempt(row, job, nowMs))
      parts.kept.granted(row.job)
    }
    // Seats are due for what was not running: where a task got another place than its seat, that stands for nobody.
    if (outcome.granted.some(({ job }) => parts.reservations.isGuaranteed(job))) wake()
    parts.spend(outcome.spent, "the task was granted to another machine")
    for (const [job, why] of outcome.short) fellShort(job, why, leftOver(job, places, outcome))
    for (const [job, why] of outcome.short) if (why === "elsewhere") avoid(job, places, outcome)
    parts.watch.changed(outcome.changed)
    if (outcome.failed.length > 0) parts.taskFailed(new Set(outcome.failed))
    if (outcome.finishing.length > 0) parts.finish(outcome.finishing)
  }

  /** All that waits of the job failed on these nodes: others are asked at once, and these again in a moment. */
  function avoid(job: number, places: readonly Place[], { granted }: GrantOutcome): void {
    const isIts = (one: Place): boolean => one.job === job
    const nodes = new Set<string>(places.filter(isIts).map(({ node }) => node))
    for (const { node } of granted.filter(isIts)) nodes.delete(node)
    avoided.avoid(job, nodes)
    wake()
  }

  function leftOver(job: number, places: readonly Place[], outcome: GrantOutcome): number {
    const isIts = (one: { job: number }): boolean => one.job === job
    return places.filter(isIts).length - outcome.granted.filter(isIts).length
  }

  /** The job got fewer tasks than there were places for it. Where it leaves the queue, others are to have those places. */
  function fellShort(job: number, why: Shortage, tasks: number): void {
    switch (why) {
      case "over":
        wake()
        return queue.remove(job)
      case "nothing_waits":
        wake()
        // Memory believed in tasks that do not wait.
        return queue.returned(job, tasks)
      case "elsewhere":
        return queue.putBack(job, tasks)
      case "budget":
        queue.block(job, tasks)
        // What held the money may have ended between the write and this line: nothing would unblock the job then.
        if (isRunning(job)) wake()
        else queue.unblock(job)
        return
      case "spent":
        wake()
        queue.block(job, tasks)
        return parts.budgetSpent(job)
      default:
        return unreachable(why)
    }
  }

  function isRunning(job: number): boolean {
    for (const { attempts } of members.all()) {
      for (const held of attempts.values()) if (held.job === job) return true
    }
    return false
  }

  function heldAttempt(row: GrantedTaskRow, job: JobFacts, nowMs: number): HeldAttempt {
    return {
      claim: row.claim,
      node: row.node,
      job: row.job,
      task: row.task,
      index: row.index,
      number: row.number,
      state: "offered",
      requirements: job.requirements,
      gpus: row.gpus,
      reserveMicro: row.reserveMicro,
      grantedAt: clock.now(),
      acceptedAt: null,
      startedAt: null,
      grantedAtMs: nowMs,
      expiresAtMs: nowMs + parts.claimLifetimeMs,
      heardAtMs: nowMs,
      runningMs: null,
      claimable: false,
      bootId: members.byNode(row.node)?.facts?.bootId ?? null,
      died: false,
      contactLostMs: null,
      extended: false,
      checkpointedAtMs: null,
      progress: null,
      outputTail: null,
      feedbackAt: null,
    }
  }

  /** Sends grants to their nodes, many to a frame. What cannot be sent stays offered: the next hello takes it back. */
  async function send(granted: readonly GrantedTaskRow[]): Promise<void> {
    for (const [node, rows] of Map.groupBy(granted, ({ node }) => node)) {
      const member = members.byNode(node)
      if (!member) continue
      try {
        await sendTo(member, rows)
      } catch (error) {
        log.error("a grant could not be described: its node says hello again", { node, error: errorText(error) })
        member.session?.close("a grant could not be sent")
      }
    }
  }

  async function sendTo(member: Member, rows: readonly GrantedTaskRow[]): Promise<void> {
    const specs = new Map<string, { spec: TaskSpec; bytes: number }>()
    const unsent: GrantedTaskRow[] = []
    const unresolved: { claim: ClaimNumber; problem: string }[] = []
    const resuming = await parts.resuming(rows)
    const inputs = await parts.inputs.granted(rows)
    let frame = newFrame()
    for (const row of rows) {
      const job = parts.known.get(row.job)
      if (!job || !members.attempt(row.claim)) continue
      const key = `${row.job}/${row.budgetMs ?? ""}`
      let known = specs.get(key)
      if (!known) {
        const spec = limitedBy(await parts.runtimes.spec(job, member), row)
        known = { spec, bytes: jsonBytes(spec) }
        specs.set(key, known)
      }
      if (known.bytes > LARGEST_SPEC_BYTES) {
        unsent.push(row)
        continue
      }
      const given = inputs.get(row.claim)
      if (given && given.unresolved !== null) {
        unresolved.push({ claim: row.claim, problem: given.unresolved })
        continue
      }
      const planned = (await parts.plans.of(job.seq)).payloadText(row.index)
      const payload = given?.values == null ? planned : withSharedValues(planned, given.values)
      if (frame.tasks.length > 0 && !frame.hasRoomFor(known, payload, given)) {
        flush(member, frame)
        frame = newFrame()
      }
      frame.add(known, row, payload, resuming.has(row.task), given)
    }
    flush(member, frame)
    if (unsent.length > 0) await refuse(unsent)
    if (unresolved.length > 0) await parts.unresolved(member, unresolved)
  }

  /** These could never be sent: a frame that is too long resets the stream, and the next hello would bring it again. */
  async function refuse(rows: readonly GrantedTaskRow[]): Promise<void> {
    await parts.takeBack(rows.map(({ claim }) => claim))
    for (const job of new Set(rows.map(({ job }) => job))) {
      parts.cannotRun(job, `its command and environment take more than ${LARGEST_SPEC_BYTES} bytes`)
    }
  }

  function flush(member: Member, { specs, tasks }: GrantFrame): void {
    if (tasks.length === 0) return
    member.session?.send({ type: "grant", expires_in_ms: parts.claimLifetimeMs, specs, tasks })
  }

  return {
    wake,
    reserve: (wanted) => parts.reservations.admit(wanted, freeNodes(), granting),
    stop() {
      stopped = true
      lookAgain?.cancel()
    },
    async [Symbol.asyncDispose]() {
      stopped = true
      await running
    },
  }
}

type PlaceableMember = PlaceableNode & { member: Member; attempts: ReadonlyMap<number, HeldAttempt> }
const memberOf = (node: PlaceableNode): Member => (node as PlaceableMember).member

/** With less than its reserve left, a task gets the time that buys (rulings, Holds). */
function limitedBy(spec: TaskSpec, row: GrantedTaskRow): TaskSpec {
  return row.budgetMs === null ? spec : { ...spec, budget_ms: Math.min(spec.timeout_ms, row.budgetMs) }
}

interface GrantFrame {
  readonly specs: TaskSpec[]
  readonly tasks: GrantedTask[]
  hasRoomFor(spec: { spec: TaskSpec; bytes: number }, payload: string, inputs?: GrantedInputs): boolean
  add(
    spec: { spec: TaskSpec; bytes: number },
    row: GrantedTaskRow,
    payload: string,
    resumes: boolean,
    inputs?: GrantedInputs,
  ): void
}

/** Grants are cut to fit a frame; tasks of one job share one description in it. */
function newFrame(): GrantFrame {
  const specs: TaskSpec[] = []
  const tasks: GrantedTask[] = []
  let bytes = 0
  const weight = (
    { spec, bytes }: { spec: TaskSpec; bytes: number },
    payload: string,
    inputs?: GrantedInputs,
  ): number =>
    (specs.includes(spec) ? 0 : bytes) +
    (isInline(payload) ? jsonBytes(payload) : 0) +
    (inputs ? jsonBytes(inputs.fields) : 0) +
    TASK_BYTES
  return {
    specs,
    tasks,
    hasRoomFor: (spec, payload, inputs) =>
      tasks.length < BATCH_ITEMS && bytes + weight(spec, payload, inputs) <= BATCH_BYTES,
    add(spec, row, payload, resumes, inputs) {
      bytes += weight(spec, payload, inputs)
      let position = specs.indexOf(spec.spec)
      if (position < 0) position = specs.push(spec.spec) - 1
      tasks.push({
        claim: row.claim,
        spec: position,
        index: row.index,
        attempt: row.number,
        payload: isInline(payload)
          ? { text: payload }
          : { digest: sha256Hex(payload), size: Buffer.byteLength(payload) },
        gpus: [...row.gpus],
        ...(resumes && { resumes }),
        ...inputs?.fields,
      })
    },
  }
}

const isInline = (payload: string): boolean => Buffer.byteLength(payload) <= LARGEST_INLINE_BYTES
const jsonBytes = (value: unknown): number => Buffer.byteLength(JSON.stringify(value))
/** With a payload of 64 KiB, which JSON may double, and 16 KiB of declared uploads, it still fits into a frame. */
const LARGEST_SPEC_BYTES = 96 * 1024
/** What a granted task weighs in a frame beside its payload. */
const TASK_BYTES = 250
const RETRY_MS = 250
const LOOK_AGAIN_MS = 2_000
