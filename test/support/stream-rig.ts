import { vi } from "vitest"
import { TEST_TOKENS } from "./identities.ts"
import { startJobsDoor, type JobsDoor } from "./jobs-door.ts"
import { followStream, type Stream } from "./streams.ts"

/** A door for jobs, and streams of it. */
export interface StreamRig extends JobsDoor {
  follow(path: string, options?: { token?: string; lastId?: string }): Stream
  /** Closed with the rig. */
  onEnd(close: () => void): void
}

export async function startStreamRig(timing: { ssePingMs?: number; sseLimitMs?: number } = {}): Promise<StreamRig> {
  const closing: (() => void)[] = []
  const jobs = await startJobsDoor({ credit: 5_000_000_000n, ssePingMs: 10_000, ...timing })
  return {
    ...jobs,
    follow(path, { token = TEST_TOKENS.alice, lastId } = {}) {
      const stream = followStream(jobs.origin, path, { token, ...(lastId !== undefined && { lastId }) })
      closing.push(() => stream.close())
      return stream
    },
    onEnd: (close) => void closing.push(close),
    async [Symbol.asyncDispose]() {
      for (const close of closing) close()
      await jobs[Symbol.asyncDispose]()
    },
  }
}

/** Machines are shared and slow; what hangs is still noticed. */
export const until = (check: () => void): Promise<void> => vi.waitFor(check, { timeout: 20_000, interval: 20 })
