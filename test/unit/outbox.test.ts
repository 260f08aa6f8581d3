import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { expect, onTestFinished, test } from "vitest"
import { openOutbox, type Outbox } from "../../node-agent/outbox/outbox.ts"
import { endAttempts } from "../support/ended-attempts.ts"

test("an answered result is gone for every look at once, and from the file with the next write", () => {
  const { outbox, file } = openTestOutbox()
  endAttempts(outbox, [1, 2])
  outbox.answered([1])
  expect(outbox.held().map(({ claim }) => claim)).toEqual([2])
  expect(outbox.results(0, 10).map(({ item }) => item.claim)).toEqual([2])
  endAttempts(outbox, [3])
  outbox.answered([2])
  expect(outbox.held().map(({ claim }) => claim)).toEqual([3])
  // What another agent would find now: the last answer is not in the file yet, the one before is.
  expect(inFile(file)).toEqual([2, 3])
  outbox.together(() => {})
  expect(inFile(file)).toEqual([3])
})

test("unanswered bytes count what was answered no more, whether or not it has left the file", () => {
  const { outbox } = openTestOutbox()
  endAttempts(outbox, [1])
  const one = outbox.waitingBytes()
  expect(one).toBeGreaterThan(0)
  endAttempts(outbox, [2])
  expect(outbox.waitingBytes()).toBe(2 * one)
  outbox.answered([1])
  expect(outbox.waitingBytes()).toBe(one)
  outbox.answered([2])
  expect(outbox.waitingBytes()).toBe(0)
})

test("what is answered leaves the file when the outbox is closed, and when anything else is forgotten", () => {
  const { outbox, file } = openTestOutbox()
  endAttempts(outbox, [1, 2, 3])
  outbox.answered([1])
  outbox.forget([2])
  expect(inFile(file)).toEqual([3])
  outbox.answered([3])
  outbox[Symbol.dispose]()
  expect(inFile(file)).toEqual([])
})

test("a write that fails forgets nothing", () => {
  const { outbox, file } = openTestOutbox()
  endAttempts(outbox, [1])
  outbox.answered([1])
  const failing = (): void => {
    throw new Error("no")
  }
  expect(() => outbox.together(failing)).toThrow("no")
  expect(inFile(file)).toEqual([1])
  outbox.together(() => {})
  expect(inFile(file)).toEqual([])
})

function openTestOutbox(): { outbox: Outbox; file: string } {
  const home = mkdtempSync(join(tmpdir(), "computalot-outbox-"))
  const file = join(home, "outbox.sqlite")
  const outbox = openOutbox(file, 0)
  onTestFinished(() => rmSync(home, { recursive: true, force: true }))
  return { outbox, file }
}

function inFile(file: string): number[] {
  using other = openOutbox(file, 0)
  return other.held().map(({ claim }) => claim)
}
