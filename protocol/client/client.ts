import type { BodyInput, Endpoint, ParamsInput, QueryInput, ReplyOf } from "../api/endpoint.ts"
import type { ErrorBody } from "../api/common.ts"
import { createBackoff } from "../base/backoff.ts"
import { sleep, type Clock } from "../base/clock.ts"
import { errorText } from "../base/error-text.ts"
import type { Random } from "../base/random.ts"
import { readSse, type SseFrame } from "./sse.ts"

/** Where to send requests, and as whom. */
export interface Server {
  /** `http://127.0.0.1:8080`. */
  origin: string
  token?: string | undefined
}

/** The server refused: `code` is from the closed list, `body` carries what else it said. */
export class ClientError extends Error {
  override name = "ClientError"
  readonly status: number
  readonly code: string
  readonly body: Partial<ErrorBody> & Record<string, unknown>
  readonly headers: Headers

  constructor(status: number, body: Partial<ErrorBody> & Record<string, unknown>, headers: Headers) {
    super(`${body.error ?? "the server refused"} (${status})`)
    this.status = status
    this.code = body.code ?? "unknown"
    this.body = body
    this.headers = headers
  }
}

/** No answer came: nobody listens, or the connection broke. Whether the server acted is not known. */
export class Unreachable extends Error {
  override name = "Unreachable"
}

interface CallOptions {
  signal?: AbortSignal | undefined
  headers?: Record<string, string> | undefined
  /** Makes a repetition of a creating request give the first answer again (GAP-69). */
  idempotencyKey?: string | undefined
}
type WithParams<Row extends Endpoint> = keyof ParamsInput<Row> extends never ? object : { params: ParamsInput<Row> }
type WithQuery<Row extends Endpoint> = keyof QueryInput<Row> extends never
  ? object
  : { query?: Partial<QueryInput<Row>> | undefined }
type WithBody<Row extends Endpoint> =
  BodyInput<Row> extends undefined
    ? object
    : object extends BodyInput<Row>
      ? { body?: BodyInput<Row> | undefined }
      : { body: BodyInput<Row> }
/** What a call of `Row` needs besides the server. */
export type Call<Row extends Endpoint> = CallOptions & WithParams<Row> & WithQuery<Row> & WithBody<Row>

/** Calls one endpoint and gives its reply. Throws `ClientError` for a refusal, `Unreachable` where no answer came. */
export async function callEndpoint<Row extends Endpoint>(
  server: Server,
  row: Row,
  call: Call<Row>,
): Promise<ReplyOf<Row>> {
  const plain: AnyCall = call
  const json = plain.body === undefined ? undefined : JSON.stringify(plain.body)
  const response = await request(server, row, plain, json, "application/json")
  const reply: unknown = await bodyOf(response)
  const checked = row.reply?.safeParse(reply)
  if (checked !== undefined && !checked.success) {
    throw new Unreachable(`${server.origin} answered ${row.method} ${row.path} with what is no reply of this API`, {
      cause: checked.error,
    })
  }
  // As it was sent: fields that a newer server added stay.
  return reply as ReplyOf<Row>
}

/** Sends raw bytes to a `rawBody` endpoint, streamed where they are a stream. */
export async function uploadTo<Row extends Endpoint>(
  server: Server,
  row: Row,
  bytes: Uint8Array | AsyncIterable<Uint8Array>,
  call: Omit<Call<Row>, "body">,
): Promise<ReplyOf<Row>> {
  const body = bytes instanceof Uint8Array ? (bytes as Uint8Array<ArrayBuffer>) : ReadableStream.from(bytes)
  const response = await request(
    server,
    row,
    call as AnyCall,
    body,
    row.rawBody?.contentType ?? "application/octet-stream",
  )
  return (await bodyOf(response)) as ReplyOf<Row>
}

/** The bytes of a `stream` endpoint's reply. Leave the loop, or abort the signal, to end the download. */
export async function downloadFrom<Row extends Endpoint>(
  server: Server,
  row: Row,
  call: Call<Row>,
): Promise<{ status: number; headers: Headers; bytes: AsyncIterable<Uint8Array> }> {
  const response = await request(server, row, call, undefined, undefined)
  return {
    status: response.status,
    headers: response.headers,
    bytes: response.body ?? ReadableStream.from<Uint8Array>([]),
  }
}

/**
 * Follows an event stream to its `done` frame, which is the last one given. A connection that breaks, or ends by its `timeout`
 * frame, is opened again where it stood, for ever, until the signal is aborted. Refusals (`ClientError`) end it.
 */
export async function* followEvents<Row extends Endpoint>(
  parts: { clock: Clock; random: Random },
  server: Server,
  row: Row,
  call: Call<Row> & { lastEventId?: string | undefined },
): AsyncGenerator<SseFrame, void, undefined> {
  const backoff = createBackoff(parts.random, FIRST_RETRY_MS, LONGEST_RETRY_MS)
  let lastEventId = call.lastEventId ?? null
  for (;;) {
    try {
      const resume = lastEventId === null ? {} : { "last-event-id": lastEventId }
      const stream = await downloadFrom(server, row, { ...call, headers: { ...call.headers, ...resume } })
      // Everything up to `done` was seen before.
      if (stream.status === 204) return
      for await (const frame of readSse(stream.bytes)) {
        backoff.reset()
        lastEventId = frame.lastEventId ?? lastEventId
        yield frame
        if (frame.event === "done") return
      }
    } catch (error) {
      call.signal?.throwIfAborted()
      if (error instanceof ClientError && error.status !== 503) throw error
    }
    await sleep(parts.clock, backoff.next(), call.signal)
  }
}

const FIRST_RETRY_MS = 200
const LONGEST_RETRY_MS = 10_000

/** A call whose types are forgotten. */
interface AnyCall extends CallOptions {
  params?: object
  query?: object | undefined
  body?: unknown
}

async function request(
  server: Server,
  row: Endpoint,
  call: AnyCall,
  body: string | Uint8Array<ArrayBuffer> | ReadableStream | undefined,
  contentType: string | undefined,
): Promise<Response> {
  const headers: Record<string, string> = { ...call.headers }
  if (server.token !== undefined) headers["authorization"] = `Bearer ${server.token}`
  if (call.idempotencyKey !== undefined) headers["idempotency-key"] = call.idempotencyKey
  if (body !== undefined && contentType !== undefined) headers["content-type"] ??= contentType
  const response = await reach(server, addressOf(server, row, call), {
    method: row.method,
    headers,
    ...(body === undefined ? {} : { body, duplex: "half" as const }),
    ...(call.signal === undefined ? {} : { signal: call.signal }),
  })
  if (response.ok || response.status === row.status) return response
  throw new ClientError(response.status, (await refusalOf(response)) ?? {}, response.headers)
}

async function reach(server: Server, address: string, init: RequestInit): Promise<Response> {
  try {
    return await fetch(address, init)
  } catch (error) {
    init.signal?.throwIfAborted()
    throw new Unreachable(`${server.origin} does not answer: ${errorText(error)}`, { cause: error })
  }
}

async function bodyOf(response: Response): Promise<unknown> {
  try {
    return response.status === 204 ? undefined : await response.json()
  } catch (error) {
    throw new Unreachable(`the answer of ${response.url} broke off: ${errorText(error)}`, { cause: error })
  }
}

async function refusalOf(response: Response): Promise<Record<string, unknown> | null> {
  const body: unknown = await response.json().catch(() => null)
  return typeof body === "object" && body !== null ? { ...body } : null
}

function addressOf(server: Server, row: Endpoint, call: AnyCall): string {
  const params = new Map(Object.entries(call.params ?? {}))
  const path = row.path.replaceAll(/:([a-z_]+)/g, (_, name: string) => encodeURIComponent(String(params.get(name))))
  const query = new URLSearchParams()
  for (const [name, value] of Object.entries(call.query ?? {})) if (value !== undefined) query.set(name, String(value))
  const text = query.toString()
  return `${server.origin}${path}${text === "" ? "" : `?${text}`}`
}
