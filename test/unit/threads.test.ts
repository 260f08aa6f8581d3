import { expect, test } from "vitest"
import { systemClock } from "../../protocol/base/clock.ts"
import { createThreads, threadSource, type Threads, type ThreadsOptions } from "../../protocol/base/threads.ts"
import type { Mood, MoodAnswer } from "../support/moody-worker.ts"

function startThreads(changes: Partial<ThreadsOptions<Mood, MoodAnswer>> = {}): Threads<Mood, MoodAnswer> {
  return createThreads<Mood, MoodAnswer>({
    source: threadSource("../support/moody-worker.ts", import.meta.url),
    resourceLimits: { maxOldGenerationSizeMb: 64 },
    clock: systemClock,
    atOnce: 2,
    waiting: 1,
    limitMs: 30_000,
    refusals: {
      tooManyWait: () => new Error("too many wait"),
      takesTooLong: () => new Error("it takes too long"),
      stopping: () => new Error("stopping"),
    },
    idleMs: 30_000,
    isReusable: (_mood, { good }) => good,
    ...changes,
  })
}

const threadOf = async (threads: Threads<Mood, MoodAnswer>, mood: Mood = "answer"): Promise<number> =>
  (await threads.run(mood)).thread

test("a thread that answered well is kept warm for the next order", async () => {
  await using threads = startThreads()
  const first = await threadOf(threads)
  expect(await threadOf(threads)).toBe(first)
  expect(await threadOf(threads)).toBe(first)
})

test("after a bad answer, a crash, its end, a limit or an abort the next order gets a fresh thread", async () => {
  await using threads = startThreads({ limitMs: 3_000 })
  let last = await threadOf(threads, "answer-badly")
  const isFresh = async (): Promise<void> => {
    const now = await threadOf(threads)
    expect(now).toBeGreaterThan(last)
    last = now
  }
  await isFresh()
  await expect(threads.run("crash")).rejects.toThrow("the thread crashes")
  await isFresh()
  await expect(threads.run("exit")).rejects.toThrow("without an answer")
  await isFresh()
  await expect(threads.run("eat-memory")).rejects.toThrow("memory")
  await isFresh()
  await expect(threads.run("hang")).rejects.toThrow("it takes too long")
  await isFresh()
  const gone = new AbortController()
  const aborted = expect(threads.run("hang", gone.signal)).rejects.toThrow("the client left")
  await new Promise((resolve) => setTimeout(resolve, 50))
  gone.abort(new Error("the client left"))
  await aborted
  await isFresh()
})

test("an idle thread that crashes is replaced, and one that nobody needs for a while ends", async () => {
  await using threads = startThreads({ idleMs: 300 })
  const first = await threadOf(threads, "crash-after-answer")
  await new Promise((resolve) => setTimeout(resolve, 150))
  const second = await threadOf(threads)
  expect(second).toBeGreaterThan(first)
  await new Promise((resolve) => setTimeout(resolve, 600))
  expect(await threadOf(threads)).toBeGreaterThan(second)
})

test("two work at once, one waits for its turn, and more are refused", async () => {
  await using threads = startThreads({ limitMs: 2_000 })
  const hanging = expect(threads.run("hang")).rejects.toThrow("it takes too long")
  const [one, two] = [threadOf(threads), threadOf(threads)]
  await expect(threads.run("answer")).rejects.toThrow("too many wait")
  expect(await one).toBe(await two)
  await hanging
  const [three, four] = await Promise.all([threadOf(threads), threadOf(threads)])
  expect(three).not.toBe(four)
})

test("stopping refuses what runs and what waits, and ends the threads", async () => {
  const threads = startThreads({ atOnce: 1 })
  const refused = [threads.run("hang"), threads.run("answer")].map((run) => expect(run).rejects.toThrow("stopping"))
  await threads[Symbol.asyncDispose]()
  await Promise.all(refused)
  await expect(threads.run("answer")).rejects.toThrow("stopping")
})
