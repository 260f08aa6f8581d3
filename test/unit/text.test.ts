import fc from "fast-check"
import { expect, test } from "vitest"
import { errorSnippet, failureRecordText, jobError, recommendedAction, taskError } from "../../coordinator/jobs/text.ts"
import { failureRecord } from "../../protocol/api/jobs.ts"
import { FAILURE_KINDS } from "../../protocol/domain/statuses.ts"
import { lastBytes, lastCharacters, outputTail } from "../../protocol/domain/text.ts"

const bytes = (text: string): Uint8Array => Buffer.from(text)

test("GAP-28: output within 10,240 bytes is kept as it is", () => {
  for (const text of ["", "hello\n", "\u{feff}é\0", "x".repeat(10_240)]) expect(outputTail(bytes(text))).toBe(text)
})

test("J-035, GAP-28: of more, the end is kept, and the first line says so", () => {
  const printed = bytes(`${"line of output\n".repeat(70_000)}Traceback: the end`)
  const kept = outputTail(printed.subarray(printed.length - 20_000), printed.length)
  expect(Buffer.byteLength(kept)).toBe(10_240)
  expect(kept.split("\n")[0]).toBe(`[cut: only the end of ${printed.length} bytes is kept]`)
  expect(kept.endsWith("line of output\nTraceback: the end")).toBe(true)
  expect(outputTail(printed)).toBe(kept)
})

test("a character that is cut, and bytes that are no text, leave valid UTF-8 within the limit", () => {
  expect(outputTail(bytes("é".repeat(30)).subarray(1), 60, 50)).toBe(
    `[cut: only the end of 60 bytes is kept]\n${"é".repeat(5)}`,
  )
  const binary = new Uint8Array(10_240).fill(0xff)
  expect(Buffer.byteLength(outputTail(binary))).toBeLessThanOrEqual(10_240)
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), fc.nat(1000), (tail, before) => {
      const kept = outputTail(tail, tail.length + before, 100)
      expect(Buffer.byteLength(kept)).toBeLessThanOrEqual(100)
      expect(kept.isWellFormed()).toBe(true)
      expect(kept.startsWith("[cut:")).toBe(before > 0 || Buffer.byteLength(Buffer.from(tail).toString()) > 100)
    }),
  )
})

test("the end of a text is cut between characters, in bytes and in characters", () => {
  expect(lastBytes("a😀", 3)).toBe("")
  expect(lastBytes("a😀", 4)).toBe("😀")
  expect(lastCharacters("a😀", 1)).toBe("")
  expect(lastCharacters("a😀", 2)).toBe("😀")
  fc.assert(
    fc.property(fc.string({ unit: "grapheme" }), fc.nat(20), (text, limit) => {
      expect(text.endsWith(lastBytes(text, limit))).toBe(true)
      expect(Buffer.byteLength(lastBytes(text, limit))).toBeLessThanOrEqual(limit)
      expect(text.endsWith(lastCharacters(text, limit))).toBe(true)
      expect(lastCharacters(text, limit).length).toBeLessThanOrEqual(limit)
    }),
  )
})

test("J-046: a plain non-zero exit names its code, also without output", () => {
  const run = { kind: "exit_code", exitCode: 1, message: null } as const
  expect(taskError({ ...run, tail: "" })).toBe("exit_code_1")
  expect(taskError({ ...run, tail: "Traceback…\nValueError: x\n" })).toBe("exit_code_1: Traceback…\nValueError: x")
})

test("J-035, RP-009: an error has at most 1000 characters in all and ends with the end of the output", () => {
  const error = taskError({ kind: "exit_code", exitCode: 137, message: null, tail: `${"x".repeat(5000)}the end` })
  expect(error).toHaveLength(1000)
  expect(error.startsWith("exit_code_137: x")).toBe(true)
  expect(error.endsWith("the end")).toBe(true)
  expect(taskError({ kind: "oom", exitCode: null, message: "m".repeat(2000), tail: "x" }).length).toBeLessThanOrEqual(
    1000,
  )
})

test("a failure that is no exit code names its kind and the platform's sentence", () => {
  const timeout = {
    kind: "timeout",
    exitCode: null,
    message: "the task ran longer than timeout_s (2 s)",
    tail: "",
  } as const
  expect(taskError(timeout)).toBe("timeout: the task ran longer than timeout_s (2 s)")
  expect(taskError({ ...timeout, message: null, tail: "last words" })).toBe("timeout: last words")
})

test("a job's error names how many failed and the first; a lone task's stands alone", () => {
  expect(jobError(2, 3, "exit_code_1: boom")).toBe("2 of 3 tasks failed; first: exit_code_1: boom")
  expect(jobError(1, 1, "exit_code_1: boom")).toBe("exit_code_1: boom")
})

test("J-028: a snippet is one line of at most 120 characters", () => {
  expect(errorSnippet(null)).toBeNull()
  expect(errorSnippet("exit_code_1: Traceback\n  File x\nValueError: y\n")).toBe(
    "exit_code_1: Traceback File x ValueError: y",
  )
  const long = errorSnippet(`exit_code_1: ${"trace ".repeat(200)}ValueError: y`) ?? ""
  expect(long).toHaveLength(120)
  expect(long.startsWith("exit_code_1: ") && long.endsWith("ValueError: y")).toBe(true)
  fc.assert(
    fc.property(fc.string({ unit: "grapheme", maxLength: 400 }), (text) => {
      const snippet = errorSnippet(text) ?? ""
      expect(snippet.length).toBeLessThanOrEqual(120)
      expect(snippet.isWellFormed()).toBe(true)
      expect(snippet).not.toMatch(/[\r\n]/)
    }),
  )
})

test("every kind of failure has advice", () => {
  for (const kind of FAILURE_KINDS) expect(recommendedAction(kind)).toMatch(/^[A-Z].*\.$/)
})

test("J-036: a failure record carries what the program had written, as it was written", () => {
  const facts = {
    kind: "exit_code",
    exitCode: 3,
    signal: null,
    command: ["python3", "x.py"],
    cwd: "/workspace",
    combinedOutput: 'say "no"',
  } as const
  const text = failureRecordText({ ...facts, command: [...facts.command], partialResultText: '{"n":9007199254740993}' })
  expect(text.endsWith(',"partial_result":{"n":9007199254740993}}')).toBe(true)
  expect(failureRecord.parse(JSON.parse(text))).toMatchObject({
    failure_kind: "exit_code",
    exit_code: 3,
    combined_output: 'say "no"',
  })
  const without = failureRecordText({ ...facts, command: [], partialResultText: null })
  expect(JSON.parse(without)).toMatchObject({ partial_result: null })
})
