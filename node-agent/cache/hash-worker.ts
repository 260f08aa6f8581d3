import { createReadStream } from "node:fs"
import { parentPort } from "node:worker_threads"
import { present } from "../../protocol/base/assert.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import { hashPieces } from "../../protocol/wire/hash-pieces.ts"
import type { PieceList } from "../../protocol/wire/piece-list.ts"
import type { HashAnswer, HashOrder } from "./hasher.ts"

/** The worker thread behind `createHasher`. Orders are worked on side by side: a small file never waits for a large one. */
const port = present(parentPort, "the parent of the hash worker")

port.on("message", (order: HashOrder) => {
  hashFile(order).then(
    (list) => port.postMessage({ id: order.id, list } satisfies HashAnswer),
    (error: unknown) => port.postMessage({ id: order.id, problem: errorText(error) } satisfies HashAnswer),
  )
})

async function hashFile(order: HashOrder): Promise<PieceList> {
  const hashing = hashPieces(order.pieceBytes)
  const chunks = createReadStream(order.path, { highWaterMark: READ_BYTES }) as AsyncIterable<Buffer>
  for await (const chunk of chunks) hashing.update(chunk)
  return hashing.finish()
}

/** Large enough to read fast, small enough that files take turns often. */
const READ_BYTES = 256 * 1024
