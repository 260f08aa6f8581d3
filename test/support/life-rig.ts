import { silentLog } from "../../protocol/base/log.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import type { AccountId } from "../../protocol/domain/ids.ts"
import { identityFromSeed } from "../../protocol/mesh/identity.ts"
import { createObjectContent } from "../../coordinator/artifacts/object-content.ts"
import { createBackground } from "../../coordinator/jobs/background.ts"
import { createKnownJobs, type KnownJobs } from "../../coordinator/jobs/job-facts.ts"
import { createJobLife, type JobLife } from "../../coordinator/scheduler/job-life.ts"
import { createPace } from "../../coordinator/scheduler/pace.ts"
import { createReadyQueue, type ReadyQueue } from "../../coordinator/scheduler/ready-queue.ts"
import { createRuntimeSpecs } from "../../coordinator/scheduler/runtime-specs.ts"
import type { JobRow } from "../../coordinator/store/jobs.ts"
import { startJobRig, type JobRig } from "./job-rig.ts"

/** A job rig whose jobs live as in the coordinator: planned, queued, ended and finished by the real `JobLife`. */
export interface LifeRig extends AsyncDisposable {
  life: JobLife
  known: KnownJobs
  queue: ReadyQueue
  /** Submits, writes the tasks and makes the job grantable. */
  taken(account: AccountId, body?: object): Promise<JobRow>
}

export async function startLifeRig(): Promise<JobRig & LifeRig> {
  const rig = await startJobRig()
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
  return {
    ...rig,
    life,
    known,
    queue,
    async taken(account, body = {}) {
      const job = await rig.queued(account, body)
      await life.takeUp(job.seq)
      return job
    },
    async [Symbol.asyncDispose]() {
      await background[Symbol.asyncDispose]()
      await rig[Symbol.asyncDispose]()
    },
  }
}
