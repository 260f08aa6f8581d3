import { createHeap, type Heap } from "../../protocol/base/heap.ts"
import type { AccountId } from "../../protocol/domain/ids.ts"
import type { Priority } from "../../protocol/domain/statuses.ts"

/**
 * Who is next (architecture §5.4, rulings "Order"): fair share between accounts, inside an account priority with ageing,
 * then fair share between its jobs. Pure memory and a hint: a grant looks at the rows again.
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
   * Takes one task of the next job whose kind of work `fits` somewhere, and charges the job and its account their virtual
   * time. Null when nothing that waits fits.
   */
  take(nowMs: number, fits: (kind: string) => boolean): ReadyJob | null
  /** Who would be taken, and takes nothing. */
  first(nowMs: number, fits: (kind: string) => boolean): ReadyJob | null
  /** The first of each account, of the kinds that could run. */
  firsts(nowMs: number, couldRun: (kind: string) => boolean): ReadyJob[]
  /** Would a waiting task of `seq` come before those of `other` if `tasks` of that one were put back? */
  precedes(seq: number, other: number, tasks: number, nowMs: number): boolean
  /** Puts back a task that was taken and not granted, and its virtual time with it. */
  putBack(seq: number, tasks: number): void
  /** Nothing more of the job can start before `unblock`: its hold covers no further task. `tasks` are put back. */
  block(seq: number, tasks: number): void
  unblock(seq: number): void
  isBlocked(seq: number): boolean
  /** The seq of any job of the kind that waits. */
  sample(kind: string): number | null
  /** Corrects the virtual time by what a task really cost: `over` is reserve − charge. */
  correct(seq: number, over: number): void
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
  /** What one task may cost at most, in micro-dollars: the unit of fair share. At least 1. */
  cost: number
}

interface Entry extends ReadyJob {
  virtual: number
  /** To be taken off `virtual` when the job surfaces: inside a heap an order must not change. */
  refund: number
  rank: number
  /** Stands in its account's `least`. */
  listed: boolean
  /** Stands in its kind's heap. */
  queued: boolean
  /** Tasks set aside until money is free again. */
  blocked: number
}

interface Best {
  account: AccountShare
  heap: Heap<Entry>
  entry: Entry
}

interface AccountShare {
  virtual: number
  kinds: Map<string, Heap<Entry>>
  /** Its jobs with waiting tasks, the least virtual time first; times in it may be out of date. */
  least: Heap<{ entry: Entry; virtual: number }>
  /** Virtual time of the job that was served last: where a job starts that has none to compare with. */
  servedAt: number
  jobs: number
}

export function createReadyQueue(priorityAgeingMs: number): ReadyQueue {
  const jobs = new Map<number, Entry>()
  const accounts = new Map<AccountId, AccountShare>()
  /** Those with waiting tasks. */
  const active = new Set<AccountShare>()
  /** Virtual time of the account that was served last. */
  let servedAt = 0
  let rankedAtMs = 0

  function share(account: AccountId): AccountShare {
    let found = accounts.get(account)
    if (!found) {
      found = { virtual: 0, kinds: new Map(), least: createHeap((a, b) => a.virtual < b.virtual), servedAt: 0, jobs: 0 }
      accounts.set(account, found)
    }
    return found
  }

  /**
   * Who becomes active starts at the least active value, or where the last one was served: waiting earns no credit, and having
   * been served while others were away costs nothing.
   */
  function activate(entry: Entry): void {
    const account = share(entry.account)
    if (account.jobs === 0) {
      account.virtual = Math.max(account.virtual, leastActive() ?? servedAt)
      active.add(account)
    }
    // Inside its heap (emptied and filled again before it surfaced) its place must not change.
    if (!entry.queued) {
      entry.virtual = Math.max(entry.virtual - entry.refund, leastOf(account) ?? account.servedAt)
      entry.refund = 0
    }
    account.jobs += 1
    if (!entry.listed) account.least.push({ entry, virtual: entry.virtual })
    entry.listed = true
    enqueue(entry)
  }

  function deactivate(account: AccountShare): void {
    account.jobs -= 1
    if (account.jobs === 0) active.delete(account)
  }

  function leastActive(): number | null {
    let least: number | null = null
    for (const { virtual } of active) if (least === null || virtual < least) least = virtual
    return least
  }

  /** The least virtual time of the account's jobs with waiting tasks. */
  function leastOf({ least }: AccountShare): number | null {
    for (;;) {
      const top = least.peek()
      if (!top) return null
      const { entry } = top
      entry.listed = jobs.get(entry.seq) === entry && entry.tasks > 0
      if (entry.listed && entry.virtual <= top.virtual) return entry.virtual
      least.pop()
      if (entry.listed) least.push({ entry, virtual: entry.virtual })
    }
  }

  function enqueue(entry: Entry): void {
    if (entry.queued) return
    entry.queued = true
    const { kinds } = share(entry.account)
    let heap = kinds.get(entry.kind)
    if (!heap) {
      heap = createHeap<Entry>(comesBefore)
      kinds.set(entry.kind, heap)
    }
    heap.push(entry)
  }

  /** Ranks fall with age; heaps are made again when one may have. */
  function rankAgain(nowMs: number): void {
    if (nowMs - rankedAtMs < Math.min(priorityAgeingMs / 4, LONGEST_RANKING_MS)) return
    rankedAtMs = nowMs
    for (const account of accounts.values()) account.kinds.clear()
    for (const entry of jobs.values()) {
      entry.rank = rankOf(entry, nowMs, priorityAgeingMs)
      entry.queued = false
      settleRefund(entry)
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
      if (found && account.virtual >= found.account.virtual) continue
      const first = head(account, fits)
      if (first) found = { account, ...first }
    }
    return found
  }

  /** Jobs that were removed or have nothing left stay in their heap until they surface. */
  function dropFinished(heap: Heap<Entry>): Entry | undefined {
    for (;;) {
      const entry = heap.peek()
      const waits = entry && entry.tasks > 0 && jobs.get(entry.seq) === entry
      if (!entry || (waits && entry.refund === 0)) return entry
      heap.pop()
      entry.queued = false
      if (!waits) continue
      settleRefund(entry)
      heap.push(entry)
      entry.queued = true
    }
  }

  function settleRefund(entry: Entry): void {
    entry.virtual -= entry.refund
    entry.refund = 0
  }

  function refund(entry: Entry, amount: number): void {
    entry.refund += amount
    if (!entry.queued) settleRefund(entry)
    share(entry.account).virtual -= amount
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
      const rank = LEVELS[job.priority]
      const entry: Entry = { ...job, tasks: 0, virtual: 0, refund: 0, rank, queued: false, listed: false, blocked: 0 }
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
      if (mine.account !== its.account) return share(mine.account).virtual < share(its.account).virtual - back
      if (mine.rank !== its.rank) return mine.rank < its.rank
      return mine.virtual - mine.refund < its.virtual - its.refund - back
    },
    take(nowMs, fits) {
      const found = best(nowMs, fits)
      if (!found) return null
      const { account, heap, entry } = found
      heap.pop()
      entry.queued = false
      servedAt = account.virtual
      account.servedAt = entry.virtual
      entry.tasks -= 1
      entry.virtual += entry.cost
      account.virtual += entry.cost
      if (entry.tasks > 0) enqueue(entry)
      else deactivate(account)
      return entry
    },
    putBack(seq, tasks) {
      const entry = jobs.get(seq)
      if (!entry || tasks === 0) return
      refund(entry, entry.cost * tasks)
      setTasks(entry, entry.tasks + tasks)
    },
    block(seq, tasks) {
      const entry = jobs.get(seq)
      if (!entry) return
      refund(entry, entry.cost * tasks)
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
    correct(seq, over) {
      const entry = jobs.get(seq)
      if (entry) refund(entry, over)
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
  return (
    a.rank - b.rank < 0 || (a.rank === b.rank && (a.virtual < b.virtual || (a.virtual === b.virtual && a.seq < b.seq)))
  )
}

const LEVELS: Record<Priority, number> = { high: 0, normal: 1, low: 2 }
/** Ageing shows within a minute at the latest. */
const LONGEST_RANKING_MS = 60_000
