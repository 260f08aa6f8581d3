import { IncomingMessage, ServerResponse, type RequestListener } from "node:http"
import type { Socket } from "node:net"
import { Duplex } from "node:stream"

export interface HttpAsk {
  method: string
  path: string
  headers: Record<string, string>
  body: Uint8Array | null
}

export interface HttpAnswer {
  status: number
  headers: Record<string, string>
  body: Buffer
}

/** Asks the real listener without a socket. Never settles when the listener never answers. */
export function askInProcess(listener: RequestListener, ask: HttpAsk): Promise<HttpAnswer> {
  const written: Buffer[] = []
  return new Promise((resolve, reject) => {
    openInProcess(listener, ask, {
      written: (chunk) => written.push(chunk),
      finished: () => resolve(parseAnswer(Buffer.concat(written))),
      closed: () => reject(new TypeError("fetch failed: the connection closed")),
    })
  })
}

/** The same for an answer that goes on for long: what was written so far, each time. Returns what hangs up. */
export function streamInProcess(
  listener: RequestListener,
  ask: HttpAsk,
  heard: { answer: (soFar: HttpAnswer) => void; closed: () => void },
): () => void {
  let written = Buffer.alloc(0)
  return openInProcess(listener, ask, {
    written(chunk) {
      written = Buffer.concat([written, chunk])
      if (written.includes("\r\n\r\n")) heard.answer(parseAnswer(written))
    },
    finished: heard.closed,
    closed: heard.closed,
  })
}

function openInProcess(
  listener: RequestListener,
  ask: HttpAsk,
  heard: { written: (chunk: Buffer) => void; finished: () => void; closed: () => void },
): () => void {
  const socket = new Duplex({
    read() {},
    write(chunk: Buffer, _encoding, done) {
      heard.written(chunk)
      done()
    },
  }) as Socket
  const request = new IncomingMessage(socket)
  request.method = ask.method
  request.url = ask.path
  request.httpVersionMajor = 1
  request.httpVersionMinor = 1
  request.httpVersion = "1.1"
  const length = ask.body === null ? {} : { "content-length": String(ask.body.length) }
  for (const [name, value] of Object.entries({ host: "coordinator.sim", ...ask.headers, ...length })) {
    request.headers[name.toLowerCase()] = value
    request.rawHeaders.push(name, value)
  }
  if (ask.body !== null) request.push(ask.body)
  request.push(null)
  request.complete = true
  const response = new ServerResponse(request)
  response.assignSocket(socket)
  // What the server of node:http does for its connections.
  socket.on("drain", () => response.emit("drain"))
  let finished = false
  response.on("finish", () => {
    finished = true
    heard.finished()
    response.detachSocket(socket)
    response.emit("close")
    socket.destroy()
  })
  socket.on("close", () => {
    if (finished) return
    heard.closed()
    response.emit("close")
  })
  listener(request, response)
  return () => socket.destroy()
}

function parseAnswer(bytes: Buffer): HttpAnswer {
  const split = bytes.indexOf("\r\n\r\n")
  const [line = "", ...fields] = bytes.subarray(0, split).toString("latin1").split("\r\n")
  const headers: Record<string, string> = {}
  for (const field of fields) {
    const colon = field.indexOf(":")
    headers[field.slice(0, colon).toLowerCase()] = field.slice(colon + 1).trim()
  }
  const rest = bytes.subarray(split + 4)
  return {
    status: Number(line.split(" ")[1]),
    headers,
    body: headers["transfer-encoding"] === "chunked" ? unchunked(rest) : rest,
  }
}

function unchunked(bytes: Buffer): Buffer {
  const pieces: Buffer[] = []
  for (let at = 0; ;) {
    const end = bytes.indexOf("\r\n", at)
    const size = Number.parseInt(bytes.subarray(at, end).toString("latin1"), 16)
    // The last one may not be whole yet.
    if (end === -1 || !(size > 0) || bytes.length < end + 2 + size) return Buffer.concat(pieces)
    pieces.push(bytes.subarray(end + 2, end + 2 + size))
    at = end + 2 + size + 2
  }
}
