import { unreachable } from "../../protocol/base/assert.ts"
import { isProgramFailure, type FailureKind, type TaskStatus } from "../../protocol/domain/statuses.ts"

/** What decides a task's way. `queued` includes a task that was granted and not started yet (rulings, Jobs). */
export interface TaskFacts {
  status: TaskStatus
  /** Attempts that failed by the program's own doing; only these use up `max_retries`. */
  failures: number
  /** Attempts lost by the platform: nodes that went away, sandboxes that would not start. */
  losses: number
  /** The last attempt was lost, and the loss counts once the task is granted again (rulings, Losses). */
  lossPending: boolean
}

export const NEW_TASK: TaskFacts = { status: "queued", failures: 0, losses: 0, lossPending: false }

export type TaskEvent =
  /** About to be granted; `quarantine` when its losses were deaths of the agent on at least three nodes. */
  | { event: "granted"; quarantine: boolean }
  | { event: "started" }
  | { event: "succeeded" }
  | { event: "failed"; kind: FailureKind; maxRetries: number }
  /** Waiting for its node is over, or the node is proved to have lost it. */
  | { event: "lost" }
  /** The attempt behind the last loss proves to have been alive. */
  | { event: "loss_disproved" }
  /** Taken back, drained or never stored by its node: no loss. */
  | { event: "returned" }
  | { event: "cancelled" }
  /** Its job, which had ended, runs it again: with fresh retries, and no losses counted. */
  | { event: "retried" }

export type TaskStep =
  | { outcome: "moved"; facts: TaskFacts; failureKind: FailureKind | null; retry: boolean }
  /** The event does not fit: the task has ended, or never came that far. Nothing changes. */
  | { outcome: "refused" }

/** The fifth loss ends the task in the write that would have granted it a sixth time (GAP-48, rulings). */
export const MOST_LOSSES = 5

const REFUSED: TaskStep = { outcome: "refused" }

/** The one table of a task: what each event makes of it. A task that has ended moves again by a retry of its job alone. */
export function nextTask(facts: TaskFacts, event: TaskEvent): TaskStep {
  if (facts.status !== "queued" && facts.status !== "running") {
    return event.event === "retried" ? moved(NEW_TASK) : REFUSED
  }
  switch (event.event) {
    case "granted":
      return granted(facts, event.quarantine)
    case "started":
      return facts.status === "queued" ? moved({ ...facts, status: "running", lossPending: false }) : REFUSED
    case "succeeded":
      return moved({ ...facts, status: "completed", lossPending: false })
    case "failed":
      return failed(facts, event.kind, event.maxRetries)
    case "lost":
      return facts.lossPending ? REFUSED : moved({ ...facts, status: "queued", lossPending: true })
    case "loss_disproved":
      if (facts.lossPending) return moved({ ...facts, lossPending: false })
      return facts.losses > 0 ? moved({ ...facts, losses: facts.losses - 1 }) : REFUSED
    case "returned":
      return moved({ ...facts, status: "queued" })
    case "cancelled":
      return moved({ ...facts, status: "cancelled", lossPending: false }, "cancelled")
    case "retried":
      return REFUSED
    default:
      return unreachable(event)
  }
}

function granted(facts: TaskFacts, quarantine: boolean): TaskStep {
  if (facts.status !== "queued") return REFUSED
  const losses = facts.losses + (facts.lossPending ? 1 : 0)
  if (losses < MOST_LOSSES) return moved({ ...facts, losses, lossPending: false })
  return moved({ ...facts, status: "failed", losses, lossPending: false }, quarantine ? "quarantined" : "node_lost")
}

function failed(facts: TaskFacts, kind: FailureKind, maxRetries: number): TaskStep {
  const last = { ...facts, lossPending: false }
  // The sandbox, not the program: tried elsewhere like a loss, and capped like one.
  if (kind === "sandbox_error") {
    const losses = facts.losses + 1
    return losses < MOST_LOSSES ? again({ ...last, losses }) : moved({ ...last, losses, status: "failed" }, kind)
  }
  if (!isProgramFailure(kind)) return moved({ ...last, status: "failed" }, kind)
  const failures = facts.failures + 1
  return failures <= maxRetries ? again({ ...last, failures }) : moved({ ...last, failures, status: "failed" }, kind)
}

function moved(facts: TaskFacts, failureKind: FailureKind | null = null): TaskStep {
  return { outcome: "moved", facts, failureKind, retry: false }
}

function again(facts: TaskFacts): TaskStep {
  return { outcome: "moved", facts: { ...facts, status: "queued" }, failureKind: null, retry: true }
}
