import { mkdirSync, mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterEach, beforeEach, expect, test } from "vitest"
import { chooseDriver } from "../../node-agent/runtime/choose-driver.ts"
import type { DriverPlace } from "../../node-agent/runtime/driver.ts"

let place: DriverPlace
beforeEach(() => {
  const dataDir = mkdtempSync(join(tmpdir(), "computalot-choose-"))
  place = { dataDir, attemptsDir: join(dataDir, "attempts") }
  mkdirSync(place.attemptsDir)
})
afterEach(() => rmSync(place.dataDir, { recursive: true, force: true }))

test("plain processes run only where the operator opted in", async () => {
  await expect(chooseDriver("process", place, { allowUnsandboxed: false })).rejects.toThrow("--allow-unsandboxed")
  const chosen = await chooseDriver("process", place, { allowUnsandboxed: true })
  expect(chosen.probe).toMatchObject({ available: true, isolation: "none" })
  await chosen.driver[Symbol.asyncDispose]()
})

test("a runtime that does not run is refused with the reason, by name and in the automatic choice", async () => {
  const broken = { allowUnsandboxed: true, runscPath: "/bin/false" }
  await expect(chooseDriver("gvisor", place, broken)).rejects.toThrow("gvisor does not run here")
  const chosen = await chooseDriver("auto", place, broken)
  expect(chosen.driver.name).not.toBe("gvisor")
  if (process.getuid?.() === 0) expect(chosen.problems.join()).toContain("gvisor does not run here")
  await chosen.driver[Symbol.asyncDispose]()
})
