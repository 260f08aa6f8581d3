import type { ClaimNumber } from "../../protocol/domain/ids.ts"
import type { HeldAttempt, HeldGrant, StoredEnd } from "../outbox/outbox.ts"

/**
 * Runs attempts. `run-attempt.ts` is the real one; the queue benchmark and simulations inject theirs. The claim loop above
 * it decides what may start, and stores what it returns.
 */
export interface AttemptRunner {
  /** The folder the attempt will use. Pure: stored before anything is started. */
  attemptDir(claim: ClaimNumber): string
  /** Prepares what is missing, then runs the program. Never throws: every failure is an end. */
  start(grant: HeldGrant, watch: AttemptWatch): RunningWork
  /** Takes over an attempt that an earlier agent started; null when its processes cannot be proved to live or have left an end. */
  adopt(attempt: HeldAttempt, watch: AttemptWatch): Promise<RunningWork | null>
  /** Removes the attempt's folder. Missing folders are fine. */
  discard(claim: ClaimNumber): Promise<void>
  /** Ends and removes what a killed agent left behind, except these attempts. Called once, before anything starts. */
  sweep(keep: readonly ClaimNumber[]): Promise<void>
}

export interface AttemptWatch {
  /** The user's process runs. */
  started(): void
  /** A progress line (its JSON text) or new output came; null for what did not change. */
  progressed(news: { progress: string | null; outputTail: string | null }): void
  /** The program has ended: what follows is not its run time. */
  exited(): void
}

export interface RunningWork {
  /** How it ended. Never rejects. */
  readonly done: Promise<AttemptEnd>
  /** Ends the attempt: `done` resolves soon after. A second call does nothing. */
  stop(reason: "cancelled" | "deadline"): void
  /** The claim lives until then (wall clock, ms): without an agent the supervisor ends the attempt there. */
  extend(deadline: number): void
}

export type AttemptEnd =
  /** To be stored in the outbox and delivered. `stored`: it is on the disk there; nothing else of the attempt is needed. */
  | { kind: "result"; end: StoredEnd; stored?: () => void }
  /** Nothing of the user's ran, by no fault of the task: the grant goes back to the queue. */
  | { kind: "returned"; reason: string }
