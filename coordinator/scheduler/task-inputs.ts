import type { NodeInputs } from "../../protocol/api/nodes.ts"
import { present } from "../../protocol/base/assert.ts"
import type { Clock } from "../../protocol/base/clock.ts"
import { sha256Hex } from "../../protocol/base/digest.ts"
import { joinJsonObject } from "../../protocol/base/json-text.ts"
import { artifactId, jobId, type ClaimNumber, type Digest, type NodeId } from "../../protocol/domain/ids.ts"
import { LARGEST_SHARED_BYTES } from "../../protocol/domain/task-inputs.ts"
import { toWireRef, type ContentRef } from "../../protocol/wire/content-source.ts"
import type { GrantedTask } from "../../protocol/wire/control.ts"
import type { ObjectContent } from "../artifacts/object-content.ts"
import type { ObjectFiles } from "../artifacts/object-files.ts"
import type { HeldAttempt, Member, Members } from "../fleet/members.ts"
import { inputsOf, withSharedValues } from "../jobs/inputs.ts"
import type { JobFacts, KnownJobs } from "../jobs/job-facts.ts"
import { isEnded } from "../jobs/job-state.ts"
import { outcomeValue, type EndedJob } from "../jobs/outcome-value.ts"
import type { Plans } from "../jobs/plans.ts"
import type { Download, SharedSource, TaskInputs } from "../jobs/submission/task-inputs.ts"
import { findArtifact, findNamedArtifact, type Artifact } from "../store/artifacts.ts"
import { jobHeadById, jobTexts } from "../store/jobs.ts"
import { findKvEntry } from "../store/project-kv.ts"
import { findProject } from "../store/projects.ts"
import { giveSharedValues, sharedValuesOf } from "../store/shared-values.ts"
import type { Store, View } from "../store/store.ts"
import type { GrantedTaskRow } from "./grant.ts"

/** What attempts are given beside their planned payload: shared values at their grant, files when their node asks. */
export interface GivenInputs {
  /**
   * Of those of these grants that have inputs, by claim. Values are resolved once for each grant and stored before anything is
   * sent, so that whatever asks again gets the same.
   */
  granted(rows: readonly GrantedTaskRow[]): Promise<ReadonlyMap<ClaimNumber, GrantedInputs>>
  /** The payload as the attempt was granted it. */
  payload(attempt: HeldAttempt): Promise<string>
  /** The files of the attempt of this claim; null when the node does not hold it. */
  files(claim: number, node: NodeId): Promise<NodeInputs | null>
}

export interface GrantedInputs {
  /** `_shared.values`, as JSON text; null: there are none. */
  values: string | null
  /** What the grant says of them. */
  fields: Pick<GrantedTask, "shares" | "downloads" | "uploads">
  /** Why the attempt cannot be given what it asks for; null where it can. */
  unresolved: string | null
}

export interface GivenInputsParts {
  store: Store
  files: ObjectFiles
  clock: Clock
  members: Members
  known: KnownJobs
  plans: Plans
  content: ObjectContent
  /** Leave for this node to fetch exactly these blobs. */
  contentGrant: (member: Member, blobs: ContentRef[]) => string
}

/** Blobs of which it is remembered who was given them, and how many of those. */
const BLOBS_REMEMBERED = 1_000
const HOLDERS_REMEMBERED = 32
/** Named to one node. */
const HOLDERS_NAMED = 8
const ADDRESSES_TOLD = 4

export function createGivenInputs(parts: GivenInputsParts): GivenInputs {
  const { store, clock, members, known, plans } = parts
  /** Who was given leave to fetch a blob, the latest last: they are likely to have it. */
  const holders = new Map<Digest, Set<NodeId>>()

  // ── shared values ─────────────────────────────────────────────────────────────────────────────────────────────────

  async function granted(rows: readonly GrantedTaskRow[]): Promise<ReadonlyMap<ClaimNumber, GrantedInputs>> {
    const found = new Map<ClaimNumber, GrantedInputs>()
    const given: { job: number; claim: ClaimNumber; digest: string; text: string }[] = []
    /** Most tasks of a job ask for the same. */
    const resolved = new Map<unknown, Promise<Resolved>>()
    for (const row of rows) {
      const job = known.get(row.job)
      const inputs = job ? inputsOf(await plans.of(row.job), row.index) : null
      if (!job || !inputs) continue
      const key = inputs.members._shared
      const values = resolved.get(key) ?? resolve(job, inputs.shared)
      resolved.set(key, values)
      const { text, problem } = await values
      if (text !== null) given.push({ job: row.job, claim: row.claim, digest: sha256Hex(text), text })
      found.set(row.claim, { values: text, fields: fieldsOf(inputs), unresolved: problem })
    }
    if (given.length > 0) {
      await store.write(async (tx) => {
        for (const one of given) await giveSharedValues(tx, one)
      })
    }
    return found
  }

  async function resolve(job: JobFacts, shared: TaskInputs["shared"]): Promise<Resolved> {
    if (shared.length === 0) return { text: null, problem: null }
    const state = await stateOf(job, shared)
    const ended = new Map<string, EndedJob | null>()
    const texts: [string, string][] = []
    for (const { alias, from } of shared) {
      const value = "key" in from ? state.get(from.key) : await outcomeOf(job, from, ended)
      if (value === undefined) return unresolved(alias, `the project's shared state has no ${keyOf(from)}`)
      if (typeof value !== "string") return unresolved(alias, value.problem)
      texts.push([alias, value])
    }
    const text = joinJsonObject(texts)
    if (Buffer.byteLength(text) <= LARGEST_SHARED_BYTES) return { text, problem: null }
    return { text: null, problem: `the shared values take more than ${LARGEST_SHARED_BYTES} bytes: use artifacts` }
  }

  /** All keys as of one moment. */
  async function stateOf(job: JobFacts, shared: TaskInputs["shared"]): Promise<ReadonlyMap<string, string>> {
    const keys = shared.flatMap(({ from }) => ("key" in from ? [from.key] : []))
    if (keys.length === 0) return new Map()
    const at = clock.now()
    return await store.read(async (view) => {
      const values = new Map<string, string>()
      const project = await findProject(view, job.account, job.project)
      if (project === null) return values
      for (const key of keys) {
        const entry = await findKvEntry(view, project.id, key, at)
        if (entry) values.set(key, entry.value)
      }
      return values
    })
  }

  async function outcomeOf(
    job: JobFacts,
    { jobId: id, path }: Extract<SharedSource, { path: string }>,
    ended: Map<string, EndedJob | null>,
  ): Promise<string | { problem: string }> {
    const of = ended.get(id) ?? (await store.read((view) => endedJob(view, job, id)))
    ended.set(id, of)
    if (!of) return { problem: `the job ${id} has not ended, or is gone` }
    const value = await outcomeValue(parts, of, path, LARGEST_SHARED_BYTES)
    return "text" in value ? value.text : { problem: `the path ${path} of ${id} ${value.problem}` }
  }

  // ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────

  async function filesFor(attempt: HeldAttempt, member: Member, job: JobFacts): Promise<NodeInputs> {
    const inputs = inputsOf(await plans.of(job.seq), attempt.index)
    const files: NodeInputs["files"] = []
    const refs: ContentRef[] = []
    for (const download of inputs?.downloads ?? []) {
      const artifact = await store.read((view) => artifactOf(view, job, download, clock.now()))
      if (!artifact) return without(download, "is not there, or no longer")
      if (artifact.digest === null) return without(download, "has no bytes here")
      const ref = await parts.content.ref(artifact.digest)
      if (!ref) return without(download, "has lost its bytes")
      refs.push(ref)
      const { name } = download
      files.push({ name, filename: artifact.filename, file: toWireRef(ref), holders: named(ref.digest, member) })
    }
    for (const { digest } of refs) remember(digest, member.id)
    const grant = refs.length === 0 ? null : parts.contentGrant(member, refs)
    return { files, content_grant: grant, unavailable: null }
  }

  function named(blob: Digest, asker: Member): NodeInputs["files"][number]["holders"] {
    const found: NodeInputs["files"][number]["holders"] = []
    for (const id of [...(holders.get(blob) ?? [])].toReversed()) {
      const member = members.byNode(id)
      if (found.length === HOLDERS_NAMED) break
      if (!member?.session || !member.facts || member === asker || member.probation !== null) continue
      found.push({ peer_id: member.peer, addresses: member.facts.addresses.slice(0, ADDRESSES_TOLD) })
    }
    return found
  }

  function remember(blob: Digest, node: NodeId): void {
    const its = holders.get(blob) ?? new Set()
    holders.delete(blob)
    holders.set(blob, its)
    its.delete(node)
    its.add(node)
    for (const oldest of its) {
      if (its.size <= HOLDERS_REMEMBERED) break
      its.delete(oldest)
    }
    for (const oldest of holders.keys()) {
      if (holders.size <= BLOBS_REMEMBERED) break
      holders.delete(oldest)
    }
  }

  return {
    granted,
    async payload({ claim, job, index }) {
      const planned = (await plans.of(job)).payloadText(index)
      const values = await store.read((view) => sharedValuesOf(view, claim))
      return values === null ? planned : withSharedValues(planned, values)
    },
    async files(claim, node) {
      const attempt = members.attempt(claim)
      const member = members.byNode(node)
      const job = attempt && known.get(attempt.job)
      if (attempt?.node !== node || !member || !job) return null
      return await filesFor(attempt, member, job)
    },
  }
}

interface Resolved {
  text: string | null
  problem: string | null
}

const unresolved = (alias: string, problem: string): Resolved => ({
  text: null,
  problem: `_shared.resolve.${alias}: ${problem}`,
})

const keyOf = (from: SharedSource): string => ("key" in from ? from.key : from.path)

function fieldsOf({ shared, downloads, uploads }: TaskInputs): GrantedInputs["fields"] {
  return {
    ...(shared.length > 0 && { shares: true }),
    ...(downloads.length > 0 && { downloads: true }),
    ...(uploads.length > 0 && {
      uploads: uploads.map(({ name, path, filename, contentType }) => ({
        name,
        path,
        filename,
        content_type: contentType,
      })),
    }),
  }
}

/** A job of the same account that has ended, with what it came to. */
async function endedJob(view: View, { account }: JobFacts, id: string): Promise<EndedJob | null> {
  const head = await jobHeadById(view, jobId(id), account)
  if (!head || !isEnded(head.status)) return null
  const texts = present(await jobTexts(view, head.seq), "the texts of a job")
  return { head, status: head.status, outcome: texts.outcome ?? "{}" }
}

/** The account's own alone: a job may name no other's (AR-019). */
async function artifactOf(view: View, job: JobFacts, { from }: Download, at: number): Promise<Artifact | null> {
  if ("artifactId" in from) return await findArtifact(view, artifactId(from.artifactId), job.account, at)
  const { jobId: of, artifact: name, taskIndex } = from
  return await findNamedArtifact(view, { job: jobId(of), account: job.account, name, taskIndex }, at)
}

function without({ name, from }: Download, why: string): NodeInputs {
  const what =
    "artifactId" in from ? `the artifact ${from.artifactId}` : `the artifact ${from.artifact} of ${from.jobId}`
  return { files: [], content_grant: null, unavailable: `${name}: ${what} ${why}` }
}
