import { present, unreachable } from "../../../protocol/base/assert.ts"
import type { JsonObject, JsonValue } from "../../../protocol/base/json-text.ts"
import type { FanOut } from "../submission/submission.ts"
import type { Pack } from "./batches.ts"
import type { Items } from "./items.ts"
import { chunkAt } from "./ranges.ts"

/** The items of the three fan-out shapes; without one the job is a single item that adds nothing (SR-001). */
export function fanOutItems(fanOut: FanOut | null): Items {
  if (fanOut === null) return { count: 1, fieldsOf: () => ({}) }
  switch (fanOut.shape) {
    case "by":
      return {
        count: fanOut.elements.length,
        // An element may itself be null.
        fieldsOf: (item) => ({ [fanOut.field]: fanOut.elements[item] ?? null }),
      }
    case "items":
      return { count: fanOut.items.length, fieldsOf: (item) => present(fanOut.items[item], "the item") }
    case "chunks":
      return { count: fanOut.chunks, fieldsOf: (item) => chunkFields(fanOut, item) }
    default:
      return unreachable(fanOut)
  }
}

/** What a task that carries a whole pack adds to the job's payload (SR-010, SR-011, GAP-35). */
export function packFields(fanOut: FanOut, pack: Pack, place: { index: number; packs: number }): JsonObject {
  const items = subItems(fanOut, pack)
  const batch: JsonObject = {
    index: place.index,
    count: place.packs,
    size: pack.count,
    offset: pack.first,
    item_indexes: Array.from({ length: pack.count }, (_, at) => pack.first + at),
    items,
  }
  return fanOut.shape === "by" ? { [fanOut.field]: items, _batch: batch } : { _batch: batch }
}

function subItems(fanOut: FanOut, { first, count }: Pack): JsonValue[] {
  switch (fanOut.shape) {
    case "by":
      return fanOut.elements.slice(first, first + count)
    case "items":
      return fanOut.items.slice(first, first + count)
    case "chunks":
      return Array.from({ length: count }, (_, at) => chunkFields(fanOut, first + at))
    default:
      return unreachable(fanOut)
  }
}

/** SR-008, SR-009; the end of `seed_range` does not belong to it. */
function chunkFields(whole: { start: number; total: number; chunks: number }, index: number): JsonObject {
  const { start, count } = chunkAt(whole, index)
  const range = { start, count, end: start + count }
  return { start, count, chunk_index: index, chunk_count: whole.chunks, seed_range: range }
}
