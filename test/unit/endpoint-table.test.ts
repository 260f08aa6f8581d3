import { expect, test } from "vitest"
import { z } from "zod"
import { documentEndpoints } from "../../protocol/api/documents.ts"
import { opsEndpoints } from "../../protocol/api/ops.ts"
import { parseFields } from "../../protocol/api/parse.ts"
import { ENDPOINTS as table } from "../support/endpoints.ts"

test("E-001: every row has an id and an address of its own, under /api/v1 but for operations and documents", () => {
  expect(new Set(table.map(({ id }) => id)).size).toBe(table.length)
  expect(new Set(table.map(({ method, path }) => `${method} ${path}`)).size).toBe(table.length)
  const elsewhere = [...opsEndpoints, ...documentEndpoints].map(({ id }) => id as string)
  for (const row of table) if (!elsewhere.includes(row.id)) expect(row.path).toMatch(/^\/api\/v1\//)
})

test("every row fits itself: parameters of its path, one kind of body, one kind of reply, creation by POST alone", () => {
  for (const row of table) {
    const names = [...row.path.matchAll(/:([a-z_]+)/g)].map((match) => match[1])
    if (row.params instanceof z.ZodObject) expect(Object.keys(row.params.shape)).toEqual(names)
    expect(row.body === undefined || row.rawBody === undefined).toBe(true)
    expect((row.reply === undefined) === (row.stream !== undefined)).toBe(true)
    if (row.creates) expect(row.method).toBe("POST")
    // The one thing to read that a viewer may not: with it anyone can sign (rulings, Webhook secret).
    const isSecret = row.path === "/api/v1/account/webhook-secret"
    if (row.method === "GET") expect([row.access !== "member" || isSecret, row.body]).toEqual([true, undefined])
    if (row.method !== "GET" && row.path.startsWith("/api/v1/account")) expect(row.access).toBe("member")
  }
})

test("every request and reply can be written as JSON Schema, for OpenAPI", () => {
  for (const row of table) {
    for (const input of [row.body, row.query])
      if (input) expect(() => z.toJSONSchema(input, { io: "input", unrepresentable: "any" })).not.toThrow()
    if (row.reply) expect(z.toJSONSchema(row.reply, { unrepresentable: "any" })).toBeTruthy()
  }
})

test("null of an optional field counts as left out, at every described level; data keeps its nulls", () => {
  const schema = z.object({
    name: z.string().optional(),
    deep: z.object({ size: z.number().default(3), kind: z.string().exactOptional() }).optional(),
    rows: z.array(z.object({ n: z.number().optional() })).optional(),
    data: z.record(z.string(), z.unknown()).optional(),
    either: z.string().nullable().optional(),
  })
  const sent = {
    name: null,
    deep: { size: null, kind: null },
    rows: [{ n: null }, { n: 1 }],
    data: { a: null },
    either: null,
    other: null,
  }
  expect(parseFields(schema, sent)).toEqual({
    deep: { size: 3 },
    rows: [{}, { n: 1 }],
    data: { a: null },
    either: null,
  })
})

test("problems name path, fault and what would be right; a required field that is missing says so", () => {
  const schema = z.object({
    id: z.string(),
    size: z.union([z.int(), z.literal("all")]),
    rows: z.array(z.object({ n: z.number() })),
  })
  const refuse = () => parseFields(schema, { size: true, rows: [{ n: 1 }, { n: null }] }, "jobs[2]")
  expect(refuse).toThrow("jobs[2].id: is required (expected string)")
  try {
    refuse()
  } catch (error) {
    expect(error).toMatchObject({
      code: "invalid_request",
      details: [
        { path: "jobs[2].id", problem: "is required (expected string)" },
        { path: "jobs[2].size", problem: 'expected number, received boolean, or expected "all"' },
        { path: "jobs[2].rows[1].n", problem: "expected number, received null" },
      ],
    })
  }
})

test("a field named __proto__ is data like any other", () => {
  const parsed = parseFields(
    z.object({ data: z.record(z.string(), z.unknown()) }),
    JSON.parse('{"data":{},"__proto__":{"data":1}}'),
  )
  expect(parsed).toEqual({ data: {} })
})
