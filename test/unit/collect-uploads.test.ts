import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, truncateSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterEach, beforeEach, expect, test } from "vitest"
import { systemClock } from "../../protocol/base/clock.ts"
import { createHasher, type Hasher } from "../../node-agent/cache/hasher.ts"
import { collectUploads } from "../../node-agent/tasks/collect-uploads.ts"

let folder: string
let attempt: string
let artifacts: string
let hasher: Hasher
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "computalot-uploads-"))
  attempt = join(folder, "attempt")
  artifacts = join(folder, "artifacts")
  for (const directory of [attempt, artifacts]) mkdirSync(directory)
  hasher = createHasher(systemClock)
})
afterEach(async () => {
  await hasher[Symbol.asyncDispose]()
  rmSync(folder, { recursive: true, force: true })
})

const collect = (uploads: { name: string; path: string }[], mostBytes = 1e9): ReturnType<typeof collectUploads> =>
  collectUploads(
    attempt,
    [{ inside: "/artifacts", host: artifacts }],
    uploads.map((upload) => ({ ...upload, filename: null, content_type: null })),
    { hasher, mostBytes },
  )

test("AW-002, GAP-54: what a task declared is copied; what it did not write is a warning", async () => {
  writeFileSync(join(artifacts, "model.pt"), "weights")
  const found = await collect([
    { name: "model", path: "model.pt" },
    { name: "log", path: "absent.log" },
  ])
  expect(found.artifacts).toMatchObject([{ name: "model", filename: "model.pt", size: 7 }])
  expect(readFileSync(join(attempt, "upload-0"), "utf8")).toBe("weights")
  expect(found.warnings).toEqual(["artifact log: there is no plain file at absent.log"])
})

test("a file that is there and that this machine cannot copy is no warning: the attempt failed here", async () => {
  writeFileSync(join(artifacts, "model.pt"), "weights")
  symlinkSync(join(folder, "gone", "upload-0"), join(attempt, "upload-0"))
  await expect(collect([{ name: "model", path: "model.pt" }])).rejects.toThrow("model.pt cannot be copied: ENOENT")
})

test("all uploads together take no more of the machine than the task's own disk may", async () => {
  const sparse = join(artifacts, "zeros")
  writeFileSync(sparse, "")
  truncateSync(sparse, 400_000)
  const often = (times: number): { name: string; path: string }[] =>
    Array.from({ length: times }, (_, n) => ({ name: `z${n}`, path: "zeros" }))
  expect((await collect(often(2), 1_000_000)).files).toHaveLength(2)
  await expect(collect(often(3), 1_000_000)).rejects.toMatchObject({
    name: "ArtifactsTooLarge",
    message: "the artifact z2 is too large: it has 400000 bytes; at most 200000 are taken",
  })
})
