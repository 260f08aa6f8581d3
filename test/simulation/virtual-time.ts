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
  runUntil(done: () => boolean, untilMs: number): Promise<boolean> {
    return new Promise((resolve) => {
      whileQuiet(() => {
        if (done()) return resolve(true)
        const next = this.#nextUntil(untilMs)
        if (next === null) {
          this.nowMs = Math.max(this.nowMs, untilMs)
          return resolve(done())
        }
        this.#happen(next)
        return GO_ON
      })
    })
  }

  #nextUntil(untilMs: number): Event | null {
    for (;;) {
      const next = this.#heap[0]
      if (next === undefined || next.atMs > untilMs) return null
      this.#pop()
      if (next.run !== null) return next
    }
  }

  #happen({ atMs, run }: Event): void {
    this.nowMs = atMs
    this.events += 1
    try {
      run?.()
    } catch (error) {
      this.#uncaught(error)
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

const GO_ON = "go on"

/**
 * Calls `step` for as long as it says `GO_ON`, each time when nothing can go on without it: promises, ticks, immediates and file
 * requests are spent. Immediates that are set together run in one turn of the loop, each with its promises and ticks behind it:
 * where steps come alone, many are taken in a turn.
 */
function whileQuiet(step: () => typeof GO_ON | void): void {
  let ours = 0
  let together = 1
  let isOver = false
  const set = (count: number): void => {
    for (ours = count; count > 0; count--) setImmediate(turn)
  }
  const turn = (): void => {
    ours -= 1
    if (isOver) return
    if (isBusy(ours)) {
      together = 1
      // What others have set comes first.
      if (ours === 0) set(1)
      return
    }
    if (step() !== GO_ON) isOver = true
    else if (ours === 0) {
      together = Math.min(2 * together, MOST_TOGETHER)
      set(together)
    }
  }
  set(1)
}

const MOST_TOGETHER = 16

/** Called in an immediate: promises and ticks have had their turn; whoever set another immediate is not done. */
function isBusy(ours: number): boolean {
  let immediates = 0
  for (const resource of process.getActiveResourcesInfo()) {
    if (resource === "Immediate") immediates += 1
    else if (resource.startsWith("FSReq")) return true
  }
  return immediates > ours
}
