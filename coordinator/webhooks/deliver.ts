import { timestampText } from "../../protocol/api/common.ts"
import { sleep, type Clock, type Instant, type Timer } from "../../protocol/base/clock.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import { stringifyJson } from "../../protocol/base/json-text.ts"
import type { Log } from "../../protocol/base/log.ts"
import { jittered, type Random } from "../../protocol/base/random.ts"
import { appendEvent } from "../events/event-log.ts"
import type { Store } from "../store/store.ts"
import {
  deleteWebhookCall,
  findWebhookCall,
  isOfPresentRound,
  postponeWebhookCall,
  waitingCalls,
  type WebhookCall,
} from "../store/webhooks.ts"
import type { Call, CallOutcome } from "./call.ts"
import { createCallQueue, type QueuedCall, type QueueLimits } from "./call-queue.ts"
import { signingSecrets } from "./secrets.ts"
import { signatureHeaders } from "./sign.ts"

/** Makes the calls that ended jobs left in the outbox (W-001 … W-004). */
export interface Webhooks extends AsyncDisposable {
  /** There may be new calls. */
  wake(): void
}

export interface WebhookParts {
  store: Store
  clock: Clock
  random: Random
  log: Log
  call: (call: Call, signal: AbortSignal) => Promise<CallOutcome>
  /** What the job printed, as GET /output shows it. */
  outputOf: (job: number) => Promise<string>
  /** A job's log has grown. */
  changed: (job: number) => void
  /** Before the second attempt; five times as long before the third (GAP-61). */
  retryMs: number
  limits?: QueueLimits
}

/** In all (W-002). */
const ATTEMPTS = 3
const THIRD_AFTER = 5
/** Slow receivers take a place for ten seconds: no account and no host takes them all. */
const LIMITS: QueueLimits = { inAll: 32, ofAccount: 8, ofHost: 4 }
/** Calls read at a time. */
const PAGE = 1_000
/** New calls are looked for at most this often, however much happens. */
const LOOK_EVERY_MS = 50
/** A write that is refused (disk full, busy) is tried again; the call itself is not repeated for it. */
const WRITE_AGAIN_MS = 1_000
/** Bodies in memory at once, but for the one that is being made. */
const MOST_BODY_BYTES = 32 * 1024 * 1024

/**
 * Reads what an earlier start left and begins. Rows are the outbox: a call leaves it when it was delivered, refused or given
 * up, so a crash repeats at most the attempt it interrupted, under the same `webhook-id`.
 */
export function createWebhooks(parts: WebhookParts): Webhooks {
  const { store, clock, random } = parts
  const stopped = new AbortController()
  const queue = createCallQueue(parts.limits ?? LIMITS)
  const working = new Set<Promise<void>>()
  const bodies = createBodies(parts)
  let lastSeq = 0
  let looking: Promise<void> | null = null
  let lookAgain = false
  let timer: Timer | null = null

  async function look(): Promise<void> {
    for (;;) {
      const page = await store.read((view) => waitingCalls(view, lastSeq, PAGE))
      for (const { dueAt, url, ...call } of page) enqueue(call, url, dueAt - clock.now())
      lastSeq = page.at(-1)?.seq ?? lastSeq
      start()
      if (page.length < PAGE) return
    }
  }

  /** No delay is longer than that before the last attempt: the wall clock may have been set back since it was written. */
  function enqueue(call: Pick<QueuedCall, "seq" | "account">, url: string, delayMs: number): void {
    const waitsMs = Math.min(Math.max(0, delayMs), 2 * THIRD_AFTER * parts.retryMs)
    queue.add({ ...call, host: new URL(url).host, dueMs: clock.monotonicMs() + waitsMs })
  }

  function wake(): void {
    if (stopped.signal.aborted) return
    lookAgain = true
    looking ??= lookAround().finally(() => {
      looking = null
      if (lookAgain) wake()
    })
  }

  async function lookAround(): Promise<void> {
    while (lookAgain && !stopped.signal.aborted) {
      lookAgain = false
      try {
        await look()
        await sleep(clock, LOOK_EVERY_MS, stopped.signal)
      } catch (error) {
        if (stopped.signal.aborted) return
        parts.log.error("waiting calls could not be read", { error: errorText(error) })
        await sleep(clock, WRITE_AGAIN_MS, stopped.signal).catch(() => undefined)
        lookAgain = true
      }
    }
  }

  /** Starts what is due and has a place, and comes back when the next one is due. */
  function start(): void {
    if (stopped.signal.aborted) return
    const nowMs = clock.monotonicMs()
    for (let next = queue.take(nowMs); next; next = queue.take(nowMs)) {
      const call = next
      const work = attempt(call)
        .catch((error: unknown) => {
          if (stopped.signal.aborted) return
          parts.log.error("a call could not be made", { call: call.seq, error: errorText(error) })
          queue.add({ ...call, dueMs: clock.monotonicMs() + WRITE_AGAIN_MS })
        })
        .finally(() => {
          working.delete(work)
          queue.release(call)
          start()
        })
      working.add(work)
    }
    timer?.cancel()
    const dueMs = queue.nextDueMs(nowMs)
    timer = dueMs === null ? null : clock.after(dueMs - nowMs, start)
  }

  async function attempt(queued: QueuedCall): Promise<void> {
    const call = await store.read((view) => findWebhookCall(view, queued.seq))
    if (!call) return
    const outcome = await bodies.use(call, stopped.signal, async (body) => {
      const id = `msg_${call.jobId}_${call.seq}`
      const secrets = await signingSecrets(parts, call.account)
      const atSeconds = Math.floor(clock.now() / 1_000)
      const headers = {
        "content-type": "application/json",
        "user-agent": "computalot-webhooks",
        ...signatureHeaders(secrets, { id, atSeconds, body }),
      }
      return await parts.call({ url: call.url, headers, body }, stopped.signal)
    })
    await settle(call, outcome)
  }

  async function settle(call: WebhookCall, outcome: CallOutcome): Promise<void> {
    const attempts = call.attempts + 1
    if (outcome.kind === "failed" && attempts < ATTEMPTS) {
      const delayMs = jittered(random, attempts === 1 ? parts.retryMs : parts.retryMs * THIRD_AFTER)
      const dueAt = Math.round(clock.now() + delayMs)
      await untilWritten(() => store.write((tx) => postponeWebhookCall(tx, call.seq, attempts, dueAt)))
      return enqueue({ seq: call.seq, account: call.account }, call.url, delayMs)
    }
    const at = clock.now()
    await untilWritten(() => store.write((tx) => closeCall(tx, call, outcome, attempts, at)))
    parts.log.info("callback ended", { job: call.jobId, outcome: outcome.kind, attempts })
    if (outcome.kind !== "delivered") parts.changed(call.job)
  }

  async function untilWritten(write: () => Promise<void>): Promise<void> {
    for (;;) {
      try {
        return await write()
      } catch (error) {
        stopped.signal.throwIfAborted()
        parts.log.warn("the outcome of a call is not stored yet", { error: errorText(error) })
        await sleep(clock, WRITE_AGAIN_MS, stopped.signal)
      }
    }
  }

  wake()
  return {
    wake,
    async [Symbol.asyncDispose]() {
      stopped.abort(new Error("the coordinator stops"))
      timer?.cancel()
      await Promise.all([looking, ...working])
    },
  }
}

/** The call leaves the outbox; one that did not arrive leaves an event with its job. */
async function closeCall(
  tx: Parameters<typeof deleteWebhookCall>[0],
  call: WebhookCall,
  outcome: CallOutcome,
  attempts: number,
  at: Instant,
): Promise<void> {
  if (!(await deleteWebhookCall(tx, call.seq)) || outcome.kind === "delivered") return
  const isRefused = outcome.kind === "refused"
  await appendEvent(tx, {
    job: call.job,
    type: isRefused ? "webhook.refused" : "webhook.failed",
    message: isRefused
      ? `callback_url was not called: ${outcome.reason}`
      : `callback_url was called ${attempts} times without success: ${outcome.reason}`,
    data: { attempts: isRefused ? attempts - 1 : attempts, reason: outcome.reason, status: call.status },
    at,
  })
}

interface Bodies {
  use<T>(call: WebhookCall, signal: AbortSignal, send: (body: Uint8Array) => Promise<T>): Promise<T>
}

/** A body may have as many characters as GET /output gives: they are made one after another, while others leave room. */
function createBodies(parts: Pick<WebhookParts, "store" | "outputOf">): Bodies {
  let held = 0
  let making: Promise<unknown> = Promise.resolve()
  let roomWanted: (() => void) | null = null

  /** Nothing once the job was retried: what it prints then is not what this call tells of. Read first, or it might be. */
  async function outputOf(call: WebhookCall): Promise<string> {
    const output = await parts.outputOf(call.job)
    return (await parts.store.read((view) => isOfPresentRound(view, call))) ? output : ""
  }

  async function make(call: WebhookCall, signal: AbortSignal): Promise<Uint8Array> {
    while (held > MOST_BODY_BYTES && !signal.aborted) {
      await new Promise<void>((resolve) => {
        roomWanted = resolve
      })
    }
    signal.throwIfAborted()
    const body = Buffer.from(stringifyJson(bodyOf(call, await outputOf(call))))
    held += body.byteLength
    return body
  }

  return {
    async use(call, signal, send) {
      const made = making.then(() => make(call, signal))
      making = made.catch(() => undefined)
      const body = await made
      try {
        return await send(body)
      } finally {
        held -= body.byteLength
        roomWanted?.()
      }
    },
  }
}

/** The ten fields (W-001), as the job was when it ended. */
function bodyOf(call: WebhookCall, output: string): Record<string, unknown> {
  return {
    event: `job.${call.status}`,
    job_id: call.jobId,
    status: call.status,
    project: call.project,
    type: call.type,
    output,
    error: call.error,
    tags: call.tags,
    progress: call.progress,
    completed_at: timestampText(call.endedAt),
  }
}
