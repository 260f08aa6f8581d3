import type { IncomingMessage, ServerResponse } from "node:http"
import { ClientGone } from "./body.ts"
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
 * pages are, goes out whole. The next piece is made when its reader has room for it. Rejects with `ClientGone` where the reader
 * leaves before the end.
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
  response.statusCode = status
  response.setHeader("content-type", "application/json; charset=utf-8")
  await sendPiece(response, first.value ?? "")
  await sendPiece(response, second.value)
  for await (const piece of { [Symbol.asyncIterator]: () => iterator }) await sendPiece(response, piece)
  response.end()
}

/** As bytes: a text would be looked through once for its length, and copied for the socket, while it is kept in the heap. */
async function sendPiece(response: ServerResponse, piece: string): Promise<void> {
  if (response.destroyed) throw new ClientGone("the client closed the connection")
  if (response.write(Buffer.from(piece))) return
  await new Promise<void>((resolve, reject) => {
    const onDrain = (): void => {
      response.off("close", onClose)
      resolve()
    }
    const onClose = (): void => {
      response.off("drain", onDrain)
      reject(new ClientGone("the client closed the connection"))
    }
    response.once("drain", onDrain).once("close", onClose)
  })
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
