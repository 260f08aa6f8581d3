import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { beforeEach, expect, onTestFinished, test } from "vitest"
import { plainDisks } from "../../node-agent/runtime/disk.ts"
import { openSpareTrees, type SpareTrees } from "../../node-agent/runtime/spare-trees.ts"
import { openTrash, type Trash } from "../../node-agent/runtime/trash.ts"

let home: string
let trash: Trash
let spares: SpareTrees
beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), "computalot-spares-"))
  trash = openTrash(home)
  spares = openSpareTrees(home, trash)
  onTestFinished(async () => {
    spares[Symbol.dispose]()
    await trash[Symbol.asyncDispose]()
    rmSync(home, { recursive: true, force: true })
  })
})

test("a tree that is put is gone from its place, and comes back empty, with its directories", async () => {
  const tree = made("one")
  writeFileSync(join(tree, "work", "file"), "secret")
  symlinkSync(home, join(tree, "result", "link"))
  const { ino } = statSync(tree)
  expect(spares.take(join(home, "two"))).toBe(false)
  await spares.put(tree)
  expect(existsSync(tree)).toBe(false)
  expect(spares.take(join(home, "two"))).toBe(true)
  expect(statSync(join(home, "two")).ino).toBe(ino)
  expect(below(join(home, "two"))).toEqual(["result", "work"])
  expect(spares.take(join(home, "three"))).toBe(false)
})

test("what was changed beyond files of its own goes to the trash: rights, links, depth, many files", async () => {
  const changes: ((tree: string) => void)[] = [
    (tree) => chmodSync(join(tree, "work"), 0o777),
    (tree) => chmodSync(tree, 0o700),
    (tree) => mkdirSync(join(tree, "work", "deeper")),
    (tree) => Array.from({ length: 17 }, (_, n) => writeFileSync(join(tree, "work", `${n}`), "")),
    (tree) => Array.from({ length: 17 }, (_, n) => mkdirSync(join(tree, `${n}`))),
  ]
  for (const [n, change] of changes.entries()) {
    const tree = made(`tree-${n}`)
    change(tree)
    await spares.put(tree)
    expect(existsSync(tree)).toBe(false)
    expect(spares.take(join(home, "next"))).toBe(false)
  }
  // A link in place of the tree: what it names is left as it is.
  const outside = made("outside")
  writeFileSync(join(outside, "work", "kept"), "")
  symlinkSync(outside, join(home, "link"))
  await spares.put(join(home, "link"))
  expect([existsSync(join(home, "link")), existsSync(join(outside, "work", "kept"))]).toEqual([false, true])
  expect(spares.take(join(home, "next"))).toBe(false)
})

test("missing trees are fine, no more than sixteen are kept, and closing leaves none", async () => {
  await spares.put(join(home, "none"))
  for (let n = 0; n < 20; n++) await spares.put(made(`tree-${n}`))
  let taken = 0
  while (spares.take(join(home, `again-${taken}`))) taken += 1
  expect(taken).toBe(16)
  for (let n = 0; n < taken; n++) await spares.put(join(home, `again-${n}`))
  spares[Symbol.dispose]()
  await trash[Symbol.asyncDispose]()
  expect(readdirSync(home)).toEqual([])
})

test("a disk on which something may live on serves nobody else, nor does one that an earlier agent made", async () => {
  const disks = plainDisks(trash, spares)
  const [apart, earlier, plain] = ["c1", "c2", "c3"].map((name) => join(home, name)) as [string, string, string]
  await disks.make(apart, 1)
  mkdirSync(join(earlier, "disk"), { recursive: true })
  disks.keepApart?.(apart)
  await disks.remove(apart)
  await disks.remove(earlier)
  expect([apart, earlier].map((dir) => existsSync(join(dir, "disk")))).toEqual([false, false])
  expect(spares.take(join(home, "next"))).toBe(false)
  const { ino } = statSync(await disks.make(plain, 1))
  await disks.make(plain, 1)
  await disks.remove(plain)
  await disks.remove(plain)
  mkdirSync(join(home, "c4"))
  expect(statSync(await disks.make(join(home, "c4"), 1)).ino).toBe(ino)
})

function made(name: string): string {
  for (const directory of ["result", "work"]) mkdirSync(join(home, name, directory), { recursive: true })
  return join(home, name)
}

const below = (tree: string): string[] => (readdirSync(tree, { recursive: true }) as string[]).toSorted()
