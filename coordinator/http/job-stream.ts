import type { IncomingHttpHeaders, ServerResponse } from "node:http"
import { JsonText, stringifyJson } from "../../protocol/base/json-text.ts"
import type { JobWatch } from "../events/watch.ts"
import { eventOnWire, logEnd, readLog, wasLogged, type EventRow } from "../jobs/read/events.ts"
import type { Aggregates } from "../jobs/read/aggregates.ts"
import { isEnded, jobStatus } from "../jobs/job-state.ts"
import { jobOnWire } from "../jobs/read/job-object.ts"
import { readJobBySeq, type ReadJob, type ReadParts } from "../jobs/read/read-job.ts"
import { taskRows } from "../jobs/read/tasks.ts"
import { eventFrame, lastEventId, openEventStream, type EventStream } from "./sse.ts"

export interface JobStreamParts extends ReadParts {
  aggregates: Aggregates
  watch: JobWatch
  ssePingMs: number
  sseLimitMs: number
}

interface StreamRequest {
  headers: IncomingHttpHeaders
  method: string
  signal: AbortSignal
  stillAllowed: () => Promise<boolean>
  response: ServerResponse
}

/**
 * A frame's id is its place in the event log: event × 4 + place, so that ids compare, survive restarts and tell what was
 * missed. The snapshot stands behind all frames of the last event it saw, `done` behind those of the job's last.
 */
const PLACE = { task: 0, job: 1, event: 2, snapshot: 2, done: 3 } as const
const frameId = (event: number, place: keyof typeof PLACE): number => event * 4 + PLACE[place]
const eventOf = (id: number): number => Math.floor(id / 4)

/** Rows of the snapshot: the first page of GET /tasks, and no more than this many characters of it. */
const SNAPSHOT_TASKS = 1_000
const SNAPSHOT_CHARACTERS = 16 * 1024 * 1024
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
export async function serveJobStream(parts: JobStreamParts, job: ReadJob, request: StreamRequest): Promise<void> {
  const { response } = request
  const resumed = await positionOf(parts, job, lastEventId(request.headers))
  if (resumed === "done") return void response.writeHead(204).end()
  if (request.method === "HEAD")
    return void response.writeHead(200, { "content-type": "text/event-stream; charset=utf-8" }).end()
  const stream = openEventStream({
    response,
    clock: parts.clock,
    signal: request.signal,
    stillAllowed: request.stillAllowed,
    pingMs: parts.ssePingMs,
    limitMs: parts.sseLimitMs,
  })
  try {
    await new JobStream(parts, job, stream).run(resumed)
  } finally {
    stream.end()
  }
}

/** Where a client goes on; null where it needs a snapshot, `done` where it has seen everything (rulings, Resume). */
async function positionOf(
  parts: JobStreamParts,
  { head }: ReadJob,
  text: string | null,
): Promise<number | "done" | null> {
  const id = text !== null && /^\d{1,16}$/.test(text) ? Number(text) : 0
  if (!Number.isSafeInteger(id) || eventOf(id) === 0) return null
  if (!(await wasLogged(parts.store, eventOf(id)))) return null
  if (id % 4 !== PLACE.done) return id
  const later = await readLog(parts.store, head.seq, eventOf(id), BATCH_EVENTS)
  const hasEnded = later.head !== null && isEnded(later.head.status)
  return hasEnded && !later.events.some(({ type }) => type.startsWith("job.")) ? "done" : id
}

class JobStream {
  readonly #parts: JobStreamParts
  readonly #stream: EventStream
  readonly #seq: number
  #job: ReadJob
  /** The id of the last frame that had one. */
  #position = 0
  /** Tasks that said something since the last live round. */
  readonly #spoke = new Set<number>()
  #liveDue = false
  #grown = true
  #wake: (() => void) | null = null

  constructor(parts: JobStreamParts, job: ReadJob, stream: EventStream) {
    this.#parts = parts
    this.#job = job
    this.#seq = job.head.seq
    this.#stream = stream
  }

  async run(position: number | null): Promise<void> {
    // Before the first look, so that nothing falls between.
    using _watching = this.#parts.watch.watch(this.#seq, ({ rows, spoke }) => {
      if (rows) this.#grown = true
      for (const index of spoke) this.#heard(index)
      if (rows) this.#wake?.()
    })
    this.#stream.ended.addEventListener("abort", () => this.#wake?.(), { once: true })
    if (position === null) await this.#sendSnapshot()
    else this.#position = position
    while (!this.#stream.ended.aborted) {
      if (this.#grown) {
        this.#grown = false
        if ((await this.#sendEvents()) === "over") return
      }
      if (this.#liveDue) await this.#sendLive()
      if (!this.#grown && !this.#liveDue) await this.#sleep()
    }
  }

  async #sendSnapshot(): Promise<void> {
    const last = await logEnd(this.#parts.store, this.#seq)
    this.#job = (await readJobBySeq(this.#parts.store, this.#seq)) ?? this.#job
    const { head } = this.#job
    const indexes = Array.from({ length: Math.min(head.taskCount, SNAPSHOT_TASKS) }, (_, index) => index)
    const tasks = await rowsWithin(taskRows(this.#parts, this.#job, indexes), SNAPSHOT_CHARACTERS)
    const data = { job: await jobOnWire(this.#parts, this.#job), tasks, total: head.taskCount }
    this.#send("snapshot", data, frameId(last, "snapshot"))
  }

  /** Everything the log has behind the position; `over` once the job has ended and all of it was sent. */
  async #sendEvents(): Promise<"over" | "live"> {
    for (;;) {
      const from = eventOf(this.#position)
      const { events, head } = await readLog(this.#parts.store, this.#seq, from - 1, BATCH_EVENTS)
      if (!head) return "over"
      const frames = await this.#framesOf(events)
      for (const { id, event, data } of frames) {
        if (!(await this.#stream.room())) return "over"
        this.#send(event, data, id)
      }
      const last = events.at(-1)
      if (last) this.#position = Math.max(this.#position, frameId(last.id, "event"))
      if (events.length === BATCH_EVENTS) continue
      if (!isEnded(head.status)) return "live"
      const statuses = { [head.id]: jobStatus(head.status) }
      this.#send("done", { reason: "all_terminal", statuses }, frameId(eventOf(this.#position), "done"))
      return "over"
    }
  }

  /** The frames of these events that lie behind the position; each object is read and written once for all of them. */
  async #framesOf(events: readonly EventRow[]): Promise<{ id: number; event: string; data: unknown }[]> {
    const news = events.filter(({ id, type }) => frameId(id, "event") > this.#position && type !== "task.progress")
    if (news.length === 0) return []
    this.#job = (await readJobBySeq(this.#parts.store, this.#seq)) ?? this.#job
    const indexes = new Set(news.map(({ taskIndex }) => taskIndex).filter((index) => index !== null))
    const tasks = new Map<number, unknown>()
    for await (const row of taskRows(this.#parts, this.#job, [...indexes])) {
      tasks.set(row.index, new JsonText(stringifyJson({ task: row })))
    }
    const aboutJob = news.some(({ taskIndex }) => taskIndex === null)
    const job = aboutJob ? new JsonText(stringifyJson({ job: await jobOnWire(this.#parts, this.#job) })) : null
    return news
      .flatMap((event) => [
        event.taskIndex === null
          ? { id: frameId(event.id, "job"), event: "job", data: job }
          : { id: frameId(event.id, "task"), event: "task", data: tasks.get(event.taskIndex) },
        { id: frameId(event.id, "event"), event: "event", data: eventOnWire(this.#job.head.id, event) },
      ])
      .filter(({ id }) => id > this.#position)
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
    for await (const task of taskRows(this.#parts, this.#job, indexes)) {
      if (task.status !== "running") continue
      if (!(await this.#stream.room())) return
      this.#stream.send(eventFrame({ event: "task", data: { task } }))
    }
  }

  #send(event: string, data: unknown, id: number): void {
    this.#stream.send(eventFrame({ event, id: String(id), data }))
    this.#position = id
  }

  async #sleep(): Promise<void> {
    if (this.#stream.ended.aborted) return
    await new Promise<void>((resolve) => (this.#wake = resolve))
    this.#wake = null
  }
}

/** Rows as JSON text, in order, until their text would be longer than `characters`; always the first. */
export async function rowsWithin(rows: AsyncIterable<unknown>, characters: number): Promise<JsonText[]> {
  const texts: JsonText[] = []
  let used = 0
  for await (const row of rows) {
    const text = stringifyJson(row)
    used += text.length
    if (used > characters && texts.length > 0) break
    texts.push(new JsonText(text))
  }
  return texts
}
