import { present } from "../../../protocol/base/assert.ts"
import type { Split } from "../submission/submission.ts"
import type { Items } from "./items.ts"
import { chunkAt } from "./ranges.ts"

/** One item per part of the split: the payload gains `<field>_start` and `<field>_count` (MR-001, MR-002). */
export function splitItems(split: Split): Items {
  const ranges = split.shape === "ranges" ? split.ranges : null
  return {
    count: split.shape === "ranges" ? split.ranges.length : split.chunks,
    fieldsOf: (item) => {
      const { start, count } = split.shape === "ranges" ? present(ranges?.[item], "the range") : chunkAt(split, item)
      return { [`${split.field}_start`]: start, [`${split.field}_count`]: count }
    },
  }
}
