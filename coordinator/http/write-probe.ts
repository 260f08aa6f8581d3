import { sleep, type Clock } from "../../protocol/base/clock.ts"

/** One write a second is nothing for the disk, and soon enough for whoever watches. */
const PROBE_EVERY_MS = 1_000
/** A disk that takes longer than this stores nothing, as far as a client can tell. */
const PATIENCE_MS = 2_000

/**
 * Asks the disk itself whether changes can be stored: at most once a second, however many want to know. A write that does not
 * end in time counts as refused until it does.
 */
export function createWriteProbe(clock: Clock, write: () => Promise<unknown>): () => Promise<boolean> {
  let last: { atMs: number; stored: Promise<boolean> } | null = null
  return async () => {
    const nowMs = clock.monotonicMs()
    if (last === null || nowMs - last.atMs >= PROBE_EVERY_MS) last = { atMs: nowMs, stored: isStored(clock, write) }
    return await last.stored
  }
}

async function isStored(clock: Clock, write: () => Promise<unknown>): Promise<boolean> {
  const enough = new AbortController()
  const stored = write().then(
    () => true,
    () => false,
  )
  const late = sleep(clock, PATIENCE_MS, enough.signal).then(
    () => false,
    () => false,
  )
  const answer = await Promise.race([stored, late])
  enough.abort()
  return answer
}
