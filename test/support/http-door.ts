import { request as httpRequest, type IncomingHttpHeaders } from "node:http"
import { connect, type Socket } from "node:net"
import { systemClock, type Clock } from "../../protocol/base/clock.ts"
import { silentLog, type Log } from "../../protocol/base/log.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import { createHttpApp, type HttpApp } from "../../coordinator/http/app.ts"
import { mountOps } from "../../coordinator/http/routes/ops.ts"
import { startHttpServer, type HttpServer } from "../../coordinator/http/server.ts"

export interface HttpDoor extends AsyncDisposable {
  app: HttpApp
  server: HttpServer
}

/** The real door on a free port, with the operations routes and none else; every reply is compared with its schema. */
export async function startHttpDoor(
  log: Log = silentLog,
  clock: Clock = systemClock,
  trustProxy: readonly string[] = [],
): Promise<HttpDoor> {
  const app = createHttpApp({ clock, random: systemRandom, log, trustProxy, checkReplies: true })
  mountOps(app)
  const server = await startHttpServer({ app, host: "127.0.0.1", port: 0, log })
  return { app, server, [Symbol.asyncDispose]: () => server.close(500) }
}

export interface PlainReply {
  status: number
  headers: IncomingHttpHeaders
  text: string
  /** Empty where the reply is no JSON object. */
  json: Record<string, unknown>
  /** What lies there in the JSON: `get("key", "id")`; undefined where the path ends early. */
  get(...path: (string | number)[]): unknown
}

/** One request over node:http, so that nothing is added or tidied as fetch would. */
export function send(
  origin: string,
  method: string,
  path: string,
  options: { token?: string; body?: unknown; headers?: Record<string, string> } = {},
): Promise<PlainReply> {
  const raw = options.body === undefined || typeof options.body === "string" || options.body instanceof Uint8Array
  const body = raw ? (options.body as string | Uint8Array | undefined) : JSON.stringify(options.body)
  const { hostname, port } = new URL(origin)
  const authorization = options.token === undefined ? {} : { authorization: `Bearer ${options.token}` }
  return new Promise((resolve, reject) => {
    const sent = httpRequest(
      { hostname, port, method, path, agent: false, headers: { ...authorization, ...options.headers } },
      (response) => {
        const chunks: Buffer[] = []
        response.on("data", (chunk: Buffer) => chunks.push(chunk))
        response.on("end", () => {
          const text = Buffer.concat(chunks).toString("utf8")
          const isJson = response.headers["content-type"]?.startsWith("application/json") === true && text !== ""
          const json = (isJson ? JSON.parse(text) : {}) as Record<string, unknown>
          const get = (...path: (string | number)[]): unknown => path.reduce(member, json)
          resolve({ status: response.statusCode ?? 0, headers: response.headers, text, json, get })
        })
        response.on("error", reject)
      },
    )
    sent.on("error", reject)
    sent.end(body)
  })
}

const member = (of: unknown, name: string | number): unknown =>
  (of as Record<string | number, unknown> | undefined)?.[name]

/** Sends bytes as they are and gives everything that comes back until the server closes. */
export async function sendRaw(port: number, bytes: string | Uint8Array): Promise<string> {
  const socket = await openSocket(port)
  socket.write(bytes)
  return untilClosed(socket)
}

export function openSocket(port: number): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect(port, "127.0.0.1", () => resolve(socket))
    socket.once("error", reject)
  })
}

export function untilClosed(socket: Socket): Promise<string> {
  return new Promise((resolve) => {
    let text = ""
    socket.on("data", (chunk: Buffer) => (text += chunk.toString("latin1")))
    socket.on("error", () => socket.destroy())
    socket.on("close", () => resolve(text))
  })
}
