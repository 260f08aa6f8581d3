import type { Clock } from "../base/clock.ts"

/** A fixed number of places that waiting parties take in turn, so that one with many requests delays the others by one only. */
export interface Turns {
  /** A place for `party`, given back by disposing it; null when none was free within `patienceMs`. */
  enter(party: string, patienceMs: number): Promise<Disposable | null>
}

export function createTurns(places: number, clock: Clock): Turns {
  let free = places
  /** Who waits, in the order of their next turn. */
  const queues = new Map<string, (() => void)[]>()

  function place(): Disposable {
    let given = false
    return {
      [Symbol.dispose]() {
        if (given) return
        given = true
        free++
        serveNext()
      },
    }
  }

  function serveNext(): void {
    const next = queues.entries().next().value
    if (next === undefined || free === 0) return
    const [party, queue] = next
    const wake = queue.shift()
    queues.delete(party)
    if (queue.length > 0) queues.set(party, queue)
    wake?.()
  }

  return {
    enter(party, patienceMs) {
      if (free > 0) {
        free--
        return Promise.resolve(place())
      }
      return new Promise((resolve) => {
        const wake = (): void => {
          timer.cancel()
          free--
          resolve(place())
        }
        const timer = clock.after(patienceMs, () => {
          const queue = queues.get(party)?.filter((waiting) => waiting !== wake) ?? []
          if (queue.length > 0) queues.set(party, queue)
          else queues.delete(party)
          resolve(null)
        })
        queues.set(party, [...(queues.get(party) ?? []), wake])
      })
    },
  }
}
