import type { Clock } from "../../protocol/base/clock.ts"
import { createThreads, threadSource } from "../../protocol/base/threads.ts"
import { ComputalotError } from "../../protocol/domain/errors.ts"
import type { AsideRead } from "./store.ts"

/** Reads on a thread and a connection of their own, each on one snapshot. */
export interface AsideReads extends AsyncDisposable {
  read<Answer, Args extends readonly unknown[]>(read: AsideRead<Answer, Args>, args: Args): Promise<Answer>
}

/** @param onDamage called when a read finds the file damaged */
export function createAsideReads(file: string, clock: Clock, onDamage: (error: unknown) => void): AsideReads {
  const threads = createThreads<AsideOrder, AsideAnswer>({
    source: threadSource("./aside-worker.ts", import.meta.url),
    workerData: file,
    clock,
    // One at a time: each takes a core, and keeps the write-ahead log from being cut while it runs.
    atOnce: 1,
    waiting: MOST_WAITING,
    limitMs: LONGEST_READ_MS,
    refusals: {
      tooManyWait: () => busy("too many long reads are waiting"),
      takesTooLong: () => busy("the read takes longer than a minute"),
      stopping: () => new ComputalotError("unavailable", "the coordinator is stopping"),
    },
    idleMs: IDLE_MS,
    isReusable: (_order, answer) => answer.ok,
  })
  return {
    async read({ module, name }, args) {
      const answer = await threads.run({ module, name, args })
      if (!answer.ok) {
        const error = new Error(`the read ${name} failed: ${answer.message}`)
        if (answer.isDamage) onDamage(error)
        throw error
      }
      return answer.value as never
    },
    [Symbol.asyncDispose]: () => threads[Symbol.asyncDispose](),
  }
}

export interface AsideOrder {
  module: string
  name: string
  args: readonly unknown[]
}

export type AsideAnswer = { ok: true; value: unknown } | { ok: false; message: string; isDamage: boolean }

const MOST_WAITING = 16
/** Ten million charges take some two seconds. */
const LONGEST_READ_MS = 60_000
const IDLE_MS = 10_000

function busy(message: string): ComputalotError {
  return new ComputalotError("busy", message, {
    recommendedAction: "Send the request again in a moment.",
    headers: { "Retry-After": "5" },
  })
}
