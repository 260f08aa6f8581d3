import { every, type Clock } from "../protocol/base/clock.ts"
import type { Log } from "../protocol/base/log.ts"
import { inspectBlobs } from "./artifacts/inspect-blobs.ts"
import type { ObjectFiles } from "./artifacts/object-files.ts"
import { freeReleasedBlobs, sweepArtifacts, sweepOrphans } from "./artifacts/retention.ts"
import { sweepStaged } from "./artifacts/stage.ts"
import type { CoordinatorConfig } from "./config.ts"
import { hasLiveWorker, type Fleet } from "./fleet/fleet.ts"
import type { Members } from "./fleet/members.ts"
import type { Background } from "./jobs/background.ts"
import { sweepCheckpoints } from "./jobs/checkpoints.ts"
import type { KnownJobs } from "./jobs/job-facts.ts"
import type { ReportParts } from "./jobs/report.ts"
import { sweepExpiredJobs } from "./jobs/retention.ts"
import { sweepRevisions } from "./projects/revisions.ts"
import { sweepSharedState } from "./projects/shared-state.ts"
import type { LiveClaims } from "./scheduler/live-claims.ts"
import { createQueueTimeout } from "./scheduler/queue-timeout.ts"
import { createStuckSweep } from "./scheduler/stuck-sweep.ts"
import type { Scheduler } from "./start-scheduler.ts"
import type { Store } from "./store/store.ts"

export interface SweepsParts {
  config: CoordinatorConfig
  clock: Clock
  log: Log
  store: Store
  files: ObjectFiles
  fleet: Fleet
  members: Members
  known: KnownJobs
  background: Background
  reports: ReportParts
  scheduler: Scheduler
  liveClaims: LiveClaims
}

const SWEEP_MS = 60_000
/** How often the times of waiting jobs are looked at. */
const QUEUE_LOOK_MS = 30_000
/** In the log; `GET /admin/storage` names more. */
const MISSING_NAMED = 20

/** Looks from time to time for what no event tells; `opening` ends the timers. */
export async function startSweeps(opening: AsyncDisposableStack, parts: SweepsParts): Promise<void> {
  const { config, clock, log, store, members, known, background } = parts
  const { jobLife } = parts.scheduler
  opening.use(everyMinute(parts))
  const stuck = createStuckSweep({ store, clock, log, members, known, jobLife })
  opening.use(every(clock, config.stuckSweepMs, () => background.run("sweep of stuck jobs", () => stuck.sweep())))
  opening.use(
    every(clock, config.stuckSweepMs, () =>
      background.run("sweep of expired jobs", (signal) => forgetExpiredJobs(parts, signal)),
    ),
  )
  opening.use(await watchQueueTimes(parts))
}

/** What nobody waits for: expired artifacts, unneeded bytes, old revisions, when members were last heard. */
function everyMinute({ config, clock, store, files, fleet, background, ...parts }: SweepsParts): Disposable {
  const { replicas, reputation } = parts.scheduler
  const liveClaims: LiveClaims["among"] = (view, claims) => parts.liveClaims.among(view, claims)
  return every(clock, Math.min(SWEEP_MS, config.artifactTtlMs), () => {
    background.run("sweep", async () => {
      const now = clock.now()
      replicas.failUnprepared()
      await fleet.storeSeen()
      await reputation.sweep()
      await sweepCheckpoints(parts.reports, now)
      await sweepArtifacts({ store, files }, now)
      await sweepRevisions({ store }, now)
      await sweepSharedState({ store }, now)
      await sweepStaged({ store, liveClaims }, now)
      await freeReleasedBlobs({ store, files })
    })
  })
}

async function forgetExpiredJobs(
  { config, clock, log, store, files }: SweepsParts,
  signal: AbortSignal,
): Promise<void> {
  const jobs = await sweepExpiredJobs({ clock, jobRetentionMs: config.jobRetentionMs, store, files }, signal)
  if (jobs > 0) log.info("expired jobs removed", { jobs })
}

async function watchQueueTimes({
  config,
  clock,
  store,
  members,
  known,
  background,
  scheduler,
}: SweepsParts): Promise<Disposable> {
  const intervalMs = Math.min(QUEUE_LOOK_MS, (config.queueTimeoutMs ?? Number.POSITIVE_INFINITY) / 4)
  const queueTimeout = createQueueTimeout({
    store,
    clock,
    known,
    queueTimeoutMs: config.queueTimeoutMs,
    intervalMs,
    hasCapacity: () => hasLiveWorker(members, clock.now()),
    cancel: (job, reason) => scheduler.jobLife.cancelWaiting(job, reason),
  })
  await queueTimeout.load()
  return every(clock, intervalMs, () => background.run("queue timeouts", () => queueTimeout.look()))
}

/** Once after a start: bytes that nobody needs go, and those that are needed and not there are told. */
export function lookAtBlobs({ clock, log, store, files, background }: SweepsParts): void {
  background.run("look at stored blobs", async (signal) => {
    await sweepOrphans({ store, files }, clock.now(), signal)
    const { missing, missingCount } = await inspectBlobs({ store, files }, signal)
    for (const { digest: blob, neededBy } of missing.slice(0, MISSING_NAMED)) {
      log.error("a stored blob is missing", { digest: blob, ...neededBy })
    }
    if (missingCount > 0) log.error("stored blobs are missing: put them back below blobs/", { blobs: missingCount })
  })
}
