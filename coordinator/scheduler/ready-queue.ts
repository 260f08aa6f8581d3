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
  rank: number
  /** Stands in its kind's heap. */
  queued: boolean
  /** Tasks set aside until money is free again. */
  blocked: number
}

interface AccountShare {
  virtual: number
  kinds: Map<string, Heap<Entry>>
  jobs: number
}

export function createReadyQueue(priorityAgeingMs: number): ReadyQueue {
  const jobs = new Map<number, Entry>()
  const accounts = new Map<AccountId, AccountShare>()
  let rankedAtMs = 0

  function share(account: AccountId): AccountShare {
    let found = accounts.get(account)
    if (!found) {
      found = { virtual: 0, kinds: new Map(), jobs: 0 }
      accounts.set(account, found)
    }
    return found
  }

  /** Who becomes active starts at the least active value: waiting earns no credit. */
  function activate(entry: Entry): void {
    const account = share(entry.account)
    if (account.jobs === 0)
      account.virtual = Math.max(
        account.virtual,
        leastVirtual(accounts.values(), ({ jobs }) => jobs > 0),
      )
    entry.virtual = Math.max(
      entry.virtual,
      leastVirtual(jobs.values(), (other) => other.account === entry.account && other.tasks > 0 && other !== entry),
    )
    account.jobs += 1
    enqueue(entry)
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
      if (entry.tasks > 0) enqueue(entry)
    }
  }

  /** The account's best job of the kinds that fit. */
  function head(account: AccountShare, fits: (kind: string) => boolean): { heap: Heap<Entry>; entry: Entry } | null {
    let best: { heap: Heap<Entry>; entry: Entry } | null = null
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

  /** Jobs that were removed or have nothing left stay in their heap until they surface. */
  function dropFinished(heap: Heap<Entry>): Entry | undefined {
    for (;;) {
      const entry = heap.peek()
      if (!entry || (entry.tasks > 0 && jobs.get(entry.seq) === entry)) return entry
      heap.pop()
      entry.queued = false
    }
  }

  function setTasks(entry: Entry, tasks: number): void {
    const wasEmpty = entry.tasks === 0
    entry.tasks = tasks
    if (wasEmpty && tasks > 0) activate(entry)
    else if (!wasEmpty && tasks === 0) share(entry.account).jobs -= 1
  }

  return {
    put(job) {
      const known = jobs.get(job.seq)
      if (known) return setTasks(known, job.tasks)
      const entry: Entry = { ...job, tasks: 0, virtual: 0, rank: LEVELS[job.priority], queued: false, blocked: 0 }
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
      const account = share(entry.account)
      if (entry.tasks > 0) account.jobs -= 1
    },
    waiting: (seq) => jobs.get(seq)?.tasks ?? 0,
    take(nowMs, fits) {
      rankAgain(nowMs)
      let best: { account: AccountShare; heap: Heap<Entry>; entry: Entry } | null = null
      for (const account of accounts.values()) {
        if (account.jobs === 0 || (best && account.virtual >= best.account.virtual)) continue
        const first = head(account, fits)
        if (first) best = { account, ...first }
      }
      if (!best) return null
      const { account, heap, entry } = best
      heap.pop()
      entry.queued = false
      entry.tasks -= 1
      entry.virtual += entry.cost
      account.virtual += entry.cost
      if (entry.tasks > 0) enqueue(entry)
      else account.jobs -= 1
      return entry
    },
    putBack(seq, tasks) {
      const entry = jobs.get(seq)
      if (!entry || tasks === 0) return
      entry.virtual -= entry.cost * tasks
      share(entry.account).virtual -= entry.cost * tasks
      setTasks(entry, entry.tasks + tasks)
    },
    block(seq, tasks) {
      const entry = jobs.get(seq)
      if (!entry) return
      entry.virtual -= entry.cost * tasks
      share(entry.account).virtual -= entry.cost * tasks
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
      for (const { kinds } of accounts.values()) {
        const heap = kinds.get(kind)
        const entry = heap && dropFinished(heap)
        if (entry) return entry.seq
      }
      return null
    },
    correct(seq, over) {
      const entry = jobs.get(seq)
      if (!entry) return
      // The heap keeps the order of when the job was last touched; it is put right when the job surfaces next.
      entry.virtual -= over
      share(entry.account).virtual -= over
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

function leastVirtual<T extends { virtual: number }>(all: Iterable<T>, active: (one: T) => boolean): number {
  let least = Number.POSITIVE_INFINITY
  for (const one of all) if (active(one) && one.virtual < least) least = one.virtual
  return least === Number.POSITIVE_INFINITY ? 0 : least
}

const LEVELS: Record<Priority, number> = { high: 0, normal: 1, low: 2 }
/** Ageing shows within a minute at the latest. */
const LONGEST_RANKING_MS = 60_000
