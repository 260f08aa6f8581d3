import { expect, test } from "vitest"
import { createAvoidedNodes } from "../../coordinator/scheduler/avoided-nodes.ts"
import { createManualClock } from "../support/manual-clock.ts"

test("J-009: a node that a job avoids is looked at again after a moment, also by a timer that fires a little early", async () => {
  const clock = createManualClock()
  const early = { ...clock, after: (delayMs: number, run: () => void) => clock.after(delayMs - 0.9, run) }
  const seen: (ReadonlySet<string> | undefined)[] = []
  const nodes = createAvoidedNodes(early, () => seen.push(nodes.of(1)))
  const [first, second] = [new Set(["a"]), new Set(["b"])]
  nodes.avoid(1, first)
  expect([nodes.of(1), nodes.of(2)]).toEqual([first, undefined])
  // What is avoided since is avoided for its own time.
  await clock.pass(1_000)
  nodes.avoid(1, second)
  await clock.pass(1_000)
  expect(seen).toEqual([second])
  await clock.pass(1_000)
  expect(seen).toEqual([second, undefined])
  expect(nodes.of(1)).toBe(undefined)
})
