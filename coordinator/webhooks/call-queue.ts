import type { AccountId } from "../../protocol/domain/ids.ts"

/** Calls at once: in all, and so that a few slow receivers do not hold up everybody else. */
export interface QueueLimits {
  inAll: number
  ofAccount: number
  ofHost: number
}

export interface QueuedCall {
  seq: number
  account: AccountId
  /** With its port. */
  host: string
  /** On the clock that only grows. */
  dueMs: number
}

/** Which call is made next: accounts take turns, each in the order in which its calls are due. */
export interface CallQueue {
  add(call: QueuedCall): void
  /** The next call that is due and has a place, which it holds until released; undefined without one. */
  take(nowMs: number): QueuedCall | undefined
  release(call: QueuedCall): void
  /** When the first of those that are not due yet will be; null without one. */
  nextDueMs(nowMs: number): number | null
}

/** Behind as many calls to busy hosts no further one of the account is looked for. */
const LOOKED_AT = 100

export function createCallQueue(limits: QueueLimits): CallQueue {
  /** Each list sorted by the time it is due. */
  const waiting = new Map<AccountId, QueuedCall[]>()
  const ofAccount = new Map<AccountId, number>()
  const ofHost = new Map<string, number>()
  let inAll = 0

  function nextOf(account: AccountId, calls: readonly QueuedCall[], nowMs: number): number {
    if ((ofAccount.get(account) ?? 0) >= limits.ofAccount) return -1
    for (const [index, call] of calls.slice(0, LOOKED_AT).entries()) {
      if (call.dueMs > nowMs) return -1
      if ((ofHost.get(call.host) ?? 0) < limits.ofHost) return index
    }
    return -1
  }

  return {
    add(call) {
      const calls = waiting.get(call.account) ?? []
      calls.splice(firstBehind(calls, call.dueMs), 0, call)
      waiting.set(call.account, calls)
    },
    take(nowMs) {
      if (inAll >= limits.inAll) return undefined
      for (const [account, calls] of waiting) {
        const index = nextOf(account, calls, nowMs)
        const [call] = index < 0 ? [] : calls.splice(index, 1)
        if (!call) continue
        // To the end: the next turn is another account's.
        waiting.delete(account)
        if (calls.length > 0) waiting.set(account, calls)
        count(ofAccount, account, 1)
        count(ofHost, call.host, 1)
        inAll += 1
        return call
      }
      return undefined
    },
    release({ account, host }) {
      count(ofAccount, account, -1)
      count(ofHost, host, -1)
      inAll -= 1
    },
    nextDueMs(nowMs) {
      // What is due already waits for a place, and a place that becomes free asks again.
      const later = [...waiting.values()].flatMap((calls) => calls[firstBehind(calls, nowMs)]?.dueMs ?? [])
      return later.length === 0 ? null : Math.min(...later)
    },
  }
}

/** The index of the first call that is due after `ms`; their number without one. */
function firstBehind(calls: readonly QueuedCall[], ms: number): number {
  let from = 0
  let upto = calls.length
  while (from < upto) {
    const middle = (from + upto) >> 1
    if ((calls[middle]?.dueMs ?? 0) > ms) upto = middle
    else from = middle + 1
  }
  return from
}

function count<Key>(counts: Map<Key, number>, key: Key, by: number): void {
  const now = (counts.get(key) ?? 0) + by
  if (now === 0) counts.delete(key)
  else counts.set(key, now)
}
