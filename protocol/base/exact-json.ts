import { endOfJsonString, type JsonValue } from "./json-text.ts"

export type ParsedJson = { ok: true; value: JsonValue } | { ok: false; path: string; problem: string }

/**
 * Parses a request body. Refused, with the path, is what JSON.parse would let through changed: a number that a double cannot
 * hold as written (9007199254740993, 1e400), a key that an object has twice (the first value would be dropped), and half of a
 * surrogate pair (no UTF-8 holds it); also nesting so deep that a later JSON.stringify would overflow the stack.
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

/** Any decimal of at most 15 digits, without an exponent, survives the way to a double and back. */
const SURELY_EXACT_LENGTH = 15

/** A list counts its elements, an object remembers where its current key stands. */
type Container =
  | { kind: "list"; index: number }
  | { kind: "object"; keyStart: number; keyEnd: number; inKey: boolean; keys: Set<string> }

/** Walks the tokens of valid JSON and answers the first thing that cannot be kept as written. */
function findInexact(text: string): Extract<ParsedJson, { ok: false }> | null {
  const containers: Container[] = []
  const refused = (problem: string): Extract<ParsedJson, { ok: false }> => ({
    ok: false,
    path: pathOf(containers, text),
    problem,
  })
  const mayHaveHalves = HALF_ESCAPE.test(text)
  let inside: Container | undefined
  for (let at = 0; at < text.length; at++) {
    const code = text.charCodeAt(at)
    if (code === QUOTE) {
      const end = endOfJsonString(text, at)
      if (mayHaveHalves && !(JSON.parse(text.slice(at, end)) as string).isWellFormed()) {
        return refused("has half of a surrogate pair: send whole characters")
      }
      if (inside?.kind === "object" && inside.inKey) {
        inside.keyStart = at
        inside.keyEnd = end
        inside.inKey = false
        const key = keyOf(text, at, end)
        if (inside.keys.has(key)) return refused("stands there twice: keep one of the two")
        inside.keys.add(key)
      }
      at = end - 1
    } else if (code === OPEN_BRACKET || code === OPEN_BRACE) {
      if (containers.length === DEEPEST_NESTING) {
        return refused(`is nested deeper than ${DEEPEST_NESTING} levels: flatten it`)
      }
      inside =
        code === OPEN_BRACKET
          ? { kind: "list", index: 0 }
          : { kind: "object", keyStart: 0, keyEnd: 0, inKey: true, keys: new Set() }
      containers.push(inside)
    } else if (code === CLOSE_BRACKET || code === CLOSE_BRACE) {
      containers.pop()
      inside = containers.at(-1)
    } else if (code === COMMA) {
      if (inside?.kind === "list") inside.index++
      else if (inside) inside.inKey = true
    } else if (code === MINUS || isDigit(code)) {
      const end = endOfNumber(text, at)
      if ((end - at > SURELY_EXACT_LENGTH || hasExponent(text, at, end)) && !isKeptExactly(text.slice(at, end))) {
        const literal = shortened(text.slice(at, end))
        return refused(`is ${literal}, which a 64-bit floating point number cannot hold: send it as a string`)
      }
      at = end - 1
    }
  }
  return null
}

/** An escape that may stand for half of a pair. */
const HALF_ESCAPE = /\\u[dD][89a-fA-F]/

/** `"a"` and `"\u0061"` are one key. */
function keyOf(text: string, start: number, end: number): string {
  const raw = text.slice(start + 1, end - 1)
  return raw.includes("\\") ? (JSON.parse(text.slice(start, end)) as string) : raw
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
  while (isNumberPart(text.charCodeAt(end))) end++
  return end
}

function hasExponent(text: string, start: number, end: number): boolean {
  for (let at = start; at < end; at++) if ((text.charCodeAt(at) | 32) === 101) return true
  return false
}

/**
 * True when the double, printed with as many digits as were written, reads as written. So 0.1, 5.0 and what printf("%.17g")
 * gives pass; 2^53 + 1, 1e400 and 1e-400 do not.
 */
function isKeptExactly(literal: string): boolean {
  const value = Number(literal)
  // As most programs write it; the way below costs ten times as much.
  if (String(value) === literal) return true
  // Of a whole number every digit counts, trailing zeros too.
  if (/^-?\d+$/.test(literal)) return Number.isFinite(value) && BigInt(literal) === BigInt(value)
  const [digits, exponent] = decimal(literal)
  if (digits === "") return true
  if (!Number.isFinite(value) || value === 0 || digits.length > LONGEST_PRECISION) return false
  const [keptDigits, keptExponent] = decimal(value.toExponential(digits.length - 1))
  return digits === keptDigits && exponent === keptExponent
}

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
/** A digit, or one of `.eE+-`; the NaN behind the end of the text is neither. */
const isNumberPart = (code: number): boolean =>
  isDigit(code) || code === 46 || code === 101 || code === 69 || code === 43 || code === MINUS
const shortened = (literal: string): string => (literal.length > 40 ? `${literal.slice(0, 40)}…` : literal)

const QUOTE = 34
const COMMA = 44
const MINUS = 45
const OPEN_BRACKET = 91
const CLOSE_BRACKET = 93
const OPEN_BRACE = 123
const CLOSE_BRACE = 125
