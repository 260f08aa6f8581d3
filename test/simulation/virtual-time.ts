import type { Timer } from "../../protocol/base/clock.ts"

interface Event {
  atMs: number
  lane: number
  order: number
  run: (() => void) | null
}

/**
 * Time that moves only when everything is quiet: when no promise, immediate or file request is left to go on with, the next
 * event happens. Events of one moment happen by lane (a machine), then in the order in which they were asked for.
 */
export class VirtualTime {
  nowMs = 0
  events = 0
  readonly #heap: Event[] = []
  #order = 0
  /** What an event throws is what a timer throws: nobody catches it. */
  readonly #uncaught: (error: unknown) => void

  constructor(uncaught: (error: unknown) => void) {
    this.#uncaught = uncaught
  }

  at(atMs: number, lane: number, run: () => void): Timer {
    const event: Event = { atMs: Math.max(atMs, this.nowMs), lane, order: this.#order++, run }
    this.#push(event)
    return {
      cancel: () => {
        event.run = null
      },
    }
  }

  /** Goes on until `done` says so or time is over; true when it was `done`. */
  async runUntil(done: () => boolean, untilMs: number): Promise<boolean> {
    await quiet()
    for (;;) {
      if (done()) return true
      const next = this.#heap[0]
      if (next === undefined || next.atMs > untilMs) {
        this.nowMs = Math.max(this.nowMs, untilMs)
        return done()
      }
      this.#pop()
      if (next.run === null) continue
      this.nowMs = next.atMs
      this.events += 1
      try {
        next.run()
      } catch (error) {
        this.#uncaught(error)
      }
      await quiet()
    }
  }

  #push(event: Event): void {
    const heap = this.#heap
    let at = heap.push(event) - 1
    while (at > 0) {
      const parent = (at - 1) >> 1
      const above = heap[parent]
      if (above === undefined || !isBefore(event, above)) break
      heap[at] = above
      at = parent
    }
    heap[at] = event
  }

  #pop(): void {
    const heap = this.#heap
    const last = heap.pop()
    if (last === undefined || heap.length === 0) return
    let at = 0
    for (;;) {
      let child = 2 * at + 1
      const right = heap[child + 1]
      if (right !== undefined && isBefore(right, heap[child] ?? right)) child += 1
      const below = heap[child]
      if (below === undefined || !isBefore(below, last)) break
      heap[at] = below
      at = child
    }
    heap[at] = last
  }
}

function isBefore(left: Event, right: Event): boolean {
  return (
    left.atMs < right.atMs ||
    (left.atMs === right.atMs && (left.lane < right.lane || (left.lane === right.lane && left.order < right.order)))
  )
}

/** Resolves when nothing can go on without an event: microtasks, ticks and immediates are spent. */
async function quiet(): Promise<void> {
  do await new Promise<void>((resolve) => setImmediate(resolve))
  while (isBusy())
}

/** Called in an immediate: promises and ticks have had their turn; whoever set another immediate is not done. */
function isBusy(): boolean {
  for (const resource of process.getActiveResourcesInfo()) {
    if (resource === "Immediate" || resource.startsWith("FSReq")) return true
  }
  return false
}
