import { createBackoff } from "../../protocol/base/backoff.ts"
import { sleep, type Clock } from "../../protocol/base/clock.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import type { Log } from "../../protocol/base/log.ts"
import type { Random } from "../../protocol/base/random.ts"
import type { ClaimNumber } from "../../protocol/domain/ids.ts"
import type { ContentRef } from "../../protocol/wire/content-source.ts"
import type { Blobs } from "../cache/blobs.ts"
import type { ContentHolder } from "../mesh/content-stream.ts"
import type { FetchContent, FetchFrom } from "../mesh/fetch-content.ts"
import { TransferRefused } from "../mesh/transfers.ts"

/** What brings an attempt its content before its program starts: its inputs, and what an earlier attempt left. */
export interface AttemptContentParts {
  blobs: Blobs
  fetch: FetchContent
  origin: () => ContentHolder | null
  connected: () => boolean
  clock: Clock
  random: Random
  log: Log
}

/**
 * Asks until there is an answer; `notYet` is the log's line for each time there was none. Rejects with the signal's reason, and
 * with `TransferRefused` where the claim is not ours any more.
 */
export async function askUntilAnswered<Answer>(
  { clock, random, log }: AttemptContentParts,
  ask: (claim: ClaimNumber, signal: AbortSignal) => Promise<Answer>,
  claim: ClaimNumber,
  notYet: string,
  signal: AbortSignal,
): Promise<Answer> {
  const backoff = createBackoff(random, 250, 5_000)
  for (;;) {
    try {
      return await ask(claim, signal)
    } catch (error) {
      signal.throwIfAborted()
      if (error instanceof TransferRefused) throw error
      log.warn(notYet, { claim, error: errorText(error) })
    }
    await sleep(clock, backoff.next(), signal)
  }
}

/** The path of the blob in the cache, pinned for `holder`, also where this rejects: whoever calls gives the pins back. */
export async function fetchPinned(
  { blobs, fetch, origin }: AttemptContentParts,
  blob: ContentRef,
  holder: string,
  from: Omit<FetchFrom, "origin">,
): Promise<string> {
  blobs.pin(blob.digest, holder)
  await fetch.fetchBlob(blob, { ...from, origin: origin() })
  const found = await blobs.open(blob.digest, holder)
  if (found === null) throw new Error("it was damaged on this node's disk")
  return found.path
}

/** Without contact nobody can tell whether content is there, so that is waited for. With contact it resolves at once. */
export async function untilConnected({ clock, connected }: AttemptContentParts, signal: AbortSignal): Promise<void> {
  while (!connected()) await sleep(clock, LOOK_FOR_CONTACT_MS, signal)
}

const LOOK_FOR_CONTACT_MS = 500
