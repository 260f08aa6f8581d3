import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http"
import type { AddressInfo, Socket } from "node:net"
import type { Duplex } from "node:stream"
import type { Log } from "../../protocol/base/log.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import type { HttpApp } from "./app.ts"

export interface HttpServer extends AsyncDisposable {
  /** `http://127.0.0.1:8080`: where it really listens. */
  readonly origin: string
  readonly port: number
  /**
   * Accepts nothing new, ends streams, lets requests in work finish for at most `deadlineMs`, then cuts what is left. A second
   * call waits for the same end.
   */
  close(deadlineMs?: number): Promise<void>
}

/** Listens. Port 0 picks a free one. Rejects when the address cannot be had. */
export async function startHttpServer(parts: {
  app: HttpApp
  host: string
  port: number
  log: Log
}): Promise<HttpServer> {
  const server = createServer({
    maxHeaderSize: LARGEST_HEADER_BYTES,
    headersTimeout: HEADERS_TIMEOUT_MS,
    // Bodies have a limit of their own, by rate: an upload of 2 GiB may take its time (body.ts).
    requestTimeout: 0,
    keepAliveTimeout: KEEP_ALIVE_MS,
    connectionsCheckingInterval: CHECK_CONNECTIONS_MS,
    noDelay: true,
  })
  server.maxConnections = MOST_CONNECTIONS
  server.setTimeout(IDLE_SOCKET_MS)
  server.on("request", parts.app.listener)
  // The door itself sends `100 Continue`, once token, role, resource and size are checked (rulings, HTTP).
  server.on("checkContinue", parts.app.listener)
  // Other expectations mean nothing here, and are no reason to refuse.
  server.on("checkExpectation", parts.app.listener)
  server.on("clientError", refuseGarbage)
  server.on("drop", () => parts.log.warn("connection dropped", { limit: MOST_CONNECTIONS }))
  const working = watchConnections(server)
  await listening(server, parts.host, parts.port)

  const { address, family, port } = server.address() as AddressInfo
  let closed: Promise<void> | null = null
  const close = (deadlineMs = CLOSE_DEADLINE_MS): Promise<void> =>
    (closed ??= closeServer(server, parts.app, working, deadlineMs))
  return {
    origin: `http://${family === "IPv6" ? `[${address}]` : address}:${port}`,
    port,
    close,
    [Symbol.asyncDispose]: () => close(),
  }
}

/** Tokens, signatures of payments and cookies of a proxy fit; a megabyte of headers does not. */
const LARGEST_HEADER_BYTES = 16 * 1024
/** Whoever has not sent its headers by then is not asking anything. */
const HEADERS_TIMEOUT_MS = 10_000
const CHECK_CONNECTIONS_MS = 2_000
/** Longer than the 60 s after which common proxies drop an idle connection, so that they do so first. */
const KEEP_ALIVE_MS = 65_000
/** No byte either way for this long: the peer is gone, or reads nothing. Streams ping far more often. */
const IDLE_SOCKET_MS = 180_000
/** Each costs some 30 KiB; beyond it new ones are dropped and those that are open are served. */
const MOST_CONNECTIONS = 4_096
const CLOSE_DEADLINE_MS = 10_000

function listening(server: Server, host: string, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once("error", (error) =>
      reject(new Error(`cannot listen on ${host} port ${port}: ${errorText(error)}`, { cause: error })),
    )
    server.listen(port, host, () => {
      server.removeAllListeners("error")
      resolve()
    })
  })
}

/** The open connections, each with the number of requests in work on it. */
function watchConnections(server: Server): Map<Socket, number> {
  const working = new Map<Socket, number>()
  server.on("connection", (socket) => {
    working.set(socket, 0)
    socket.on("close", () => working.delete(socket))
  })
  const started = (request: IncomingMessage, response: ServerResponse): void => {
    const { socket } = request
    working.set(socket, (working.get(socket) ?? 0) + 1)
    response.on("close", () => {
      const left = (working.get(socket) ?? 1) - 1
      if (working.has(socket)) working.set(socket, left)
    })
  }
  server.on("request", started)
  server.on("checkContinue", started)
  server.on("checkExpectation", started)
  return working
}

function closeServer(server: Server, app: HttpApp, working: Map<Socket, number>, deadlineMs: number): Promise<void> {
  app.close()
  return new Promise((resolve) => {
    const cut = setTimeout(() => server.closeAllConnections(), deadlineMs)
    // Node's own closeIdleConnections leaves connections that have not asked anything yet until their headers time out.
    const endIdle = (): void => {
      for (const [socket, requests] of working) if (requests === 0) socket.destroySoon()
    }
    const sweep = setInterval(endIdle, 50)
    server.close(() => {
      clearTimeout(cut)
      clearInterval(sweep)
      resolve()
    })
    endIdle()
  })
}

/** What is no HTTP gets one answer in our shape, and the connection ends. */
function refuseGarbage(error: NodeJS.ErrnoException, socket: Duplex): void {
  if (error.code === "ECONNRESET" || !socket.writable || bytesWritten(socket) > 0) return void socket.destroy()
  const [status, text, next] =
    error.code === "HPE_HEADER_OVERFLOW"
      ? ["431 Request Header Fields Too Large", "the headers are larger than 16 KiB", "Send smaller headers."]
      : error.code === "ERR_HTTP_REQUEST_TIMEOUT"
        ? ["408 Request Timeout", "the request did not arrive in time", "Send it again, all of it at once."]
        : ["400 Bad Request", "this is not a valid HTTP request", "Send it again with an HTTP client."]
  const body = JSON.stringify({ error: text, code: "invalid_request", recommended_action: next, request_id: "none" })
  socket.end(
    `HTTP/1.1 ${status}\r\ncontent-type: application/json; charset=utf-8\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`,
  )
}

/** A connection that already answered something may be in the middle of an answer: nothing can be put between. */
const bytesWritten = (socket: Duplex): number => ("bytesWritten" in socket ? (socket as Socket).bytesWritten : 0)
