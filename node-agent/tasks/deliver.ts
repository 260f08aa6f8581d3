import { createBackoff } from "../../protocol/base/backoff.ts"
import { sleep, type Clock } from "../../protocol/base/clock.ts"
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
  /** There is something new in the outbox. */
  wake(): void
  /** A new connection: everything unanswered is sent again. */
  welcome(): void
  lost(): void
  verdicts(items: readonly ItemVerdict[]): void
  /** Claims whose files are being uploaded now: heartbeats renew them. */
  uploading(): ClaimNumber[]
}

export interface DeliveryParts {
  outbox: Outbox
  send: (message: ToCoordinator) => void
  connected: () => boolean
  /** Uploads one file for a claim. Idempotent. Rejects with `UploadRefused` when trying again cannot help. */
  upload: (claim: ClaimNumber, file: StoredEnd["files"][number], signal: AbortSignal) => Promise<void>
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
/** Attempts whose files are uploaded at once. */
const UPLOADS_AT_ONCE = 4

export function createDelivery(parts: DeliveryParts): Delivery {
  const { outbox, clock, log } = parts
  const stopped = new AbortController()
  const inFlight = new Set<number>()
  const uploads = new Map<number, AbortController>()
  const ready: ResultItem[] = []
  let reports = 0
  let position = 0
  let generation = 0
  let waiting = false
  /** The outbox may hold results that were not read yet. */
  let unread = true

  function wake(): void {
    unread = true
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
    while (parts.connected() && reports < REPORTS_IN_FLIGHT) {
      takeFromOutbox()
      const batch = nextBatch()
      if (batch.length === 0) return
      reports += 1
      for (const { claim } of batch) inFlight.add(claim)
      parts.send({ type: "report", items: batch })
    }
  }

  /** Results without files are ready at once; the others once their files are at the coordinator. */
  function takeFromOutbox(): void {
    while (unread && ready.length < BATCH_ITEMS && uploads.size < UPLOADS_AT_ONCE) {
      const page = outbox.results(position, BATCH_ITEMS)
      for (const { position: at, item, files } of page) {
        position = at
        if (files.length === 0) ready.push(item)
        else if (!uploads.has(item.claim)) void uploadThenReport({ item, files })
      }
      unread = page.length === BATCH_ITEMS
    }
  }

  function nextBatch(): ResultItem[] {
    const [batch = []] = inFrames(ready)
    ready.splice(0, batch.length)
    return batch
  }

  async function uploadThenReport({ item, files }: StoredEnd): Promise<void> {
    const abort = new AbortController()
    const signal = AbortSignal.any([abort.signal, stopped.signal])
    uploads.set(item.claim, abort)
    const of = generation
    const backoff = createBackoff(parts.random, 500, 10_000)
    try {
      for (const file of files) {
        while (!(await tryUpload(claimNumber(item.claim), file, signal))) await sleep(clock, backoff.next(), signal)
      }
      if (of === generation) ready.push(item)
    } catch (error) {
      if (!signal.aborted) log.error("upload failed", { claim: item.claim, error: errorText(error) })
    } finally {
      uploads.delete(item.claim)
      wakeSoon()
    }
  }

  async function tryUpload(
    claim: ClaimNumber,
    file: StoredEnd["files"][number],
    signal: AbortSignal,
  ): Promise<boolean> {
    try {
      await parts.upload(claim, file, signal)
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
    welcome() {
      generation += 1
      for (const upload of uploads.values()) upload.abort(new Error("a new connection starts over"))
      uploads.clear()
      ready.length = 0
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
    uploading: () => [...uploads.keys()].map(claimNumber),
    async [Symbol.asyncDispose]() {
      stopped.abort(new Error("delivery is stopped"))
      await Promise.resolve()
    },
  }
}
