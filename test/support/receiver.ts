import { createServer, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from "node:http"
import type { AddressInfo } from "node:net"

/** What a receiver of webhooks was sent. */
export interface Received {
  method: string
  path: string
  headers: IncomingHttpHeaders
  body: string
  atMs: number
}

export interface Receiver extends AsyncDisposable {
  readonly url: string
  readonly port: number
  readonly received: Received[]
  /** Of one path. */
  at(path: string): Received[]
}

/** A client's own server on loopback. `answer` gets the call and how many of its path came before. */
export async function startReceiver(
  answer: (response: ServerResponse, call: Received, before: number) => void = (response) => response.end(),
  port = 0,
): Promise<Receiver> {
  const received: Received[] = []
  const at = (path: string): Received[] => received.filter((call) => call.path === path)
  const server = createServer((request, response) => {
    void take(request).then((call) => {
      const before = at(call.path).length
      received.push(call)
      answer(response, call, before)
    })
  })
  await new Promise<void>((resolve) => server.listen(port, "127.0.0.1", resolve))
  const { port: taken } = server.address() as AddressInfo
  return {
    url: `http://127.0.0.1:${taken}`,
    port: taken,
    received,
    at,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}

async function take(request: IncomingMessage): Promise<Received> {
  const chunks: Buffer[] = []
  for await (const chunk of request) chunks.push(chunk as Buffer)
  return {
    method: request.method ?? "",
    path: request.url ?? "",
    headers: request.headers,
    body: Buffer.concat(chunks).toString("utf8"),
    atMs: Date.now(),
  }
}
