import { request as httpRequest } from "node:http"

export interface Frame {
  event: string
  id: string | null
  data: Record<string, unknown>
}

/** One connection to an event stream. */
export interface Stream {
  /** As they come. */
  readonly frames: Frame[]
  status(): number
  /** Has the server ended it? */
  closed(): boolean
  close(): void
}

/** Opens an event stream over node:http, so that nothing reconnects by itself. */
export function followStream(origin: string, path: string, options: { token: string; lastId?: string }): Stream {
  const frames: Frame[] = []
  let text = ""
  let status = 0
  let isClosed = false
  const headers = {
    authorization: `Bearer ${options.token}`,
    ...(options.lastId !== undefined && { "last-event-id": options.lastId }),
  }
  const sent = httpRequest(`${origin}${path}`, { headers, agent: false }, (response) => {
    status = response.statusCode ?? 0
    response.setEncoding("utf8")
    response.on("data", (chunk: string) => {
      text += chunk
      for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
        const frame = frameOf(text.slice(0, end))
        text = text.slice(end + 2)
        if (frame) frames.push(frame)
      }
    })
    response.on("close", () => (isClosed = true))
  })
  sent.on("error", () => (isClosed = true))
  sent.end()
  return { frames, status: () => status, closed: () => isClosed, close: () => sent.destroy() }
}

function frameOf(text: string): Frame | null {
  const fields = new Map(
    text
      .split("\n")
      .filter((line) => !line.startsWith(":"))
      .map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]),
  )
  const data = fields.get("data")
  if (data === undefined) return null
  return {
    event: fields.get("event") ?? "",
    id: fields.get("id") ?? null,
    data: JSON.parse(data) as Record<string, unknown>,
  }
}

/** Names of frames, without pings. */
export const namesOf = (frames: readonly Frame[]): string[] =>
  frames.map(({ event }) => event).filter((name) => name !== "ping")

export const idsOf = (frames: readonly Frame[]): number[] =>
  frames.flatMap(({ id }) => (id === null ? [] : [Number(id)]))
