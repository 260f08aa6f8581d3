import { expect, test } from "vitest"
import type { Clock } from "../../protocol/base/clock.ts"
import { createTurns } from "../../protocol/mesh/turns.ts"

/** Timers that fire when the test says so. */
function manualClock(): Clock & { fire: () => void } {
  const timers = new Set<() => void>()
  return {
    now: () => 0,
    monotonicMs: () => 0,
    after(_delayMs, run) {
      timers.add(run)
      return { cancel: () => timers.delete(run) }
    },
    fire() {
      for (const run of timers) {
        timers.delete(run)
        run()
      }
    },
  }
}

/** Who was let in, in order; `leave` gives the oldest place back. */
function queueAt(places: number) {
  const clock = manualClock()
  const turns = createTurns(places, clock)
  const inside: Disposable[] = []
  const order: string[] = []
  const waits: Promise<void>[] = []
  return {
    clock,
    order,
    ask(party: string) {
      waits.push(
        turns.enter(party, 1000).then((place) => {
          order.push(place === null ? `${party} gave up` : party)
          if (place !== null) inside.push(place)
        }),
      )
    },
    async leave() {
      inside.shift()?.[Symbol.dispose]()
      await Promise.resolve()
    },
  }
}

test("parties take turns: many requests of one delay another's by one only", async () => {
  const queue = queueAt(1)
  for (let i = 0; i < 4; i++) queue.ask("greedy")
  queue.ask("modest")
  queue.ask("modest")
  for (let i = 0; i < 6; i++) await queue.leave()
  expect(queue.order).toEqual(["greedy", "greedy", "modest", "greedy", "modest", "greedy"])
})

test("no more than the given number of places is taken at once", async () => {
  const queue = queueAt(2)
  for (const party of ["a", "b", "c"]) queue.ask(party)
  await Promise.resolve()
  expect(queue.order).toEqual(["a", "b"])
  await queue.leave()
  expect(queue.order).toEqual(["a", "b", "c"])
})

test("who waits too long gets null and takes nobody's place", async () => {
  const queue = queueAt(1)
  for (const party of ["a", "b", "b"]) queue.ask(party)
  queue.clock.fire()
  await Promise.resolve()
  queue.ask("c")
  await queue.leave()
  await queue.leave()
  expect(queue.order).toEqual(["a", "b gave up", "b gave up", "c"])
})

test("a place given back twice counts once", async () => {
  const clock = manualClock()
  const turns = createTurns(1, clock)
  const place = await turns.enter("a", 1000)
  place?.[Symbol.dispose]()
  place?.[Symbol.dispose]()
  await turns.enter("b", 1000)
  const third = turns.enter("c", 1000)
  clock.fire()
  expect(await third).toBeNull()
})
