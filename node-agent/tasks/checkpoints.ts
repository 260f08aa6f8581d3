import { rm, stat } from "node:fs/promises"
import { join, posix } from "node:path"
import { createBackoff } from "../../protocol/base/backoff.ts"
import { sleep, type Clock } from "../../protocol/base/clock.ts"
import { sha256Hex } from "../../protocol/base/digest.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import { joinJsonObject, splitJsonObject } from "../../protocol/base/json-text.ts"
import type { Log } from "../../protocol/base/log.ts"
import type { Random } from "../../protocol/base/random.ts"
import { claimNumber, type ClaimNumber } from "../../protocol/domain/ids.ts"
import { splitCheckpoint } from "../../protocol/domain/resume.ts"
import { LARGEST_CHECKPOINT_STATE_BYTES } from "../../protocol/domain/runner.ts"
import type { CheckpointItem, ItemVerdict, ToCoordinator } from "../../protocol/wire/control.ts"
import { pieceBytesFor } from "../../protocol/wire/piece-list.ts"
import type { Hasher } from "../cache/hasher.ts"
import type { Outbox, StoredCheckpoint, StoredEnd } from "../outbox/outbox.ts"
import { copyPublishable, NotPublishable, plainName, StillChanging, type PublishableRoot } from "./checkpoint-file.ts"
import { UploadRefused } from "./deliver.ts"

/**
 * Brings what running attempts leave to go on from to the coordinator (architecture §5.6): copied at once, kept in the outbox,
 * uploaded, answered after COMMIT. The latest wins: what comes faster than it can be sent is skipped.
 */
export interface Checkpoints extends AsyncDisposable {
  /** Takes the checkpoints of one attempt, also of one that an earlier agent started. */
  follow(attempt: FollowedAttempt): FollowedCheckpoints
  /** A new connection: what is unanswered is sent again. */
  welcome(): void
  verdicts(items: readonly ItemVerdict[]): void
  /** Attempts that run and had a durable checkpoint answered since then (monotonic ms). */
  publishedSince(sinceMs: number): number
}

export interface FollowedAttempt {
  claim: ClaimNumber
  /** The attempt's folder: copies lie there until they are answered, or it is discarded. */
  dir: string
  /** The artifact directory first. */
  roots: readonly PublishableRoot[]
}

export interface FollowedCheckpoints extends Disposable {
  /** A progress line, and where in the output it begins. */
  take(json: string, at: number): void
  /**
   * The program has ended and printed so many bytes; `checkpoint` stands in its result. Resolves with the checkpoint that is not
   * answered yet, which goes with the attempt's end.
   */
  end(checkpoint: string | null, printed: number): Promise<StoredCheckpoint | null>
}

export interface CheckpointsParts {
  outbox: Outbox
  hasher: Hasher
  send: (message: ToCoordinator) => void
  upload: (claim: ClaimNumber, file: StoredEnd["files"][number], signal: AbortSignal) => Promise<void>
  clock: Clock
  random: Random
  log: Log
}

/** Of one attempt at most so often: a program may print a thousand a second. */
const INTERVAL_MS = 1_000
/** A file that is not as it was told gets so many looks, unless a newer line comes. */
const COPY_TRIES = 5
const TRY_AGAIN_MS = 100
/** A program whose files are always too new hears of it then. */
const MOST_SKIPPED = 20

export function createCheckpoints(parts: CheckpointsParts): Checkpoints {
  const followed = new Set<Followed>()
  return {
    follow(attempt) {
      const one = new Followed(parts, attempt, () => followed.delete(one))
      followed.add(one)
      one.resume()
      return one
    },
    welcome() {
      for (const one of followed) one.startOver()
    },
    verdicts(items) {
      for (const one of followed) for (const item of items) one.answered(item)
    },
    publishedSince: (sinceMs) => [...followed].filter(({ publishedAtMs }) => publishedAtMs >= sinceMs).length,
    async [Symbol.asyncDispose]() {
      const all = [...followed]
      for (const one of all) one[Symbol.dispose]()
      await Promise.all(all.map((one) => one.idle()))
    },
  }
}

/** A line with a checkpoint in it. */
interface Line {
  n: number
  checkpoint: string
  line: string
  /** When it was read (wall clock, ms). */
  toldAt: number
}

class Followed implements FollowedCheckpoints {
  publishedAtMs = Number.NEGATIVE_INFINITY
  readonly #parts: CheckpointsParts
  readonly #attempt: FollowedAttempt
  readonly #over: () => void
  readonly #ended = new AbortController()
  /** The latest line that is not copied yet. */
  #waiting: Line | null = null
  #wake: (() => void) | null = null
  /** Lines in a row whose file had changed before it was copied. */
  #skipped = 0
  #copiedAtMs = Number.NEGATIVE_INFINITY
  #copying: Promise<void> | null = null
  /** What was printed before is known, from this reading of the output or an earlier one. */
  #upto: number
  /** The checkpoint that is being uploaded or answered. */
  #publishing: number | null = null
  #sending: Promise<void> | null = null
  #uploading: AbortController | null = null
  #asked: { item: CheckpointItem; answer: (verdict: ItemVerdict) => void } | null = null

  constructor(parts: CheckpointsParts, attempt: FollowedAttempt, over: () => void) {
    this.#parts = parts
    this.#attempt = attempt
    this.#over = over
    this.#upto = parts.outbox.checkpointsUpto(attempt.claim)
  }

  /** What an earlier agent stored and was not told of. */
  resume(): void {
    this.#send()
  }

  take(json: string, at: number): void {
    const found = splitCheckpoint(json)
    const line = found && this.#lineOf(found.checkpoint, found.line, at)
    if (line === null || this.#ended.signal.aborted) return
    this.#waiting = line
    this.#wake?.()
    this.#copying ??= this.#copyOn().finally(() => {
      this.#copying = null
    })
  }

  async end(checkpoint: string | null, printed: number): Promise<StoredCheckpoint | null> {
    this[Symbol.dispose]()
    await this.idle()
    // What a result tells beside its checkpoint is its result, not progress.
    const last = checkpoint === null ? null : this.#lineOf(checkpoint, "{}", printed)
    // Of a line that waited for its turn and a result, only the later one is needed.
    const line = last ?? this.#waiting
    this.#waiting = null
    if (line !== null) await this.#store(line).catch((error: unknown) => this.#notKept(error))
    return this.#parts.outbox.checkpoint(this.#attempt.claim)
  }

  [Symbol.dispose](): void {
    this.#ended.abort(new Error("the attempt has ended"))
    this.#over()
  }

  async idle(): Promise<void> {
    await Promise.all([this.#copying, this.#sending])
  }

  /** What hangs on the connection before this one is tried again on it. */
  startOver(): void {
    this.#uploading?.abort(new Error("a new connection starts over"))
    this.#ask()
  }

  #ask(): void {
    if (this.#asked) this.#parts.send({ type: "checkpoint", item: this.#asked.item })
  }

  answered(verdict: ItemVerdict): void {
    const asked = this.#asked
    if (asked?.item.claim === verdict.claim && asked.item.n === verdict.n) asked.answer(verdict)
  }

  /** Null: it is known from an earlier reading of the same output, or too large to be kept. */
  #lineOf(checkpoint: string, line: string, at: number): Line | null {
    const n = at + 1
    if (n <= this.#upto) return null
    const toldAt = this.#parts.clock.now()
    if (Buffer.byteLength(checkpoint) <= LARGEST_CHECKPOINT_STATE_BYTES) return { n, checkpoint, line, toldAt }
    this.#parts.log.warn("a checkpoint object is too large to be kept", { claim: this.#attempt.claim })
    return null
  }

  async #copyOn(): Promise<void> {
    const { clock } = this.#parts
    const { signal } = this.#ended
    while (this.#waiting !== null) {
      const restMs = this.#copiedAtMs + INTERVAL_MS - clock.monotonicMs()
      if (restMs > 0) await sleep(clock, restMs, signal).catch(() => {})
      // The end takes what waits.
      if (signal.aborted) return
      const line = this.#waiting
      this.#waiting = null
      const startedAtMs = clock.monotonicMs()
      const stored = await this.#store(line).catch((error: unknown) => this.#notKept(error))
      // Nothing was copied: the newer one is looked at while its file is fresh.
      this.#skipped = stored ? 0 : this.#skipped + 1
      if (stored) this.#copiedAtMs = startedAtMs
      this.#send()
    }
  }

  /** This machine's own fault: the program's next one may be kept. */
  #notKept(error: unknown): boolean {
    this.#parts.log.error("a checkpoint could not be kept", { claim: this.#attempt.claim, error: errorText(error) })
    return true
  }

  /**
   * Copies its file and keeps it in the outbox; the one before that was not sent yet is not needed any more. False: its file had
   * changed, and a newer one waits.
   */
  async #store(line: Line): Promise<boolean> {
    const { outbox } = this.#parts
    const stored = await this.#prepare(line)
    if (stored === null) return false
    const before = outbox.checkpoint(this.#attempt.claim)
    outbox.storeCheckpoint(stored)
    this.#upto = line.n
    if (before?.file && before.item.n !== this.#publishing) await rm(before.file.path, { force: true })
    return true
  }

  async #prepare(line: Line): Promise<StoredCheckpoint | null> {
    const path = pathOf(line.checkpoint)
    const facts = { claim: this.#attempt.claim, n: line.n, line: line.line, file: null, problem: null }
    if (path === null) return { item: sealed({ ...facts, state: line.checkpoint }), file: null }
    for (let tries = 1; ; tries++) {
      try {
        const { file, shown } = await this.#copy(line, path)
        const named = { digest: file.digest, size: file.size, filename: plainName(path) }
        return { item: sealed({ ...facts, state: withPath(line.checkpoint, shown), file: named }), file }
      } catch (error) {
        if (!(error instanceof NotPublishable)) throw error
        if (this.#waiting !== null && this.#skipped < MOST_SKIPPED) return null
        if (!(error instanceof StillChanging) || tries === COPY_TRIES) {
          const problem = { status: error.status, reason: error.message.slice(0, 500) }
          return { item: sealed({ ...facts, state: line.checkpoint, problem }), file: null }
        }
      }
      await this.#newerLine(TRY_AGAIN_MS)
    }
  }

  async #copy(line: Line, path: string): Promise<{ file: StoredEnd["files"][number]; shown: string }> {
    const to = join(this.#attempt.dir, "checkpoints", String(line.n))
    const relative = await copyPublishable(this.#attempt.roots, path, to, { toldAt: line.toldAt })
    // Where on this machine it lies is nobody's business.
    return { file: await this.#describe(to), shown: posix.isAbsolute(path) ? relative : path }
  }

  /** Waits for one, at most so long. */
  async #newerLine(ms: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>()
    const timer = this.#parts.clock.after(ms, resolve)
    this.#wake = resolve
    await promise
    timer.cancel()
    this.#wake = null
  }

  async #describe(path: string): Promise<StoredEnd["files"][number]> {
    const { size } = await stat(path)
    const { digest } = await this.#parts.hasher.file(path, pieceBytesFor(size))
    return { digest, size, path }
  }

  #send(): void {
    this.#sending ??= this.#sendOn().finally(() => {
      this.#sending = null
    })
  }

  async #sendOn(): Promise<void> {
    const { outbox, log } = this.#parts
    const { claim } = this.#attempt
    for (;;) {
      const next = this.#ended.signal.aborted ? null : outbox.checkpoint(claim)
      if (next === null) return
      this.#publishing = next.item.n
      try {
        await this.#publish(next)
      } catch (error) {
        // It has ended: what is unanswered goes with its end.
        if (this.#ended.signal.aborted) return
        log.warn("a checkpoint is not published", { claim, n: next.item.n, error: errorText(error) })
      } finally {
        this.#publishing = null
      }
      outbox.checkpointAnswered(claim, next.item.n)
      if (next.file) await rm(next.file.path, { force: true })
    }
  }

  async #publish({ item, file }: StoredCheckpoint): Promise<void> {
    const { signal } = this.#ended
    if (file) await this.#upload(item.n, file, signal)
    const { verdict, reason } = await this.#answerTo(item, signal)
    if (verdict === "refused" || verdict === "spent") throw new Error(reason ?? verdict)
    if (item.problem === null) this.publishedAtMs = this.#parts.clock.monotonicMs()
  }

  async #upload(n: number, file: StoredEnd["files"][number], signal: AbortSignal): Promise<void> {
    const { clock, random, log, outbox, upload } = this.#parts
    const backoff = createBackoff(random, 500, 10_000)
    for (;;) {
      const abort = new AbortController()
      this.#uploading = abort
      try {
        return await upload(claimNumber(this.#attempt.claim), file, AbortSignal.any([abort.signal, signal]))
      } catch (error) {
        signal.throwIfAborted()
        if (error instanceof UploadRefused) throw error
        // After an outage only the latest is worth the time.
        if (outbox.checkpoint(this.#attempt.claim)?.item.n !== n) throw error
        log.warn("a checkpoint's upload will be tried again", { claim: this.#attempt.claim, error: errorText(error) })
      } finally {
        this.#uploading = null
      }
      await sleep(clock, backoff.next(), signal)
    }
  }

  /** Sent now and after every welcome, until it is answered. */
  async #answerTo(item: CheckpointItem, signal: AbortSignal): Promise<ItemVerdict> {
    signal.throwIfAborted()
    const { promise, resolve, reject } = Promise.withResolvers<ItemVerdict>()
    const abort = (): void => reject(signal.reason as Error)
    signal.addEventListener("abort", abort, { once: true })
    this.#asked = { item, answer: resolve }
    this.#ask()
    try {
      return await promise
    } finally {
      this.#asked = null
      signal.removeEventListener("abort", abort)
    }
  }
}

const sealed = (item: Omit<CheckpointItem, "digest">): CheckpointItem => ({
  ...item,
  digest: sha256Hex(JSON.stringify([item.n, item.state, item.line, item.file, item.problem])),
})

function pathOf(checkpoint: string): string | null {
  const text = splitJsonObject(checkpoint)?.get("path")
  const path: unknown = text === undefined ? null : JSON.parse(text)
  return typeof path === "string" && path !== "" && !path.includes("\0") ? path : null
}

function withPath(checkpoint: string, path: string): string {
  return joinJsonObject((splitJsonObject(checkpoint) ?? new Map<string, string>()).set("path", JSON.stringify(path)))
}
