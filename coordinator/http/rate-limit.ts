import type { Clock } from "../../protocol/base/clock.ts"
import { ComputalotError } from "../../protocol/domain/errors.ts"
import { isLoopback, limitedAs, type RequestOrigin } from "./client-address.ts"

/** Counts what strangers do. Memory: a restart forgets, and then everybody has their share again. */
export interface RateLimit {
  /** Throws `too_many_requests` (429) with `Retry-After` once the share is used up; counts nothing. */
  check(origin: Pick<RequestOrigin, "address">): void
  /** Checks, and counts one. */
  count(origin: Pick<RequestOrigin, "address">): void
}

export interface RateLimitOptions {
  exemptLoopback: boolean
  /** Of all addresses together; null: no limit. */
  mostOfAll: number | null
}

/** Many addresses are cheap for whoever wants to fill a disk. */
export const MOST_OF_ALL = 1_000
/** Rulings, Feedback. */
const MOST_OF_ONE = 60
const WINDOW_MS = 10 * 60 * 1000
/** Addresses remembered; beyond that the one whose window is oldest is forgotten. */
const MOST_ADDRESSES = 10_000

interface Window {
  startedAtMs: number
  count: number
}

/** Sixty in ten minutes for each address, so many for all. A window starts with the first request that is counted in it. */
export function createRateLimit(clock: Clock, { exemptLoopback, mostOfAll }: RateLimitOptions): RateLimit {
  const windows = new Map<string, Window>()
  let ofAll: Window | undefined

  const current = (window: Window | undefined, nowMs: number): Window =>
    window && nowMs - window.startedAtMs < WINDOW_MS ? window : { startedAtMs: nowMs, count: 0 }

  function refuseAbove(window: Window, most: number, whose: string, nowMs: number): void {
    if (window.count >= most) throw tooMany(whose, most, window.startedAtMs + WINDOW_MS - nowMs)
  }

  function shares(address: string): { own: Window | null; all: Window | null } {
    const nowMs = clock.monotonicMs()
    const own = exemptLoopback && isLoopback(address) ? null : current(windows.get(limitedAs(address)), nowMs)
    const all = mostOfAll === null ? null : current(ofAll, nowMs)
    if (own) refuseAbove(own, MOST_OF_ONE, "from one address", nowMs)
    if (all && mostOfAll !== null) refuseAbove(all, mostOfAll, "from everybody together", nowMs)
    return { own, all }
  }

  function remember(name: string, window: Window): void {
    // A new window is put last, so that the oldest stand first.
    if (windows.get(name) !== window) windows.delete(name)
    windows.set(name, window)
    for (const [oldest] of windows) {
      if (windows.size <= MOST_ADDRESSES) break
      windows.delete(oldest)
    }
  }

  return {
    check: ({ address }) => void shares(address),
    count({ address }) {
      const { own, all } = shares(address)
      if (own) {
        own.count++
        remember(limitedAs(address), own)
      }
      if (all) {
        all.count++
        ofAll = all
      }
    },
  }
}

function tooMany(whose: string, most: number, waitMs: number): ComputalotError {
  const seconds = Math.max(1, Math.ceil(waitMs / 1000))
  return new ComputalotError(
    "too_many_requests",
    `more than ${most} of these requests ${whose} in ${WINDOW_MS / 60_000} minutes`,
    {
      recommendedAction: `Send it again in ${seconds} s.`,
      details: { retry_after_s: seconds },
      headers: { "retry-after": String(seconds) },
    },
  )
}
