import { present } from "../../protocol/base/assert.ts"
import type { Instant } from "../../protocol/base/clock.ts"
import { claimNumber, type ClaimNumber, type NodeId } from "../../protocol/domain/ids.ts"
import type { FailureKind } from "../../protocol/domain/statuses.ts"
import { affordableMs, type Rate } from "../billing/pricing.ts"
import { appendEvent } from "../events/event-log.ts"
import { failTask } from "../jobs/fail-waiting.ts"
import type { JobBilling } from "../jobs/job-facts.ts"
import { MOST_LOSSES, nextTask } from "../jobs/task-state.ts"
import { deathsOfTask } from "../store/attempt-contact.ts"
import { waitsForJobs } from "../store/dependencies.ts"
import { findHold } from "../store/holds.ts"
import { addToJob, jobBilling, jobCounts, markJobFinishing, type JobCounts } from "../store/jobs.ts"
import { nextClaimNumbers } from "../store/meta.ts"
import type { Tx } from "../store/store.ts"
import {
  countLoss,
  endAttempt,
  grantTask,
  indexOfTask,
  jobOfTask,
  insertAttempt,
  lastFailedOn,
  waitingTasks,
  type TaskKey,
  type WaitingTaskRow,
} from "../store/tasks.ts"

/** A free place for one task of a job, found in memory. */
export interface Place {
  job: number
  node: NodeId
  gpus: readonly string[]
  /** Another machine could run it: what failed here a moment ago is left to that one. */
  hasOther?: boolean
}

export interface GrantedTaskRow extends Place {
  claim: ClaimNumber
  task: TaskKey
  index: number
  /** 1 for the first run. */
  number: number
  reserveMicro: bigint
  /** What is left of the hold buys so much time, when it is less than the reserve: the task gets no more. */
  budgetMs: number | null
}

/**
 * `budget`: the hold covers no further task until one that runs ends. `spent`: nothing runs, and it never will again.
 * `elsewhere`: what waits failed on these nodes, and others are to try it.
 */
export type Shortage = "nothing_waits" | "budget" | "spent" | "over" | "elsewhere"

export interface GrantOutcome {
  granted: GrantedTaskRow[]
  /** Spent by this write: their tasks were granted again, or failed. */
  spent: ClaimNumber[]
  /** Jobs that got fewer tasks than places, and why. */
  short: Map<number, Shortage>
  /** All of their tasks are final now. */
  finishing: number[]
  /** A task of these failed for good: strict ones end by it. */
  failed: number[]
  /** Jobs whose rows changed. */
  changed: number[]
}

/**
 * Grants waiting tasks to places: one write, a conditional UPDATE for each task and its job, so that memory may be wrong and
 * no task is ever granted twice (architecture §4, §5.4). Places that find no task are simply left over.
 */
export async function grantTasks(tx: Tx, places: readonly Place[], at: Instant): Promise<GrantOutcome> {
  const outcome: GrantOutcome = { granted: [], spent: [], short: new Map(), finishing: [], failed: [], changed: [] }
  let next: number = await nextClaimNumbers(tx, places.length, at * 1000)
  for (const [job, its] of Map.groupBy(places, ({ job }) => job)) {
    const counts = await jobCounts(tx, job)
    if (!counts || (counts.status !== "queued" && counts.status !== "running")) {
      outcome.short.set(job, "over")
      continue
    }
    // Memory does not offer it before it is released; rows decide (G-001).
    if (await waitsForJobs(tx, job)) {
      outcome.short.set(job, "nothing_waits")
      continue
    }
    const budget = await openBudget(tx, job, counts)
    const free = [...its].reverse()
    let granted = 0
    let wereLost = 0
    let failed = 0
    let wait: Shortage = "nothing_waits"
    for (const { task, failedOn } of await tasksFor(tx, job, its, at)) {
      if (granted + failed === its.length) break
      const tooMany = task.state === "lost" ? await tooManyLosses(tx, task) : null
      const fitting = free.findLastIndex((place) => !isAvoided(place, failedOn))
      if (!tooMany && fitting < 0 && free.length > 0) {
        wait = "elsewhere"
        continue
      }
      const cover = tooMany ? null : await budget.cover(task.state === "lost")
      if (cover && "why" in cover) {
        wait = cover.why
        break
      }
      if (task.state === "lost") {
        wereLost += 1
        outcome.spent.push(await endLost(tx, task, at))
      }
      if (tooMany) {
        budget.lostEnded()
        await failTask(tx, job, task, { kind: tooMany, message: TOO_MANY[tooMany] ?? "", preflight: "" }, at)
        failed += 1
        continue
      }
      const [place] = free.splice(fitting, 1)
      if (!place || !cover) break
      const claim = claimNumber(next++)
      const number = task.attempt + 1
      const { budgetMs } = cover
      const of = { task: task.key, number, round: counts.round }
      await insertAttempt(tx, { claim, ...of, node: place.node, gpus: place.gpus, budgetMs, at })
      if (!(await grantTask(tx, task.key, number, claim))) throw new Error("a waiting task can be granted")
      granted += 1
      outcome.granted.push({
        ...place,
        claim,
        task: task.key,
        index: indexOfTask(task.key),
        number,
        reserveMicro: counts.reserveMicro,
        budgetMs,
      })
    }
    if (granted + failed < its.length) outcome.short.set(job, wait)
    if (granted + failed === 0) continue
    outcome.changed.push(job)
    await addToJob(tx, job, {
      queued: -(granted + failed - wereLost),
      running: -wereLost,
      granted,
      failed,
      attempts: granted,
      losses: wereLost,
    })
    if (failed > 0) outcome.failed.push(job)
    if (failed > 0 && (await markJobFinishing(tx, job))) outcome.finishing.push(job)
  }
  return outcome
}

/** Waiting tasks in their order, as many as places; more when some of them are to be tried elsewhere. */
async function tasksFor(
  tx: Tx,
  job: number,
  places: readonly Place[],
  at: Instant,
): Promise<{ task: WaitingTaskRow; failedOn: NodeId | null }[]> {
  const read = async (limit: number): Promise<{ task: WaitingTaskRow; failedOn: NodeId | null }[]> => {
    const found = []
    for (const task of await waitingTasks(tx, job, limit)) {
      const wasTried = task.state === "queued" && task.attempt > 0
      found.push({ task, failedOn: wasTried ? await lastFailedOn(tx, task.key, at - TRIED_ELSEWHERE_MS) : null })
    }
    return found
  }
  const tasks = await read(places.length)
  const isPassed = tasks.some(({ failedOn }) => places.some((place) => isAvoided(place, failedOn)))
  return isPassed ? await read(places.length + PASSED_AT_MOST) : tasks
}

const isAvoided = ({ node, hasOther }: Place, failedOn: NodeId | null): boolean =>
  hasOther === true && node === failedOn

/** So long a task that failed waits for another machine than the one it failed on: a node that fails all shall not get all. */
const TRIED_ELSEWHERE_MS = 15_000
/** Tasks that are looked at behind those that are passed over. */
const PASSED_AT_MOST = 32

/** Whether one more task may start. */
interface Budget {
  /** Takes the money for a task, with the time that buys when it is less than its reserve; else why not. */
  cover(wasLost: boolean): Promise<{ budgetMs: number | null } | { why: "budget" | "spent" }>
  /** A lost attempt ended and no other takes its place. */
  lostEnded(): void
}

/**
 * hold − charged − reserves of those running must cover a task's reserve. With nothing running one task may start on what
 * is left, for as long as that buys (rulings, Holds). A lost attempt still counts as running: its own reserve goes to the
 * attempt that takes its place.
 */
async function openBudget(tx: Tx, job: number, counts: JobCounts): Promise<Budget> {
  const hold = await findHold(tx, counts.hold)
  const left = hold?.status === "active" ? hold.amount - hold.charged : 0n
  const reserve = counts.reserveMicro
  let live = BigInt(counts.granted + counts.running)
  return {
    async cover(wasLost) {
      const others = wasLost ? live - 1n : live
      const isCovered = hold?.status === "active" && left >= reserve * (others + 1n)
      if (!isCovered && others > 0n) return { why: "budget" }
      const budgetMs = isCovered ? null : affordableMs(await rateOf(tx, job), left)
      if (budgetMs === 0) return { why: "spent" }
      live = others + 1n
      return { budgetMs }
    },
    lostEnded() {
      live -= 1n
    },
  }
}

async function rateOf(tx: Tx, job: number): Promise<Rate> {
  const billing = JSON.parse(present(await jobBilling(tx, job), "the billing of a job that runs")) as JobBilling
  return { numerator: BigInt(billing.rateNumerator) }
}

/** The old number is spent in the write that grants the new one, and only now the loss counts (architecture §5.5). */
async function endLost(tx: Tx, task: WaitingTaskRow, at: Instant): Promise<ClaimNumber> {
  const old = claimNumber(task.claim ?? 0)
  await endAttempt(tx, old, { state: "lost", failureKind: "node_lost", runtimeMs: null, itemDigest: null, at })
  await countLoss(tx, task.key)
  await appendEvent(tx, {
    job: jobOfTask(task.key),
    type: "task.lost",
    taskIndex: indexOfTask(task.key),
    message: "contact with the machine that ran this task was lost; the task runs again elsewhere",
    data: { attempt: task.attempt, losses: task.losses + 1 },
    at,
  })
  return old
}

/** Why the task may not run again; null while it may. A loss is a death when its agent came back without the attempt. */
async function tooManyLosses(tx: Tx, task: WaitingTaskRow): Promise<FailureKind | null> {
  if (task.losses + 1 < MOST_LOSSES) return null
  const { deaths, nodes } = await deathsOfTask(tx, task.key)
  const step = nextTask(
    { status: "queued", failures: 0, losses: task.losses, lossPending: true },
    { event: "granted", quarantine: deaths >= MOST_LOSSES && nodes >= QUARANTINE_NODES },
  )
  return step.outcome === "moved" ? step.failureKind : null
}

/** Deaths of agents on fewer machines may be their own (rulings, Losses). */
const QUARANTINE_NODES = 3
const TOO_MANY: Partial<Record<FailureKind, string>> = {
  node_lost: "the machines that ran this task were lost five times",
  quarantined: "the agents of five runs of this task died, on three machines or more: it is not given to another",
}
