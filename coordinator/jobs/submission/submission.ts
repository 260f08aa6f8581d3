import type { FieldType } from "../../../protocol/api/jobs.ts"
import { present } from "../../../protocol/base/assert.ts"
import type { JsonObject, JsonValue } from "../../../protocol/base/json-text.ts"
import type { JobId } from "../../../protocol/domain/ids.ts"
import { parseUsd, type MicroUsd } from "../../../protocol/domain/money.ts"
import type { Requirements } from "../../../protocol/domain/requirements.ts"
import type { Priority, ReliabilityMode } from "../../../protocol/domain/statuses.ts"

/**
 * A checked submission with every default resolved. Plain JSON through and through: it is stored beside the job, and the plan
 * is made from it again whenever a task's payload is asked for.
 */
export interface Submission {
  project: string
  command: string[]
  /** Goes into every task; of a sweep its `fixed_payload`, of a benchmark its `shared_payload`. */
  payload: JsonObject
  work: Work
  timeoutSeconds: number
  runtimeHintSeconds: number | null
  maxRetries: number
  priority: Priority
  reliabilityMode: ReliabilityMode
  requirements: Requirements
  reservation: Reservation
  executionPolicy: "sandboxed"
  placementPolicy: PlacementWish
  tags: string[]
  clientRef: string | null
  /** `meta.env`, where present, maps strings to strings. */
  meta: JsonObject | null
  variant: JsonValue
  /** As submitted; `qualitySchema` adds the type's own demands. */
  resultSchema: ResultSchema
  /** Absent where the submission says nothing of it. */
  checkpointing?: Checkpointing
  /** Jobs that must complete before this one may start, each once; absent where it names none. */
  dependsOn?: JobId[]
  /** Called when the job has ended (J-013); absent: nobody is. */
  callbackUrl?: string
  /** Dollars with at most six decimals, above 0: no hold of the job exceeds it. Absent: its estimate decides. */
  maxCostUsd?: number
  /** `state.publish`; absent where nothing is to be published. */
  publish?: Publish[]
}

/** What a round of the job may cost at the most, where its submission says so. */
export function maxCost({ maxCostUsd }: Submission): MicroUsd | null {
  return maxCostUsd === undefined ? null : present(parseUsd(maxCostUsd), "a checked amount")
}

/** SS-004: what is written into the project's shared state when the job has ended well. */
export type Publish = { key: string; path: string } | { key: string; value: JsonValue }

/** CK-001, CK-003: are checkpoints kept, and does a next attempt get what an earlier one left? */
export interface Checkpointing {
  enabled: boolean
  resumeFromLatest: boolean
  /** Where in the payload; absent: `_resume`. */
  payloadKey?: string
}

export type Work =
  | { type: "structured_runner"; fanOut: FanOut | null; merge: Merge }
  | { type: "map_reduce"; split: Split; reduce: [field: string, operator: ReduceOperator][] }
  | { type: "sweep"; parameters: [name: string, values: JsonValue[]][]; ranking: Ranking }
  | { type: "benchmark"; candidates: Candidate[]; replicas: number; ranking: Ranking }

export type FanOut = (
  | { shape: "by"; field: string; elements: JsonValue[] }
  | { shape: "items"; items: JsonObject[] }
  | { shape: "chunks"; chunks: number; total: number; start: number }
) & {
  /** Items in one task; null: no batching, each item is a task of the plain form. */
  batchSize: number | null
}

export type Merge =
  | { strategy: "collect" }
  | { strategy: "keyed" }
  | { strategy: "weighted_avg"; valueField: string; weightField: string }

export type Split = { field: string } & (
  | { shape: "chunks"; chunks: number; total: number; start: number }
  | { shape: "ranges"; ranges: Range[] }
)

/** By which field of the results the tasks of a sweep, or the candidates of a benchmark, are ranked. */
export interface Ranking {
  by: string
  /** `desc`: the largest value is the best. */
  order: "desc" | "asc"
}

export interface Candidate {
  name: string
  config: JsonObject
  /** BM-004: the field is `base` in the first replica and `stride` more in each further one; null: all are alike. */
  vary: { field: string; base: number; stride: number } | null
}

/** `count` whole numbers from `start` on. */
export interface Range {
  start: number
  count: number
}

export type ReduceOperator =
  | { kind: "sum" | "mean" | "max" | "min" | "concat" | "count" | "collect" }
  | { kind: "weighted_avg"; weightField: string }

/** `dedicated`: on a machine that nobody but the job's project uses (SC-006). */
export type PlacementWish = "shared" | "dedicated"

/** `maxWaitSeconds` is kept and shown, without effect, as are all other fields beside best effort (V-004). */
export type Reservation =
  | { mode: "best_effort"; parallelism?: number; guaranteedForSeconds?: number; maxWaitSeconds?: number }
  | { mode: "guaranteed"; parallelism: number; guaranteedForSeconds: number; maxWaitSeconds: number }

/** What a result should look like. Lists of pairs, so that a field may have any name. */
export interface ResultSchema {
  requiredFields: string[]
  fieldTypes: [field: string, type: FieldType][]
  /** Both ends belong to the range. */
  fieldRanges: [field: string, least: number, most: number][]
}
