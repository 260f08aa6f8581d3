import { endOfJsonString, type JsonValue } from "./json-text.ts"

export type ParsedJson = { ok: true; value: JsonValue } | { ok: false; path: string; problem: string }

/**
 * Parses a request body. Refused, with the path, is what JSON.parse would let through changed: a number that a double cannot
 * hold as written (9007199254740993, 1e400), and nesting so deep that a later JSON.stringify would overflow the stack.
 */
export function parseExactJson(text: string): ParsedJson {
  let value: JsonValue
  try {
    value = JSON.parse(text) as JsonValue
  } catch (error) {
    return { ok: false, path: "", problem: `is not JSON: ${(error as Error).message}` }
  }
  return findInexact(text) ?? { ok: true, value }
}

/** JSON.stringify and most readers recurse; 200 levels are far above any real payload and far below their stacks. */
const DEEPEST_NESTING = 200

/** A list counts its elements, an object remembers where its current key stands. */
type Container = { kind: "list"; index: number } | { kind: "object"; keyStart: number; keyEnd: number; inKey: boolean }

/** Walks the tokens of valid JSON and answers the first thing that cannot be kept as written. */
function findInexact(text: string): Extract<ParsedJson, { ok: false }> | null {
  const containers: Container[] = []
  for (let at = 0; at < text.length; at++) {
    const char = text[at]
    const inside = containers.at(-1)
    if (char === '"') {
      const end = endOfJsonString(text, at)
      if (inside?.kind === "object" && inside.inKey) Object.assign(inside, { keyStart: at, keyEnd: end, inKey: false })
      at = end - 1
    } else if (char === "[" || char === "{") {
      if (containers.length === DEEPEST_NESTING) {
        const problem = `is nested deeper than ${DEEPEST_NESTING} levels: flatten it`
        return { ok: false, path: pathOf(containers, text), problem }
      }
      containers.push(
        char === "[" ? { kind: "list", index: 0 } : { kind: "object", keyStart: 0, keyEnd: 0, inKey: true },
      )
    } else if (char === "]" || char === "}") {
      containers.pop()
    } else if (char === ",") {
      if (inside?.kind === "list") inside.index++
      else if (inside) inside.inKey = true
    } else if (char === "-" || isDigit(text.charCodeAt(at))) {
      const end = endOfNumber(text, at)
      const literal = text.slice(at, end)
      if (!isKeptExactly(literal)) {
        const problem = `is ${shortened(literal)}, which a 64-bit floating point number cannot hold: send it as a string`
        return { ok: false, path: pathOf(containers, text), problem }
      }
      at = end - 1
    }
  }
  return null
}

/** `jobs[3].payload.seed`: where the walk stands. */
function pathOf(containers: Container[], text: string): string {
  let path = ""
  for (const container of containers) {
    if (container.kind === "list") path += `[${container.index}]`
    else if (container.keyEnd > 0) {
      const key = JSON.parse(text.slice(container.keyStart, container.keyEnd)) as string
      path += path === "" ? key : `.${key}`
    }
  }
  return path
}

function endOfNumber(text: string, start: number): number {
  let end = start + 1
  while (end < text.length && (isDigit(text.charCodeAt(end)) || ".eE+-".includes(text.charAt(end)))) end++
  return end
}

/**
 * True when the double, printed with as many digits as were written, reads as written. So 0.1, 5.0 and what printf("%.17g")
 * gives pass; 2^53 + 1, 1e400 and 1e-400 do not.
 */
function isKeptExactly(literal: string): boolean {
  if (literal.length <= SURELY_EXACT_LENGTH && !/[eE]/.test(literal)) return true
  const value = Number(literal)
  const [digits, exponent] = decimal(literal)
  if (digits === "") return true
  if (!Number.isFinite(value) || value === 0 || digits.length > LONGEST_PRECISION) return false
  const [keptDigits, keptExponent] = decimal(value.toExponential(digits.length - 1))
  return digits === keptDigits && exponent === keptExponent
}

/** Any decimal of at most 15 digits survives the way to a double and back. */
const SURELY_EXACT_LENGTH = 15
/** What toExponential can print. */
const LONGEST_PRECISION = 100

/** A literal as its significant digits and the power of ten behind them; zero has no digits. Equal numbers give equal pairs. */
function decimal(literal: string): [digits: string, exponent: number] {
  const [, whole = "", fraction = "", power = "0"] = /^-?(\d+)(?:\.(\d+))?(?:[eE]([+-]?\d+))?$/.exec(literal) ?? []
  const digits = `${whole}${fraction}`.replace(/^0+/, "")
  const significant = digits.replace(/0+$/, "")
  return [significant, Number(power) - fraction.length + digits.length - significant.length]
}

const isDigit = (code: number): boolean => code >= 48 && code <= 57
const shortened = (literal: string): string => (literal.length > 40 ? `${literal.slice(0, 40)}…` : literal)
