import type { Clock } from "../../protocol/base/clock.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import type { Log } from "../../protocol/base/log.ts"
import type { PlacementPolicy } from "../fleet/fit.ts"
import { fleetFacts, type ReplicaNews } from "../fleet/fleet.ts"
import type { Member, Members } from "../fleet/members.ts"
import type { KnownJobs } from "../jobs/job-facts.ts"
import type { Builds } from "./builds.ts"
import type { Prepare } from "./prepare.ts"
import { REST_MS, type FailedSetup, type RuntimeSpecs } from "./runtime-specs.ts"

/** What follows from what nodes tell of the revisions that they prepare. */
export interface ReplicaWatch {
  changed(revision: string, member: Member, news: ReplicaNews): void
  /**
   * What preparing the revision left to read, once it failed on every live node that could run it, or on three: the project is
   * at fault (rulings, Failed set-up).
   */
  cannotPrepare(revision: string): FailedSetup | null
  /** Ends the jobs of revisions that cannot be prepared: nodes may have gone that could have tried. */
  failUnprepared(): void
}

export interface ReplicaWatchParts {
  clock: Clock
  log: Log
  members: Members
  known: KnownJobs
  policy: PlacementPolicy
  specs: RuntimeSpecs
  prepare: Pick<Prepare, "wake" | "unable">
  /** A node found nobody who has this blob of the revision's image. */
  lost: Builds["lost"]
  setupFailed: (revision: string, message: string, logTail: string) => void
  /** Work may start somewhere: look again. */
  wake: () => void
}

/** Nodes on which preparing failed, after which the project is taken to be at fault. */
const SETUP_FAILURES = 3

export function createReplicaWatch(parts: ReplicaWatchParts): ReplicaWatch {
  const { clock, log, members, known, policy, specs, prepare, wake } = parts
  let lastUnableMs = 0
  let retrying = false

  function failIfUnprepared(revision: string): void {
    const failure = cannotPrepare(revision)
    if (failure) parts.setupFailed(revision, failure.message, failure.logTail)
  }

  function cannotPrepare(revision: string): FailedSetup | null {
    const failures = specs.failures(revision)
    const { workers } = fleetFacts(members, policy, clock.now())
    if (failures < SETUP_FAILURES && (workers === 0 || failures < workers)) return null
    const failure = specs.failure(revision)
    return failure && { ...failure, message: `preparing the runtime failed: ${failure.message}` }
  }

  function unable(
    revision: string,
    member: Member,
    { message, missing }: Extract<ReplicaNews, { state: "unable" }>,
  ): void {
    specs.restOn(revision, member, message)
    prepare.unable(member, revision)
    lastUnableMs = clock.monotonicMs()
    if (!retrying) retryIn(REST_MS)
    if (missing === null) return
    parts.lost(revision, missing).catch((error: unknown) => {
      log.error("a lost image could not be queued", { revision, error: errorText(error) })
    })
  }

  /** One timer, however often nodes say that they are unable. */
  function retryIn(ms: number): void {
    retrying = true
    clock.after(ms, () => {
      retrying = false
      prepare.wake()
      wake()
      const restsMs = lastUnableMs + REST_MS - clock.monotonicMs()
      if (restsMs > 0) retryIn(restsMs)
    })
  }

  return {
    changed(revision, member, news) {
      if (news.state === "ready") specs.readyOn(revision, member)
      if (news.state === "unable") unable(revision, member, news)
      if (news.state === "failed") {
        specs.failedOn(revision, member, news)
        failIfUnprepared(revision)
      }
      wake()
    },
    cannotPrepare,
    failUnprepared() {
      for (const revision of new Set([...known.all()].map((job) => job.revision))) failIfUnprepared(revision)
    },
  }
}
