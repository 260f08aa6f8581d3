import { assert } from "../../protocol/base/assert.ts"
import { every, type Clock, type Timer } from "../../protocol/base/clock.ts"
import type { Log } from "../../protocol/base/log.ts"
import { claimNumber, type ClaimNumber } from "../../protocol/domain/ids.ts"
import {
  inFrames,
  type Grant,
  type Hello,
  type ToCoordinator,
  type Welcome,
  type WireCapacity,
} from "../../protocol/wire/control.ts"
import type { HeldAttempt, HeldGrant, Outbox, StoredEnd } from "../outbox/outbox.ts"
import type { AttemptEnd, AttemptRunner, RunningWork } from "./attempt-runner.ts"

/**
 * The attempts of this node, from grant to stored result (architecture §5.4). It accepts grants into the outbox, starts
 * what fits, renews, cancels, and hands finished attempts to delivery. Contact may be lost at any moment: it works on.
 */
export interface ClaimLoop extends AsyncDisposable {
  /** Adopts what still runs of an earlier agent and ends the rest. Before the first hello. */
  recover(): Promise<void>
  /** Every claim number held, for hello. */
  heldClaims(): Hello["attempts"]
  /** What the next heartbeat renews. Never waits for anything. */
  heartbeat(): { claim: number; running_ms: number | null }[]
  welcome(welcome: Welcome): void
  grant(grant: Grant): void
  /** Renewed for a claim's life from when the answered heartbeat was sent (monotonic ms). */
  renewed(claims: readonly number[], sentAtMs: number): void
  /** These are no longer ours: stop them and drop what they made. */
  spent(claims: readonly number[]): void
  takeBack(claims: readonly number[]): void
  /** Local time jumped: start nothing before the next welcome. */
  pause(): void
  /** Stop taking grants; `now` also stops what runs and gives it back. Resolves when nothing runs any more. */
  drain(mode: "finish" | "now"): Promise<void>
  /** Attempts whose program may run or be prepared now. */
  activeCount(): number
}

export interface ClaimLoopParts {
  outbox: Outbox
  runner: AttemptRunner
  capacity: () => WireCapacity
  send: (message: ToCoordinator) => void
  /** It holds as many attempts as it may: no more is to be granted for now. */
  full: () => void
  /** Finished attempts are in the outbox: deliver them. `moreSoon`: others follow within moments. */
  deliver: (moreSoon: boolean) => void
  clock: Clock
  log: Log
  /** How long an attempt may go on after its claim's time has passed without contact. */
  keepRunningMs: number
}

interface Attempt extends HeldGrant {
  claim: ClaimNumber
  state: "accepted" | "preparing" | "running" | "done"
  /** Monotonic ms at which the claim ends unless it is renewed. */
  expiresAtMs: number
  startedAtMs: number | null
  exitedAtMs: number | null
  work: RunningWork | null
  /** Its end is not wanted any more: it was cancelled or is spent. */
  dropped: boolean
  /** It was dropped by a drain: its task goes back to the queue once its processes are gone. */
  returning: boolean
  progress: string | null
  outputTail: string | null
}

const DRAINING = "the node is draining"
const FULL = "the node holds as many attempts as it may"
/** Progress of one attempt is sent at most this often. */
const PROGRESS_INTERVAL_MS = 250
/** A start is told after so long: of an attempt that ends before, its report tells all, in one message and one write. */
const START_DELAY_MS = 100
/** Where attempts ran no longer, and others stand in line, the next end is near. */
const SHORT_RUN_MS = 250
/** The supervisor's own deadline is written again when the claim has moved on by so much. */
const EXTEND_STEP_MS = 10_000

export function createClaimLoop(parts: ClaimLoopParts): ClaimLoop {
  const { outbox, runner, clock, log } = parts
  const attempts = new Map<number, Attempt>()
  const talking = new Set<Attempt>()
  let claimLifetimeMs = 300_000
  let paused = true
  let draining = false
  let settleWaiting = false
  let ends: { attempt: Attempt; end: StoredEnd; stored: (() => void) | undefined }[] = []
  const startsToTell = new Set<ClaimNumber>()
  let startsTimer: Timer | null = null
  let idle: (() => void)[] = []

  /** Runs only while there is something to send: an idle agent rests. */
  let progressTimer: Timer | null = null
  const expiryTimer = every(clock, 1_000, stopExpired)

  // ── grants ────────────────────────────────────────────────────────────────────────────────────────────────────────

  function grant({ specs, tasks, expires_in_ms }: Grant): void {
    const grants: HeldGrant[] = tasks.map((task) => {
      const spec = specs[task.spec]
      assert(spec !== undefined, "a granted task names a spec of its frame")
      return { task, spec }
    })
    if (draining) {
      return parts.send({
        type: "give_back",
        items: tasks.map((task) => ({ claim: task.claim, reason: DRAINING })),
      })
    }
    const { held, noRoom } = outbox.acceptGrants(grants, clock.now())
    const heldNow = new Set<number>(held)
    for (const grant of grants) {
      if (!heldNow.has(grant.task.claim) || attempts.has(grant.task.claim)) continue
      attempts.set(grant.task.claim, newAttempt(grant, clock.monotonicMs() + expires_in_ms))
    }
    if (held.length > 0) parts.send({ type: "accept", claims: held })
    if (noRoom.length > 0) {
      // The coordinator grants up to the limit by its own count, in which attempts whose numbers it has spent are missing.
      parts.send({ type: "give_back", items: noRoom.map((claim) => ({ claim, reason: FULL })) })
      parts.full()
    }
    settleSoon()
  }

  function newAttempt(grant: HeldGrant, expiresAtMs: number): Attempt {
    return {
      ...grant,
      claim: claimNumber(grant.task.claim),
      state: "accepted",
      expiresAtMs,
      startedAtMs: null,
      exitedAtMs: null,
      work: null,
      dropped: false,
      returning: false,
      progress: null,
      outputTail: null,
    }
  }

  // ── starting ──────────────────────────────────────────────────────────────────────────────────────────────────────

  /** Many grants and ends of one turn lead to one look, and to one durable write of what has ended and what is started. */
  function settleSoon(): void {
    if (settleWaiting) return
    settleWaiting = true
    setImmediate(() => {
      settleWaiting = false
      settle(whatFits())
    })
  }

  function settle(starting: readonly Attempt[]): void {
    const stored = ends
    ends = []
    if (stored.length === 0 && starting.length === 0) return
    outbox.together(() => {
      outbox.storeResults(stored.map(({ end }) => end))
      outbox.markRunning(starting.map(({ claim }) => ({ claim, attemptDir: runner.attemptDir(claim) })))
    })
    for (const { attempt } of stored) attempts.delete(attempt.claim)
    for (const { stored: tell } of stored) tell?.()
    for (const attempt of starting) {
      attempt.state = "preparing"
      follow(attempt, runner.start(attempt, watch(attempt)))
    }
    if (stored.length > 0) parts.deliver(isLineWaiting() && stored.every(({ attempt }) => wasShort(attempt)))
    wakeIdle()
  }

  function isLineWaiting(): boolean {
    for (const { state } of attempts.values()) if (state === "accepted") return true
    return false
  }

  function wasShort({ startedAtMs, exitedAtMs }: Attempt): boolean {
    return startedAtMs !== null && exitedAtMs !== null && exitedAtMs - startedAtMs < SHORT_RUN_MS
  }

  function whatFits(): Attempt[] {
    if (paused) return []
    const room = freeRoom()
    const fitting: Attempt[] = []
    const nowMs = clock.monotonicMs()
    for (const attempt of attempts.values()) {
      if (attempt.state !== "accepted" || attempt.expiresAtMs <= nowMs || !takeRoom(room, attempt)) continue
      fitting.push(attempt)
      if (room.cpu < SMALLEST_CPU) break
    }
    return fitting
  }

  function freeRoom(): Room {
    const { cpu, memory_mb, storage_gb, gpus } = parts.capacity()
    const room: Room = { cpu, memoryMb: memory_mb, storageGb: storage_gb, gpus: new Set(gpus.map(({ uuid }) => uuid)) }
    for (const attempt of attempts.values()) if (isActive(attempt)) takeRoom(room, attempt)
    return room
  }

  function follow(attempt: Attempt, work: RunningWork): void {
    attempt.work = work
    work.extend(deadlineOf(attempt))
    void work.done.then((end) => ended(attempt, end))
  }

  function watch(attempt: Attempt): Parameters<AttemptRunner["start"]>[1] {
    return {
      started() {
        if (attempt.state !== "preparing") return
        attempt.state = "running"
        attempt.startedAtMs = clock.monotonicMs()
        startsToTell.add(attempt.claim)
        startsTimer ??= clock.after(START_DELAY_MS, sendStarted)
      },
      progressed({ progress, outputTail }) {
        if (progress !== null) attempt.progress = progress
        if (outputTail !== null) attempt.outputTail = outputTail
        tell(attempt)
      },
      exited() {
        attempt.exitedAtMs = clock.monotonicMs()
      },
    }
  }

  function sendStarted(): void {
    startsTimer?.cancel()
    startsTimer = null
    for (const claims of inFrames([...startsToTell])) parts.send({ type: "started", claims })
    startsToTell.clear()
  }

  function tell(attempt: Attempt): void {
    talking.add(attempt)
    progressTimer ??= clock.after(PROGRESS_INTERVAL_MS, sendProgress)
  }

  function sendProgress(): void {
    progressTimer = null
    if (talking.size === 0) return
    sendStarted()
    const items = [...talking].map(({ claim, progress, outputTail }) => ({ claim, progress, output_tail: outputTail }))
    talking.clear()
    for (const some of inFrames(items)) parts.send({ type: "progress", items: some })
  }

  // ── ends ──────────────────────────────────────────────────────────────────────────────────────────────────────────

  function ended(attempt: Attempt, end: AttemptEnd): void {
    attempt.work = null
    startsToTell.delete(attempt.claim)
    // The last progress line of a short attempt is known before its end is; output comes with the end.
    if (talking.delete(attempt) && attempt.progress !== null && !attempt.dropped) {
      parts.send({ type: "progress", items: [{ claim: attempt.claim, progress: attempt.progress, output_tail: null }] })
    }
    if (attempt.dropped) {
      attempts.delete(attempt.claim)
      outbox.forget([attempt.claim])
      void runner.discard(attempt.claim)
      // Only now that its processes are gone may it run elsewhere.
      if (attempt.returning) parts.send({ type: "give_back", items: [{ claim: attempt.claim, reason: DRAINING }] })
      log.info("attempt dropped", { claim: attempt.claim })
    } else if (end.kind === "returned") {
      attempts.delete(attempt.claim)
      outbox.forget([attempt.claim])
      parts.send({ type: "give_back", items: [{ claim: attempt.claim, reason: end.reason.slice(0, 200) }] })
      void runner.discard(attempt.claim)
      log.warn("attempt given back", { claim: attempt.claim, reason: end.reason })
    } else {
      attempt.state = "done"
      ends.push({ attempt, end: end.end, stored: end.stored })
    }
    settleSoon()
    wakeIdle()
  }

  function wakeIdle(): void {
    if (activeCount() > 0 || ends.length > 0) return
    for (const wake of idle) wake()
    idle = []
  }

  function activeCount(): number {
    let count = 0
    for (const attempt of attempts.values()) if (isActive(attempt)) count += 1
    return count
  }

  // ── time ──────────────────────────────────────────────────────────────────────────────────────────────────────────

  function renewed(claims: readonly number[], sentAtMs: number): void {
    for (const claim of claims) {
      const attempt = attempts.get(claim)
      if (!attempt) continue
      const before = attempt.expiresAtMs
      attempt.expiresAtMs = Math.max(before, sentAtMs + claimLifetimeMs)
      if (attempt.expiresAtMs - before > 0) extendWork(attempt)
    }
  }

  const extendedTo = new WeakMap<Attempt, number>()
  function extendWork(attempt: Attempt): void {
    const deadline = deadlineOf(attempt)
    if (!attempt.work || deadline - (extendedTo.get(attempt) ?? 0) < EXTEND_STEP_MS) return
    extendedTo.set(attempt, deadline)
    attempt.work.extend(deadline)
  }

  function deadlineOf(attempt: Attempt): number {
    return clock.now() + (attempt.expiresAtMs - clock.monotonicMs()) + parts.keepRunningMs
  }

  /** Claim time and keep-running window are over without contact: stop, and keep the result for when contact returns. */
  function stopExpired(): void {
    const nowMs = clock.monotonicMs()
    for (const attempt of attempts.values()) {
      if (isActive(attempt) && nowMs > attempt.expiresAtMs + parts.keepRunningMs) attempt.work?.stop("deadline")
    }
  }

  // ── endings from the coordinator ──────────────────────────────────────────────────────────────────────────────────

  function spent(claims: readonly number[]): void {
    const over: number[] = []
    for (const claim of claims) {
      const attempt = attempts.get(claim)
      if (attempt && isActive(attempt)) {
        attempt.dropped = true
        attempt.work?.stop("cancelled")
        continue
      }
      attempts.delete(claim)
      over.push(claim)
      void runner.discard(claimNumber(claim))
    }
    if (over.length > 0) outbox.forget(over)
  }

  return {
    async recover() {
      const held = outbox.held()
      const running = held.filter(({ state }) => state === "running")
      await runner.sweep(held.filter(({ state }) => state !== "accepted").map(({ claim }) => claim))
      const nowMs = clock.monotonicMs()
      for (const one of held) {
        if (one.state === "accepted") attempts.set(one.claim, newAttempt(one, nowMs + claimLifetimeMs))
      }
      await Promise.all(running.map((one) => adopt(one, nowMs)))
    },
    heldClaims() {
      const held = outbox.held()
      return held.map(({ claim, state }) => ({ claim, state }))
    },
    heartbeat() {
      const nowMs = clock.monotonicMs()
      const named: { claim: number; running_ms: number | null }[] = []
      for (const { claim, startedAtMs, exitedAtMs } of attempts.values()) {
        const runningMs = startedAtMs === null ? null : Math.round((exitedAtMs ?? nowMs) - startedAtMs)
        named.push({ claim, running_ms: runningMs })
      }
      return named
    },
    welcome({ attempts: verdicts, claim_lifetime_ms }) {
      claimLifetimeMs = claim_lifetime_ms
      paused = false
      const nowMs = clock.monotonicMs()
      const gone: number[] = []
      const running: ClaimNumber[] = []
      for (const { claim, verdict, expires_in_ms } of verdicts) {
        if (verdict !== "keep") {
          gone.push(claim)
          continue
        }
        const attempt = attempts.get(claim)
        if (!attempt) continue
        attempt.expiresAtMs = nowMs + (expires_in_ms ?? claimLifetimeMs)
        extendWork(attempt)
        if (attempt.state === "running") running.push(attempt.claim)
        if (attempt.progress !== null) tell(attempt)
      }
      if (gone.length > 0) spent(gone)
      // What started or was said while contact was lost is said now.
      for (const claims of inFrames(running)) parts.send({ type: "started", claims })
      settleSoon()
    },
    grant,
    renewed,
    spent,
    takeBack(claims) {
      const notStarted: number[] = []
      const started: number[] = []
      // What has ended waits in the outbox and is no longer among the attempts: it was started, and its result must stay.
      const held = new Map<number, HeldAttempt["state"]>(outbox.held().map(({ claim, state }) => [claim, state]))
      for (const claim of claims) {
        const state = attempts.get(claim)?.state ?? held.get(claim) ?? "accepted"
        if (state !== "accepted") started.push(claim)
        else {
          attempts.delete(claim)
          notStarted.push(claim)
        }
      }
      outbox.forget(notStarted)
      parts.send({ type: "taken_back", not_started: notStarted, started })
    },
    pause() {
      paused = true
    },
    async drain(mode) {
      draining = true
      const back: ClaimNumber[] = []
      for (const attempt of attempts.values()) {
        if (attempt.state === "accepted") back.push(attempt.claim)
        else if (mode === "now" && isActive(attempt)) {
          attempt.dropped = true
          attempt.returning = true
          attempt.work?.stop("cancelled")
        }
      }
      for (const claim of back) attempts.delete(claim)
      outbox.forget(back)
      for (const some of inFrames(back)) {
        parts.send({ type: "give_back", items: some.map((claim) => ({ claim, reason: DRAINING })) })
      }
      if (activeCount() > 0 || ends.length > 0) await new Promise<void>((wake) => idle.push(wake))
    },
    activeCount,
    async [Symbol.asyncDispose]() {
      progressTimer?.cancel()
      startsTimer?.cancel()
      expiryTimer[Symbol.dispose]()
      settle([])
      await Promise.resolve()
    },
  }

  async function adopt(held: HeldAttempt, nowMs: number): Promise<void> {
    const attempt = newAttempt(held, nowMs + claimLifetimeMs)
    attempt.state = "preparing"
    const work = await runner.adopt(held, watch(attempt))
    if (work) {
      attempts.set(attempt.claim, attempt)
      follow(attempt, work)
      log.info("attempt adopted", { claim: attempt.claim })
    } else {
      // Not listed in hello: the coordinator counts a loss and lets the task run again.
      outbox.forget([held.claim])
      await runner.discard(held.claim)
      log.warn("attempt lost with its processes", { claim: attempt.claim })
    }
  }
}

const isActive = (attempt: Attempt): boolean => attempt.state === "preparing" || attempt.state === "running"

interface Room {
  cpu: number
  memoryMb: number
  storageGb: number
  gpus: Set<string>
}

/** Takes what the attempt needs out of the room, or changes nothing and says false. */
function takeRoom(room: Room, { spec, task }: HeldGrant): boolean {
  const fits =
    spec.cpu <= room.cpu + ROUNDING &&
    spec.memory_mb <= room.memoryMb &&
    spec.storage_gb <= room.storageGb &&
    task.gpus.every((uuid) => room.gpus.has(uuid))
  if (!fits) return false
  room.cpu -= spec.cpu
  room.memoryMb -= spec.memory_mb
  room.storageGb -= spec.storage_gb
  for (const uuid of task.gpus) room.gpus.delete(uuid)
  return true
}

/** The least a task may ask for (rulings, Fields): with less free nothing fits. */
const SMALLEST_CPU = 0.1 - 1e-6
/** Sums of tenths are not exact. */
const ROUNDING = 1e-6
