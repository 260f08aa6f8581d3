import { readFileSync } from "node:fs"
import { Readable } from "node:stream"

/** `node:fs` as it is, but for streams: those would read on other threads, in no order. */
export * from "node:fs"

export function createReadStream(
  path: string,
  { fd, start, end }: { fd?: { readFile(): Promise<Buffer> }; start?: number; end?: number } = {},
): Readable {
  return Readable.from(
    (async function* () {
      const bytes = fd === undefined ? readFileSync(path) : await fd.readFile()
      yield bytes.subarray(start, end === undefined ? undefined : end + 1)
    })(),
  )
}
