import { silentLog } from "../../protocol/base/log.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import type { AccountId } from "../../protocol/domain/ids.ts"
import { identityFromSeed } from "../../protocol/mesh/identity.ts"
import { createObjectContent } from "../../coordinator/artifacts/object-content.ts"
import { createBackground, type Background } from "../../coordinator/jobs/background.ts"
import { createKnownJobs, type KnownJobs } from "../../coordinator/jobs/job-facts.ts"
import { retryJob, type RetryRequest } from "../../coordinator/jobs/retry.ts"
import { createJobLife, type JobLife } from "../../coordinator/scheduler/job-life.ts"
import { createPace } from "../../coordinator/scheduler/pace.ts"
import { createReadyQueue, type ReadyQueue } from "../../coordinator/scheduler/ready-queue.ts"
import { createRuntimeSpecs } from "../../coordinator/scheduler/runtime-specs.ts"
import type { JobRow } from "../../coordinator/store/jobs.ts"
import { startJobRig, type JobRig } from "./job-rig.ts"

/** A job rig whose jobs live as in the coordinator: planned, queued, ended and finished by the real `JobLife`. */
export interface LifeRig extends AsyncDisposable {
  readonly life: JobLife
  readonly known: KnownJobs
  readonly queue: ReadyQueue
  /** Submits, writes the tasks and makes the job grantable. */
  taken(account: AccountId, body?: object): Promise<JobRow>
  /** As POST /jobs/:id/retry does it. */
  retried(request: RetryRequest): Promise<JobRow>
  /** What a process knew of jobs is gone, and what it was doing; `between` happens before the next one goes on from the rows. */
  restart(between?: () => void): Promise<void>
}

export async function startLifeRig(options: Parameters<typeof startJobRig>[0] = {}): Promise<JobRig & LifeRig> {
  const rig = await startJobRig(options)
  let now = await startLife(rig)
  return {
    ...rig,
    get life() {
      return now.life
    },
    get known() {
      return now.known
    },
    get queue() {
      return now.queue
    },
    async taken(account, body = {}) {
      const job = await rig.queued(account, body)
      await now.life.takeUp(job.seq)
      return job
    },
    async retried(request) {
      const { store, clock, jobRetentionMs } = rig
      const { life } = now
      const parts = { store, clock, random: systemRandom, quoteTtlMs: 1_000, jobRetentionMs }
      return (
        await retryJob({ ...parts, settled: (seq) => life.settled(seq), again: (job) => life.again(job) }, request)
      ).job
    },
    async restart(between = () => {}) {
      await now.background[Symbol.asyncDispose]()
      between()
      now = await startLife(rig)
      await now.life.resume()
    },
    async [Symbol.asyncDispose]() {
      await now.background[Symbol.asyncDispose]()
      await rig[Symbol.asyncDispose]()
    },
  }
}

async function startLife(rig: JobRig): Promise<Pick<LifeRig, "life" | "known" | "queue"> & { background: Background }> {
  const { store, clock, members } = rig
  const known = createKnownJobs()
  const queue = createReadyQueue(300_000)
  const background = createBackground({ clock, random: systemRandom, log: silentLog })
  const life = createJobLife({
    ...rig,
    log: silentLog,
    background,
    known,
    queue,
    reservations: { know: () => {}, over: () => false },
    pace: createPace(),
    specs: createRuntimeSpecs({
      store,
      clock,
      members,
      key: await identityFromSeed(systemRandom.bytes(32)),
      content: createObjectContent(rig.files),
    }),
    runningMs: (claim) => members.attempt(claim)?.runningMs ?? null,
    cannotPrepare: () => null,
    wake: () => {},
    spend: (claims) => {
      for (const claim of claims) members.release(claim)
    },
  })
  return { life, known, queue, background }
}
