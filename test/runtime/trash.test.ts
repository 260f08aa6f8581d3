import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { beforeEach, expect, onTestFinished, test } from "vitest"
import { openTrash, type Trash } from "../../node-agent/runtime/trash.ts"

let home: string
let trash: Trash
beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), "computalot-trash-"))
  trash = openTrash(home)
  onTestFinished(async () => {
    await trash[Symbol.asyncDispose]()
    rmSync(home, { recursive: true, force: true })
  })
})

test("what is put into the trash leaves its place at once and the disk soon, and links in it are not followed", async () => {
  const [one, two, outside] = [full("c1"), full("c2"), full("outside")]
  symlinkSync(outside, join(one, "link"))
  await trash.put(one)
  await trash.put(join(two, "disk"))
  expect([existsSync(one), existsSync(join(two, "disk")), existsSync(two)]).toEqual([false, false, true])
  expect(trashes()).toHaveLength(1)
  await expect.poll(trashes, { timeout: 5_000 }).toEqual([])
  expect(existsSync(join(outside, "disk", "file"))).toBe(true)
})

test("the same name can be put again and again, missing paths are fine, and closing empties the trash", async () => {
  for (let n = 0; n < 3; n++) await trash.put(full("c1"))
  await trash.put(join(home, "c1"))
  await trash[Symbol.asyncDispose]()
  expect(readdirSync(home)).toEqual([])
})

test("where nothing can be renamed to, a folder is removed in place", async () => {
  await trash.put(full("c1"))
  // As a sweep does, which takes whatever is no attempt.
  for (const name of trashes()) rmSync(join(home, name), { recursive: true })
  await trash.put(full("c2"))
  expect(readdirSync(home)).toEqual([])
  await trash.put(full("c3"))
  expect(existsSync(join(home, "c3"))).toBe(false)
  await expect.poll(() => readdirSync(home), { timeout: 5_000 }).toEqual([])
})

function full(name: string): string {
  const file = join(home, name, "disk", "file")
  mkdirSync(dirname(file), { recursive: true })
  writeFileSync(file, "x")
  return join(home, name)
}

const trashes = (): string[] => readdirSync(home).filter((name) => name.startsWith(".trash"))
