import { createHash } from "node:crypto"
import { createReadStream } from "node:fs"
import { parentPort } from "node:worker_threads"
import { present } from "../../protocol/base/assert.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import type { HashAnswer, HashOrder } from "./hasher.ts"

/** The worker thread behind `createHasher`. Orders are worked on side by side, so that a small file never waits for a large one. */
const port = present(parentPort, "the parent of the hash worker")

port.on("message", (order: HashOrder) => {
  hashFile(order).then(
    (hashed) => port.postMessage({ id: order.id, hashed } satisfies HashAnswer, [hashed.pieces.buffer]),
    (error: unknown) => port.postMessage({ id: order.id, problem: errorText(error) } satisfies HashAnswer),
  )
})

async function hashFile(order: HashOrder): Promise<{ digest: string; size: number; pieces: Uint8Array<ArrayBuffer> }> {
  const whole = createHash("sha256")
  const pieces: Buffer[] = []
  let piece = createHash("sha256")
  let pieceFilled = 0
  let size = 0
  for await (const chunk of createReadStream(order.path, { highWaterMark: READ_BYTES }) as AsyncIterable<Buffer>) {
    whole.update(chunk)
    size += chunk.length
    for (let at = 0; at < chunk.length;) {
      const taken = Math.min(order.pieceBytes - pieceFilled, chunk.length - at)
      piece.update(chunk.subarray(at, at + taken))
      pieceFilled += taken
      at += taken
      if (pieceFilled === order.pieceBytes) {
        pieces.push(piece.digest())
        piece = createHash("sha256")
        pieceFilled = 0
      }
    }
  }
  if (pieceFilled > 0) pieces.push(piece.digest())
  const joined = new Uint8Array(pieces.length * 32)
  pieces.forEach((one, index) => joined.set(one, index * 32))
  return { digest: whole.digest("hex"), size, pieces: joined }
}

/** Large enough to read fast, small enough that files take turns often. */
const READ_BYTES = 256 * 1024
