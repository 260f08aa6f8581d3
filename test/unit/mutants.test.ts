import { readFileSync } from "node:fs"
import { expect, test } from "vitest"
import { MUTANTS } from "../simulation/mutants.ts"

test.each(MUTANTS)("issue 4: the deliberate fault “$name” can still be put in", ({ edits }) => {
  for (const { file, from } of edits) {
    const source = readFileSync(new URL(`../../${file}`, import.meta.url), "utf8")
    expect(source.split(from).length - 1, `${file}: ${from}`).toBe(1)
  }
})
