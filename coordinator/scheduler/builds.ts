import { every, type Clock } from "../../protocol/base/clock.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import type { Log } from "../../protocol/base/log.ts"
import { randomText, type Random } from "../../protocol/base/random.ts"
import {
  claimNumber,
  digest,
  revisionId,
  type ClaimNumber,
  type Digest,
  type NodeId,
  type RevisionId,
} from "../../protocol/domain/ids.ts"
import { toWireRef, type ContentRef } from "../../protocol/wire/content-source.ts"
import type { ItemVerdict, ToCoordinator } from "../../protocol/wire/control.ts"
import type { ObjectContent } from "../artifacts/object-content.ts"
import { keepStaged } from "../artifacts/stage.ts"
import { isCloned } from "../fleet/fleet.ts"
import { isInReach } from "../fleet/liveness.ts"
import type { Member, Members } from "../fleet/members.ts"
import { ownLayers, recordBuildFailed, recordBuildStarted, recordBuilt, recordImageLost } from "../projects/record.ts"
import { dropStagedBlobs, stagedSize } from "../store/blobs.ts"
import { buildsUnderWay } from "../store/builds.ts"
import { nextClaimNumbers } from "../store/meta.ts"
import { changeBuild, revisionsToBuild, type Revision } from "../store/projects.ts"
import type { Store } from "../store/store.ts"
import type { KnownRevision, RuntimeSpecs } from "./runtime-specs.ts"

/**
 * Has images built: one builder a revision, under a claim number of its own, so that a builder that returns late changes
 * nothing (architecture §6). A lost builder's build is queued again.
 */
export interface Builds extends AsyncDisposable {
  /**
   * Takes the builds of an earlier start into memory: their builders go on, and report under the same numbers. Once, after the
   * members were loaded and before a door opens.
   */
  restore(): Promise<void>
  /** Rows say that something is to be built, or no longer: look. */
  wake(): void
  /** A builder connected: it is told its orders again; a new start of its agent has lost its builds. */
  hello(member: Member): Promise<void>
  built(member: Member, report: Extract<ToCoordinator, { type: "built" }>): Promise<ItemVerdict>
  /**
   * A node found nobody who could give it this blob of the revision's image. Where no connected node runs the revision and the
   * builder is gone or has nothing to give either, the tarball is built again (architecture §5.6). Said too often, or of
   * another blob, it changes nothing.
   */
  lost(revision: string, blob: Digest): Promise<void>
  /** Build numbers that may still upload. */
  liveClaims(): ClaimNumber[]
  isLive(claim: number, node: NodeId): boolean
}

export interface BuildsParts {
  store: Store
  clock: Clock
  random: Random
  log: Log
  members: Members
  content: ObjectContent
  specs: RuntimeSpecs
  /** The revision's image is there, or its build failed for good. */
  built: (revision: RevisionId) => void
  failed: (revision: RevisionId, message: string, logTail: string) => void
}

interface RunningBuild {
  claim: ClaimNumber
  revision: RevisionId
  node: NodeId
  bootId: string
  /** When this program began to wait for it. */
  sinceMs: number
}

/** A build without its builder for this long starts again elsewhere. */
const BUILDER_GONE_MS = 60_000
/** A node that cannot reach a builder that others reach must not keep it building. */
const REBUILT_AT_MOST_EVERY_MS = 10 * 60_000
/** A builder takes one build at a time: it has the machine's other work beside it. */
const BUILDS_PER_NODE = 1
/** Builders that failed by themselves on one revision, before it is told to have failed. */
const MOST_TRIES = 3

export function createBuilds(parts: BuildsParts): Builds {
  const { store, clock, log, members } = parts
  const running = new Map<number, RunningBuild>()
  const tries = new Map<string, number>()
  const toldMissing = new Set<string>()
  const rebuiltAtMs = new Map<string, number>()
  const openedMs = clock.monotonicMs()
  let looking: Promise<void> | null = null
  let again = false
  let stopped = false
  const watching = every(clock, 5_000, () => wake())

  function wake(): void {
    if (stopped) return
    if (looking) {
      again = true
      return
    }
    looking = look()
      .catch((error: unknown) => log.error("builds could not be looked at", { error: errorText(error) }))
      .finally(() => {
        looking = null
        if (again) {
          again = false
          wake()
        }
      })
  }

  async function look(): Promise<void> {
    await giveUpLost()
    const able = [...members.all()].filter(canBuild)
    const trusted = able.filter(({ probation }) => probation === null)
    // What a builder makes runs on other machines: one on probation builds only where there is no other.
    const builders = trusted.length > 0 ? trusted : able
    const revisions = await store.read(revisionsToBuild)
    await cancelOutdated(revisions)
    for (const revision of revisions) {
      if (revision.build !== "queued") continue
      const builder = builders.find((member) => buildsOf(member.id) < BUILDS_PER_NODE)
      if (!builder) return
      await start(revision, builder)
    }
  }

  function canBuild(member: Member): boolean {
    const { session, facts, state, standing } = member
    return (
      session !== null &&
      isInReach(members.contact(member)) &&
      state === "active" &&
      !isCloned(member, clock.now()) &&
      facts !== null &&
      facts.runtime !== "process" &&
      facts.roles.includes("builder") &&
      standing?.draining !== true
    )
  }

  const buildsOf = (node: NodeId): number => [...running.values()].filter((build) => build.node === node).length

  async function start(revision: Revision, builder: Member): Promise<void> {
    const described = await describe(revision.id)
    if (!described) return
    const at = clock.now()
    const diagnostic = newDiagnosticId()
    const claim = await store.write(async (tx) => {
      const taken = await nextClaimNumbers(tx, 1, at * 1000)
      const build = { revision: revision.id, node: builder.id, claim: taken, id: diagnostic, at }
      return (await recordBuildStarted(tx, build)) ? taken : null
    })
    if (claim === null) return
    const build = {
      claim,
      revision: revision.id,
      node: builder.id,
      bootId: builder.facts?.bootId ?? "",
      sinceMs: clock.monotonicMs(),
    }
    running.set(claim, build)
    order(build, builder, described)
    log.info("build started", { revision: revision.id, node: builder.id, claim })
  }

  /** What a builder is told of a revision; null when its tarball is missing. */
  async function describe(revision: RevisionId): Promise<{ known: KnownRevision; tarball: ContentRef } | null> {
    await parts.specs.refresh(revision)
    const known = parts.specs.known(revision)
    const tarball = known && (await parts.content.ref(known.revision.tarball.digest))
    if (known && tarball) {
      toldMissing.delete(revision)
      return { known, tarball }
    }
    // It waits until the bytes are back: the operator's copy, or a push of the same files.
    if (!toldMissing.has(revision)) log.error("a revision's tarball is missing", { revision })
    toldMissing.add(revision)
    return null
  }

  /** The same order again changes nothing at its builder. */
  function order(
    { claim, revision }: RunningBuild,
    builder: Member,
    { known, tarball }: { known: KnownRevision; tarball: ContentRef },
  ): void {
    const settings = known.manifest?.build
    builder.session?.send({
      type: "build",
      claim,
      revision,
      tarball: toWireRef(tarball),
      content_grant: parts.specs.contentGrant(builder, [tarball]),
      dockerfile: settings?.dockerfile ?? "Dockerfile",
      context: settings?.context ?? ".",
      target: settings?.target ?? null,
      args: settings?.args ?? {},
      timeout_ms: known.project.setupTimeoutSeconds * 1000,
    })
  }

  /** A newer push made the rows of these builds something else than `building`: their builders stop. */
  async function cancelOutdated(revisions: readonly Revision[]): Promise<void> {
    const building = new Set<string>(revisions.filter(({ build }) => build === "building").map(({ id }) => id))
    for (const build of running.values()) {
      if (building.has(build.revision)) continue
      running.delete(build.claim)
      members.byNode(build.node)?.session?.send({ type: "cancel_build", claim: build.claim })
      await store.write((tx) => dropStagedBlobs(tx, build.claim))
    }
  }

  async function giveUpLost(): Promise<void> {
    const nowMs = clock.monotonicMs()
    for (const build of running.values()) {
      const member = members.byNode(build.node)
      // The stream of a machine that lost its power stays open and says nothing.
      const silentMs = nowMs - Math.max(build.sinceMs, member?.lastHeardMs ?? Number.NEGATIVE_INFINITY)
      if (silentMs < BUILDER_GONE_MS) continue
      await fail(build, "node", "the builder was lost", null)
    }
  }

  async function fail(
    build: RunningBuild,
    kind: "project" | "node",
    message: string,
    logTail: string | null,
  ): Promise<boolean> {
    running.delete(build.claim)
    const failures = (tries.get(build.revision) ?? 0) + 1
    tries.set(build.revision, failures)
    const final = kind === "project" || failures >= MOST_TRIES ? "project" : "node"
    const at = clock.now()
    const id = newDiagnosticId()
    const recorded = await store
      .write(async (tx) => {
        await dropStagedBlobs(tx, build.claim)
        return await recordBuildFailed(tx, {
          revision: build.revision,
          node: build.node,
          id,
          at,
          kind: final,
          message,
          logTail,
        })
      })
      .catch((error: unknown) => {
        // Nothing was stored: the row still waits for this build, and so do we.
        running.set(build.claim, build)
        tries.set(build.revision, failures - 1)
        throw error
      })
    log.warn("build failed", { revision: build.revision, node: build.node, kind: final, message })
    if (recorded && final === "project") {
      tries.delete(build.revision)
      await parts.specs.refresh(build.revision)
      parts.failed(build.revision, message, logTail ?? "")
    }
    wake()
    return recorded
  }

  const newDiagnosticId = (): string => `diag_${randomText(parts.random, 16)}`

  async function built(member: Member, report: Extract<ToCoordinator, { type: "built" }>): Promise<ItemVerdict> {
    const answer = (verdict: ItemVerdict["verdict"], reason: string | null = null): ItemVerdict => ({
      claim: report.claim,
      kind: "build",
      verdict,
      reason,
    })
    const build = running.get(report.claim)
    if (!build || build.node !== member.id) return answer("spent", "this build is not yours, or no longer")
    const { outcome } = report
    if (!outcome.ok) {
      const recorded = await fail(build, outcome.kind, outcome.message, report.log_tail)
      return answer(recorded ? "stored" : "spent")
    }
    const at = clock.now()
    const id = newDiagnosticId()
    const own = ownLayers(outcome.image).flatMap(({ blob }) => (blob ? [digest(blob.digest)] : []))
    const recorded = await store.write(async (tx) => {
      for (const layer of own) if ((await stagedSize(tx, build.claim, layer)) === null) return "incomplete"
      for (const layer of own) await keepStaged(tx, build.claim, layer, { kind: "image", owner: build.revision })
      await dropStagedBlobs(tx, build.claim)
      return await recordBuilt(tx, {
        revision: build.revision,
        node: member.id,
        id,
        at,
        image: outcome.image,
        logTail: report.log_tail,
      })
    })
    if (recorded === "incomplete") {
      const again = await fail(
        build,
        "node",
        "the builder did not upload a layer of the project's own",
        report.log_tail,
      )
      return answer(again ? "stored" : "spent")
    }
    running.delete(report.claim)
    tries.delete(build.revision)
    if (!recorded) return answer("spent", "a newer push replaced this revision")
    log.info("image built", { revision: build.revision, node: member.id, image: outcome.image.digest })
    await parts.specs.refresh(build.revision)
    parts.built(build.revision)
    wake()
    return answer("stored")
  }

  async function lost(id: string, blob: Digest): Promise<void> {
    const revision = parts.specs.known(id)?.revision
    const isIts = revision?.image?.layers.some((layer) => layer.blob?.digest === blob) === true
    if (!revision || !isIts || revision.build !== "built") return
    const nowMs = clock.monotonicMs()
    if (nowMs - (rebuiltAtMs.get(id) ?? Number.NEGATIVE_INFINITY) < REBUILT_AT_MOST_EVERY_MS) return
    const connected = [...members.all()].filter(({ session }) => session !== null)
    if (connected.some(({ standing }) => standing?.warm.has(id)) || !connected.some(canBuild)) return
    if (mayReturn(revision.builder, nowMs)) return
    const at = clock.now()
    const { id: owner, builder: node } = revision
    const diagnostic = newDiagnosticId()
    if (!(await store.write((tx) => recordImageLost(tx, { revision: owner, node, id: diagnostic, at })))) return
    rebuiltAtMs.set(id, nowMs)
    log.warn("a layer is on no connected node: the image is built again", { revision: id, blob })
    await parts.specs.refresh(revisionId(id))
    wake()
  }

  /** A builder that restarts has its blobs; one that is connected was asked for them. */
  function mayReturn(builder: NodeId | null, nowMs: number): boolean {
    const member = builder === null ? undefined : members.byNode(builder)
    if (!member || member.session || member.state === "revoked") return false
    return nowMs - (member.lastHeardMs ?? openedMs) < BUILDER_GONE_MS
  }

  return {
    wake,
    async restore() {
      const at = clock.now()
      for (const { revision, builder, claim, bootId } of await store.read(buildsUnderWay)) {
        running.set(claim, { claim, revision, node: builder, bootId, sinceMs: clock.monotonicMs() })
      }
      const known = new Set([...running.values()].map(({ revision }) => revision))
      // Those of a version that stored no numbers are queued again.
      for (const { id, build, builder } of await store.read(revisionsToBuild)) {
        if (build !== "building" || known.has(id)) continue
        await store.write((tx) => changeBuild(tx, id, { build: "building", builder }, { build: "queued" }, at))
      }
    },
    lost,
    async hello(member) {
      for (const build of running.values()) {
        if (build.node !== member.id) continue
        if (build.bootId !== member.facts?.bootId) {
          await fail(build, "node", "the builder was restarted", null)
          continue
        }
        // The order may have been lost with its stream, or with a coordinator that had stored it and not sent it.
        const described = await describe(build.revision)
        if (described && running.has(build.claim)) order(build, member, described)
      }
      wake()
    },
    built,
    liveClaims: () => [...running.keys()].map(claimNumber),
    isLive: (claim, node) => running.get(claim)?.node === node,
    async [Symbol.asyncDispose]() {
      stopped = true
      watching[Symbol.dispose]()
      await looking
    },
  }
}
