import fc from "fast-check"
import { expect, test } from "vitest"
import { firstOversizedTask, payloadTooLarge, planTasks, type Plan } from "../../coordinator/jobs/plan/plan.ts"
import { chunkAt } from "../../coordinator/jobs/plan/ranges.ts"
import { parseSubmission } from "../../coordinator/jobs/submission/parse-submission.ts"

const least = { type: "structured_runner", project: "p", runner_command: ["python", "x.py"] }

function planOf(fields: object): Plan {
  return planTasks(parseSubmission({ ...least, ...fields }).submission)
}

function payloads(plan: Plan): unknown[] {
  return Array.from({ length: plan.count }, (_, index) => JSON.parse(plan.payloadText(index)) as unknown)
}

test("SR-001: without fan_out the job has one task with the payload as it is", () => {
  const plan = planOf({ payload: { a: [1, { b: null }], ü: "日本" } })
  expect(payloads(plan)).toEqual([{ a: [1, { b: null }], ü: "日本" }])
  expect(planOf({}).payloadText(0)).toBe("{}")
})

test("SR-005: by gives each element a task, under the name of the list", () => {
  const plan = planOf({ payload: { models: ["a", "b"], config: { n: 1 } }, fan_out: { by: "models" } })
  expect(payloads(plan)).toEqual([
    { models: "a", config: { n: 1 } },
    { models: "b", config: { n: 1 } },
  ])
  expect(plan.batched).toBe(false)
})

test("SR-005: an element may be of any kind, null included", () => {
  const list = [null, 0, "", [1], { a: 1 }, false]
  const plan = planOf({ payload: { models: list }, fan_out: { by: "models" } })
  expect(payloads(plan)).toEqual(list.map((models) => ({ models })))
})

test("SR-007, GAP-33: items are payloads, and win over the job's fields", () => {
  expect(payloads(planOf({ fan_out: { items: [{ p: [0.1] }, {}] } }))).toEqual([{ p: [0.1] }, {}])
  expect(payloads(planOf({ payload: { a: 1, b: 1 }, fan_out: { items: [{ b: 2 }] } }))).toEqual([{ a: 1, b: 2 }])
})

test("SR-008, SR-009: chunks tell their place", () => {
  const plan = planOf({
    payload: { total_seeds: 10000 },
    fan_out: { chunks: 20, range_field: "total_seeds", total: 10000 },
  })
  expect(plan.count).toBe(20)
  expect(JSON.parse(plan.payloadText(1))).toEqual({
    total_seeds: 10000,
    start: 500,
    count: 500,
    chunk_index: 1,
    chunk_count: 20,
    seed_range: { start: 500, count: 500, end: 1000 },
  })
})

test("GAP-34: range_field may tell the total, start moves the range, and there are no empty chunks", () => {
  expect(planOf({ payload: { n: 6 }, fan_out: { chunks: 3, range_field: "n" } }).itemField(2, "start")).toBe(4)
  const moved = planOf({ fan_out: { chunks: 2, total: 3, start: -10 } })
  expect([moved.itemField(0, "start"), moved.itemField(0, "count"), moved.itemField(1, "start")]).toEqual([-10, 2, -8])
  expect(planOf({ fan_out: { chunks: 50, total: 3 } }).count).toBe(3)
})

test("SR-010, SR-011, C-03: batched by gives sub-lists and tells the pack", () => {
  const plan = planOf({ payload: { models: ["a", "b", "c"], n: 1 }, fan_out: { by: "models", batch_size: 2 } })
  expect(plan.count).toBe(2)
  expect(plan.logicalItems).toBe(3)
  expect(payloads(plan)).toEqual([
    {
      models: ["a", "b"],
      n: 1,
      _batch: { index: 0, count: 2, size: 2, offset: 0, item_indexes: [0, 1], items: ["a", "b"] },
    },
    { models: ["c"], n: 1, _batch: { index: 1, count: 2, size: 1, offset: 2, item_indexes: [2], items: ["c"] } },
  ])
})

test("GAP-35: batched items and chunks stand in _batch.items beside the common fields", () => {
  expect(payloads(planOf({ payload: { a: 1 }, fan_out: { items: [{ x: 1 }, { x: 2 }], batch_size: 5 } }))).toEqual([
    { a: 1, _batch: { index: 0, count: 1, size: 2, offset: 0, item_indexes: [0, 1], items: [{ x: 1 }, { x: 2 }] } },
  ])
  const [first] = payloads(planOf({ fan_out: { chunks: 4, total: 8, batch_size: 2 } }))
  expect(first).toMatchObject({
    _batch: {
      count: 2,
      size: 2,
      items: [
        { start: 0, count: 2 },
        { start: 2, count: 2 },
      ],
    },
  })
  expect(first).not.toHaveProperty("start")
})

test("a batch of one is still a batch, so that a program reads one form whatever the number", () => {
  expect(payloads(planOf({ payload: { m: ["a"] }, fan_out: { by: "m", batch_size: 1 } }))).toMatchObject([
    { m: ["a"], _batch: { size: 1 } },
  ])
})

test("MR-001, MR-002, MR-003: split gives <field>_start and <field>_count", () => {
  const mapReduce = (split: object): Plan =>
    planOf({ type: "map_reduce", payload: { s: "m" }, split: { field: "seed", ...split }, reduce: { a: "sum" } })
  const chunks = mapReduce({ start: 0, total: 10000, chunks: 50 })
  expect(chunks.count).toBe(50)
  expect(JSON.parse(chunks.payloadText(3))).toEqual({ s: "m", seed_start: 600, seed_count: 200 })
  const ranges = mapReduce({
    ranges: [
      { start: 860791000, count: 1000 },
      { start: 5, count: 1 },
    ],
  })
  expect(payloads(ranges)).toEqual([
    { s: "m", seed_start: 860791000, seed_count: 1000 },
    { s: "m", seed_start: 5, seed_count: 1 },
  ])
})

test("GAP-35: keys are strings verbatim, other values as JSON text, repeated ones numbered", () => {
  const keys = (list: unknown[]): readonly string[] =>
    planOf({ payload: { m: list }, fan_out: { by: "m" }, merge_strategy: "keyed" }).keys
  expect(keys(["a", 1, "a", { b: 1 }, null, "1", "a"])).toEqual(["a", "1", "a#2", '{"b":1}', "null", "1#2", "a#3"])
  expect(keys(["a", "a#2", "a"])).toEqual(["a", "a#2", "a#3"])
  expect(keys(["__proto__", "constructor"])).toEqual(["__proto__", "constructor"])
})

test("GAP-33: a job of 100,000 tasks is planned at once, one of more is refused", () => {
  const started = performance.now()
  const plan = planOf({ fan_out: { chunks: 100_000, total: 1_000_000 } })
  expect(plan.count).toBe(100_000)
  expect(firstOversizedTask(plan, 0, plan.count)).toBeNull()
  expect(performance.now() - started).toBeLessThan(10_000)
  const message = "fan_out: makes 100001 tasks: a job has at most 100000"
  expect(() => planOf({ fan_out: { chunks: 100_001, total: 1_000_000 } })).toThrow(message)
  expect(() => planOf({ fan_out: { chunks: 1_000_001, total: 2_000_000, batch_size: 1000 } })).toThrow(
    "makes 1000001 items",
  )
  const many = { payload: { m: Array.from({ length: 200_000 }, (_, i) => i) } }
  expect(planOf({ ...many, fan_out: { by: "m", batch_size: 2 } }).count).toBe(100_000)
  expect(() => planOf({ ...many, fan_out: { by: "m" } })).toThrow("makes 200000 tasks")
})

test("GAP-32: a task's payload has at most 1 MiB as UTF-8, and the refusal points to artifacts", () => {
  const limit = 1024 * 1024
  const text = (bytes: number): string => "é".repeat(Math.floor(bytes / 2)) + "x".repeat(bytes % 2)
  const frame = Buffer.byteLength('{"a":""}')
  expect(firstOversizedTask(planOf({ payload: { a: text(limit - frame) } }), 0, 1)).toBeNull()
  const plan = planOf({ fan_out: { items: [{ a: 1 }, { a: text(limit - frame + 1) }] } })
  expect(firstOversizedTask(plan, 0, 1)).toBeNull()
  expect(firstOversizedTask(plan, 1, 5)).toBe(1)
  expect(payloadTooLarge(plan, 1)).toMatchObject({
    status: 422,
    code: "payload_too_large",
    details: { task_index: 1, payload_bytes: limit + 1 },
  })
})

test("a large list that is fanned out costs each task only its element", () => {
  const list = Array.from({ length: 100_000 }, (_, index) => `element ${index} of a list that is large as a whole`)
  const plan = planOf({ payload: { list, common: "x".repeat(100_000) }, fan_out: { by: "list" } })
  expect(firstOversizedTask(plan, 0, plan.count)).toBeNull()
})

test("chunks cover the range exactly, in order, as even as can be", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: -1e9, max: 1e9 }),
      fc.integer({ min: 1, max: 1e6 }),
      fc.integer({ min: 1, max: 500 }),
      (start, total, wanted) => {
        const chunks = Math.min(wanted, total)
        const parts = Array.from({ length: chunks }, (_, index) => chunkAt({ start, total, chunks }, index))
        let next = start
        for (const part of parts) {
          expect(part.start).toBe(next)
          next += part.count
        }
        expect(next).toBe(start + total)
        const counts = parts.map(({ count }) => count)
        expect(Math.max(...counts) - Math.min(...counts)).toBeLessThanOrEqual(1)
        expect(counts).toEqual(counts.toSorted((a, b) => b - a))
      },
    ),
  )
})

test("whatever the batch size, packs carry each item once, in order", () => {
  fc.assert(
    fc.property(
      fc.array(fc.jsonValue({ maxDepth: 1 }), { minLength: 1, maxLength: 40 }),
      fc.integer({ min: 1, max: 50 }),
      (list, batchSize) => {
        const values = JSON.parse(JSON.stringify(list)) as unknown[]
        const plan = planOf({ payload: { list: values }, fan_out: { by: "list", batch_size: batchSize } })
        const carried = payloads(plan) as { list: unknown[]; _batch: { item_indexes: number[]; count: number } }[]
        expect(carried.flatMap((payload) => payload.list)).toEqual(values)
        expect(carried.flatMap((payload) => payload._batch.item_indexes)).toEqual(values.map((_, index) => index))
        expect(carried.every((payload) => payload._batch.count === plan.count)).toBe(true)
      },
    ),
  )
})

test("payloadBytes is the length of payloadText in UTF-8", () => {
  const object = fc.dictionary(
    fc.string({ unit: "grapheme", maxLength: 8 }),
    fc.jsonValue({ maxDepth: 2, stringUnit: "grapheme" }),
    { maxKeys: 6 },
  )
  fc.assert(
    fc.property(
      object,
      fc.array(object, { minLength: 1, maxLength: 6 }),
      fc.option(fc.integer({ min: 1, max: 4 })),
      (payload, items, batchSize) => {
        const fields = JSON.parse(JSON.stringify({ payload, fan_out: { items, batch_size: batchSize } })) as object
        const plan = planOf(fields)
        for (let index = 0; index < plan.count; index++) {
          const text = plan.payloadText(index)
          expect(plan.payloadBytes(index)).toBe(Buffer.byteLength(text))
          if (batchSize === null)
            expect(JSON.parse(text)).toEqual(JSON.parse(JSON.stringify({ ...payload, ...items[index] })))
        }
      },
    ),
  )
})

test("keys are unique, one for each item", () => {
  fc.assert(
    fc.property(fc.array(fc.constantFrom("a", "a#2", "a#2#2", 1, "1", null), { minLength: 1 }), (list) => {
      const { keys } = planOf({ payload: { list }, fan_out: { by: "list" }, merge_strategy: "keyed" })
      expect(new Set(keys).size).toBe(list.length)
    }),
  )
})

test("a stored submission gives the same plan again", () => {
  const { submission } = parseSubmission({
    ...least,
    payload: { m: [1, "x"] },
    fan_out: { by: "m", batch_size: 1 },
    merge_strategy: "keyed",
  })
  const again = planTasks(JSON.parse(JSON.stringify(submission)) as typeof submission)
  expect(payloads(again)).toEqual(payloads(planTasks(submission)))
})
