import { ERROR_TAIL_CHARACTERS, OUTPUT_TAIL_BYTES } from "./runner.ts"

/**
 * What is kept of a task's output: valid UTF-8 of at most `limitBytes`. When something was cut, the first line says so and
 * counts towards the limit (GAP-28, rulings). `tail` holds the last bytes printed (at least `limitBytes` of them, or all);
 * `printedBytes` is how many there were. Bytes that are no UTF-8 become U+FFFD.
 */
export function outputTail(tail: Uint8Array, printedBytes = tail.length, limitBytes = OUTPUT_TAIL_BYTES): string {
  const whole = printedBytes <= tail.length
  const text = Buffer.from(whole ? tail : withoutBrokenStart(tail)).toString("utf8")
  if (whole && Buffer.byteLength(text) <= limitBytes) return text
  const marker = `[cut: only the end of ${printedBytes} bytes is kept]\n`
  return marker + lastBytes(text, Math.max(limitBytes - marker.length, 0))
}

/** The end of `text` that fits into `limitBytes` of UTF-8, cut between characters. */
export function lastBytes(text: string, limitBytes: number): string {
  const bytes = Buffer.from(text)
  return bytes.length <= limitBytes
    ? text
    : Buffer.from(withoutBrokenStart(bytes.subarray(bytes.length - limitBytes))).toString("utf8")
}

/** The last `limit` UTF-16 units of `text`, never half a character. */
export function lastCharacters(text: string, limit = ERROR_TAIL_CHARACTERS): string {
  if (text.length <= limit) return text
  const from = text.length - limit
  return isLowSurrogate(text.charCodeAt(from)) ? text.slice(from + 1) : text.slice(from)
}

/** Without the continuation bytes (10xxxxxx) of a character whose beginning was cut off: at most three. */
function withoutBrokenStart(bytes: Uint8Array): Uint8Array {
  let from = 0
  while (from < 3 && from < bytes.length && ((bytes[from] ?? 0) & 0xc0) === 0x80) from++
  return bytes.subarray(from)
}

const isLowSurrogate = (unit: number): boolean => unit >= 0xdc00 && unit <= 0xdfff
