import type { Clock } from "../base/clock.ts"
import type { MeshStream } from "./mesh.ts"

/**
 * The outcome of one step on a stream. When it takes longer than `ms`, or the signal is aborted, the stream is reset and this
 * rejects: nobody waits for a peer that neither answers nor hangs up.
 */
export async function within<T>(
  clock: Clock,
  ms: number,
  stream: MeshStream,
  step: Promise<T>,
  signal?: AbortSignal,
): Promise<T> {
  const { promise: given, reject } = Promise.withResolvers<never>()
  const giveUp = (reason: Error): void => {
    stream.reset(reason.message)
    reject(reason)
  }
  const aborted = (): void => giveUp(signal?.reason as Error)
  const timer = clock.after(ms, () => giveUp(new Error(`no progress for ${ms} ms`)))
  if (signal?.aborted) aborted()
  signal?.addEventListener("abort", aborted, { once: true })
  try {
    return await Promise.race([given, step])
  } finally {
    timer.cancel()
    signal?.removeEventListener("abort", aborted)
  }
}
