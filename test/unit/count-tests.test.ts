import { spawnSync } from "node:child_process"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { expect, onTestFinished, test } from "vitest"
import { REPOSITORY } from "../support/source-files.ts"

const fine = { name: "a.test.ts", status: "passed", assertionResults: [{ status: "passed" }] }
const wrong = { name: "b.test.ts", status: "failed", assertionResults: [{ status: "failed" }] }
const broken = { name: "c.test.ts", status: "failed", assertionResults: [] }

test.each<[string, object | null, string[], string, number]>([
  ["all is well", results(true, 5, 0, 2, [fine]), [], "5 passed, 0 failed, 2 skipped", 0],
  ["a test failed", results(false, 5, 1, 0, [fine, wrong]), [], "5 passed, 1 failed, 0 skipped", 1],
  [
    "a file fails before its first test",
    results(false, 5, 0, 0, [fine, broken]),
    [],
    "5 passed, 1 failed, 0 skipped",
    1,
  ],
  ["an error came outside every test", results(false, 5, 0, 0, [fine]), [], "5 passed, 1 failed, 0 skipped", 1],
  ["checks failed", results(true, 5, 0, 0, [fine]), ["types", "lint"], "5 passed, 2 failed, 0 skipped", 1],
  ["nothing could run", null, ["install"], "0 passed, 1 failed, 0 skipped", 1],
  ["the tests died without a word", null, [], "0 passed, 1 failed, 0 skipped", 1],
])("the last line counts when %s", (_when, json, checks, line, status) => {
  const home = mkdtempSync(join(tmpdir(), "computalot-count-"))
  onTestFinished(() => rmSync(home, { recursive: true }))
  const file = join(home, "results.json")
  writeFileSync(file, json === null ? "" : JSON.stringify(json))
  const script = join(REPOSITORY, "scripts", "lib", "count-tests.ts")
  const counted = spawnSync(process.execPath, [script, file, ...checks], { encoding: "utf8" })
  expect({ last: counted.stdout.trimEnd().split("\n").at(-1), status: counted.status }).toEqual({ last: line, status })
})

function results(success: boolean, passed: number, failed: number, pending: number, testResults: object[]): object {
  return { success, numPassedTests: passed, numFailedTests: failed, numPendingTests: pending, testResults }
}
