import { mountJobs } from "../../coordinator/http/routes/jobs.ts"
import type { QueueReason } from "../../coordinator/jobs/read/read-job.ts"
import type { AccountId } from "../../protocol/domain/ids.ts"
import type { MicroUsd } from "../../protocol/domain/money.ts"
import { fundedAccount } from "./accounts.ts"
import { send, startHttpDoor, type HttpDoor, type PlainReply } from "./http-door.ts"
import { TEST_TOKENS, testIdentities } from "./identities.ts"
import { startJobRig, type JobRig } from "./job-rig.ts"

/** Jobs whose life a test leads, behind the real door. Alice and Bob have a project `p` each. */
export interface JobsDoor extends AsyncDisposable {
  rig: JobRig
  door: HttpDoor
  origin: string
  alice: AccountId
  bob: AccountId
  /** Of `/api/v1`; Alice asks unless another token is given. */
  get(path: string, token?: string): Promise<PlainReply>
  /** Is any token good? */
  allow(allowed: boolean): void
}

export interface JobsDoorOptions {
  resultSpillBytes?: number
  /** Of Alice, and of Bob. */
  credit?: MicroUsd
  ssePingMs?: number
  sseLimitMs?: number
}

export async function startJobsDoor({
  resultSpillBytes,
  credit = 50_000_000n,
  ssePingMs = 1_000,
  sseLimitMs = 60_000,
}: JobsDoorOptions = {}): Promise<JobsDoor> {
  let allowed = true
  await using opening = new AsyncDisposableStack()
  const rig = opening.use(await startJobRig({ ...(resultSpillBytes !== undefined && { resultSpillBytes }) }))
  const [alice, bob] = [await fundedAccount(rig.store, credit), await fundedAccount(rig.store, credit)]
  for (const account of [alice, bob]) await rig.project(account)
  const door = opening.use(await startHttpDoor())
  mountJobs(door.app, {
    ...rig,
    queueReasons: { job: () => reason("capacity_busy"), contactLost: () => reason("node_contact_lost") },
    submit: (request) => rig.submit(request),
    cancel: (id, account, why) => rig.cancel({ id, seq: 1 }, account, why),
    ssePingMs,
    sseLimitMs,
  })
  door.app.open({ store: rig.store, identify: async (token) => (allowed ? testIdentities.identify(token) : null) })
  const { origin } = door.server
  const opened = opening.move()
  return {
    rig,
    door,
    origin,
    alice,
    bob,
    get: (path, token = TEST_TOKENS.alice) => send(origin, "GET", `/api/v1${path}`, { token }),
    allow(now) {
      allowed = now
    },
    [Symbol.asyncDispose]: () => opened.disposeAsync(),
  }
}

const reason = (code: QueueReason["code"]): QueueReason => ({
  code,
  message: "because",
  eligible_slots: 0,
  busy_slots: 0,
  suggestion: "wait",
})

/** In a submission: so many tasks. */
export const items = (count: number): object => ({
  fan_out: { items: Array.from({ length: count }, (_, n) => ({ n })) },
})
