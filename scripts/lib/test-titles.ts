import { CONTRACT } from "../../test/support/contract-ids.ts"

/**
 * The titles that a test file gives its tests, as they are written: `test("…")`, `test.each(…)("…")`, `test.skipIf(…)("…")`.
 * Titles of groups count for nothing, nor does a test that never runs (`skip`, `todo`).
 */
export function testTitles(source: string): string[] {
  const titles: string[] = []
  for (const match of source.matchAll(/(?<![\w.$])(?:test|it)(?=\s*[.(])/g)) {
    const title = titleAt(source, match.index + match[0].length)
    if (title !== null) titles.push(title)
  }
  return titles
}

/** Calls whose result is called with the title. */
const MAKERS = new Set(["each", "for", "skipIf", "runIf"])

function titleAt(source: string, from: number): string | null {
  let at = from
  let name = ""
  for (;;) {
    const member = /^\s*\.(?<name>\w+)/.exec(source.slice(at, at + 60))
    if (member) {
      name = member.groups?.["name"] ?? ""
      if (name === "skip" || name === "todo") return null
      at += member[0].length
      continue
    }
    // What is said of the cases' type stands between: `test.each<[string, number]>([…])("…")`.
    const open = /^\s*(?:<[^()]*>)?\(/.exec(source.slice(at, at + 120))
    if (!open) return null
    at += open[0].length
    if (!MAKERS.has(name)) return literalAt(source, at + (/^\s*/.exec(source.slice(at))?.[0].length ?? 0))
    at = behindParenthesis(source, at)
    name = ""
  }
}

function literalAt(source: string, at: number): string | null {
  const quote = source[at]
  return quote === '"' || quote === "'" || quote === "`" ? source.slice(at + 1, endOfLiteral(source, at)) : null
}

/** Where the quote that stands at `at` is closed. */
function endOfLiteral(source: string, at: number): number {
  const quote = source[at]
  let end = at + 1
  while (end < source.length && source[end] !== quote) end += source[end] === "\\" ? 2 : 1
  return end
}

function behindParenthesis(source: string, from: number): number {
  let depth = 1
  let at = from
  while (at < source.length && depth > 0) {
    const here = source[at]
    if (here === '"' || here === "'" || here === "`") at = endOfLiteral(source, at)
    else if (here === "(") depth++
    else if (here === ")") depth--
    at++
  }
  return at
}

/** Ids of the contract that a title names: `J-009`, `GAP-69`, `A06`, and all of a range (`D-011…D-029`, `PR-001 … PR-009`, `A38–A41`). */
export function idsNamedBy(title: string): string[] {
  const dashed = [
    ...title.matchAll(
      /(?<![\w-])(?<prefix>[A-Z]{1,3})-(?<from>\d{2,3})(?: ?(?:…|–) ?(?:\k<prefix>-)?(?<to>\d{2,3}))?(?![\w-])/g,
    ),
  ]
  const plain = [...title.matchAll(/(?<![\w-])(?<prefix>A)(?<from>\d\d)(?: ?(?:…|–) ?A?(?<to>\d\d))?(?![\w-])/g)]
  return [...rangesOf(dashed, "-"), ...rangesOf(plain, "")]
}

/** `SHA-256` looks like an id and is none. */
const PREFIXES = new Set(CONTRACT.map(({ prefix }) => prefix))

function rangesOf(matches: RegExpExecArray[], dash: string): string[] {
  return matches.flatMap(({ groups }) => {
    const { prefix = "", from = "", to = from } = groups ?? {}
    if (!PREFIXES.has(prefix)) return []
    const count = Math.max(1, Number(to) - Number(from) + 1)
    return Array.from(
      { length: count },
      (_, index) => `${prefix}${dash}${String(Number(from) + index).padStart(from.length, "0")}`,
    )
  })
}
