import { assert, unreachable } from "../../../protocol/base/assert.ts"
import type { JsonObject, JsonValue } from "../../../protocol/base/json-text.ts"
import { ComputalotError, invalidField } from "../../../protocol/domain/errors.ts"
import { LARGEST_PAYLOAD_BYTES } from "../../../protocol/domain/runner.ts"
import type { Submission, Work } from "../submission/submission.ts"
import { packAt, packCount, type Pack } from "./batches.ts"
import { benchmarkItems } from "./benchmark.ts"
import type { Items } from "./items.ts"
import { itemKeys } from "./keys.ts"
import { splitItems } from "./map-reduce.ts"
import { fanOutItems, packFields } from "./structured-runner.ts"
import { sweepItems } from "./sweep.ts"

/**
 * How a job falls into tasks. Holds the submission and no list of tasks: payloads are made by index when asked for, so a
 * plan of 100,000 tasks is as small as one of a single task, and the same submission always gives the same plan.
 */
export interface Plan {
  /** Tasks: indexes 0 … count − 1. */
  count: number
  /** Items before batching (C-03): as many as tasks unless tasks carry packs. */
  logicalItems: number
  /** The task's payload as JSON text. */
  payloadText(index: number): string
  /** Its length in UTF-8, without making it. */
  payloadBytes(index: number): number
  /** The items the task carries. */
  itemsOf(index: number): Pack
  /** A field of the item's payload as an unbatched task would have it. */
  itemField(item: number, field: string): JsonValue | undefined
  /** True when the task carries a pack, even of one. */
  batched: boolean
  /** Of every item, for keyed jobs; else empty. */
  keys: readonly string[]
}

/** Plans a submission. Throws `invalid_request` when it makes more tasks than a job may have (GAP-33, interfaces). */
export function planTasks(submission: Submission): Plan {
  const { work } = submission
  const common = new CommonFields(submission.payload)
  const items = itemsOfWork(work)
  const batchSize = work.type === "structured_runner" ? (work.fanOut?.batchSize ?? null) : null
  const count = batchSize === null ? items.count : packCount(items.count, batchSize)
  refuseTooMany(work, count, items.count)

  const itemsOf = (index: number): Pack => {
    assert(index >= 0 && index < count, "the task belongs to the plan")
    return batchSize === null ? { first: index, count: 1 } : packAt(items.count, batchSize, index)
  }
  const fieldsOf = (index: number): JsonObject => {
    const pack = itemsOf(index)
    const fanOut = work.type === "structured_runner" ? work.fanOut : null
    if (batchSize === null || fanOut === null) return items.fieldsOf(pack.first)
    return packFields(fanOut, pack, { index, packs: count })
  }
  return {
    count,
    logicalItems: items.count,
    payloadText: (index) => common.textWith(fieldsOf(index)),
    payloadBytes: (index) => common.bytesWith(fieldsOf(index)),
    itemsOf,
    itemField: (item, field) => {
      const own = items.fieldsOf(item)
      return Object.hasOwn(own, field) ? own[field] : common.value(field)
    },
    batched: batchSize !== null,
    keys: keysOf(work),
  }
}

/** Interfaces, GAP-33. */
const MOST_TASKS = 100_000
/** Items that came with the request; each may cost work at the end, also where many share a task. */
const MOST_ITEMS = 1_000_000

/**
 * The first task of `from` … `upto` − 1 whose payload is larger than a task may get, or null. Callers go through a large plan
 * in slices, so that other requests are served between them.
 */
export function firstOversizedTask(plan: Plan, from: number, upto: number): number | null {
  for (let index = from; index < Math.min(upto, plan.count); index++) {
    if (plan.payloadBytes(index) > LARGEST_PAYLOAD_BYTES) return index
  }
  return null
}

/** The refusal for the task that `firstOversizedTask` found (GAP-32). */
export function payloadTooLarge(plan: Plan, index: number): ComputalotError {
  const bytes = plan.payloadBytes(index)
  return new ComputalotError(
    "payload_too_large",
    `the payload of task ${index} has ${bytes} bytes as JSON: must have at most ${LARGEST_PAYLOAD_BYTES}`,
    {
      recommendedAction: "Upload large inputs as artifacts (POST /api/v1/artifacts) and pass their ids in the payload.",
      details: { task_index: index, payload_bytes: bytes, limit_bytes: LARGEST_PAYLOAD_BYTES },
    },
  )
}

function itemsOfWork(work: Work): Items {
  switch (work.type) {
    case "structured_runner":
      return fanOutItems(work.fanOut)
    case "map_reduce":
      return splitItems(work.split)
    case "sweep":
      return sweepItems(work.parameters)
    case "benchmark":
      return benchmarkItems(work.candidates, work.replicas)
    default:
      return unreachable(work)
  }
}

function keysOf(work: Work): string[] {
  if (work.type !== "structured_runner" || work.merge.strategy !== "keyed") return []
  assert(work.fanOut?.shape === "by", "a keyed job fans out by a field")
  return itemKeys(work.fanOut.elements)
}

function refuseTooMany(work: Work, tasks: number, items: number): void {
  const path = FIELD_THAT_MULTIPLIES[work.type]
  if (tasks > MOST_TASKS) {
    throw invalidField(
      path,
      `makes ${tasks} tasks: a job has at most ${MOST_TASKS}; make fewer and larger ones, or several jobs`,
    )
  }
  const arithmetic = work.type !== "structured_runner" || work.fanOut?.shape === "chunks"
  const mostItems = arithmetic ? MOST_TASKS : MOST_ITEMS
  if (items > mostItems) throw invalidField(path, `makes ${items} items: a job has at most ${mostItems} of this kind`)
}

const FIELD_THAT_MULTIPLIES = {
  structured_runner: "fan_out",
  map_reduce: "split",
  sweep: "parameters",
  benchmark: "candidates",
} as const

/** The job's payload, written once and merged with what each task adds. */
class CommonFields {
  readonly #payload: JsonObject
  readonly #members = new Map<string, { text: string; bytes: number }>()
  #bytes = 0

  constructor(payload: JsonObject) {
    this.#payload = payload
    for (const [key, value] of Object.entries(payload)) {
      const text = memberText(key, value)
      const bytes = Buffer.byteLength(text)
      this.#members.set(key, { text, bytes })
      this.#bytes += bytes
    }
  }

  value(field: string): JsonValue | undefined {
    return Object.hasOwn(this.#payload, field) ? this.#payload[field] : undefined
  }

  textWith(own: JsonObject): string {
    const members = new Map<string, string>()
    for (const [key, { text }] of this.#members) members.set(key, text)
    for (const [key, value] of Object.entries(own)) members.set(key, memberText(key, value))
    return `{${[...members.values()].join(",")}}`
  }

  bytesWith(own: JsonObject): number {
    let bytes = this.#bytes
    let members = this.#members.size
    for (const [key, value] of Object.entries(own)) {
      bytes += Buffer.byteLength(memberText(key, value))
      const replaced = this.#members.get(key)
      if (replaced === undefined) members++
      else bytes -= replaced.bytes
    }
    return bytes + Math.max(members - 1, 0) + "{}".length
  }
}

function memberText(key: string, value: JsonValue): string {
  return `${JSON.stringify(key)}:${JSON.stringify(value)}`
}
