/** A JSON value, as JSON.parse gives it. */
export type JsonValue = string | number | boolean | null | JsonValue[] | JsonObject
/** A type alias, so that readers see an object and not any value. Own keys may be anything, `__proto__` included. */
export type JsonObject = { [key: string]: JsonValue }

/** True for what `{…}` parses to: neither null nor a list. */
export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value)
}

/**
 * A value that is already JSON text and is written out as it stands, so that what a runner wrote (long numbers, order of
 * keys) reaches the client unchanged. Whoever makes one has checked that the text is valid JSON.
 */
export class JsonText {
  readonly text: string
  constructor(text: string) {
    this.text = text
  }
}

/** JSON.stringify that also writes every `JsonText` inside `value` verbatim. `value` itself is never undefined. */
export function stringifyJson(value: unknown): string {
  return written(value) ?? "null"
}

/** A page of results has thousands of small values: each kind takes its shortest way. */
function written(value: unknown): string | undefined {
  if (typeof value === "number") return Number.isFinite(value) ? String(value) : "null"
  if (typeof value === "boolean") return value ? "true" : "false"
  if (value instanceof JsonText) return value.text
  if (Array.isArray(value)) return `[${value.map(stringifyJson).join(",")}]`
  if (typeof value !== "object" || value === null || "toJSON" in value) return JSON.stringify(value)
  let members = ""
  for (const key of Object.keys(value)) {
    const text = written((value as Record<string, unknown>)[key])
    // One expression: each further one leaves another half of the text behind as garbage.
    if (text !== undefined) members += (members === "" ? "{" : ",") + keyText(key) + text
  }
  return members === "" ? "{}" : `${members}}`
}

/** Names of fields as they are written, colon included: there are few, and each stands in thousands of rows. */
const keyTexts = new Map<string, string>()
/** Clients' own data has names without end. */
const MOST_KEY_TEXTS = 1_000
const LONGEST_KEPT_KEY = 40

function keyText(key: string): string {
  const known = keyTexts.get(key)
  if (known !== undefined) return known
  const text = `${JSON.stringify(key)}:`
  if (keyTexts.size < MOST_KEY_TEXTS && key.length <= LONGEST_KEPT_KEY) keyTexts.set(key, text)
  return text
}

/** The texts of a JSON list's elements, or null when `text` is valid JSON of another kind. */
export function splitJsonArray(text: string): string[] | null {
  return partsInside(text, "[")
}

/** The texts of a JSON object's members by key (a repeated key: the last one, as JSON.parse), or null for another kind. */
export function splitJsonObject(text: string): Map<string, string> | null {
  const parts = partsInside(text, "{")
  if (parts === null) return null
  const members = new Map<string, string>()
  for (const member of parts) {
    const keyEnd = endOfJsonString(member, 0)
    members.set(JSON.parse(member.slice(0, keyEnd)) as string, member.slice(member.indexOf(":", keyEnd) + 1).trim())
  }
  return members
}

/** A JSON object of these members, each value a JSON text: the way back from `splitJsonObject`. */
export function joinJsonObject(members: Iterable<readonly [key: string, text: string]>): string {
  return `{${[...members].map(([key, text]) => `${JSON.stringify(key)}:${text}`).join(",")}}`
}

/** The offset behind the closing quote of the JSON string that opens at `start`, in text known to be valid JSON. */
export function endOfJsonString(text: string, start: number): number {
  let end = text.indexOf('"', start + 1)
  while (isEscaped(text, end)) end = text.indexOf('"', end + 1)
  return end + 1
}

function isEscaped(text: string, quote: number): boolean {
  let backslashes = 0
  while (text.charCodeAt(quote - 1 - backslashes) === BACKSLASH) backslashes++
  return backslashes % 2 === 1
}

/** What stands between the commas of the outermost list or object; null where `text` does not open with `open`. */
function partsInside(text: string, open: "[" | "{"): string[] | null {
  const trimmed = text.trim()
  if (!trimmed.startsWith(open)) return null
  const parts: string[] = []
  const end = trimmed.length - 1
  let depth = 0
  let partStart = 1
  // On the text itself: characters of a slice of it take twice as long to get.
  for (let at = 1; at < end; at++) {
    switch (trimmed.charCodeAt(at)) {
      case QUOTE:
        at = endOfJsonString(trimmed, at) - 1
        break
      case OPEN_BRACKET:
      case OPEN_BRACE:
        depth++
        break
      case CLOSE_BRACKET:
      case CLOSE_BRACE:
        depth--
        break
      case COMMA:
        if (depth === 0) {
          parts.push(trimmed.slice(partStart, at).trim())
          partStart = at + 1
        }
        break
    }
  }
  const last = trimmed.slice(partStart, end).trim()
  // Without any comma there may be nothing at all inside.
  if (parts.length > 0 || last !== "") parts.push(last)
  return parts
}

const QUOTE = 34
const COMMA = 44
const OPEN_BRACKET = 91
const BACKSLASH = 92
const CLOSE_BRACKET = 93
const OPEN_BRACE = 123
const CLOSE_BRACE = 125
