import { createHeap, type Heap } from "../../protocol/base/heap.ts"
import type { AccountId } from "../../protocol/domain/ids.ts"
import type { Priority } from "../../protocol/domain/statuses.ts"

/**
 * Who is next (architecture §5.4, rulings "Order"): fair share between accounts, inside an account priority with ageing,
 * then fair share between its jobs; what a share is, and what it promises, stands in `fairness.ts`. Capacity that is reserved
 * comes before all of it (`reservations.ts`). Pure memory and a hint: a grant looks at the rows again.
 */
export interface ReadyQueue {
  /** A job became grantable. A job that is known already only gets its number of tasks set. */
  put(job: ReadyJob): void
  /** More tasks of a known job wait, or fewer (negative). Unknown jobs are fine: they are over. */
  add(seq: number, tasks: number): void
  /** The job is over. Unknown jobs are fine. */
  remove(seq: number): void
  /** Tasks waiting, as far as memory knows; 0 for unknown jobs. */
  waiting(seq: number): number
  /**
   * Takes one task of the next job whose kind of work `fits` somewhere: its job and its account have one more in use. Null
   * when nothing that waits fits.
   */
  take(nowMs: number, fits: (kind: string) => boolean): ReadyJob | null
  /** Who would be taken, and takes nothing. */
  first(nowMs: number, fits: (kind: string) => boolean): ReadyJob | null
  /** The first of each account, of the kinds that could run. */
  firsts(nowMs: number, couldRun: (kind: string) => boolean): ReadyJob[]
  /** Would a waiting task of `seq` come before those of `other` if `tasks` of that one were put back? */
  precedes(seq: number, other: number, tasks: number, nowMs: number): boolean
  /** Puts back tasks that were taken and not granted: they are in use no more, and wait. */
  putBack(seq: number, tasks: number): void
  /** Nothing more of the job can start before `unblock`: its hold covers no further task. `tasks` are put back. */
  block(seq: number, tasks: number): void
  unblock(seq: number): void
  isBlocked(seq: number): boolean
  /** The seq of any job of the kind that waits. */
  sample(kind: string): number | null
  /** A task of the job was with a node before this start. */
  runs(seq: number): void
  /** These were taken, and are in use no more: they used nothing. Whether they wait again is told by `add`. */
  returned(seq: number, tasks: number): void
  /** A task that was taken has ended: what it has used, in the unit of `cost`, stands in place of what was set down for it. */
  ended(seq: number, used: number): void
  /** Kinds of work that wait, each with the number of tasks: what offers announce. */
  demand(): Map<string, { sample: ReadyJob; tasks: number }>
  /** A job of the account waits and would run before `seq`: why that one is held back. */
  isFirst(seq: number, nowMs: number): boolean
}

export interface ReadyJob {
  seq: number
  account: AccountId
  priority: Priority
  /** Work of the same kind fits the same nodes: requirements and placement in one string. */
  kind: string
  /** Wall time at which it became ready: ageing counts from here. */
  readySince: number
  tasks: number
  /** What one task counts while it runs (`fairness.ts`), in micro-dollars: the unit of fair share. At least 1. */
  cost: number
}

interface Entry extends ReadyJob {
  /** What its tasks that ended have used. */
  used: number
  /** Its tasks that were taken and have neither ended nor come back. */
  taken: number
  rank: number
  /** Where it stands in its kind's heap; −1 outside. */
  at: number
  /** Tasks set aside until money is free again. */
  blocked: number
}

interface Best {
  account: AccountShare
  heap: Heap<Entry>
  entry: Entry
}

interface AccountShare {
  /** What its tasks that ended have used. */
  used: number
  /** Costs of its tasks that were taken and have neither ended nor come back. */
  inUse: number
  kinds: Map<string, Heap<Entry>>
  /** The most that a job of it had used when it was served: where a new job starts. */
  servedAt: number
  /** With waiting tasks. */
  jobs: number
}

export function createReadyQueue(priorityAgeingMs: number): ReadyQueue {
  const jobs = new Map<number, Entry>()
  const accounts = new Map<AccountId, AccountShare>()
  /** Those with waiting tasks. */
  const active = new Set<AccountShare>()
  /** The most that an account had used when it was served. */
  let servedAt = 0
  let rankedAtMs = 0

  function share(account: AccountId): AccountShare {
    let found = accounts.get(account)
    if (!found) {
      found = { used: 0, inUse: 0, kinds: new Map(), servedAt: 0, jobs: 0 }
      accounts.set(account, found)
    }
    return found
  }

  /**
   * Who becomes active starts where the others are: waiting earns no credit, and having been served while others were away
   * costs nothing. What it has in use counts from the first moment.
   */
  function activate(entry: Entry): void {
    const account = share(entry.account)
    if (account.jobs === 0) {
      account.used = Math.max(account.used, servedAt, leastUsed(active))
      active.add(account)
    }
    entry.used = Math.max(entry.used, account.servedAt, leastUsed(heads(account)))
    account.jobs += 1
    if (entry.at >= 0) moved(entry)
    else enqueue(entry)
  }

  function* heads(account: AccountShare): Generator<Entry> {
    for (const heap of account.kinds.values()) {
      const entry = dropFinished(heap)
      if (entry) yield entry
    }
  }

  function deactivate(account: AccountShare): void {
    account.jobs -= 1
    if (account.jobs === 0) active.delete(account)
  }

  function enqueue(entry: Entry): void {
    const { kinds } = share(entry.account)
    let heap = kinds.get(entry.kind)
    if (!heap) {
      heap = createHeap<Entry>(comesBefore, (one, at) => {
        one.at = at
      })
      kinds.set(entry.kind, heap)
    }
    heap.push(entry)
  }

  /** Its share changed: so does its place. */
  function moved(entry: Entry): void {
    if (entry.at >= 0) share(entry.account).kinds.get(entry.kind)?.moved(entry.at)
  }

  /** Ranks fall with age; heaps are made again when one may have. */
  function rankAgain(nowMs: number): void {
    if (nowMs - rankedAtMs < Math.min(priorityAgeingMs / 4, LONGEST_RANKING_MS)) return
    rankedAtMs = nowMs
    for (const account of accounts.values()) account.kinds.clear()
    for (const entry of jobs.values()) {
      entry.rank = rankOf(entry, nowMs, priorityAgeingMs)
      entry.at = -1
      if (entry.tasks > 0) enqueue(entry)
    }
  }

  /** The account's best job of the kinds that fit. */
  function head(account: AccountShare, fits: (kind: string) => boolean): Omit<Best, "account"> | null {
    let best: Omit<Best, "account"> | null = null
    for (const [kind, heap] of account.kinds) {
      const entry = dropFinished(heap)
      if (!entry) {
        account.kinds.delete(kind)
        continue
      }
      if (fits(kind) && (!best || comesBefore(entry, best.entry))) best = { heap, entry }
    }
    return best
  }

  /** The best job of the account that comes first among those with one that fits. */
  function best(nowMs: number, fits: (kind: string) => boolean): Best | null {
    rankAgain(nowMs)
    let found: Best | null = null
    for (const account of active) {
      if (found && shareOfAccount(account) >= shareOfAccount(found.account)) continue
      const first = head(account, fits)
      if (first) found = { account, ...first }
    }
    return found
  }

  /** Jobs that were removed or have nothing left stay in their heap until they surface. */
  function dropFinished(heap: Heap<Entry>): Entry | undefined {
    for (;;) {
      const entry = heap.peek()
      if (!entry || (entry.tasks > 0 && jobs.get(entry.seq) === entry)) return entry
      heap.pop()
    }
  }

  /** These were taken and are not any more: they ended, or came back. More than were taken are none. */
  function release(entry: Entry, tasks: number): void {
    const released = Math.min(tasks, entry.taken)
    entry.taken -= released
    share(entry.account).inUse -= released * entry.cost
    moved(entry)
  }

  function setTasks(entry: Entry, tasks: number): void {
    const wasEmpty = entry.tasks === 0
    entry.tasks = tasks
    if (wasEmpty && tasks > 0) activate(entry)
    else if (!wasEmpty && tasks === 0) deactivate(share(entry.account))
  }

  return {
    put(job) {
      const known = jobs.get(job.seq)
      if (known) {
        known.blocked = 0
        return setTasks(known, job.tasks)
      }
      const entry: Entry = { ...job, tasks: 0, used: 0, taken: 0, rank: LEVELS[job.priority], at: -1, blocked: 0 }
      jobs.set(job.seq, entry)
      setTasks(entry, job.tasks)
    },
    add(seq, tasks) {
      const entry = jobs.get(seq)
      if (entry) setTasks(entry, Math.max(0, entry.tasks + tasks))
    },
    remove(seq) {
      const entry = jobs.get(seq)
      if (!entry) return
      release(entry, entry.taken)
      jobs.delete(seq)
      if (entry.tasks > 0) deactivate(share(entry.account))
    },
    waiting: (seq) => jobs.get(seq)?.tasks ?? 0,
    first: (nowMs, fits) => best(nowMs, fits)?.entry ?? null,
    firsts(nowMs, couldRun) {
      rankAgain(nowMs)
      return [...active].flatMap((account) => head(account, couldRun)?.entry ?? [])
    },
    precedes(seq, other, tasks, nowMs) {
      rankAgain(nowMs)
      const mine = jobs.get(seq)
      const its = jobs.get(other)
      if (!mine || !its || mine === its) return false
      const back = its.cost * tasks
      if (mine.account !== its.account) {
        return shareOfAccount(share(mine.account)) < shareOfAccount(share(its.account)) - back
      }
      if (mine.rank !== its.rank) return mine.rank < its.rank
      return shareOf(mine) < shareOf(its) - back
    },
    take(nowMs, fits) {
      const found = best(nowMs, fits)
      if (!found) return null
      const { account, heap, entry } = found
      // What it did not use while it had no work that fitted is no credit either.
      account.used = Math.max(account.used, servedAt - entry.cost)
      servedAt = Math.max(servedAt, account.used)
      entry.used = Math.max(entry.used, account.servedAt - entry.cost)
      account.servedAt = Math.max(account.servedAt, entry.used)
      entry.tasks -= 1
      entry.taken += 1
      account.inUse += entry.cost
      if (entry.tasks > 0) heap.moved(entry.at)
      else {
        heap.pop()
        deactivate(account)
      }
      return entry
    },
    putBack(seq, tasks) {
      const entry = jobs.get(seq)
      if (!entry || tasks === 0) return
      release(entry, tasks)
      setTasks(entry, entry.tasks + tasks)
    },
    block(seq, tasks) {
      const entry = jobs.get(seq)
      if (!entry) return
      release(entry, tasks)
      entry.blocked += tasks + entry.tasks
      setTasks(entry, 0)
    },
    isBlocked: (seq) => (jobs.get(seq)?.blocked ?? 0) > 0,
    unblock(seq) {
      const entry = jobs.get(seq)
      if (!entry || entry.blocked === 0) return
      const tasks = entry.blocked
      entry.blocked = 0
      setTasks(entry, entry.tasks + tasks)
    },
    sample(kind) {
      for (const { kinds } of active) {
        const heap = kinds.get(kind)
        const entry = heap && dropFinished(heap)
        if (entry) return entry.seq
      }
      return null
    },
    runs(seq) {
      const entry = jobs.get(seq)
      if (!entry) return
      entry.taken += 1
      share(entry.account).inUse += entry.cost
      moved(entry)
    },
    returned(seq, tasks) {
      const entry = jobs.get(seq)
      if (entry) release(entry, tasks)
    },
    ended(seq, used) {
      const entry = jobs.get(seq)
      if (!entry) return
      const account = share(entry.account)
      const counted = Math.max(1, used)
      entry.used += counted
      account.used += counted
      // With nobody waiting who could be compared with, the next one starts from here.
      if (account.jobs === 0) account.servedAt = Math.max(account.servedAt, entry.used)
      if (active.size === 0) servedAt = Math.max(servedAt, account.used)
      release(entry, 1)
    },
    demand() {
      const kinds = new Map<string, { sample: ReadyJob; tasks: number }>()
      for (const entry of jobs.values()) {
        if (entry.tasks === 0) continue
        const kind = kinds.get(entry.kind)
        if (kind) kind.tasks += entry.tasks
        else kinds.set(entry.kind, { sample: entry, tasks: entry.tasks })
      }
      return kinds
    },
    isFirst(seq, nowMs) {
      const entry = jobs.get(seq)
      if (!entry) return true
      rankAgain(nowMs)
      for (const other of jobs.values()) {
        if (other.account === entry.account && other.tasks > 0 && other.rank < entry.rank) return false
      }
      return true
    },
  }
}

/** 0 is first. A waiting job rises one level per ageing interval (rulings, Order). */
export function rankOf(
  job: Pick<ReadyJob, "priority" | "readySince">,
  nowMs: number,
  priorityAgeingMs: number,
): number {
  const risen = Math.floor(Math.max(0, nowMs - job.readySince) / priorityAgeingMs)
  return Math.max(0, LEVELS[job.priority] - risen)
}

function comesBefore(a: Entry, b: Entry): boolean {
  if (a.rank !== b.rank) return a.rank < b.rank
  const difference = shareOf(a) - shareOf(b)
  return difference < 0 || (difference === 0 && a.seq < b.seq)
}

/** What a job has used and what it has in use now (`fairness.ts`). */
const shareOf = ({ used, taken, cost }: Entry): number => used + taken * cost
const shareOfAccount = ({ used, inUse }: AccountShare): number => used + inUse

function leastUsed(all: Iterable<{ used: number }>): number {
  let least = Number.POSITIVE_INFINITY
  for (const { used } of all) if (used < least) least = used
  return least === Number.POSITIVE_INFINITY ? 0 : least
}

const LEVELS: Record<Priority, number> = { high: 0, normal: 1, low: 2 }
/** Ageing shows within a minute at the latest. */
const LONGEST_RANKING_MS = 60_000
