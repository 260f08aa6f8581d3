import type { Clock } from "../../protocol/base/clock.ts"
import { sha256Hex } from "../../protocol/base/digest.ts"
import { ComputalotError, invalidField } from "../../protocol/domain/errors.ts"
import type { QuoteId } from "../../protocol/domain/ids.ts"
import {
  deleteOldKeys,
  deleteParts,
  findParts,
  findStoredAnswer,
  storeAnswer,
  storePart,
  storeQuote,
  type IdempotencyKey,
  type StoredAnswer,
} from "../store/idempotency.ts"
import type { Store, Tx } from "../store/store.ts"
import type { Caller } from "../accounts/authenticate.ts"

/** What a handler that creates something uses, whether or not the client sent a key. */
export interface Idempotency {
  /** The quote that an earlier 402 under this key named: the same one is to be named again. */
  readonly earlierQuote: QuoteId | null
  /**
   * Gives what the creating act calls in its own write: the answer is stored with the thing it created, or neither is.
   * `toReply` gives the answer as a repetition shall see it: secrets are null there (rulings, Idempotency).
   */
  remember<Result>(toReply: (result: Result) => RememberedReply): (tx: Tx, result: Result) => Promise<void>
  /**
   * For requests that make several things, each in a write of its own: what an interrupted run of the same request made, by
   * the number of the part. Refuses another request under the same key (422).
   */
  partsMade(): Promise<ReadonlyMap<number, string>>
  /** As `remember`, for one part: keeps the id of what was made until the whole answer is stored. */
  rememberPart<Result>(part: number, toId: (result: Result) => string): (tx: Tx, result: Result) => Promise<void>
  /** The answer is not stored: the same request under this key goes on where this one stopped. */
  stayOpen(): void
}

interface RememberedReply {
  status: number
  body: unknown
}

/** For requests without a key. */
export const noIdempotency: Idempotency = {
  earlierQuote: null,
  remember: () => async () => {},
  partsMade: async () => new Map(),
  rememberPart: () => async () => {},
  stayOpen() {},
}

/** One request that holds a key, until it is released. */
export interface HeldKey extends Idempotency {
  /** Has the act stored its answer in its own write? */
  readonly isRemembered: () => boolean
  /** Is the answer not to be stored? */
  readonly staysOpen: () => boolean
  /** Stores the answer of an act that could not do so itself. */
  storeReply(reply: RememberedReply): Promise<void>
  storeQuote(quote: QuoteId): Promise<void>
  release(): void
}

export interface IdempotencyKeys {
  /**
   * Takes the key for one request. A stored answer to the same request comes back as `answered`. Refuses: another request under
   * the same key (422), the same key in flight (409), a malformed key (422).
   */
  take(
    caller: Caller,
    key: string,
    request: KeyedRequest,
  ): Promise<{ kind: "taken"; held: HeldKey } | { kind: "answered"; status: number; bodyJson: string }>
  /** Is an answer stored under the key, to whatever request? */
  isAnswered(caller: Caller, key: string): Promise<boolean>
  /** Forgets keys older than a day, a slice at a time. Returns how many. */
  sweep(): Promise<number>
}

interface KeyedRequest {
  /** Method, path and query. */
  line: string
  /** sha256 of the body. For raw bodies it is known only once they were read. */
  bodyDigest(): Promise<string>
  toJson(body: unknown): string
}

/** In flight is memory, never a row: after a crash nothing is in flight (rulings, Idempotency). */
export function createIdempotencyKeys(parts: { store: Store; clock: Clock }): IdempotencyKeys {
  const inFlight = new Set<string>()
  return {
    async take(caller, key, request) {
      if (key.length < 1 || key.length > LONGEST_KEY)
        throw invalidField("Idempotency-Key", `must have 1 to ${LONGEST_KEY} characters`)
      const name: IdempotencyKey = { scope: scopeOf(caller), key }
      const slot = `${name.scope} ${key}`
      if (inFlight.has(slot)) throw stillInFlight()
      inFlight.add(slot)
      try {
        const stored = await parts.store.read((view) => findStoredAnswer(view, name))
        if (stored !== null && stored.fingerprint !== (await fingerprintOf(request))) throw keyReused()
        if (stored?.kind === "answered") {
          inFlight.delete(slot)
          return { kind: "answered", status: stored.status, bodyJson: stored.bodyJson }
        }
        return { kind: "taken", held: holdKey(parts, name, request, stored, () => inFlight.delete(slot)) }
      } catch (error) {
        inFlight.delete(slot)
        throw error
      }
    },
    async isAnswered(caller, key) {
      const stored = await parts.store.read((view) => findStoredAnswer(view, { scope: scopeOf(caller), key }))
      return stored?.kind === "answered"
    },
    async sweep() {
      const before = parts.clock.now() - KEPT_MS
      return parts.store.write((tx) => deleteOldKeys(tx, before, SWEEP_SLICE))
    },
  }
}

const LONGEST_KEY = 255
/** A client may come back with its key a day later (rulings, Idempotency). */
const KEPT_MS = 24 * 60 * 60 * 1000
const SWEEP_SLICE = 1_000

function holdKey(
  parts: { store: Store; clock: Clock },
  name: IdempotencyKey,
  request: KeyedRequest,
  stored: Extract<StoredAnswer, { kind: "quoted" }> | null,
  release: () => void,
): HeldKey {
  const at = parts.clock.now()
  let fingerprint: string | null = stored?.fingerprint ?? null
  const known = async (): Promise<string> => (fingerprint ??= await fingerprintOf(request))
  let remembered = false
  let staysOpen = false
  let hasParts = false
  const storeIn = async (tx: Tx, mark: string, reply: RememberedReply): Promise<void> => {
    const answer = { fingerprint: mark, status: reply.status, bodyJson: request.toJson(reply.body), at }
    if (!(await storeAnswer(tx, name, answer))) throw stillInFlight()
    if (hasParts) await deleteParts(tx, name)
    remembered = true
  }
  return {
    earlierQuote: stored?.quote ?? null,
    remember: (toReply) => async (tx, result) => storeIn(tx, await known(), toReply(result)),
    isRemembered: () => remembered,
    staysOpen: () => staysOpen,
    stayOpen: () => void (staysOpen = true),
    async partsMade() {
      hasParts = true
      const mark = await known()
      const made = await parts.store.read((view) => findParts(view, name))
      if (made.some((part) => part.fingerprint !== mark)) throw keyReused()
      return new Map(made.map(({ part, id }) => [part, id]))
    },
    rememberPart: (part, toId) => async (tx, result) => {
      const made = { part, id: toId(result), fingerprint: await known() }
      if (!(await storePart(tx, name, made, at))) throw stillInFlight()
    },
    async storeReply(reply) {
      const mark = await known()
      await parts.store.write((tx) => storeIn(tx, mark, reply))
    },
    async storeQuote(quote) {
      const mark = await known()
      await parts.store.write((tx) => storeQuote(tx, name, { fingerprint: mark, quote, at }))
    },
    release,
  }
}

const fingerprintOf = async (request: KeyedRequest): Promise<string> =>
  sha256Hex(`${request.line}\n${await request.bodyDigest()}`)

function scopeOf(caller: Caller): string {
  return caller.role === "admin" || caller.account === null ? "deployment" : `account:${caller.account}`
}

function keyReused(): ComputalotError {
  return new ComputalotError("idempotency_key_reused", "this Idempotency-Key stands for another request", {
    recommendedAction: "Use a new key for a new request; a key belongs to one method, path and body.",
  })
}

function stillInFlight(): ComputalotError {
  return new ComputalotError("request_in_flight", "a request with this Idempotency-Key is still being worked on", {
    recommendedAction: "Wait a moment and send the same request again: it then gives the first answer.",
  })
}
