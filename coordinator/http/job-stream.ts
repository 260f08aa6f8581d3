import type { Clock } from "../../protocol/base/clock.ts"
import { JsonText, stringifyJson } from "../../protocol/base/json-text.ts"
import type { AccountId } from "../../protocol/domain/ids.ts"
import type { JobWatch } from "../events/watch.ts"
import { eventOnWire, logEnd, readLog, wasLogged, type EventRow } from "../jobs/read/events.ts"
import type { Aggregates } from "../jobs/read/aggregates.ts"
import { isEnded, jobStatus } from "../jobs/job-state.ts"
import { jobOnWire } from "../jobs/read/job-object.ts"
import { readJobBySeq, type ReadJob, type ReadParts } from "../jobs/read/read-job.ts"
import { taskRows } from "../jobs/read/tasks.ts"
import type { StreamRequest } from "./followed-stream.ts"
import type { JobSnapshot, SharedSnapshots } from "./shared-snapshots.ts"
import type { SharedWork } from "./shared-work.ts"
import type { SnapshotTurns } from "./snapshot-turns.ts"
import { eventFrame, lastEventId, openEventStream, type EventStream } from "./sse.ts"
import { eventOf, frameId, idFrom, isDoneId } from "./stream-position.ts"

export interface JobStreamParts extends ReadParts {
  aggregates: Aggregates
  clock: Clock
  watch: JobWatch
  /** What streams of one job read at the same time is read once. */
  shared: SharedWork
  snapshots: SharedSnapshots
  /** Of all streams together. */
  snapshotTurns: SnapshotTurns
  ssePingMs: number
  sseLimitMs: number
}

/** Rows of the snapshot: the first page of GET /tasks, and no more than this many characters of it. */
const SNAPSHOT_TASKS = 1_000
const SNAPSHOT_CHARACTERS = 16 * 1024 * 1024
/** About as many characters of it go out at a time. */
const PIECE_CHARACTERS = 64 * 1024
/** Events read at a time. */
const BATCH_EVENTS = 100
/** Live words of one task reach a stream at most this often (GAP-46: a few times a second). */
const LIVE_INTERVAL_MS = 300
/** Tasks in one live round; the others come with the next. */
const LIVE_TASKS = 50

/**
 * Serves one job's event stream until the job ends, the client leaves or the time is over (ST-001, rulings, Streams). The log
 * is read from where the stream stands, whenever it has grown, and nothing is kept for slow readers.
 */
export async function serveJobStream(parts: JobStreamParts, seq: number, request: StreamRequest): Promise<void> {
  const { response } = request
  const resumed = await positionOf(parts, seq, idFrom(lastEventId(request.headers)))
  if (resumed === "done") return void response.writeHead(204).end()
  if (request.method === "HEAD")
    return void response.writeHead(200, { "content-type": "text/event-stream; charset=utf-8" }).end()
  const stream = openEventStream({
    response,
    clock: parts.clock,
    signal: request.signal(),
    stillAllowed: () => request.stillAllowed(),
    pingMs: parts.ssePingMs,
    limitMs: parts.sseLimitMs,
    beginsWithSnapshot: resumed === null,
  })
  try {
    await new JobStream(parts, seq, stream).run(resumed, request.caller.account)
  } finally {
    stream.end()
  }
}

/** Where a client goes on; null where it needs a snapshot, `done` where it has seen everything (rulings, Resume). */
async function positionOf(parts: JobStreamParts, seq: number, id: number | null): Promise<number | "done" | null> {
  if (id === null || !(await wasLogged(parts.store, eventOf(id)))) return null
  if (!isDoneId(id)) return id
  const later = await readLog(parts.store, seq, eventOf(id), BATCH_EVENTS)
  const hasEnded = later.head !== null && isEnded(later.head.status)
  return hasEnded && !later.events.some(({ type }) => type.startsWith("job.")) ? "done" : id
}

interface Frame {
  id: number
  text: string
}

/** Frames behind a position, in order, as far as one look goes. */
interface Batch {
  frames: Frame[]
  /** The last event that was looked at, 0 without any. */
  lastEvent: number
  isFull: boolean
  /** What `done` says, where the job has ended. */
  done: object | null
}

/** Holds little: a stream may wait for hours. */
class JobStream {
  readonly #parts: JobStreamParts
  readonly #stream: EventStream
  readonly #seq: number
  /** The id of the last frame that had one. */
  #position = 0
  /** Tasks that said something since the last live round. */
  readonly #spoke = new Set<number>()
  #liveDue = false
  #grown = true
  #wake: (() => void) | null = null

  constructor(parts: JobStreamParts, seq: number, stream: EventStream) {
    this.#parts = parts
    this.#seq = seq
    this.#stream = stream
  }

  async run(position: number | null, account: AccountId | null): Promise<void> {
    // Before the first look, so that nothing falls between.
    using _watching = this.#parts.watch.watch(this.#seq, ({ rows, spoke }) => {
      if (rows) this.#grown = true
      for (const index of spoke) this.#heard(index)
      if (rows) this.#wake?.()
    })
    this.#stream.whenEnded(() => this.#wake?.())
    if (position === null) await this.#sendSnapshot(account)
    else this.#position = position
    while (!this.#stream.hasEnded) {
      if (this.#grown) {
        this.#grown = false
        if ((await this.#sendEvents()) === "over") return
      }
      if (this.#liveDue) await this.#sendLive()
      if (!this.#grown && !this.#liveDue) await this.#sleep()
    }
  }

  async #sendSnapshot(account: AccountId | null): Promise<void> {
    using turn = await this.#parts.snapshotTurns.take(account)
    if (this.#stream.hasEnded) return
    const snapshot = await this.#parts.snapshots.of(this.#seq, () => makeSnapshot(this.#parts, this.#seq))
    if (!snapshot) return
    this.#position = snapshot.id
    await this.#stream.sendInPieces({ event: "snapshot", id: String(snapshot.id) }, snapshot.pieces, turn)
  }

  /** Everything the log has behind the position; `over` once the job has ended and all of it was sent. */
  async #sendEvents(): Promise<"over" | "live"> {
    const { shared, watch } = this.#parts
    for (;;) {
      const position = this.#position
      // At one version of the job all streams that stand at the same place are given the same.
      const name = `${this.#seq} v${watch.version(this.#seq)} @${position}`
      const batch = await shared.run(name, () => readBatch(this.#parts, this.#seq, position))
      if (!batch) return "over"
      for (const { id, text } of batch.frames) {
        if (!(await this.#stream.room())) return "over"
        this.#send(id, text)
      }
      if (batch.lastEvent > 0) this.#position = Math.max(this.#position, frameId(batch.lastEvent, "event"))
      if (batch.isFull) continue
      if (!batch.done) return "live"
      const id = frameId(eventOf(this.#position), "done")
      this.#send(id, eventFrame({ event: "done", id: String(id), data: batch.done }))
      return "over"
    }
  }

  #heard(index: number): void {
    if (this.#spoke.size === 0) {
      this.#parts.clock.after(LIVE_INTERVAL_MS, () => {
        this.#liveDue = true
        this.#wake?.()
      })
    }
    this.#spoke.add(index)
  }

  /** Rows of tasks that said something, without ids: a replay leaves them out. */
  async #sendLive(): Promise<void> {
    this.#liveDue = false
    const indexes = [...this.#spoke].slice(0, LIVE_TASKS)
    const rest = [...this.#spoke].slice(LIVE_TASKS)
    this.#spoke.clear()
    for (const index of rest) this.#heard(index)
    const name = `${this.#seq} live ${indexes.join(",")}`
    for (const text of await this.#parts.shared.run(name, () => liveFrames(this.#parts, this.#seq, indexes))) {
      if (!(await this.#stream.room())) return
      this.#stream.send(text)
    }
  }

  #send(id: number, text: string): void {
    this.#stream.send(text)
    this.#position = id
  }

  async #sleep(): Promise<void> {
    if (this.#stream.hasEnded) return
    await new Promise<void>((resolve) => (this.#wake = resolve))
    this.#wake = null
  }
}

async function makeSnapshot(parts: JobStreamParts, seq: number): Promise<JobSnapshot | null> {
  const last = await logEnd(parts.store, seq)
  const job = await readJobBySeq(parts.store, seq)
  return job && { id: frameId(last, "snapshot"), pieces: snapshotPieces(parts, job) }
}

/** `{job, tasks, total}` as JSON, some rows at a time: of a client that reads nothing no more is kept than of any other. */
async function* snapshotPieces(parts: JobStreamParts, job: ReadJob): AsyncGenerator<string> {
  const { taskCount } = job.head
  let piece = `{"job":${stringifyJson(await jobOnWire(parts, job))},"tasks":[`
  const indexes = Array.from({ length: Math.min(taskCount, SNAPSHOT_TASKS) }, (_, index) => index)
  let before = ""
  for await (const text of textsWithin(taskRows(parts, job, indexes), SNAPSHOT_CHARACTERS)) {
    piece += `${before}${text}`
    before = ","
    if (piece.length < PIECE_CHARACTERS) continue
    yield piece
    piece = ""
  }
  yield `${piece}],"total":${taskCount}}`
}

/** The next frames behind `position`, each object read and written once for all of them; null once the job is gone. */
async function readBatch(parts: JobStreamParts, seq: number, position: number): Promise<Batch | null> {
  const { events, head } = await readLog(parts.store, seq, eventOf(position) - 1, BATCH_EVENTS)
  if (!head) return null
  const isFull = events.length === BATCH_EVENTS
  const hasEnded = !isFull && isEnded(head.status)
  return {
    frames: await framesOf(parts, seq, position, events),
    lastEvent: events.at(-1)?.id ?? 0,
    isFull,
    done: hasEnded ? { reason: "all_terminal", statuses: { [head.id]: jobStatus(head.status) } } : null,
  }
}

async function framesOf(
  parts: JobStreamParts,
  seq: number,
  position: number,
  events: readonly EventRow[],
): Promise<Frame[]> {
  const news = events.filter(({ id, type }) => frameId(id, "event") > position && type !== "task.progress")
  const job = news.length === 0 ? null : await readJobBySeq(parts.store, seq)
  if (!job) return []
  const indexes = new Set(news.map(({ taskIndex }) => taskIndex).filter((index) => index !== null))
  const tasks = new Map<number, JsonText>()
  for await (const row of taskRows(parts, job, [...indexes])) {
    tasks.set(row.index, new JsonText(stringifyJson({ task: row })))
  }
  const isAboutJob = news.some(({ taskIndex }) => taskIndex === null)
  const whole = isAboutJob ? new JsonText(stringifyJson({ job: await jobOnWire(parts, job) })) : null
  return news
    .flatMap((event) => [
      event.taskIndex === null
        ? { id: frameId(event.id, "job"), event: "job", data: whole }
        : { id: frameId(event.id, "task"), event: "task", data: tasks.get(event.taskIndex) },
      { id: frameId(event.id, "event"), event: "event", data: eventOnWire(job.head.id, event) },
    ])
    .filter(({ id }) => id > position)
    .map(({ id, event, data }) => ({ id, text: eventFrame({ event, id: String(id), data }) }))
}

async function liveFrames(parts: JobStreamParts, seq: number, indexes: readonly number[]): Promise<string[]> {
  const job: ReadJob | null = await readJobBySeq(parts.store, seq)
  const frames: string[] = []
  for await (const task of job ? taskRows(parts, job, indexes) : []) {
    if (task.status === "running") frames.push(eventFrame({ event: "task", data: { task } }))
  }
  return frames
}

/** Rows as JSON text, in order, until their text would be longer than `characters`; always the first. */
export async function rowsWithin(rows: AsyncIterable<unknown>, characters: number): Promise<JsonText[]> {
  const texts: JsonText[] = []
  for await (const text of textsWithin(rows, characters)) texts.push(new JsonText(text))
  return texts
}

async function* textsWithin(rows: AsyncIterable<unknown>, characters: number): AsyncGenerator<string> {
  let used = 0
  for await (const row of rows) {
    const text = stringifyJson(row)
    if (used > 0 && used + text.length > characters) return
    used += text.length
    yield text
  }
}
