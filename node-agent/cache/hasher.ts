import { Worker } from "node:worker_threads"
import type { Clock, Timer } from "../../protocol/base/clock.ts"
import type { PieceList } from "../../protocol/wire/piece-list.ts"

/** Hashing away from the thread that runs the mesh (architecture §6). A simulation passes one that hashes inline. */
export interface Hasher extends AsyncDisposable {
  /** The piece list of a file, `pieceBytes` being that of its size. Rejects when it cannot be read. */
  file(path: string, pieceBytes: number): Promise<PieceList>
  /** sha256 of one piece, 32 bytes. */
  piece(bytes: Uint8Array): Promise<Uint8Array>
}

/** Starts its thread with the first file and ends it when nothing was hashed for a while: an idle agent keeps no thread. */
export function createHasher(clock: Clock): Hasher {
  const waiting = new Map<number, { resolve: (list: PieceList) => void; reject: (error: Error) => void }>()
  let worker: Worker | null = null
  let idle: Timer | null = null
  let lastId = 0
  let closed = false

  function start(): Worker {
    const started = new Worker(WORKER)
    started.unref()
    started.on("message", (answer: HashAnswer) => {
      const asked = waiting.get(answer.id)
      waiting.delete(answer.id)
      if ("problem" in answer) asked?.reject(new Error(`cannot hash the file: ${answer.problem}`))
      else asked?.resolve(answer.list)
      if (waiting.size === 0) rest()
    })
    started.on("error", (error) => fail(started, error instanceof Error ? error : new Error(String(error))))
    started.on("exit", () => fail(started, new Error("the hash worker ended")))
    return started
  }

  /** A worker that ended takes only its own orders with it; the next file starts another. */
  function fail(ended: Worker, error: Error): void {
    if (worker !== ended) return
    worker = null
    for (const asked of waiting.values()) asked.reject(error)
    waiting.clear()
  }

  function rest(): void {
    worker?.unref()
    idle = clock.after(IDLE_MS, () => {
      const ending = worker
      worker = null
      void ending?.terminate()
    })
  }

  return {
    file(path, pieceBytes) {
      if (closed) return Promise.reject(new Error("the hasher is closed"))
      idle?.cancel()
      worker ??= start()
      worker.ref()
      const id = ++lastId
      const answered = new Promise<PieceList>((resolve, reject) => waiting.set(id, { resolve, reject }))
      worker.postMessage({ id, path, pieceBytes } satisfies HashOrder)
      return answered
    },

    /** Web crypto copies the piece and hashes it on libuv's pool. */
    async piece(bytes) {
      return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes as Uint8Array<ArrayBuffer>))
    },

    async [Symbol.asyncDispose]() {
      closed = true
      idle?.cancel()
      const ending = worker
      if (ending === null) return
      fail(ending, new Error("the hasher is closed"))
      await ending.terminate()
    },
  }
}

export interface HashOrder {
  id: number
  path: string
  pieceBytes: number
}

export type HashAnswer = { id: number; list: PieceList } | { id: number; problem: string }

/** The compiled program runs the compiled worker. */
const WORKER = new URL(import.meta.url.endsWith(".ts") ? "./hash-worker.ts" : "./hash-worker.js", import.meta.url)
/** Starting a thread costs some 40 ms; keeping one costs memory. */
const IDLE_MS = 10_000
