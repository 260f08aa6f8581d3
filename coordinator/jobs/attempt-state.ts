/** One run of a task on one node. The last five are final: the claim number is spent. */
export type AttemptState =
  | "offered"
  | "accepted"
  | "running"
  | "completed"
  | "failed"
  | "lost"
  | "cancelled"
  | "returned"

export type AttemptEvent =
  /** The node stored the grant. */
  | "accepted"
  /** The user's process runs. */
  | "started"
  /** The report of a finished run was stored: exit 0, or not. */
  | "succeeded"
  | "failed"
  /** Given up: the number is spent because the task is granted again, or its agent is proved to have lost it. */
  | "lost"
  /** The job ended first. */
  | "cancelled"
  /** Given back unstarted or by drain, revocation or a restart that never stored it: not a loss. */
  | "returned"

/** Null: refused. A quick task's report may arrive before anything told that it started. */
const NEXT: Record<AttemptState, Record<AttemptEvent, AttemptState | null>> = {
  offered: {
    accepted: "accepted",
    started: null,
    succeeded: null,
    failed: null,
    lost: "lost",
    cancelled: "cancelled",
    returned: "returned",
  },
  accepted: {
    accepted: null,
    started: "running",
    succeeded: "completed",
    failed: "failed",
    lost: "lost",
    cancelled: "cancelled",
    returned: "returned",
  },
  running: {
    accepted: null,
    started: null,
    succeeded: "completed",
    failed: "failed",
    lost: "lost",
    cancelled: "cancelled",
    returned: "returned",
  },
  completed: final(),
  failed: final(),
  lost: final(),
  cancelled: final(),
  returned: final(),
}

/** The state after the event, or null when the attempt cannot take it: it is over, or has not come that far. */
export function nextAttemptState(state: AttemptState, event: AttemptEvent): AttemptState | null {
  return NEXT[state][event]
}

export function isAttemptOver(state: AttemptState): boolean {
  return Object.values(NEXT[state]).every((next) => next === null)
}

function final(): Record<AttemptEvent, null> {
  return { accepted: null, started: null, succeeded: null, failed: null, lost: null, cancelled: null, returned: null }
}
