import type { IncomingHttpHeaders, ServerResponse } from "node:http"
import { isTerminal } from "../../protocol/domain/statuses.ts"
import type { AccountId } from "../../protocol/domain/ids.ts"
import type { Caller } from "../accounts/authenticate.ts"
import { wasLogged } from "../jobs/read/events.ts"
import { logPosition, type JobNews } from "../jobs/read/followed.ts"
import { renderJobFrame, type Follower, type JobFeed, type JobFeedParts, type JobFrame } from "./job-feed.ts"
import type { SnapshotTurns } from "./snapshot-turns.ts"
import { eventFrame, lastEventId, openEventStream, type EventStream } from "./sse.ts"
import { eventOf, frameId, idFrom, isDoneId } from "./stream-position.ts"

export interface FollowedStreamParts extends JobFeedParts {
  feed: JobFeed
  /** Of all streams together. */
  snapshotTurns: SnapshotTurns
  ssePingMs: number
  sseLimitMs: number
}

export interface StreamRequest {
  caller: Pick<Caller, "account">
  headers: IncomingHttpHeaders
  method: string
  signal(): AbortSignal
  stillAllowed(): Promise<boolean>
  response: ServerResponse
}

/** What a stream over many jobs follows, and how it begins. */
export interface Following extends Pick<Follower, "interest" | "withResults"> {
  /** The pieces of the snapshot's data, as JSON. */
  snapshot(): AsyncIterable<string>
  /** What was missed behind an id; null where that is more than is gone through: then a snapshot is due. */
  missed(id: number): Promise<JobNews[] | null>
  /** A frame with an id has told of this job's status; `data` of the last frame once nothing more can come. */
  told?(frame: Pick<JobFrame, "job" | "status">): void
  done?(): object | null
  /** Was `done` with this id the last word, and still is? */
  isOver?(id: number): Promise<boolean>
}

/**
 * Serves a stream over many jobs until nothing more can come, the client leaves or the time is over (ST-003, ST-005; rulings,
 * Streams): a snapshot or what was missed, then changes as the feed tells them. What comes in between is only noted by name.
 */
export async function serveFollowed(
  parts: FollowedStreamParts,
  following: Following,
  request: StreamRequest,
): Promise<void> {
  const { response } = request
  const id = idFrom(lastEventId(request.headers))
  const isKnown = id !== null && (id === frameId(0, "snapshot") || (await wasLogged(parts.store, eventOf(id))))
  const position = isKnown ? id : null
  if (position !== null && isDoneId(position) && (await following.isOver?.(position)))
    return void response.writeHead(204).end()
  if (request.method === "HEAD")
    return void response.writeHead(200, { "content-type": "text/event-stream; charset=utf-8" }).end()
  const stream = openEventStream({
    response,
    clock: parts.clock,
    signal: request.signal(),
    stillAllowed: () => request.stillAllowed(),
    pingMs: parts.ssePingMs,
    limitMs: parts.sseLimitMs,
    beginsWithSnapshot: position === null,
  })
  try {
    const followed = new FollowedStream(parts, following, stream)
    using _following = await parts.feed.follow(followed)
    await followed.begin(position, request.caller.account)
    await new Promise<void>((resolve) => stream.whenEnded(resolve))
  } finally {
    stream.end()
  }
}

class FollowedStream implements Follower {
  readonly #parts: FollowedStreamParts
  readonly #following: Following
  readonly #stream: EventStream
  /** The id of the last frame that had one. */
  #position = 0
  /** What the feed told before the stream had caught up: job → id, in order. Null from then on. */
  #late: Map<number, number | null> | null = new Map()

  constructor(parts: FollowedStreamParts, following: Following, stream: EventStream) {
    this.#parts = parts
    this.#following = following
    this.#stream = stream
  }

  get interest(): Follower["interest"] {
    return this.#following.interest
  }

  get withResults(): boolean {
    return this.#following.withResults
  }

  async begin(position: number | null, account: AccountId | null): Promise<void> {
    const missed = position === null ? null : await this.#following.missed(position)
    if (position !== null && missed !== null) {
      this.#position = position
      await this.#sendMissed(missed)
    } else {
      using turn = await this.#parts.snapshotTurns.take(account)
      // Before anything is read: what happens from here on comes again, and nothing falls between.
      this.#position = frameId(await logPosition(this.#parts.store), "snapshot")
      const head = { event: "snapshot", id: String(this.#position) }
      await this.#stream.sendInPieces(head, this.#following.snapshot(), turn)
    }
    await this.#sendLate()
    this.#endIfDone()
  }

  take(frame: JobFrame): void {
    if (this.#late === null) return this.#pass(frame)
    if (frame.id === null && this.#late.has(frame.job)) return
    this.#late.delete(frame.job)
    this.#late.set(frame.job, frame.id)
  }

  lose(): void {
    this.#stream.end()
  }

  async #sendMissed(news: readonly JobNews[]): Promise<void> {
    const ofStatus = news.flatMap(({ job, event }) => (event === null ? [] : [{ job, id: frameId(event, "job") }]))
    for (const { job, id } of ofStatus.toSorted((a, b) => a.id - b.id)) await this.#send(job, id)
    for (const { job, event } of news) if (event === null) await this.#send(job, null)
  }

  /** From the very moment in which nothing is left, the feed's frames are passed on at once. */
  async #sendLate(): Promise<void> {
    for (;;) {
      const [first] = this.#late ?? []
      if (!first || this.#stream.hasEnded) {
        this.#late = null
        return
      }
      this.#late?.delete(first[0])
      await this.#send(...first)
    }
  }

  /** Renders a job for this stream alone; unless what the id stands for was sent. */
  async #send(job: number, id: number | null): Promise<void> {
    if (id !== null && id <= this.#position) return
    if (!(await this.#stream.room())) return
    const frame = await renderJobFrame(this.#parts, job, id, this.withResults)
    if (frame) this.#pass(frame)
  }

  #pass(frame: JobFrame): void {
    // An end has an id; what a task did before it needs no telling then.
    if (frame.id === null ? isTerminal(frame.status) : frame.id <= this.#position) return
    if (!this.#stream.send(frame.text) || frame.id === null) return
    this.#position = frame.id
    this.#following.told?.(frame)
    if (this.#late === null) this.#endIfDone()
  }

  #endIfDone(): void {
    const data = this.#following.done?.() ?? null
    if (data === null) return
    this.#stream.send(eventFrame({ event: "done", id: String(frameId(eventOf(this.#position), "done")), data }))
    this.#stream.end()
  }
}
