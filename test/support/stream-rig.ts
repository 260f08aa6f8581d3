import { vi } from "vitest"
import type { AccountId } from "../../protocol/domain/ids.ts"
import { mountJobs } from "../../coordinator/http/routes/jobs.ts"
import { fundedAccount } from "./accounts.ts"
import { startHttpDoor, type HttpDoor } from "./http-door.ts"
import { TEST_TOKENS, testIdentities } from "./identities.ts"
import { startJobRig, type JobRig } from "./job-rig.ts"
import { followStream, type Stream } from "./streams.ts"

/** Jobs whose life a test leads, behind the real door: for streams. Alice, Bob and Carol have a project `p` each. */
export interface StreamRig extends AsyncDisposable {
  rig: JobRig
  door: HttpDoor
  origin: string
  alice: AccountId
  bob: AccountId
  /** Is any token good? */
  allow(allowed: boolean): void
  follow(path: string, options?: { token?: string; lastId?: string }): Stream
  /** Closed with the rig. */
  onEnd(close: () => void): void
}

export async function startStreamRig(timing: { ssePingMs?: number; sseLimitMs?: number } = {}): Promise<StreamRig> {
  let allowed = true
  const closing: (() => void)[] = []
  const rig = await startJobRig()
  const [alice, bob] = [await fundedAccount(rig.store, 5_000_000_000n), await fundedAccount(rig.store, 5_000_000_000n)]
  for (const account of [alice, bob]) await rig.project(account)
  const door = await startHttpDoor()
  const waits = { message: "m", eligible_slots: 0, busy_slots: 0, suggestion: "s" }
  mountJobs(door.app, {
    ...rig,
    ssePingMs: timing.ssePingMs ?? 10_000,
    sseLimitMs: timing.sseLimitMs ?? 60_000,
    queueReasons: {
      job: () => ({ code: "capacity_busy", ...waits }),
      contactLost: () => ({ code: "node_contact_lost", ...waits }),
    },
    submit: (request) => rig.submit(request),
    cancel: (id, account, why) => rig.cancel({ id, seq: 1 }, account, why),
  })
  door.app.open({ store: rig.store, identify: async (token) => (allowed ? testIdentities.identify(token) : null) })
  const { origin } = door.server
  return {
    rig,
    door,
    origin,
    alice,
    bob,
    allow(now) {
      allowed = now
    },
    follow(path, { token = TEST_TOKENS.alice, lastId } = {}) {
      const stream = followStream(origin, path, { token, ...(lastId !== undefined && { lastId }) })
      closing.push(() => stream.close())
      return stream
    },
    onEnd: (close) => void closing.push(close),
    async [Symbol.asyncDispose]() {
      for (const close of closing) close()
      await door[Symbol.asyncDispose]()
      await rig[Symbol.asyncDispose]()
    },
  }
}

/** Machines are shared and slow; what hangs is still noticed. */
export const until = (check: () => void): Promise<void> => vi.waitFor(check, { timeout: 20_000, interval: 20 })
