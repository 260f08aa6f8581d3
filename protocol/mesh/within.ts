import type { Clock } from "../base/clock.ts"
import type { MeshStream } from "./mesh.ts"

/** The outcome of one step on a stream; when it takes longer than `ms` the stream is reset and this rejects. */
export async function within<T>(clock: Clock, ms: number, stream: MeshStream, step: Promise<T>): Promise<T> {
  const { promise: late, reject } = Promise.withResolvers<never>()
  const timer = clock.after(ms, () => {
    stream.reset("no progress")
    reject(new Error(`no progress for ${ms} ms`))
  })
  try {
    return await Promise.race([step, late])
  } finally {
    timer.cancel()
  }
}
