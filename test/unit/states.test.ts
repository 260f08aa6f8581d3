import fc from "fast-check"
import { expect, test } from "vitest"
import {
  isAttemptOver,
  nextAttemptState,
  type AttemptEvent,
  type AttemptState,
} from "../../coordinator/jobs/attempt-state.ts"
import { jobStatus, nextJobState, outcomeOf, type JobEvent, type JobState } from "../../coordinator/jobs/job-state.ts"
import {
  MOST_LOSSES,
  NEW_TASK,
  nextTask,
  type TaskEvent,
  type TaskFacts,
  type TaskStep,
} from "../../coordinator/jobs/task-state.ts"
import { FAILURE_KINDS, isProgramFailure, isTerminal } from "../../protocol/domain/statuses.ts"

// Jobs

const jobEvents: JobEvent[] = [
  "planned",
  "task_started",
  "all_tasks_ended",
  "completed",
  "partial",
  "failed",
  "cancelled",
]

function jobAfter(events: JobEvent[]): JobState {
  return events.reduce<JobState>((state, event) => nextJobState(state, event) ?? state, "planning")
}

test("L-001: a job goes planning, queued, running and ends in one of four ways", () => {
  expect(jobAfter(["planned", "task_started", "task_started", "all_tasks_ended", "completed"])).toBe("completed")
  expect(jobAfter(["planned", "all_tasks_ended", "failed"])).toBe("failed")
  expect(jobAfter(["planned", "task_started", "all_tasks_ended", "partial"])).toBe("partial")
  for (const before of [[], ["planned"], ["planned", "task_started"], ["planned", "all_tasks_ended"]] as JobEvent[][]) {
    expect(jobAfter([...before, "cancelled"])).toBe("cancelled")
  }
})

test("a job cannot end before all of its tasks have, nor start before it is planned", () => {
  expect(nextJobState("running", "completed")).toBeNull()
  expect(nextJobState("queued", "failed")).toBeNull()
  expect(nextJobState("planning", "task_started")).toBeNull()
  expect(nextJobState("planning", "all_tasks_ended")).toBeNull()
  expect(nextJobState("finishing", "task_started")).toBeNull()
})

test("L-001: whatever happens, what clients see of a job only goes forward and never leaves a terminal status", () => {
  const rank = { planning: 0, queued: 1, running: 2, completed: 3, partial: 3, failed: 3, cancelled: 3 }
  fc.assert(
    fc.property(fc.array(fc.constantFrom(...jobEvents)), (events) => {
      let state: JobState = "planning"
      for (const event of events) {
        const next: JobState = nextJobState(state, event) ?? state
        expect(rank[jobStatus(next)]).toBeGreaterThanOrEqual(rank[jobStatus(state)])
        if (isTerminal(jobStatus(state))) expect(next).toBe(state)
        state = next
      }
    }),
  )
})

const jobStates: JobState[] = [
  "planning",
  "queued",
  "running",
  "finishing",
  "completed",
  "partial",
  "failed",
  "cancelled",
]

test("rulings, Retry: only a retry leads out of a terminal status, to queued, and only out of a terminal one", () => {
  for (const state of jobStates) {
    expect(nextJobState(state, "retried")).toBe(isTerminal(jobStatus(state)) ? "queued" : null)
  }
  expect(jobAfter(["planned", "cancelled", "retried", "task_started", "all_tasks_ended", "completed"])).toBe(
    "completed",
  )
})

test("L-002, L-003, Q-006, GAP-24: how a job ends", () => {
  const outcomes: [[number, number, number], "best_effort" | "strict_complete", boolean, string][] = [
    [[3, 0, 0], "best_effort", false, "completed"],
    [[3, 0, 0], "best_effort", true, "partial"],
    [[3, 0, 0], "strict_complete", true, "partial"],
    [[2, 1, 0], "best_effort", false, "partial"],
    [[2, 0, 1], "best_effort", false, "partial"],
    [[2, 1, 0], "strict_complete", false, "failed"],
    [[2, 0, 1], "strict_complete", false, "failed"],
    [[0, 3, 0], "best_effort", false, "failed"],
    [[0, 1, 2], "best_effort", false, "failed"],
  ]
  for (const [[completed, failed, cancelled], reliability, suspect, outcome] of outcomes) {
    expect(outcomeOf({ completed, failed, cancelled }, reliability, suspect)).toBe(outcome)
  }
})

// Tasks

function factsAfter(step: TaskStep): TaskFacts {
  if (step.outcome === "refused") throw new Error("was refused")
  return step.facts
}
const take = (facts: TaskFacts, ...events: TaskEvent[]): TaskFacts =>
  events.reduce((now, event) => factsAfter(nextTask(now, event)), facts)
const granted: TaskEvent = { event: "granted", quarantine: false }
const started: TaskEvent = { event: "started" }
const lost: TaskEvent = { event: "lost" }
const exitCode = (maxRetries: number): TaskEvent => ({ event: "failed", kind: "exit_code", maxRetries })

test("J-009: a task that fails by its program's doing is tried again up to max_retries", () => {
  expect(take(NEW_TASK, granted, started, exitCode(0)).status).toBe("failed")
  const twice = take(NEW_TASK, granted, started, exitCode(2), granted, started, exitCode(2))
  expect(twice).toMatchObject({ status: "queued", failures: 2 })
  expect(take(twice, granted, started, { event: "succeeded" }).status).toBe("completed")
  expect(take(twice, granted, started, exitCode(2)).status).toBe("failed")
  expect(nextTask(twice, exitCode(3))).toMatchObject({ retry: true, failureKind: null })
  expect(nextTask(twice, exitCode(2))).toMatchObject({ retry: false, failureKind: "exit_code" })
})

test("what the platform could not provide is not tried again, and uses no retry", () => {
  for (const kind of FAILURE_KINDS.filter((name) => !isProgramFailure(name) && name !== "sandbox_error")) {
    const step = nextTask(NEW_TASK, { event: "failed", kind, maxRetries: 100 })
    expect(step).toMatchObject({ facts: { status: "failed", failures: 0 }, failureKind: kind })
  }
})

test("a sandbox that will not start is tried elsewhere like a loss, and capped like one", () => {
  let facts = NEW_TASK
  for (let i = 1; i < MOST_LOSSES; i++)
    facts = take(facts, granted, { event: "failed", kind: "sandbox_error", maxRetries: 0 })
  expect(facts).toMatchObject({ status: "queued", failures: 0, losses: 4 })
  expect(take(facts, { event: "failed", kind: "sandbox_error", maxRetries: 0 }).status).toBe("failed")
})

test("GAP-48: a lost node uses no retry; five losses end the task instead of a sixth run", () => {
  let facts = NEW_TASK
  for (let i = 0; i < MOST_LOSSES; i++) {
    facts = take(facts, granted, started, lost)
    expect(facts).toMatchObject({ status: "queued", failures: 0, losses: i, lossPending: true })
  }
  expect(nextTask(facts, granted)).toMatchObject({ facts: { status: "failed", losses: 5 }, failureKind: "node_lost" })
  expect(nextTask(facts, { event: "granted", quarantine: true })).toMatchObject({ failureKind: "quarantined" })
})

test("a loss counts when the task is granted again, and not when the old attempt delivers first", () => {
  const waiting = take(NEW_TASK, granted, started, lost)
  expect(take(waiting, { event: "succeeded" })).toMatchObject({ status: "completed", losses: 0 })
  expect(take(waiting, { event: "loss_disproved" })).toMatchObject({ losses: 0, lossPending: false })
  expect(take(waiting, granted)).toMatchObject({ losses: 1, lossPending: false })
  expect(take(waiting, granted, started, { event: "loss_disproved" })).toMatchObject({ status: "running", losses: 0 })
  expect(nextTask(NEW_TASK, { event: "loss_disproved" }).outcome).toBe("refused")
  expect(nextTask(waiting, lost).outcome).toBe("refused")
})

test("taking back, draining and returning are no losses", () => {
  expect(take(NEW_TASK, granted, started, { event: "returned" })).toEqual(NEW_TASK)
})

test("rulings, Retry: a task that ended waits again with fresh retries and losses; one that has not ended is left alone", () => {
  const ended: TaskFacts[] = [
    { status: "completed", failures: 1, losses: 4, lossPending: false },
    { status: "failed", failures: 3, losses: 5, lossPending: false },
    { status: "cancelled", failures: 0, losses: 0, lossPending: false },
  ]
  for (const facts of ended) expect(take(facts, { event: "retried" })).toEqual(NEW_TASK)
  expect(take(ended[1] ?? NEW_TASK, { event: "retried" }, granted, started, exitCode(1)).status).toBe("queued")
  for (const facts of [NEW_TASK, take(NEW_TASK, granted, started), take(NEW_TASK, granted, started, lost)]) {
    expect(nextTask(facts, { event: "retried" }).outcome).toBe("refused")
  }
})

const anyTaskEvent: fc.Arbitrary<TaskEvent> = fc.oneof(
  fc.constantFrom<TaskEvent>(
    started,
    lost,
    { event: "succeeded" },
    { event: "loss_disproved" },
    { event: "returned" },
    { event: "cancelled" },
  ),
  fc.record({ event: fc.constant("granted" as const), quarantine: fc.boolean() }),
  fc.record({
    event: fc.constant("failed" as const),
    kind: fc.constantFrom(...FAILURE_KINDS),
    maxRetries: fc.constant(2),
  }),
)

test("whatever happens, a task that ended stays ended, and its counts stay within their limits", () => {
  fc.assert(
    fc.property(fc.array(anyTaskEvent, { maxLength: 60 }), (events) => {
      let facts = NEW_TASK
      for (const event of events) {
        const step = nextTask(facts, event)
        const ended = facts.status !== "queued" && facts.status !== "running"
        if (ended) expect(step.outcome).toBe("refused")
        if (step.outcome === "refused") continue
        expect(step.facts.failures - facts.failures).toBeGreaterThanOrEqual(0)
        expect(step.retry).toBe(event.event === "failed" && step.facts.status === "queued")
        expect(step.failureKind !== null).toBe(step.facts.status === "failed" || step.facts.status === "cancelled")
        facts = step.facts
        expect(facts.failures).toBeLessThanOrEqual(3)
        expect(facts.losses).toBeGreaterThanOrEqual(0)
        expect(facts.losses).toBeLessThanOrEqual(MOST_LOSSES)
        if (facts.status === "queued" || facts.status === "running") expect(facts.losses).toBeLessThan(MOST_LOSSES)
      }
    }),
  )
})

test("what keeps failing comes to an end: no task is run for ever", () => {
  const setback = fc.constantFrom<TaskEvent>(lost, exitCode(3), {
    event: "failed",
    kind: "sandbox_error",
    maxRetries: 3,
  })
  fc.assert(
    fc.property(fc.array(setback, { minLength: 20, maxLength: 20 }), (setbacks) => {
      let facts = NEW_TASK
      for (const event of setbacks) {
        for (const step of [granted, started, event]) {
          const next = nextTask(facts, step)
          if (next.outcome === "moved") facts = next.facts
        }
      }
      expect(facts.status).toBe("failed")
    }),
  )
})

// Attempts

const attemptStates: AttemptState[] = [
  "offered",
  "accepted",
  "running",
  "completed",
  "failed",
  "lost",
  "cancelled",
  "returned",
]
const attemptEvents: AttemptEvent[] = ["accepted", "started", "succeeded", "failed", "lost", "cancelled", "returned"]

function attemptAfter(events: AttemptEvent[]): AttemptState {
  return events.reduce<AttemptState>((state, event) => nextAttemptState(state, event) ?? state, "offered")
}

test("an attempt is offered, accepted, run and reported", () => {
  expect(attemptAfter(["accepted", "started", "succeeded"])).toBe("completed")
  expect(attemptAfter(["accepted", "started", "failed"])).toBe("failed")
  expect(attemptAfter(["accepted", "succeeded"])).toBe("completed")
  expect(attemptAfter(["returned"])).toBe("returned")
})

test("an attempt that was never accepted can neither start nor report", () => {
  for (const event of ["started", "succeeded", "failed"] as const) expect(nextAttemptState("offered", event)).toBeNull()
})

test("a late report of an attempt that is over changes nothing", () => {
  for (const state of attemptStates) {
    const over = state !== "offered" && state !== "accepted" && state !== "running"
    expect(isAttemptOver(state)).toBe(over)
    if (over) for (const event of attemptEvents) expect(nextAttemptState(state, event)).toBeNull()
  }
})

test("no attempt takes the same event twice, or comes back to a state it left", () => {
  fc.assert(
    fc.property(fc.array(fc.constantFrom(...attemptEvents)), (events) => {
      const seen: AttemptState[] = ["offered"]
      for (const event of events) {
        const next = nextAttemptState(seen.at(-1) ?? "offered", event)
        if (next === null) continue
        expect(seen).not.toContain(next)
        seen.push(next)
      }
    }),
  )
})
