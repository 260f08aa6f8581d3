import { existsSync } from "node:fs"
import { createBackoff } from "../../protocol/base/backoff.ts"
import { sleep, type Clock, type Timer } from "../../protocol/base/clock.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import type { Log } from "../../protocol/base/log.ts"
import type { Random } from "../../protocol/base/random.ts"
import {
  BATCH_ITEMS,
  inFrames,
  type ItemVerdict,
  type ResultItem,
  type ToCoordinator,
} from "../../protocol/wire/control.ts"
import { claimNumber, type ClaimNumber } from "../../protocol/domain/ids.ts"
import type { Outbox, StoredEnd } from "../outbox/outbox.ts"

/**
 * Brings results from the outbox to the coordinator: files first, then the report, until each is answered. Attempts and
 * uploads go on side by side; the answer alone removes a result.
 */
export interface Delivery extends AsyncDisposable {
  /** There is something new in the outbox. Where more follows soon it may wait a moment, to be reported together. */
  wake(moreSoon?: boolean): void
  /** A new connection: everything unanswered is sent again. The claims live so long from now. */
  welcome(claimLifetimeMs: number): void
  lost(): void
  verdicts(items: readonly ItemVerdict[]): void
  /**
   * Every claim whose result waits for its answer: heartbeats renew them. None once neither bytes nor verdicts have advanced
   * for a claim's life, so that what cannot be delivered runs elsewhere (architecture §5.4).
   */
  advancing(): ClaimNumber[]
}

export interface DeliveryParts {
  outbox: Outbox
  send: (message: ToCoordinator) => void
  connected: () => boolean
  /**
   * Uploads one file for a claim and says how many of its bytes have left so far. Idempotent. Rejects with `UploadRefused`
   * when trying again cannot help.
   */
  upload: (
    claim: ClaimNumber,
    file: StoredEnd["files"][number],
    signal: AbortSignal,
    sent?: (bytes: number) => void,
  ) => Promise<void>
  discard: (claim: ClaimNumber) => Promise<void>
  clock: Clock
  random: Random
  log: Log
}

/** The coordinator says that these bytes are not wanted (a spent claim, say). */
export class UploadRefused extends Error {
  override name = "UploadRefused"
}

/** Reports in work at the coordinator at once (architecture §5.3). */
const REPORTS_IN_FLIGHT = 2
/** Ends of short attempts wait for each other so long, and so many at the most: a report costs both sides a message and a write. */
const TOGETHER_MS = 100
const TOGETHER_ENDS = 8
/** Attempts whose files are uploaded at once. */
const UPLOADS_AT_ONCE = 4

export function createDelivery(parts: DeliveryParts): Delivery {
  const { outbox, clock, log } = parts
  const stopped = new AbortController()
  const inFlight = new Set<number>()
  const uploads = new Map<number, AbortController>()
  const ready: ResultItem[] = []
  /** Where in the outbox the results lie whose files are uploaded next. */
  let uploadNext: number[] = []
  let reports = 0
  let position = 0
  let generation = 0
  let waiting = false
  /** Ends that wait for others. */
  let gathered = 0
  let gathering: Timer | null = null
  /** The outbox may hold results that were not read yet. */
  let unread = true
  let claimLifetimeMs = 0
  let advancedMs = clock.monotonicMs()

  function advanced(): void {
    advancedMs = clock.monotonicMs()
  }

  function wake(moreSoon = false): void {
    unread = true
    gathered += 1
    if (moreSoon && gathered < TOGETHER_ENDS) gathering ??= clock.after(TOGETHER_MS, gatheredAll)
    else gatheredAll()
  }

  function gatheredAll(): void {
    gathering?.cancel()
    gathering = null
    gathered = 0
    wakeSoon()
  }

  function wakeSoon(): void {
    if (waiting) return
    waiting = true
    setImmediate(() => {
      waiting = false
      pump()
    })
  }

  function pump(): void {
    while (parts.connected() && !stopped.signal.aborted) {
      takeFromOutbox()
      startUploads()
      const batch = reports < REPORTS_IN_FLIGHT ? nextBatch() : []
      if (batch.length === 0) return
      reports += 1
      for (const { claim } of batch) inFlight.add(claim)
      parts.send({ type: "report", items: batch })
    }
  }

  /** Results without files are ready at once; the others once their files are at the coordinator. */
  function takeFromOutbox(): void {
    while (unread && gathering === null && ready.length < BATCH_ITEMS) {
      const page = outbox.results(position, BATCH_ITEMS)
      for (const { position: at, item, files } of page) {
        position = at
        if (files.length === 0) ready.push(item)
        else uploadNext.push(at)
      }
      unread = page.length === BATCH_ITEMS
    }
  }

  function startUploads(): void {
    while (uploads.size < UPLOADS_AT_ONCE) {
      const at = uploadNext.shift()
      if (at === undefined) return
      const end = unansweredAt(at)
      if (end !== null && !uploads.has(end.item.claim)) void uploadThenReport(at, end)
    }
  }

  /** Null when it was answered, or is wanted no more. */
  function unansweredAt(at: number): StoredEnd | null {
    const [end] = outbox.results(at - 1, 1)
    return end?.position === at ? end : null
  }

  function nextBatch(): ResultItem[] {
    const [batch = []] = inFrames(ready)
    ready.splice(0, batch.length)
    return batch
  }

  async function uploadThenReport(at: number, { item, files }: StoredEnd): Promise<void> {
    const abort = new AbortController()
    const signal = AbortSignal.any([abort.signal, stopped.signal])
    uploads.set(item.claim, abort)
    const of = generation
    const backoff = createBackoff(parts.random, 500, 10_000)
    try {
      for (const file of files) {
        // Bytes that a failed try had sent already are no advance.
        let furthest = 0
        const sent = (bytes: number): void => {
          if (bytes > furthest) advanced()
          furthest = Math.max(furthest, bytes)
        }
        while (!(await tryUpload(claimNumber(item.claim), file, signal, sent))) {
          // Spent or cancelled meanwhile: its files are gone.
          if (unansweredAt(at) === null) return
          if (!existsSync(file.path)) return giveUp(claimNumber(item.claim))
          await sleep(clock, backoff.next(), signal)
          if (unansweredAt(at) === null) return
        }
        advanced()
      }
      if (of === generation && unansweredAt(at) !== null) ready.push(item)
    } catch (error) {
      if (!signal.aborted) log.error("upload failed", { claim: item.claim, error: errorText(error) })
    } finally {
      if (uploads.get(item.claim) === abort) uploads.delete(item.claim)
      wakeSoon()
    }
  }

  /**
   * Its files are gone, and it is unanswered: a crash forgot the answer that they went with, and the coordinator forgot it too
   * (an older copy was restored). The task runs again.
   */
  function giveUp(claim: ClaimNumber): void {
    log.error("a result's files are gone: its task is given back", { claim })
    outbox.forget([claim])
    void parts.discard(claim)
    parts.send({ type: "give_back", items: [{ claim, reason: "the files of its result are gone from the node" }] })
  }

  async function tryUpload(
    claim: ClaimNumber,
    file: StoredEnd["files"][number],
    signal: AbortSignal,
    sent: (bytes: number) => void,
  ): Promise<boolean> {
    try {
      await parts.upload(claim, file, signal, sent)
      return true
    } catch (error) {
      signal.throwIfAborted()
      // The report then names bytes the coordinator lacks: its verdict decides what becomes of the result.
      if (error instanceof UploadRefused) return true
      log.warn("upload will be tried again", { claim, error: errorText(error) })
      return false
    }
  }

  return {
    wake,
    welcome(lifetimeMs) {
      claimLifetimeMs = lifetimeMs
      advanced()
      generation += 1
      for (const upload of uploads.values()) upload.abort(new Error("a new connection starts over"))
      uploads.clear()
      ready.length = 0
      uploadNext = []
      inFlight.clear()
      reports = 0
      position = 0
      wake()
    },
    lost() {
      generation += 1
    },
    verdicts(items) {
      const answered: number[] = []
      for (const { claim, verdict, reason } of items) {
        if (!inFlight.delete(claim)) continue
        advanced()
        if (verdict === "refused") {
          log.error("result refused", { claim, reason })
          outbox.setAside(claim, reason ?? "refused", clock.now())
        } else {
          if (verdict === "spent") log.warn("result came too late", { claim })
          answered.push(claim)
        }
        void parts.discard(claimNumber(claim))
      }
      outbox.answered(answered)
      reports = Math.max(0, reports - 1)
      wakeSoon()
    },
    advancing() {
      const unanswered = outbox.unanswered()
      // With nothing to deliver nothing can stand still.
      if (unanswered.length === 0) advanced()
      return clock.monotonicMs() - advancedMs > claimLifetimeMs ? [] : unanswered
    },
    async [Symbol.asyncDispose]() {
      stopped.abort(new Error("delivery is stopped"))
      gathering?.cancel()
      await Promise.resolve()
    },
  }
}
