import { assert } from "../../../protocol/base/assert.ts"
import type { Range } from "../submission/submission.ts"

/**
 * Part `index` of `total` numbers from `start` on, cut into `chunks` parts as even as can be: the first `total mod chunks`
 * parts get one more (GAP-34). Parts are disjoint, adjacent and together exactly the whole.
 */
export function chunkAt(whole: { start: number; total: number; chunks: number }, index: number): Range {
  assert(whole.chunks <= whole.total && index < whole.chunks, "a chunk has at least one number")
  const size = Math.floor(whole.total / whole.chunks)
  const larger = whole.total % whole.chunks
  const start = whole.start + index * size + Math.min(index, larger)
  return { start, count: index < larger ? size + 1 : size }
}
