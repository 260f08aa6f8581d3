import { parentPort, threadId } from "node:worker_threads"
import { present } from "../../protocol/base/assert.ts"

/** What a thread of `createThreads` may do to us, as ordered. Answers with its own number. */
export type Mood = "answer" | "answer-badly" | "crash" | "exit" | "hang" | "eat-memory" | "crash-after-answer"
export interface MoodAnswer {
  thread: number
  good: boolean
}

const port = present(parentPort, "the parent of the thread")
const eaten: number[][] = []
port.on("message", (mood: Mood) => {
  switch (mood) {
    case "crash":
      throw new Error("the thread crashes")
    case "exit":
      process.exit(3)
      break
    case "hang":
      for (;;) if (performance.now() < 0) return
    case "eat-memory":
      for (;;) eaten.push(Array.from({ length: 100_000 }, (_, n) => n))
    case "crash-after-answer":
      setTimeout(() => {
        throw new Error("the thread crashes while idle")
      }, 20)
      break
    case "answer":
    case "answer-badly":
  }
  port.postMessage({ thread: threadId, good: mood !== "answer-badly" } satisfies MoodAnswer)
})
