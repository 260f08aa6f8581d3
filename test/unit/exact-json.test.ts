import fc from "fast-check"
import { expect, test } from "vitest"
import { parseExactJson } from "../../protocol/base/exact-json.ts"
import { JsonText, splitJsonArray, splitJsonObject, stringifyJson } from "../../protocol/base/json-text.ts"

test("numbers that a double holds as written are parsed, however they are written", () => {
  const text =
    "[0, -0, 1.0, 5.0, 0.1, 0.10000000000000001, 1e20, 100000000000000000000, 9007199254740992, 2.5E-3, 5e-324]"
  expect(parseExactJson(text)).toEqual({ ok: true, value: JSON.parse(text) })
})

test("numbers that JSON.parse would change are refused with their path", () => {
  const wrong: [string, string][] = [
    ['{"payload":{"seed":9007199254740993}}', "payload.seed"],
    ['{"jobs":[{"a":1},{"a":[1,2,12345678901234567890]}]}', "jobs[1].a[2]"],
    ['{"x":1e400}', "x"],
    ['{"x":-1e-400}', "x"],
    ['{"a":"9007199254740993","b,[{":{"c\\"]":3.14159265358979323846}}', 'b,[{.c"]'],
    ["9007199254740993", ""],
  ]
  for (const [text, path] of wrong) {
    const parsed = parseExactJson(text)
    expect(parsed).toMatchObject({ ok: false, path })
    expect(!parsed.ok && parsed.problem).toContain("send it as a string")
  }
})

test("a key that stands there twice is refused, also where it is escaped: its first value would be dropped", () => {
  for (const [text, path] of [
    ['{"a":1,"a":1}', "a"],
    ['{"payload":{"x":[{"b":1,"\\u0062":2}]}}', "payload.x[0].b"],
    ['{"__proto__":1,"__proto__":2}', "__proto__"],
  ] as const) {
    expect(parseExactJson(text)).toEqual({ ok: false, path, problem: "stands there twice: keep one of the two" })
  }
  expect(parseExactJson('[{"a":{"a":1},"b":["a","a"]},{"a":"a"}]').ok).toBe(true)
})

test("half of a surrogate pair is refused, whole pairs and escaped backslashes are not", () => {
  for (const text of ['{"a":"\\ud800"}', '["x\\uDC00y"]', '{"\\ud83d":1}', '"\\ud83d\\ud83d\\ude00"'])
    expect(parseExactJson(text)).toMatchObject({ ok: false, problem: expect.stringContaining("surrogate") })
  for (const text of ['{"a":"\\ud83d\\ude00"}', '["\\\\ud800"]', '"😀"']) expect(parseExactJson(text).ok).toBe(true)
})

test("text that is not JSON is refused", () => {
  for (const text of ["", "{", "{'a':1}", "NaN", "[1,]", "\u{feff}{}"])
    expect(parseExactJson(text)).toMatchObject({ ok: false, path: "" })
})

test("nesting is bounded, so that no later reader overflows its stack", () => {
  const nested = (depth: number): string => "[".repeat(depth) + "]".repeat(depth)
  expect(parseExactJson(nested(200)).ok).toBe(true)
  expect(parseExactJson(nested(201))).toMatchObject({ ok: false })
  expect(parseExactJson(`{"a":${nested(500_000)}}`)).toMatchObject({ ok: false })
})

test("a key named __proto__ stays an ordinary key", () => {
  const parsed = parseExactJson('{"__proto__":{"admin":true}}')
  expect(parsed.ok && Object.keys(parsed.value as object)).toEqual(["__proto__"])
  expect(({} as { admin?: boolean }).admin).toBeUndefined()
  expect(parsed.ok && stringifyJson(parsed.value)).toBe('{"__proto__":{"admin":true}}')
})

test("whatever JSON.stringify writes is parsed to the same value", () => {
  fc.assert(
    fc.property(fc.jsonValue({ maxDepth: 5 }), (value) => {
      const text = JSON.stringify(value)
      expect(parseExactJson(text)).toEqual({ ok: true, value: JSON.parse(text) })
      expect(stringifyJson(JSON.parse(text))).toBe(JSON.stringify(JSON.parse(text)))
    }),
  )
})

test("a whole number is accepted exactly when the double has the same value", () => {
  fc.assert(
    fc.property(fc.bigInt({ min: -(2n ** 70n), max: 2n ** 70n }), (whole) => {
      expect(parseExactJson(String(whole)).ok).toBe(BigInt(Number(whole)) === whole)
    }),
  )
})

test("JSON text is written as it stands, at any depth", () => {
  const long = new JsonText('{"n":9007199254740993}')
  expect(stringifyJson({ a: [long, undefined], b: undefined, c: new Date(0) })).toBe(
    '{"a":[{"n":9007199254740993},null],"c":"1970-01-01T00:00:00.000Z"}',
  )
})

test("lists and objects fall apart into the texts of their members", () => {
  fc.assert(
    fc.property(
      fc.array(fc.jsonValue()),
      fc.dictionary(fc.string(), fc.jsonValue()),
      fc.constantFrom(0, 1, 2),
      (list, object, indent) => {
        const elements = splitJsonArray(` ${JSON.stringify(list, null, indent)} `)
        expect(elements?.map((text) => JSON.parse(text) as unknown)).toEqual(JSON.parse(JSON.stringify(list)))
        const members = splitJsonObject(JSON.stringify(object, null, indent)) ?? new Map<string, string>()
        expect(
          `{${[...members].map(([key, text]) => `${JSON.stringify(key)}:${JSON.stringify(JSON.parse(text))}`).join(",")}}`,
        ).toBe(JSON.stringify(JSON.parse(JSON.stringify(object))))
      },
    ),
  )
  expect(splitJsonArray('{"a":1}')).toBeNull()
  expect(splitJsonObject("[1]")).toBeNull()
  expect(splitJsonObject('{"a":9007199254740993}')?.get("a")).toBe("9007199254740993")
})
