import { mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { systemClock, type Clock } from "../../protocol/base/clock.ts"
import { sha256Hex } from "../../protocol/base/digest.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import {
  claimNumber,
  digest,
  newNodeId,
  newRevisionId,
  peerId,
  type AccountId,
  type ClaimNumber,
  type NodeId,
} from "../../protocol/domain/ids.ts"
import { manifestSchema } from "../../protocol/domain/manifest.ts"
import type { ItemVerdict, ResultItem } from "../../protocol/wire/control.ts"
import { openObjectFiles, type ObjectFiles } from "../../coordinator/artifacts/object-files.ts"
import { DEFAULT_PRICES } from "../../coordinator/billing/pricing.ts"
import { createJobWatch, type JobWatch } from "../../coordinator/events/watch.ts"
import { createMembers, type HeldAttempt, type Member, type Members } from "../../coordinator/fleet/members.ts"
import { cancelJob, endEarly, sweepTasks } from "../../coordinator/jobs/end-early.ts"
import { expandJob } from "../../coordinator/jobs/expand.ts"
import { finishJob } from "../../coordinator/jobs/finish.ts"
import { jobFacts } from "../../coordinator/jobs/job-facts.ts"
import { createPlans, type Plans } from "../../coordinator/jobs/plans.ts"
import { reportResults, type ReportOutcome } from "../../coordinator/jobs/report.ts"
import { retryJob, type RetriedJob, type RetryRequest } from "../../coordinator/jobs/retry.ts"
import { recordStarts } from "../../coordinator/jobs/start.ts"
import { submitJob, type SubmitRequest, type SubmittedJob } from "../../coordinator/jobs/submit.ts"
import { grantTasks, type GrantOutcome } from "../../coordinator/scheduler/grant.ts"
import { insertNode, insertNodeToken } from "../../coordinator/store/fleet.ts"
import { jobBySeq, type JobRow } from "../../coordinator/store/jobs.ts"
import { findProject, insertProject, insertRevision, setActiveRevision } from "../../coordinator/store/projects.ts"
import type { Store } from "../../coordinator/store/store.ts"
import {
  attemptByClaim,
  jobOfTask,
  liveAttemptsOfJob,
  moveTask,
  taskByKey,
  taskKey,
} from "../../coordinator/store/tasks.ts"
import { openTestStore } from "./store.ts"

const NO_SIGNAL = new AbortController().signal

/**
 * A coordinator's jobs without its doors: the real store and the real acts of a job's life, called one by one, and memory as
 * the mesh door would keep it.
 */
export interface JobRig extends AsyncDisposable {
  store: Store & { dataDir: string }
  files: ObjectFiles
  clock: Clock
  jobRetentionMs: number
  /** Moves time forward. */
  pass(ms: number): void
  plans: Plans
  members: Members
  watch: JobWatch
  node: NodeId
  member: Member
  /** A project with one pushed revision. */
  project(account: AccountId, name?: string): Promise<void>
  submit(request: SubmitRequest): Promise<SubmittedJob>
  /** Runs tasks of a job that has ended again; those of a large selection are put back by `putBackTasks`. */
  retry(request: RetryRequest): Promise<RetriedJob>
  /** Submits and writes its tasks. */
  queued(account: AccountId, body: object): Promise<JobRow>
  grant(job: JobRow, tasks: number): Promise<ClaimNumber[]>
  grantOutcome(job: JobRow, tasks: number): Promise<GrantOutcome>
  start(claims: readonly ClaimNumber[]): Promise<void>
  /** Live words, as the mesh door takes them. */
  say(claim: ClaimNumber, words: { progress?: unknown; tail?: string; runningMs?: number }): void
  report(claim: ClaimNumber, item?: Partial<ResultItem>): Promise<ItemVerdict["verdict"]>
  reportOutcome(claim: ClaimNumber, item?: Partial<ResultItem>): Promise<ReportOutcome>
  /** Contact was lost for long enough: the task may be granted again. */
  lose(claim: ClaimNumber): Promise<void>
  finish(job: JobRow): Promise<void>
  cancel(job: Pick<JobRow, "id" | "seq">, account?: AccountId | null, reason?: string): Promise<void>
  endEarly(job: JobRow, status: "failed", error: string): Promise<void>
  row(job: Pick<JobRow, "seq">): Promise<JobRow>
  /** Everything: granted, started, reported as completed with `result`, and finished. */
  runWhole(job: JobRow, result: (index: number) => unknown): Promise<void>
}

export const LEAST_JOB = {
  type: "structured_runner",
  project: "p",
  runner_command: ["python3", "job.py"],
  timeout_s: 60,
}

export async function startJobRig(
  options: {
    resultSpillBytes?: number
    /** Stands between the acts and the real store. */
    wrap?: (store: Store & { dataDir: string }) => Store & { dataDir: string }
    /** Else the system's, which `pass` moves. */
    clock?: Clock
    jobRetentionMs?: number
  } = {},
): Promise<JobRig> {
  let aheadMs = 0
  const clock: Clock = options.clock ?? {
    now: () => systemClock.now() + aheadMs,
    monotonicMs: () => systemClock.monotonicMs() + aheadMs,
    after: (delayMs, run) => systemClock.after(delayMs, run),
  }
  const dir = await mkdtemp(join(tmpdir(), "job-rig-"))
  const opened = await openTestStore({ clock })
  const jobRetentionMs = options.jobRetentionMs ?? 30 * 86_400_000
  const store = options.wrap?.(opened) ?? opened
  const files = await openObjectFiles(dir, systemRandom)
  const members = createMembers(clock, { heartbeatMs: 1_000, claimLifetimeMs: 300_000 })
  const watch = createJobWatch()
  const plans = createPlans(store)
  const node = newNodeId(systemRandom)
  await store.write(async (tx) => {
    const token = { id: "tok_1", hash: "hash", name: null, maxUses: 9, roles: ["worker" as const], account: null }
    await insertNodeToken(tx, { ...token, expiresAt: clock.now() + 1e9, at: clock.now() })
    const peer = peerId("12D3KooWTestPeer")
    const facts = { name: null, token: token.id, account: null, roles: token.roles, agentVersion: "1" }
    await insertNode(tx, { id: node, peerId: peer, ...facts, at: clock.now() })
  })
  const member = members.add({
    id: node,
    peer: peerId("12D3KooWTestPeer"),
    name: null,
    roles: ["worker"],
    state: "active",
  })
  member.session = { send: () => {}, close: () => {} }
  member.lastHeardMs = clock.monotonicMs()
  const reports = {
    store,
    files,
    clock,
    random: systemRandom,
    artifactTtlMs: 3_600_000,
    resultSpillBytes: options.resultSpillBytes ?? 262_144,
  }

  const row = async ({ seq }: Pick<JobRow, "seq">): Promise<JobRow> => {
    const found = await store.read((view) => jobBySeq(view, seq))
    if (!found) throw new Error("the job is there")
    return found
  }

  const rig: JobRig = {
    store,
    files,
    clock,
    jobRetentionMs,
    pass(ms) {
      aheadMs += ms
    },
    plans,
    members,
    watch,
    node,
    member,
    row,
    async project(account, name = "p") {
      const id = newRevisionId(systemRandom)
      await store.write(async (tx) => {
        const fields = {
          remoteDir: "/root/p",
          env: {},
          setupTimeoutSeconds: 600,
          runtimeKind: "oci" as const,
          imageRef: null,
        }
        const more = { imageDigest: null, manifest: null, cachePolicy: null, runtimeVersion: 1, at: clock.now() }
        await insertProject(tx, { account, name, ...fields, ...more })
        const project = await findProject(tx, account, name)
        if (!project) throw new Error("the project is there")
        const revision = {
          id,
          project: project.id,
          contentHash: digest("a".repeat(64)),
          tarball: { digest: digest("b".repeat(64)), size: 1 },
          manifest: MANIFEST,
          hasDockerfile: true,
          env: {},
          build: "queued" as const,
          builder: null,
          image: null,
          buildChangedAt: clock.now(),
          pushedAt: clock.now(),
        }
        await insertRevision(tx, revision)
        await setActiveRevision(tx, project.id, { revision: id, manifest: null, at: clock.now() })
      })
    },
    submit: (request) =>
      submitJob(
        {
          store,
          clock,
          random: systemRandom,
          prices: DEFAULT_PRICES,
          quoteTtlMs: 1000,
          jobRetentionMs,
          plan: () => {},
          reserve: () => ({ keep: () => {}, [Symbol.dispose]: () => {} }),
        },
        request,
      ),
    async retry(request) {
      const parts = {
        store,
        clock,
        random: systemRandom,
        quoteTtlMs: 1000,
        jobRetentionMs,
        settled: async () => {},
        again: () => {},
      }
      const retried = await retryJob(parts, request)
      watch.changed([retried.job.seq])
      return retried
    },
    async queued(account, body) {
      const sent = { ...LEAST_JOB, ...body }
      const { job } = await rig.submit({ account, user: null, body: sent, bodyText: JSON.stringify(sent) })
      await expandJob({ store, clock }, job, NO_SIGNAL)
      watch.changed([job.seq])
      return row(job)
    },
    async grantOutcome(job, tasks) {
      const at = clock.now()
      const places = Array.from({ length: tasks }, () => ({ job: job.seq, node, gpus: [] }))
      const outcome = await store.write((tx) => grantTasks(tx, places, at))
      for (const claim of outcome.spent) members.release(claim)
      const facts = jobFacts(await row(job))
      for (const { claim, task, index, number, reserveMicro } of outcome.granted) {
        const held: HeldAttempt = {
          claim,
          node,
          job: job.seq,
          task,
          index,
          number,
          state: "offered",
          requirements: facts.requirements,
          gpus: [],
          reserveMicro,
          grantedAt: at,
          acceptedAt: null,
          startedAt: null,
          grantedAtMs: clock.monotonicMs(),
          expiresAtMs: clock.monotonicMs() + 300_000,
          heardAtMs: clock.monotonicMs(),
          runningMs: null,
          claimable: false,
          bootId: null,
          died: false,
          contactLostMs: null,
          extended: false,
          checkpointedAtMs: null,
          progress: null,
          outputTail: null,
          feedbackAt: null,
        }
        members.hold(member, held)
      }
      watch.changed(outcome.changed)
      return outcome
    },
    grant: async (job, tasks) => (await rig.grantOutcome(job, tasks)).granted.map(({ claim }) => claim),
    async start(claims) {
      const at = clock.now()
      for (const claim of claims) {
        const attempt = members.attempt(claim)
        if (attempt) Object.assign(attempt, { state: "running", acceptedAt: at, startedAt: at })
      }
      watch.changed(
        await recordStarts(
          store,
          node,
          claims.map((claim) => ({ claim, at })),
        ),
      )
    },
    say(claim, { progress, tail, runningMs }) {
      const attempt = members.attempt(claim)
      if (!attempt) throw new Error("the attempt is live")
      if (progress !== undefined) attempt.progress = JSON.stringify(progress)
      if (tail !== undefined) attempt.outputTail = tail
      if (runningMs !== undefined) attempt.runningMs = runningMs
      attempt.feedbackAt = clock.now()
      watch.spoke(attempt.job, attempt.index)
    },
    async reportOutcome(claim, item = {}) {
      const attempt = members.attempt(claim)
      const owner = attempt ? jobFacts(await row({ seq: attempt.job })) : await factsOf(claim)
      const whole = resultItem(claim, item)
      const outcome = await reportResults(reports, node, [
        {
          item: whole,
          job: owner,
          acceptedAt: attempt?.acceptedAt ?? null,
          startedAt: attempt?.startedAt ?? null,
          progress: attempt?.progress ?? null,
        },
      ])
      for (const ended of outcome.ended) members.release(ended.claim)
      watch.changed(outcome.changed)
      return outcome
    },
    report: async (claim, item) => (await rig.reportOutcome(claim, item)).verdicts[0]?.verdict ?? "refused",
    async lose(claim) {
      await store.write(async (tx) => {
        const attempt = await attemptByClaim(tx, claim)
        if (attempt) await moveTask(tx, attempt.task, ["granted", "running"], "lost")
      })
    },
    async finish(job) {
      await finishJob({ store, files, clock }, job.seq, NO_SIGNAL)
      watch.changed([job.seq])
    },
    async cancel(job, account = null, reason = "no longer needed") {
      const parts = { store, clock, runningMs: (claim: ClaimNumber) => members.attempt(claim)?.runningMs ?? null }
      const { spent } = await cancelJob(parts, job.id, account, reason)
      for (const claim of spent) members.release(claim)
      watch.changed([job.seq])
      await sweepTasks({ store, clock }, job.seq, NO_SIGNAL)
      await finishJob({ store, files, clock }, job.seq, NO_SIGNAL)
    },
    async endEarly(job, status, error) {
      await endEarly({ store, clock, runningMs: () => null }, job.seq, { status, error })
      watch.changed([job.seq])
    },
    async runWhole(job, result) {
      const claims = await rig.grant(job, job.taskCount)
      await rig.start(claims)
      for (const claim of claims) {
        const index = members.attempt(claim)?.index ?? 0
        await rig.report(claim, { result: { text: JSON.stringify(result(index)) }, output: `task ${index}\n` })
      }
      await rig.finish(job)
    },
    async [Symbol.asyncDispose]() {
      await store[Symbol.asyncDispose]()
      await rm(dir, { recursive: true, force: true })
    },
  }

  /** For numbers that memory no longer knows: what the job of their task is. */
  async function factsOf(claim: ClaimNumber) {
    const attempt = await store.read((view) => attemptByClaim(view, claim))
    return attempt ? jobFacts(await row({ seq: jobOfTask(attempt.task) })) : null
  }
  return rig
}

/** One end of an attempt; completed with `{"ok":true}` unless `item` says otherwise. */
export function resultItem(claim: number, item: Partial<ResultItem> = {}): ResultItem {
  const whole = {
    claim,
    failure_kind: null,
    exit_code: 0,
    signal: null,
    message: null,
    runtime_ms: 1_000,
    cpu_ms: 500,
    peak_memory_bytes: null,
    output: "",
    error_tail: "",
    result: { text: '{"ok":true}' },
    result_problem: null,
    artifacts: [],
    ...item,
  }
  return { digest: sha256Hex(JSON.stringify(whole)), ...whole }
}

export const failedItem = (kind: ResultItem["failure_kind"], exitCode: number | null = 3): Partial<ResultItem> => ({
  failure_kind: kind,
  exit_code: exitCode,
  result: null,
})

/** Read back for assertions: the row of one task. */
export const storedTask = (store: Store, job: number, index: number) =>
  store.read((view) => taskByKey(view, taskKey(job, index)))
export const storedAttempt = (store: Store, claim: number) =>
  store.read((view) => attemptByClaim(view, claimNumber(claim)))
export const liveOf = (store: Store, job: number) => store.read((view) => liveAttemptsOfJob(view, job))

const MANIFEST = manifestSchema.parse({
  version: 1,
  runtime: { kind: "oci", sandbox: "gvisor", workdir: "/workspace" },
  entrypoint: { command: ["python3", "job.py"] },
})
