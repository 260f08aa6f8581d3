import type { JsonObject } from "../../../protocol/base/json-text.ts"

/** The items a job consists of, made when asked for: 100,000 of them never lie in memory at once. */
export interface Items {
  count: number
  /** What the item adds to the job's payload; its fields win over those of the same name. */
  fieldsOf(item: number): JsonObject
}
