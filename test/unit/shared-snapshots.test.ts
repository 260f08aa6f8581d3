import { beforeEach, expect, test } from "vitest"
import { createJobWatch, type JobWatch } from "../../coordinator/events/watch.ts"
import { createSharedSnapshots, type SharedSnapshots } from "../../coordinator/http/shared-snapshots.ts"

const timers: (() => void)[] = []
const clock = {
  now: () => 0,
  monotonicMs: () => 0,
  after(_delayMs: number, run: () => void) {
    timers.push(run)
    return { cancel() {} }
  },
}

let watch: JobWatch
let snapshots: SharedSnapshots
let made: number
beforeEach(() => {
  timers.splice(0)
  watch = createJobWatch()
  snapshots = createSharedSnapshots(clock, watch)
  made = 0
})

/** What a stream that opens now is sent. */
async function opened(job = 1, characters = 10): Promise<string> {
  const snapshot = await snapshots.of(job, async () => {
    made += 1
    const mark = `${made}`
    return { id: made, pieces: [mark, "x".repeat(characters)] }
  })
  let text = ""
  for await (const piece of snapshot?.pieces ?? []) text += piece
  return text.replace(/x+$/, "")
}

test("streams that open one after another on a quiet job are sent one snapshot; each change makes another", async () => {
  using _watching = watch.watch(1, () => {})
  expect([await opened(), await opened(), await opened()]).toEqual(["1", "1", "1"])
  watch.changed([1])
  expect([await opened(), await opened()]).toEqual(["2", "2"])
  watch.spoke(1, 0)
  expect([await opened(), await opened()], "what a task says is part of it").toEqual(["3", "3"])
  for (const run of timers.splice(0)) run()
  expect(await opened(), "a moment is over").toBe("4")
})

test("a change while it is made is not hidden by it, and of a job that nobody watches none is kept", async () => {
  {
    using _watching = watch.watch(1, () => {})
    const snapshot = await snapshots.of(1, async () => ({ id: 1, pieces: ["old"] }))
    watch.changed([1])
    for await (const _ of snapshot?.pieces ?? []);
    expect(await opened()).toBe("1")
  }
  expect(await opened()).toBe("2")
  using _again = watch.watch(1, () => {})
  expect(await opened()).toBe("3")
})

test("large ones are not kept, nor more than there is room for", async () => {
  using _first = watch.watch(1, () => {})
  await opened(1, 300_000)
  expect(await opened(1, 300_000)).toBe("2")
  const jobs = Array.from({ length: 200 }, (_, n) => 10 + n)
  const watching = jobs.map((job) => watch.watch(job, () => {}))
  for (const job of jobs) await opened(job, 200_000)
  made = 0
  for (const job of jobs) await opened(job, 200_000)
  expect(made).toBeGreaterThan(100)
  expect(made).toBeLessThan(200)
  for (const each of watching) each[Symbol.dispose]()
})

test("a job that is gone has none", async () => {
  expect(await snapshots.of(1, async () => null)).toBeNull()
})
