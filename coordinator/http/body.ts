import { createHash } from "node:crypto"
import type { IncomingMessage, ServerResponse } from "node:http"
import { Readable } from "node:stream"
import { assert } from "../../protocol/base/assert.ts"
import { parseExactJson } from "../../protocol/base/exact-json.ts"
import { isJsonObject, type JsonObject, type JsonValue } from "../../protocol/base/json-text.ts"
import { ComputalotError, invalidField } from "../../protocol/domain/errors.ts"

/** A JSON body at most, a batch of 200 jobs included (GAP-32). */
export const JSON_LIMIT_BYTES = 10 * 1024 * 1024
/** The same for strangers: what they may send (an enrolment, a report of trouble) is small. */
export const PUBLIC_JSON_LIMIT_BYTES = 64 * 1024

/** How much memory all JSON bodies together may take: thousands of connections could else send 10 MiB each. */
export interface BodyMemory {
  leftBytes: number
}

export const newBodyMemory = (): BodyMemory => ({ leftBytes: 256 * 1024 * 1024 })

/** The body of one request: read at most once, counted, and hashed on the way. */
export interface RequestBody {
  /** Refuses with 413 what Content-Length already says is too large. */
  checkDeclaredSize(): void
  /** The bytes as they come. `100 Continue` goes out at the first read; one byte over the limit ends it with 413. */
  open(): Readable
  /**
   * The JSON object, and its text as it came; JSON whatever the Content-Type, and no body at all is `{}` (E-007). 422 for
   * everything else. With `form`, what an HTML form sends is taken too, as an object of strings. Its memory is taken from
   * `memory` until `release`; 503 when there is none left.
   */
  readJson(memory: BodyMemory, options?: { form?: boolean }): Promise<{ value: JsonObject; text: string }>
  /** Gives back what `readJson` took. */
  release(): void
  /** sha256 of the whole body. Reads it to its end where nobody has. */
  digest(): Promise<string>
}

/** The body of `request`. Nothing of it is read before it is asked for. */
export function requestBody(
  request: IncomingMessage,
  response: ServerResponse,
  limitBytes: number,
  awaitsContinue: boolean,
): RequestBody {
  return new IncomingBody(request, response, limitBytes, awaitsContinue)
}

/** A class on purpose: a generator function made anew for each request kept 3 KB of it alive until the next full collection. */
class IncomingBody implements RequestBody {
  readonly #request: IncomingMessage
  readonly #response: ServerResponse
  readonly #limitBytes: number
  readonly #awaitsContinue: boolean
  #isOpen = false
  #digest: string | null = null
  #taken: { memory: BodyMemory; bytes: number } | null = null

  constructor(request: IncomingMessage, response: ServerResponse, limitBytes: number, awaitsContinue: boolean) {
    this.#request = request
    this.#response = response
    this.#limitBytes = limitBytes
    this.#awaitsContinue = awaitsContinue
  }

  checkDeclaredSize(): void {
    const { headers } = this.#request
    if (Number(headers["content-length"] ?? 0) > this.#limitBytes) throw tooLarge(this.#limitBytes)
    const encoding = headers["content-encoding"]
    if (encoding !== undefined && encoding !== "identity")
      throw invalidField("Content-Encoding", "must be left out: bodies are sent as they are")
  }

  open(): Readable {
    assert(!this.#isOpen, "a request's body is read once")
    this.#isOpen = true
    return Readable.from(this.#counted(), { objectMode: false })
  }

  async readJson(memory: BodyMemory, { form = false } = {}): Promise<{ value: JsonObject; text: string }> {
    const taken = (this.#taken = { memory, bytes: 0 })
    const chunks: Buffer[] = []
    for await (const chunk of this.open() as AsyncIterable<Buffer>) {
      // What was on its way when the client left would be taken after all was given back, and stay taken for ever.
      if (this.#taken === null) throw new ClientGone("the client closed the connection")
      if (memory.leftBytes < chunk.length) throw new ComputalotError("busy", "too many large requests at once")
      memory.leftBytes -= chunk.length
      taken.bytes += chunk.length
      chunks.push(chunk)
    }
    const bytes = Buffer.concat(chunks)
    return form && isForm(this.#request, bytes) ? formFields(bytes) : jsonObject(bytes)
  }

  release(): void {
    if (this.#taken) this.#taken.memory.leftBytes += this.#taken.bytes
    this.#taken = null
  }

  async digest(): Promise<string> {
    if (!this.#isOpen) for await (const _ of this.open());
    assert(this.#digest !== null, "the digest of a body is asked for once it was read")
    return this.#digest
  }

  async *#counted(): AsyncGenerator<Buffer> {
    if (this.#awaitsContinue) this.#response.writeContinue()
    const hash = createHash("sha256")
    let received = 0
    for await (const chunk of withoutIdling(this.#request)) {
      received += chunk.length
      if (received > this.#limitBytes) throw tooLarge(this.#limitBytes)
      hash.update(chunk)
      yield chunk
    }
    this.#digest = hash.digest("hex")
  }
}

/** The client went away in the middle of its body: nobody is left to answer. */
export class ClientGone extends Error {
  override name = "ClientGone"
}

/** Ends a connection whose body comes too slowly; time in which we do not read does not count against the client. */
async function* withoutIdling(request: IncomingMessage): AsyncGenerator<Buffer> {
  let received = 0
  let waitedMs = 0
  const chunks = request[Symbol.asyncIterator]() as AsyncIterableIterator<Buffer>
  try {
    for (;;) {
      const allowedMs = GRACE_MS + received / SLOWEST_BYTES_PER_MS - waitedMs
      const since = performance.now()
      const timer = setTimeout(
        () => request.destroy(new ClientGone("the body came too slowly")),
        Math.max(0, allowedMs),
      )
      timer.unref()
      const next = await chunks.next().finally(() => clearTimeout(timer))
      waitedMs += performance.now() - since
      if (next.done) return
      received += next.value.length
      yield next.value
    }
  } catch (error) {
    if (error instanceof ClientGone) throw error
    throw new ClientGone("the client closed the connection before its body was whole", { cause: error })
  }
}

/** A body may dawdle this long in all, */
const GRACE_MS = 30_000
/** and must otherwise come at 8 KiB a second: slower ones hold a connection for its own sake. */
const SLOWEST_BYTES_PER_MS = 8.192

/** `curl -d '{…}'` calls its JSON a form too. */
function isForm({ headers }: IncomingMessage, bytes: Buffer): boolean {
  const type = headers["content-type"] ?? ""
  return /^application\/x-www-form-urlencoded\b/i.test(type) && bytes.length > 0 && bytes[0] !== OPEN_BRACE
}

const OPEN_BRACE = 0x7b

function formFields(bytes: Buffer): { value: JsonObject; text: string } {
  const fields = [...new URLSearchParams(utf8Text(bytes))].filter(([, text]) => text !== "")
  const value = Object.fromEntries(fields)
  return { value, text: JSON.stringify(value) }
}

function jsonObject(bytes: Buffer): { value: JsonObject; text: string } {
  const text = utf8Text(bytes)
  if (text === "") return { value: {}, text: "{}" }
  const parsed = parseExactJson(text)
  if (!parsed.ok) throw invalidField(parsed.path, parsed.problem)
  if (!isJsonObject(parsed.value)) throw invalidField("", `must be a JSON object, not ${kindOf(parsed.value)}`)
  return { value: parsed.value, text }
}

function utf8Text(bytes: Buffer): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes)
  } catch {
    throw invalidField("", "must be JSON in UTF-8")
  }
}

function kindOf(value: JsonValue): string {
  if (value === null) return "null"
  return Array.isArray(value) ? "a list" : `a ${typeof value}`
}

function tooLarge(limitBytes: number): ComputalotError {
  return new ComputalotError("body_too_large", `the body is larger than ${limitBytes} bytes`, {
    recommendedAction: "Send a smaller body; large inputs belong into artifacts.",
    details: { limit_bytes: limitBytes },
  })
}
