import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterEach, beforeEach, expect, test } from "vitest"
import { systemRandom } from "../../protocol/base/random.ts"
import { loadOrCreateIdentity } from "../../protocol/mesh/identity.ts"

let folder = ""
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "identity-"))
})
afterEach(() => rmSync(folder, { recursive: true }))

test("a node makes its key once, for its own eyes, and is the same ever after", async () => {
  const file = join(folder, "key")
  const first = await loadOrCreateIdentity(file, systemRandom)
  expect(statSync(file).mode & 0o777).toBe(0o600)
  const again = await loadOrCreateIdentity(file, systemRandom)
  expect(again.peerId).toBe(first.peerId)
  expect(Buffer.from(again.seed).equals(first.seed)).toBe(true)
  expect((await loadOrCreateIdentity(join(folder, "other"), systemRandom)).peerId).not.toBe(first.peerId)
})

test("a damaged key file is an error, and is left as it is", async () => {
  const file = join(folder, "key")
  writeFileSync(file, "half a k")
  await expect(loadOrCreateIdentity(file, systemRandom)).rejects.toThrow("does not hold a node's key")
  expect(readFileSync(file, "utf8")).toBe("half a k")
})
