import { readFileSync } from "node:fs"
import { Readable } from "node:stream"

/** `node:fs` as it is, but for streams: those would read on other threads, in no order. */
export * from "node:fs"

export function createReadStream(path: string, options: { fd?: { readFile(): Promise<Buffer> } } = {}): Readable {
  const { fd } = options
  return Readable.from(
    (async function* () {
      yield fd === undefined ? readFileSync(path) : await fd.readFile()
    })(),
  )
}
