import type { NodeResume } from "../../protocol/api/nodes.ts"
import { every, sleep } from "../../protocol/base/clock.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import type { Log } from "../../protocol/base/log.ts"
import type { NodeId } from "../../protocol/domain/ids.ts"
import { toWireRef, type ContentRef } from "../../protocol/wire/content-source.ts"
import type { CheckpointItem, ItemVerdict, ToCoordinator } from "../../protocol/wire/control.ts"
import type { ObjectContent } from "../artifacts/object-content.ts"
import { appendEvent } from "../events/event-log.ts"
import type { JobWatch } from "../events/watch.ts"
import type { HeldAttempt, Member, Members } from "../fleet/members.ts"
import { objectIn, storeCheckpoint, type CheckpointParts } from "../jobs/checkpoints.ts"
import type { KnownJobs } from "../jobs/job-facts.ts"
import { remainsOf, resumedCheckpointText } from "../jobs/resume.ts"
import {
  checkpointsOfTasks,
  progressOfTasks,
  putTaskProgress,
  tasksWithRemains,
  type CheckpointRow,
} from "../store/checkpoints.ts"
import type { TaskKey } from "../store/tasks.ts"

/** What attempts leave for the next one, and what the next one gets (architecture §5.6, CK). */
export interface Checkpoints extends AsyncDisposable {
  store(member: Member, item: CheckpointItem): Promise<ItemVerdict>
  /** Progress lines came: of jobs that resume, the last of each attempt is stored within a second. */
  heard(member: Member, items: Extract<ToCoordinator, { type: "progress" }>["items"]): void
  /** An attempt could not read what it was given. */
  fellBack(member: Member, unreadable: Extract<ToCoordinator, { type: "fell_back" }>): Promise<void>
  /** Which of these tasks have something to go on from. Asks the store only about jobs that resume. */
  resuming(tasks: readonly { job: number; task: TaskKey }[]): Promise<ReadonlySet<TaskKey>>
  /** What the attempt of this claim goes on from; null when the node does not hold it. */
  resume(claim: number, node: NodeId): Promise<NodeResume | null>
}

export interface CheckpointsParts extends CheckpointParts {
  log: Log
  members: Members
  known: KnownJobs
  watch: JobWatch
  content: ObjectContent
  /** Leave for this node to fetch exactly these blobs. */
  contentGrant: (member: Member, blobs: ContentRef[]) => string
}

/** A crash of this process and of the node at once may cost so much progress that no checkpoint told of. */
const PROGRESS_KEPT_WITHIN_MS = 1_000

/** Of one attempt. An agent sends one a second. */
const LEAST_INTERVAL_MS = 250

export function createCheckpoints(parts: CheckpointsParts): Checkpoints {
  const { store, clock, log, members, known } = parts
  /** Their last progress line is newer than what is stored. */
  const spoke = new Set<HeldAttempt>()
  /** Checkpoints that were told to be unreadable, by the attempt that could not read them: each is told once. */
  const told = new WeakMap<HeldAttempt, Set<string>>()
  const storedAtMs = new WeakMap<HeldAttempt, number>()
  const stopped = new AbortController()
  let writing: Promise<unknown> = Promise.resolve()
  const keeping = every(clock, PROGRESS_KEPT_WITHIN_MS, keepProgress)

  function held(node: NodeId, claim: number): HeldAttempt | null {
    const attempt = members.attempt(claim)
    return attempt?.node === node ? attempt : null
  }

  /** Each checkpoint is a row and an event: a node that sends more than an agent would waits, with all else that it reports. */
  async function rest(attempt: HeldAttempt): Promise<void> {
    const restMs = (storedAtMs.get(attempt) ?? Number.NEGATIVE_INFINITY) + LEAST_INTERVAL_MS - clock.monotonicMs()
    if (restMs > 0) await sleep(clock, restMs, stopped.signal)
    storedAtMs.set(attempt, clock.monotonicMs())
  }

  function keepProgress(): void {
    if (spoke.size === 0) return
    const latest = [...spoke].map(({ task, claim, progress }) => ({ task, claim, progress }))
    spoke.clear()
    const write = store.write(async (tx) => {
      for (const { task, claim, progress } of latest) {
        if (progress !== null && objectIn(progress) !== null) await putTaskProgress(tx, task, claim, progress)
      }
    })
    writing = write.catch((error: unknown) => log.error("progress was not stored", { error: errorText(error) }))
  }

  /** Says in the job's log that an attempt goes on without this checkpoint. */
  async function tell(attempt: HeldAttempt, row: Pick<CheckpointRow, "claim" | "n">, reason: string): Promise<void> {
    const key = `${row.claim}/${row.n}`
    const before = told.get(attempt) ?? new Set()
    if (before.has(key)) return
    told.set(attempt, before.add(key))
    const at = clock.now()
    await store.write((tx) =>
      appendEvent(tx, {
        job: attempt.job,
        type: "task.checkpoint",
        taskIndex: attempt.index,
        message: `a checkpoint cannot be read, so the attempt goes on without it: ${reason}`,
        data: { attempt: attempt.number, unreadable: true },
        at,
      }),
    )
    parts.watch.changed([attempt.job])
    log.warn("a checkpoint cannot be read", { claim: attempt.claim, of: row.claim, n: row.n, reason })
  }

  const readRows = (task: TaskKey) =>
    store.read(async (view) => ({
      rows: await checkpointsOfTasks(view, [task]),
      progress: (await progressOfTasks(view, [task])).get(task) ?? null,
    }))

  return {
    async store(member, item) {
      const attempt = held(member.id, item.claim)
      const job = (attempt && known.get(attempt.job)) ?? null
      if (attempt) await rest(attempt)
      const { verdict, reason, durable } = await storeCheckpoint(parts, member.id, item, job)
      if (attempt && durable) attempt.checkpointedAtMs = clock.monotonicMs()
      if (attempt && verdict === "stored") parts.watch.changed([attempt.job])
      if (verdict === "refused") log.warn("a checkpoint was refused", { claim: item.claim, n: item.n, reason })
      return { claim: item.claim, kind: "checkpoint", n: item.n, verdict, reason }
    },
    heard(member, items) {
      for (const { claim, progress } of items) {
        const attempt = held(member.id, claim)
        if (attempt && progress !== null && isWanted(known, attempt) && objectIn(progress) !== null) spoke.add(attempt)
      }
    },
    async fellBack(member, { claim, unreadable }) {
      const attempt = held(member.id, claim)
      if (!attempt) return
      const { rows } = await readRows(attempt.task)
      for (const { claim: of, n, reason } of unreadable) {
        const row = rows.find((one) => one.claim === of && one.n === n)
        if (row) await tell(attempt, row, reason)
      }
    },
    async resuming(tasks) {
      const asked = tasks.filter((one) => isWanted(known, one)).map(({ task }) => task)
      return asked.length === 0 ? NONE : await store.read((view) => tasksWithRemains(view, asked))
    },
    async resume(claim, node) {
      const attempt = held(node, claim)
      const member = members.byNode(node)
      const key = attempt && known.get(attempt.job)?.resumeKey
      if (!attempt || !member || key === undefined) return null
      if (key === null) return { payload_key: "", progress: null, points: [], content_grant: null }
      const { rows, progress } = await readRows(attempt.task)
      const earlier = rows.filter((row) => row.claim < attempt.claim)
      const remains = remainsOf(earlier, progress)
      const points: NodeResume["points"] = []
      const refs: ContentRef[] = []
      for (const row of remains.points) {
        const ref = row.blob === null ? null : await parts.content.ref(row.blob)
        if (row.blob !== null && ref === null) {
          await tell(attempt, row, "its file is not in the artifact store")
          continue
        }
        if (ref) refs.push(ref)
        const { claim: of, n, line } = row
        const file = ref && toWireRef(ref)
        const checkpoint = resumedCheckpointText(row)
        points.push({ claim: of, n, checkpoint, line, file, filename: row.filename ?? "checkpoint" })
      }
      // Progress made after what is left to go on from tells of work that is lost.
      const isWhole = points[0]?.n === remains.points[0]?.n && points[0]?.claim === remains.points[0]?.claim
      return {
        payload_key: key,
        progress: isWhole ? remains.progress : null,
        points,
        content_grant: refs.length === 0 ? null : parts.contentGrant(member, refs),
      }
    },
    async [Symbol.asyncDispose]() {
      keeping[Symbol.dispose]()
      stopped.abort(new Error("the coordinator stops"))
      keepProgress()
      await writing
    },
  }
}

const NONE: ReadonlySet<TaskKey> = new Set()

const isWanted = (known: KnownJobs, { job }: { job: number }): boolean => known.get(job)?.resumeKey != null
