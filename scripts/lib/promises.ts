import { readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { CONTRACT, idOf, idsOf, type ContractSection } from "../../test/support/contract-ids.ts"
import { idsNamedBy, testTitles } from "./test-titles.ts"

const TESTS = new URL("../../test/", import.meta.url).pathname

const named = new Set(
  readdirSync(TESTS, { recursive: true, encoding: "utf8" })
    .filter((file) => file.endsWith(".test.ts"))
    .flatMap((file) => testTitles(readFileSync(join(TESTS, file), "utf8")))
    .flatMap(idsNamedBy),
)

let kept = 0
let all = 0
for (const section of CONTRACT) {
  const numbers = idsOf(section).map((id, index) => ({ number: index + 1, isKept: named.has(id) }))
  const keptHere = numbers.filter(({ isKept }) => isKept)
  const missing = numbers.filter(({ isKept }) => !isKept)
  kept += keptHere.length
  all += numbers.length
  console.log(`${section.prefix}  ${section.title}: ${keptHere.length} of ${numbers.length}`)
  if (keptHere.length > 0) console.log(`    kept     ${ranges(section, keptHere)}`)
  if (missing.length > 0) console.log(`    not yet  ${ranges(section, missing)}`)
}
const known = new Set(CONTRACT.flatMap(idsOf))
const unknown = [...named].filter((id) => !known.has(id))
if (unknown.length > 0) console.log(`named by tests, but no id of the contract: ${unknown.toSorted().join(", ")}`)
console.log(`${kept} of ${all} kept: a test names them.`)

/** `J-001…J-005, J-007`. */
function ranges(section: ContractSection, numbers: { number: number }[]): string {
  const runs: { from: number; to: number }[] = []
  for (const { number } of numbers) {
    const last = runs.at(-1)
    if (last?.to === number - 1) last.to = number
    else runs.push({ from: number, to: number })
  }
  return runs
    .map(({ from, to }) => (from === to ? idOf(section, from) : `${idOf(section, from)}…${idOf(section, to)}`))
    .join(", ")
}
