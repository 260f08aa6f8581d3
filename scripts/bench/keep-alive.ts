import { Agent, request } from "node:http"

export interface Answer {
  status: number
  text: string
  /** From the sending to the last byte. */
  ms: number
}

/** One client: a keep-alive connection of its own, and one request at a time on it. */
export interface KeepAliveClient extends Disposable {
  /** Rejects when the connection breaks, or when the status is another than the expected one. */
  ask(method: string, path: string, options?: { body?: string; expected?: number }): Promise<Answer>
}

export function keepAliveClient(origin: string, bearer: string): KeepAliveClient {
  const { hostname, port } = new URL(origin)
  const agent = new Agent({ keepAlive: true, maxSockets: 1 })
  return {
    ask: (method, path, { body, expected = 200 } = {}) =>
      new Promise((resolve, reject) => {
        const start = performance.now()
        const headers = {
          authorization: `Bearer ${bearer}`,
          ...(body !== undefined && {
            "content-type": "application/json",
            "content-length": Buffer.byteLength(body),
          }),
        }
        const sent = request({ hostname, port, method, path, headers, agent }, (response) => {
          const chunks: Buffer[] = []
          response.on("data", (chunk: Buffer) => chunks.push(chunk))
          response.on("error", reject)
          response.on("end", () => {
            const ms = performance.now() - start
            const status = response.statusCode ?? 0
            const text = Buffer.concat(chunks).toString()
            if (status === expected) resolve({ status, text, ms })
            else reject(new Error(`${method} ${path}: ${status} ${text.slice(0, 500)}`))
          })
        })
        sent.on("error", reject)
        sent.end(body)
      }),
    [Symbol.dispose]: () => agent.destroy(),
  }
}
