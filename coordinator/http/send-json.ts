import type { IncomingMessage, ServerResponse } from "node:http"
import { Readable } from "node:stream"
import { pipeline } from "node:stream/promises"
import type { JsonPieces } from "./reply.ts"

/** Ends a request with JSON text, also where its body is still on the way and nobody wants it. */
export function sendJson(request: IncomingMessage, response: ServerResponse, status: number, text: string): void {
  response.statusCode = status
  response.setHeader("content-type", "application/json; charset=utf-8")
  response.setHeader("content-length", Buffer.byteLength(text))
  if (hasUnreadBody(request)) endWithoutReading(request, response, text)
  else response.end(text)
}

/**
 * The first pieces are asked for before the status goes out, so that a refusal can still be one. What is one piece, as most
 * pages are, goes out whole: a stream of it costs as much again as making it.
 */
export async function sendPieces(
  request: IncomingMessage,
  response: ServerResponse,
  status: number,
  { pieces }: JsonPieces,
): Promise<void> {
  const iterator = pieces[Symbol.asyncIterator]()
  const first = await iterator.next()
  const second = first.done ? first : await iterator.next()
  if (second.done) return sendJson(request, response, status, first.value ?? "")
  const begun = [first.value ?? "", second.value]
  async function* all(): AsyncGenerator<string, void, undefined> {
    yield* begun.splice(0)
    yield* { [Symbol.asyncIterator]: () => iterator }
  }
  response.statusCode = status
  response.setHeader("content-type", "application/json; charset=utf-8")
  await pipeline(Readable.from(all(), { highWaterMark: 1 }), response)
}

/** A short body that nobody asked for is skipped by Node itself, and the connection lives on. */
function hasUnreadBody(request: IncomingMessage): boolean {
  const announced = Number(request.headers["content-length"] ?? 0)
  return !request.complete && (announced > SKIPPED_BODY_BYTES || request.headers["transfer-encoding"] !== undefined)
}

const SKIPPED_BODY_BYTES = 64 * 1024

/**
 * The client may still be sending. Closing now would reset the connection, and the reset can overtake the answer; so the
 * answer goes out at once, what arrives is thrown away for a moment, and then the connection ends.
 */
function endWithoutReading(request: IncomingMessage, response: ServerResponse, text: string): void {
  response.setHeader("connection", "close")
  // A client that waits for `100 Continue` sends nothing after a refusal.
  if (request.headers.expect !== undefined) return void response.end(text)
  response.write(text)
  let discarded = 0
  const end = (): void => {
    clearTimeout(timer)
    response.end()
  }
  const timer = setTimeout(end, LINGER_MS)
  timer.unref()
  request.on("data", (chunk: Buffer) => {
    discarded += chunk.length
    if (discarded > LINGER_BYTES) end()
  })
  request.on("end", end)
  request.on("close", end)
  request.resume()
}

/** Long enough for the answer to reach a client on the other side of the world, short enough that nobody can camp here. */
const LINGER_MS = 2_000
const LINGER_BYTES = 8 * 1024 * 1024
