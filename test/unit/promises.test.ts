import { readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { describe, expect, test } from "vitest"
import { idsNamedBy, testTitles } from "../../scripts/lib/test-titles.ts"
import { CONTRACT, idsOf } from "../support/contract-ids.ts"

describe("which promises are kept is read from the titles of tests", () => {
  test("titles are found whatever stands before them", () => {
    const source = [
      `test("one: a (b) \\"c\\"", () => {})`,
      `  test.each([["x", ")"], fn(1)])(\n    "two",`,
      "test.skipIf(!isRoot(machine))(`three`, async () => {})",
      `test.for(ROWS)('four', () => {})`,
      `test.sequential("five", () => {})`,
      `test.each<[string, number]>([["x", 1]])("six", () => {})`,
    ].join("\n")
    expect(testTitles(source)).toEqual([`one: a (b) \\"c\\"`, "two", "three", "four", "five", "six"])
  })

  test("groups, tests that never run and other calls are none", () => {
    const source = [
      `describe("group", () => {})`,
      `test.skip("skipped", () => {})`,
      `test.todo("later")`,
      `pattern.test("text")`,
      `latest("text")`,
      `test(title, () => {})`,
      `const test = "text"`,
    ].join("\n")
    expect(testTitles(source)).toEqual([])
  })

  test("ids are found alone, in lists and in ranges; what only looks like one is none", () => {
    expect(idsNamedBy("J-009, GAP-69: a thing (rulings)")).toEqual(["J-009", "GAP-69"])
    expect(idsNamedBy("D-011…D-013, D-015–016: the index")).toEqual(["D-011", "D-012", "D-013", "D-015", "D-016"])
    expect(idsNamedBy("A06, A38–A40: requests")).toEqual(["A06", "A38", "A39", "A40"])
    expect(idsNamedBy("SHA-256 and UTF-8 in X-Y-001, HTTP-2, A100")).toEqual([])
  })
})

test("every id that a test names is one of the contract's", () => {
  const folder = new URL("..", import.meta.url).pathname
  const known = new Set(CONTRACT.flatMap(idsOf))
  const files = readdirSync(folder, { recursive: true, encoding: "utf8" }).filter((file) => file.endsWith(".test.ts"))
  const strange = files
    .filter((file) => !file.endsWith("promises.test.ts"))
    .flatMap((file) =>
      testTitles(readFileSync(join(folder, file), "utf8"))
        .flatMap(idsNamedBy)
        .filter((id) => !known.has(id))
        .map((id) => `${file}: ${id}`),
    )
  expect(strange).toEqual([])
  expect(known.size).toBe(578)
})
