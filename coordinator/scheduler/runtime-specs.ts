import { present } from "../../protocol/base/assert.ts"
import type { Clock } from "../../protocol/base/clock.ts"
import type { NodeId, RevisionId } from "../../protocol/domain/ids.ts"
import type { Manifest } from "../../protocol/domain/manifest.ts"
import { fromWireRef, toWireRef, type ContentRef } from "../../protocol/wire/content-source.ts"
import { signContentGrant } from "../../protocol/wire/content-grant.ts"
import type { RuntimeSpec, TaskSpec } from "../../protocol/wire/control.ts"
import type { SigningKey } from "../../protocol/wire/signing.ts"
import type { ObjectContent } from "../artifacts/object-content.ts"
import type { Member, Members } from "../fleet/members.ts"
import type { JobFacts } from "../jobs/job-facts.ts"
import { taskEnvLayers } from "../projects/env-files.ts"
import { effectiveManifest } from "../projects/revisions.ts"
import { findProjectById, findRevision, type Project, type Revision } from "../store/projects.ts"
import type { Store } from "../store/store.ts"
import type { Runtimes } from "./dispatch.ts"

/** What nodes are told of a revision, and which of them can run it. Memory over rows: `refresh` after they changed. */
export interface RuntimeSpecs extends Runtimes {
  /** Reads the revision's rows (again). Before its first job is queued, and after a build or project change. */
  refresh(revision: RevisionId): Promise<void>
  /** What is known of it; undefined before the first `refresh`. */
  known(revision: string): KnownRevision | undefined
  /** As `prepare` and grants carry it, for this node. */
  runtime(revision: string, member: Member): Promise<RuntimeSpec>
  /** Leave for this node to fetch exactly these blobs. */
  contentGrant(member: Member, blobs: ContentRef[]): string
  /** This node failed to prepare the revision: its work goes elsewhere. */
  failedOn(revision: string, member: Member, reason: FailedSetup): void
  /** This node could not prepare the revision, by its own fault: it is left alone with it for `REST_MS`. */
  restOn(revision: string, member: Member, message: string): void
  /** Can the node run tasks of it now, and is it ready there? */
  runsOn(revision: string, member: Member | undefined): { can: boolean; warm: boolean }
  /** Is it left alone with the revision for now? */
  rests(revision: string, member: Member): boolean
  /** It is ready there: what went wrong before is forgotten. */
  readyOn(revision: string, member: Member): void
  /** Of how many nodes. */
  failures(revision: string): number
  /** The latest failure; null without one. */
  failure(revision: string): FailedSetup | null
  /** Why none of these members can prepare the revision; null while one may, while it is being built, and without members. */
  trouble(revision: string, members: Iterable<Member>): Trouble | null
}

/** What a failed set-up left to read. */
export interface FailedSetup {
  message: string
  logTail: string
}

export interface Trouble {
  /** `machine`: the nodes' own, nothing of the project's. */
  fault: "project" | "machine"
  message: string
}

export interface KnownRevision {
  project: Project
  revision: Revision
  manifest: Manifest | null
}

export interface RuntimeSpecParts {
  store: Store
  clock: Clock
  key: SigningKey
  content: ObjectContent
  members: Members
}

/** A grant of content outlives the transfer it is for; nodes ask again with a newer one. */
const CONTENT_GRANT_MS = 2 * 3_600_000
/** A node that could not prepare a revision (nobody gives it a base layer, say) is not asked again before. */
export const REST_MS = 30_000
/** Holders named to a node: more help little. */
const HOLDERS_NAMED = 8
/** Of each: what nodes say of themselves must not fill the frame of another. */
const ADDRESSES_TOLD = 4
/** Beside the one that built it. */
const BUILDERS_NAMED = 4
/** With it, a frame still has room for all else that it names. */
const LARGEST_CHECK_ENV_BYTES = 96 * 1024

export function createRuntimeSpecs(parts: RuntimeSpecParts): RuntimeSpecs {
  const known = new Map<string, KnownRevision>()
  const failed = new Map<string, Map<NodeId, FailedSetup>>()
  const unable = new Map<string, Map<NodeId, { message: string; restsUntilMs: number }>>()
  const granted = new Map<string, { text: string; until: number; blobs: string }>()

  async function refresh(id: RevisionId): Promise<void> {
    const found = await parts.store.read(async (view) => {
      const revision = await findRevision(view, id)
      const project = revision && (await findProjectById(view, revision.project))
      return revision && project ? { revision, project } : null
    })
    const before = known.get(id)
    if (found) known.set(id, { ...found, manifest: effectiveManifest(found) })
    else known.delete(id)
    // What nodes said before the first look (with their hellos to a new start, say) is about this image too.
    if (found && (!before || blobNames(found.revision) === blobNames(before.revision))) return
    // It was built again: what nodes said is about another image.
    failed.delete(id)
    unable.delete(id)
  }

  function contentGrant(member: Member, blobs: ContentRef[]): string {
    return signContentGrant(parts.key, {
      node: member.peer,
      blobs,
      expiresAt: parts.clock.now() + CONTENT_GRANT_MS,
    })
  }

  /** Signing costs little, but grants of one revision go out thousands of times. */
  function grantFor(member: Member, { revision }: KnownRevision, tarball: ContentRef): string {
    const key = `${revision.id}/${member.id}`
    const before = granted.get(key)
    const now = parts.clock.now()
    const names = blobNames(revision)
    if (before && before.until > now && before.blobs === names) return before.text
    const layers = (revision.image?.layers ?? []).flatMap(({ blob }) => (blob ? [fromWireRef(blob)] : []))
    const text = contentGrant(member, [tarball, ...layers])
    granted.set(key, { text, until: now + CONTENT_GRANT_MS / 2, blobs: names })
    return text
  }

  async function runtime(id: string, member: Member): Promise<RuntimeSpec> {
    const one = present(known.get(id), "a revision that is run or prepared")
    const { project, revision, manifest } = one
    // Nodes that have the revision ready never fetch it: missing bytes (after a restore, say) stop only those that would.
    const tarball = (await parts.content.ref(revision.tarball.digest)) ?? { ...revision.tarball, pieceListDigest: null }
    return {
      revision: id,
      tarball: toWireRef(tarball),
      image: member.facts?.runtime === "process" ? null : revision.image,
      workdir: manifest?.runtime.workdir ?? null,
      remote_dir: project.remoteDir,
      setup_timeout_ms: project.setupTimeoutSeconds * 1000,
      validation: validationOf(one),
      content_grant: grantFor(member, one, tarball),
      holders: holdersOf(id, member),
    }
  }

  function validationOf({ project, revision, manifest }: KnownRevision): RuntimeSpec["validation"] {
    const checks = manifest?.validation
    if (!checks) return null
    const env = taskEnvLayers(revision.env, project.env, undefined)
    // One that is larger keeps every task from running, and its jobs say so (dispatch): checks do not tell more.
    const fits = Buffer.byteLength(JSON.stringify(env)) <= LARGEST_CHECK_ENV_BYTES
    return {
      executables: checks.executables ?? [],
      files: checks.files ?? [],
      commands: (checks.commands ?? []).map((check) => ({
        label: check.label ?? check.command.join(" "),
        command: check.command,
        ...(check.cwd !== undefined && { cwd: check.cwd }),
        ...(check.env && { env: { ...taskEnvLayers({}, {}, check.env) } }),
      })),
      ...(checks.commands?.length && fits && { env: { ...env } }),
    }
  }

  function holdersOf(revision: string, member: Member): RuntimeSpec["holders"] {
    const holders: RuntimeSpec["holders"] = []
    for (const other of parts.members.all()) {
      if (holders.length === HOLDERS_NAMED) break
      if (other === member || !other.session || !other.facts || !other.standing?.warm.has(revision)) continue
      if (other.probation !== null) continue
      holders.push({ peer_id: other.peer, addresses: other.facts.addresses.slice(0, ADDRESSES_TOLD) })
    }
    for (const other of buildersFor(revision)) {
      if (other === member || !other.facts || holders.some(({ peer_id }) => peer_id === other.peer)) continue
      holders.push({ peer_id: other.peer, addresses: other.facts.addresses.slice(0, ADDRESSES_TOLD) })
    }
    return holders
  }

  /** Who built it; and others, who may have built on the same base: the same layers give the same blobs. */
  function buildersFor(revision: string): Member[] {
    const { image = null, builder = null } = known.get(revision)?.revision ?? {}
    const connected = [...parts.members.all()].filter(({ session }) => session !== null)
    const others = image?.layers.some(({ base }) => base)
      ? connected.filter(({ id, facts }) => id !== builder && facts?.roles.includes("builder"))
      : []
    return [...connected.filter(({ id }) => id === builder), ...others.slice(0, BUILDERS_NAMED)]
  }

  const rests = (revision: string, member: Member): boolean =>
    (unable.get(revision)?.get(member.id)?.restsUntilMs ?? 0) > parts.clock.monotonicMs()

  function canRun(revision: string, member: Member): boolean {
    const one = known.get(revision)
    if (!one || failed.get(revision)?.has(member.id) || rests(revision, member)) return false
    return member.facts?.runtime === "process" || one.revision.image !== null
  }

  return {
    refresh,
    rests,
    known: (revision) => known.get(revision),
    runtime,
    contentGrant,
    canRun,
    runsOn: (revision, member) => ({
      can: member !== undefined && canRun(revision, member),
      warm: member?.standing?.warm.has(revision) ?? false,
    }),
    async spec(job: JobFacts, member): Promise<TaskSpec> {
      const { project, revision } = present(known.get(job.revision), "the revision of a job that is granted")
      return {
        job_id: job.id,
        runtime: await runtime(job.revision, member),
        command: job.command,
        env: { ...taskEnvLayers(revision.env, project.env, job.env) },
        cpu: job.requirements.cpu,
        memory_mb: job.requirements.memoryMb,
        storage_gb: job.requirements.storageGb,
        timeout_ms: job.timeoutSeconds * 1000,
        ...(job.checkpoints && { checkpoints: true }),
      }
    },
    failedOn(revision, member, reason) {
      failed.set(revision, (failed.get(revision) ?? new Map<NodeId, FailedSetup>()).set(member.id, reason))
    },
    restOn(revision, member, message) {
      if (!known.has(revision)) return
      const nodes = unable.get(revision) ?? new Map<NodeId, { message: string; restsUntilMs: number }>()
      nodes.delete(member.id)
      unable.set(revision, nodes.set(member.id, { message, restsUntilMs: parts.clock.monotonicMs() + REST_MS }))
    },
    readyOn(revision, member) {
      failed.get(revision)?.delete(member.id)
      unable.get(revision)?.delete(member.id)
    },
    failures: (revision) => failed.get(revision)?.size ?? 0,
    failure: (revision) => [...(failed.get(revision)?.values() ?? [])].at(-1) ?? null,
    trouble(revision, members) {
      const isBuilt = known.get(revision)?.revision.build === "built"
      let trouble: Trouble | null = null
      for (const { id, facts } of members) {
        if (!isBuilt && facts?.runtime !== "process") return null
        const own = unable.get(revision)?.get(id)
        const ours = failed.get(revision)?.get(id)
        // A node that is tried again is no better off until it says so.
        if (ours) trouble = { fault: "project", message: ours.message }
        else if (own) trouble ??= { fault: "machine", message: own.message }
        else return null
      }
      return trouble
    },
  }
}

/** Which bytes the revision's image is made of. */
function blobNames({ image }: Revision): string {
  return image?.layers.map(({ blob }) => blob?.digest ?? "").join() ?? ""
}
