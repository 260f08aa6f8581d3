/** One frame of an event stream. */
export interface SseFrame {
  event: string
  /** The last id seen on this stream, this frame's included; null before the first. */
  lastEventId: string | null
  data: string
}

/** Reads the frames out of an event stream's bytes. Comments are skipped; a frame cut off by the end is dropped. */
export async function* readSse(bytes: AsyncIterable<Uint8Array>): AsyncGenerator<SseFrame, void, undefined> {
  let event = "message"
  let lastEventId: string | null = null
  let data: string[] = []
  for await (const line of linesOf(bytes)) {
    if (line === "") {
      if (data.length > 0) yield { event, lastEventId, data: data.join("\n") }
      event = "message"
      data = []
      continue
    }
    const colon = line.indexOf(":")
    const field = colon === -1 ? line : line.slice(0, colon)
    const value = colon === -1 ? "" : line.slice(colon + 1).replace(/^ /, "")
    if (field === "event") event = value
    else if (field === "data") data.push(value)
    else if (field === "id" && !value.includes("\0")) lastEventId = value
  }
}

async function* linesOf(bytes: AsyncIterable<Uint8Array>): AsyncGenerator<string, void, undefined> {
  const decoder = new TextDecoder()
  let rest = ""
  for await (const chunk of bytes) {
    rest += decoder.decode(chunk, { stream: true })
    // A CR at the very end may be the first half of a CRLF.
    const end = rest.endsWith("\r") ? rest.length - 1 : rest.length
    const lines = rest.slice(0, end).split(/\r\n|\n|\r/)
    rest = (lines.pop() ?? "") + rest.slice(end)
    yield* lines
  }
}
