import { Worker, type ResourceLimits } from "node:worker_threads"
import type { Clock, Timer } from "./clock.ts"

/**
 * Orders worked on in threads of their own, so that what is long or hostile delays nobody else. A thread has one order at a
 * time and answers it with one message; one idle thread is kept warm for a while, because starting one costs 0.1–0.3 s.
 */
export interface Threads<Order, Answer> extends AsyncDisposable {
  /**
   * The thread's answer. Rejects when the thread crashes or reaches a limit, with the signal's reason on abort, and with a
   * refusal of the options. The thread of a rejected order is ended and never used again.
   */
  run(order: Order, signal?: AbortSignal): Promise<Answer>
}

export interface ThreadsOptions<Order, Answer> {
  /** The file that each thread runs. */
  source: URL
  workerData?: unknown
  resourceLimits?: ResourceLimits
  clock: Clock
  /** Threads at work at once, and orders that may wait for one. */
  atOnce: number
  waiting: number
  /** From the moment a thread has the order. */
  limitMs: number
  refusals: Record<"tooManyWait" | "takesTooLong" | "stopping", () => Error>
  /** How long an idle thread is kept. */
  idleMs: number
  /** Whether a thread that gave this answer may get another order. */
  isReusable: (order: Order, answer: Answer) => boolean
}

export function createThreads<Order, Answer>(options: ThreadsOptions<Order, Answer>): Threads<Order, Answer> {
  const { clock, refusals } = options
  const stopping = new AbortController()
  const threads = new Set<Thread<Answer>>()
  const waiting: (() => void)[] = []
  let atWork = 0
  let idle: { thread: Thread<Answer>; end: Timer } | null = null

  async function turn(): Promise<void> {
    if (atWork < options.atOnce) atWork += 1
    else if (waiting.length < options.waiting) await new Promise<void>((resolve) => waiting.push(resolve))
    else throw refusals.tooManyWait()
  }

  /** Whoever waits inherits the place. */
  function giveTurn(): void {
    const next = waiting.shift()
    if (next) next()
    else atWork -= 1
  }

  function start(): Thread<Answer> {
    const { source, workerData, resourceLimits } = options
    const worker = new Worker(source, { workerData, ...(resourceLimits && { resourceLimits }) })
    const thread: Thread<Answer> = { worker, asked: null }
    threads.add(thread)
    worker.on("message", (answer: Answer) => thread.asked?.resolve(answer))
    worker.on("error", (error) => thread.asked?.reject(error))
    worker.on("exit", () => {
      threads.delete(thread)
      if (idle?.thread === thread) takeIdle()
      thread.asked?.reject(new Error("the thread ended without an answer"))
    })
    return thread
  }

  function takeIdle(): Thread<Answer> | null {
    const taken = idle?.thread ?? null
    idle?.end.cancel()
    idle = null
    taken?.worker.ref()
    return taken
  }

  /** The newest is kept: it answered last. */
  async function rest(thread: Thread<Answer>): Promise<void> {
    const before = takeIdle()
    thread.worker.unref()
    idle = { thread, end: clock.after(options.idleMs, () => void takeIdle()?.worker.terminate()) }
    await before?.worker.terminate()
  }

  async function runInThread(order: Order, signal: AbortSignal): Promise<Answer> {
    signal.throwIfAborted()
    const thread = takeIdle() ?? start()
    const asked = Promise.withResolvers<Answer>()
    thread.asked = asked
    const aborted = (): void => asked.reject(signal.reason)
    signal.addEventListener("abort", aborted, { once: true })
    const limit = clock.after(options.limitMs, () => asked.reject(refusals.takesTooLong()))
    let reusable = false
    try {
      thread.worker.postMessage(order)
      const answer = await asked.promise
      reusable = options.isReusable(order, answer)
      return answer
    } finally {
      limit.cancel()
      signal.removeEventListener("abort", aborted)
      thread.asked = null
      if (reusable && threads.has(thread) && !stopping.signal.aborted) await rest(thread)
      else await thread.worker.terminate()
    }
  }

  return {
    async run(order, signal) {
      await turn()
      try {
        return await runInThread(order, signal ? AbortSignal.any([signal, stopping.signal]) : stopping.signal)
      } finally {
        giveTurn()
      }
    },
    async [Symbol.asyncDispose]() {
      stopping.abort(refusals.stopping())
      takeIdle()
      await Promise.all([...threads].map(({ worker }) => worker.terminate()))
    },
  }
}

interface Thread<Answer> {
  worker: Worker
  /** The order it works on. */
  asked: PromiseWithResolvers<Answer> | null
}

/** A program's thread beside `file`, a module's own URL: `name`.ts in a checkout, `name`.js once built. */
export function threadSource(path: string, file: string): URL {
  return new URL(file.endsWith(".ts") ? path : path.replace(/\.ts$/, ".js"), file)
}
