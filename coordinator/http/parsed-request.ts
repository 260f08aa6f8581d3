import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from "node:http"
import type { Readable } from "node:stream"
import { assert } from "../../protocol/base/assert.ts"
import type { Endpoint } from "../../protocol/api/endpoint.ts"
import type { AccountId } from "../../protocol/domain/ids.ts"
import type { Caller } from "../accounts/authenticate.ts"
import { accountOf, authorize, type Identities, type NodeCaller } from "./auth.ts"
import type { RequestBody } from "./body.ts"
import type { RequestOrigin } from "./client-address.ts"
import { noIdempotency, type Idempotency } from "./idempotency.ts"

/** What is known of a request before its body is read. */
interface RequestFacts {
  id: string
  row: Endpoint
  request: IncomingMessage
  response: ServerResponse
  identities: Identities
  origin: RequestOrigin
  caller: Caller | NodeCaller | null
  params: unknown
  /** As it came, and as the row has it. */
  rawQuery: Record<string, unknown>
  query: unknown
  content: RequestBody | null
}

/**
 * A request as its handler has it (`HttpRequest`, which says what each part is). A class on purpose: V8 gives every object
 * literal that has a getter a hidden class of its own, and that keeps all of the request alive until the next full collection.
 */
export class ParsedRequest {
  readonly id: string
  readonly origin: RequestOrigin
  readonly caller: Caller | NodeCaller | null
  readonly params: unknown
  readonly query: unknown
  readonly headers: IncomingHttpHeaders
  readonly method: string | undefined
  readonly response: ServerResponse
  body: unknown = undefined
  bodyText = "{}"
  idempotency: Idempotency = noIdempotency
  readonly #request: IncomingMessage
  readonly #row: Endpoint
  readonly #identities: Identities
  readonly #rawQuery: Record<string, unknown>
  readonly #content: RequestBody | null
  #controller: AbortController | null = null
  #aborted: Error | null = null

  constructor(facts: RequestFacts) {
    this.id = facts.id
    this.origin = facts.origin
    this.caller = facts.caller
    this.params = facts.params
    this.query = facts.query
    this.headers = facts.request.headers
    this.method = facts.request.method
    this.response = facts.response
    this.#request = facts.request
    this.#row = facts.row
    this.#identities = facts.identities
    this.#rawQuery = facts.rawQuery
    this.#content = facts.content
  }

  /** Made when it is asked for: most reads are done without it. */
  signal(): AbortSignal {
    this.#controller ??= new AbortController()
    if (this.#aborted) this.#controller.abort(this.#aborted)
    return this.#controller.signal
  }

  /** Ends it before its answer does. The first reason stays. */
  abort(why: Error): void {
    this.#aborted ??= why
    this.#controller?.abort(this.#aborted)
  }

  account(): AccountId {
    return accountOf(asCaller(this.caller), this.#rawQuery)
  }

  async stillAllowed(): Promise<boolean> {
    try {
      await authorize(this.#identities, this.#row.access, this.#request)
      return true
    } catch {
      return false
    }
  }

  openBody(): Readable {
    assert(this.#content !== null, "a request that has a body is asked for it")
    return this.#content.open()
  }
}

export function asCaller(caller: Caller | NodeCaller | null): Caller {
  assert(caller !== null && "role" in caller, "only callers with an account are asked for it")
  return caller
}
