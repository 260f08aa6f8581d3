import { LONGEST_PROGRESS_LINE_BYTES, OUTPUT_TAIL_BYTES, PROGRESS_PREFIX } from "../../protocol/domain/runner.ts"
import { lastBytes, outputTail } from "../../protocol/domain/text.ts"

/** What an attempt prints, as it comes: the tails that are kept, without the progress lines (GAP-46). Bounded memory. */
export interface Output {
  /** `skipped`: bytes of this stream that were lost before the chunk. The chunk may be reused afterwards. */
  take(stream: "stdout" | "stderr", chunk: Uint8Array, skipped?: number): void
  /** No more comes: a last line without its newline counts too. */
  end(): void
  /** The tail of both streams as they came, with the marker line where something was cut. */
  tail(): string
  /** The tail of standard error; empty when nothing came there. */
  errorTail(): string
  /** The last progress line, as its own JSON text. */
  lastProgress(): string | null
  /** Bytes of standard output so far, progress lines and lost ones included. */
  printed(): number
}

export interface OutputParts {
  /** The JSON text of a progress line, and where in standard output it begins: the same whoever reads it, and how often. */
  onProgress: (json: string, at: number) => void
  /** Shown instead of the attempt's own folders (rulings, Redaction). Longer paths first. */
  paths: readonly { host: string; shown: string }[]
}

/** Of standard error; the failure record asks for 1000 characters at the most. */
const ERROR_TAIL_BYTES = 4096
/** A path that is shown otherwise may lie across the cut. */
const CUT_SLACK_BYTES = 1024

export function createOutput({ onProgress, paths }: OutputParts): Output {
  const together = createTail(OUTPUT_TAIL_BYTES + CUT_SLACK_BYTES)
  const errors = createTail(ERROR_TAIL_BYTES + CUT_SLACK_BYTES)
  let lastProgress: string | null = null
  const stdout = createProgressFilter(
    (bytes) => together.add(bytes),
    (json, at) => {
      lastProgress = json
      onProgress(json, at)
    },
  )

  function shown(text: string): string {
    let clean = text
    for (const path of paths) clean = clean.replaceAll(path.host, path.shown)
    return clean
  }

  return {
    take(stream, chunk, skipped = 0) {
      if (skipped > 0) {
        if (stream === "stdout") stdout.gap(skipped)
        together.count(skipped)
      }
      if (stream === "stdout") return stdout.take(chunk)
      together.add(chunk)
      errors.add(chunk)
    },
    end: () => stdout.end(),
    tail() {
      const bytes = together.bytes()
      if (bytes.length === 0) return ""
      const clean = Buffer.from(shown(bytes.toString("utf8")))
      const cut = together.printed() > bytes.length
      return outputTail(clean, cut ? Math.max(together.printed(), clean.length + 1) : clean.length)
    },
    errorTail: () => lastBytes(shown(errors.bytes().toString("utf8")), ERROR_TAIL_BYTES),
    lastProgress: () => lastProgress,
    printed: () => stdout.position(),
  }
}

/** The last `limit` bytes of what was added. Holds nothing before the first byte. */
function createTail(limit: number) {
  let buffer: Buffer | null = null
  let length = 0
  let printed = 0
  return {
    add(chunk: Uint8Array): void {
      printed += chunk.length
      if (chunk.length === 0) return
      const part = chunk.length > limit ? chunk.subarray(chunk.length - limit) : chunk
      if (buffer === null) {
        buffer = Buffer.from(part)
        length = part.length
        return
      }
      if (length + part.length > buffer.length) {
        const kept = Math.min(length, limit - part.length)
        const grown = Buffer.allocUnsafe(2 * limit)
        buffer.copy(grown, 0, length - kept, length)
        buffer = grown
        length = kept
      }
      buffer.set(part, length)
      length += part.length
    },
    count(bytes: number): void {
      printed += bytes
    },
    bytes: (): Buffer => buffer?.subarray(Math.max(0, length - limit), length) ?? EMPTY,
    printed: () => printed,
  }
}

const EMPTY = Buffer.alloc(0)
const PREFIX = Buffer.from(PROGRESS_PREFIX)
const PREFIX_ON_NEW_LINE = Buffer.from(`\n${PROGRESS_PREFIX}`)
const NEWLINE = 0x0a

/** Takes valid progress lines out of the stream and passes everything else on, in order. */
function createProgressFilter(pass: (bytes: Uint8Array) => void, onProgress: OutputParts["onProgress"]) {
  /** The start of a line that may become a progress line. Empty: none. */
  let held = EMPTY
  let atLineStart = true
  /** Of the end of what was taken, in the stream. */
  let position = 0

  function take(chunk: Uint8Array): void {
    position += chunk.length
    let rest =
      held.length === 0 ? Buffer.from(chunk.buffer, chunk.byteOffset, chunk.length) : Buffer.concat([held, chunk])
    held = EMPTY
    while (rest.length > 0) {
      if (!atLineStart || !mayBecomeProgress(rest)) {
        rest = passOrdinary(rest)
        continue
      }
      const end = rest.indexOf(NEWLINE)
      if (end >= 0) {
        const line = rest.subarray(0, end)
        if (!isProgress(line, position - rest.length)) pass(rest.subarray(0, end + 1))
        rest = rest.subarray(end + 1)
        continue
      }
      if (rest.length <= LONGEST_PROGRESS_LINE_BYTES) {
        held = Buffer.from(rest)
        return
      }
      atLineStart = false
    }
  }

  /** Passes on up to the next line that may be progress; gives what begins there. */
  function passOrdinary(bytes: Buffer): Buffer {
    const next = bytes.indexOf(PREFIX_ON_NEW_LINE)
    const lastLine = next >= 0 ? next + 1 : bytes.lastIndexOf(NEWLINE) + 1
    const rest = bytes.subarray(lastLine)
    if (lastLine > 0 && (rest.length === 0 || mayBecomeProgress(rest))) {
      pass(bytes.subarray(0, lastLine))
      atLineStart = true
      return rest
    }
    pass(bytes)
    atLineStart = false
    return EMPTY
  }

  function isProgress(line: Buffer, at: number): boolean {
    if (line.length > LONGEST_PROGRESS_LINE_BYTES || !line.subarray(0, PREFIX.length).equals(PREFIX)) return false
    const json = line.toString("utf8", PREFIX.length).trim()
    try {
      JSON.parse(json)
    } catch {
      return false
    }
    onProgress(json, at)
    return true
  }

  function flush(): void {
    if (held.length > 0 && !isProgress(held, position - held.length)) pass(held)
    held = EMPTY
  }

  return {
    take,
    end: flush,
    position: () => position,
    /** Bytes were lost: what is held was cut, and the next chunk starts in the middle of a line. */
    gap(bytes: number): void {
      position += bytes
      if (held.length > 0) pass(held)
      held = EMPTY
      atLineStart = false
    },
  }
}

/** Is this the start of a progress line, as far as it goes? */
function mayBecomeProgress(line: Buffer): boolean {
  const known = Math.min(line.length, PREFIX.length)
  return line.compare(PREFIX, 0, known, 0, known) === 0
}
