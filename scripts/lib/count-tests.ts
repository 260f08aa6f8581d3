import { readFileSync } from "node:fs"

/** What Vitest's JSON reporter writes, as far as it is counted here. */
interface TestResults {
  success: boolean
  numPassedTests: number
  numFailedTests: number
  numPendingTests: number
  testResults: { name: string; status: string; assertionResults: { status: string }[] }[]
}

const [path = "", ...failedChecks] = process.argv.slice(2)
const { passed, failed, skipped } = count(readResults(path))
if (failedChecks.length > 0) console.log(`failed checks: ${failedChecks.join(", ")}`)
const allFailed = failed + failedChecks.length
console.log(`${passed} passed, ${allFailed} failed, ${skipped} skipped`)
process.exitCode = allFailed === 0 ? 0 : 1

function readResults(file: string): TestResults | null {
  try {
    return JSON.parse(readFileSync(file, "utf8")) as TestResults
  } catch {
    return null
  }
}

/** A file that fails before its first test, and an error outside every test, count as one failed test each. */
function count(results: TestResults | null): { passed: number; failed: number; skipped: number } {
  if (results === null) {
    console.log("the tests left no results")
    return { passed: 0, failed: failedChecks.length > 0 ? 0 : 1, skipped: 0 }
  }
  const broken = results.testResults.filter(
    (file) => file.status === "failed" && !file.assertionResults.some((test) => test.status === "failed"),
  )
  for (const file of broken) console.log(`${file.name} failed outside its tests`)
  const known = results.numFailedTests + broken.length
  const failed = known === 0 && !results.success ? 1 : known
  return { passed: results.numPassedTests, failed, skipped: results.numPendingTests }
}
