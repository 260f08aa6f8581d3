import { mkdirSync, mkdtempSync, readdirSync, readlinkSync, rmSync, statfsSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { expect, onTestFinished, test } from "vitest"
import { openDisks, type AttemptDisks } from "../../node-agent/runtime/disk.ts"
import { openTrash } from "../../node-agent/runtime/trash.ts"

const MEBIBYTE = 1024 ** 2
const canMount = await limitedHere()

test.skipIf(!canMount)("spare disks are made after a start, never more than four, and nobody's twice", async () => {
  const { disks, attempt, made } = await openTestDisks()
  const first = await disks.make(attempt("c1"), 16 * MEBIBYTE)
  await expect.poll(() => made().length).toBe(3)
  const places = await Promise.all([2, 3, 4, 5, 6, 7, 8].map((n) => disks.make(attempt(`c${n}`), 16 * MEBIBYTE)))
  const all = [first, ...places].map((disk) => readlinkSync(disk))
  expect(new Set(all).size).toBe(8)
  await expect.poll(() => made().length).toBe(8 + 4)
  await new Promise((later) => setTimeout(later, 300))
  expect(made().length).toBe(8 + 4)
  writeFileSync(join(first, "file"), "c1's")
  for (const disk of places) expect(readdirSync(disk)).toEqual([])
})

test.skipIf(!canMount)("who asks for another size gets that size, and spares follow", async () => {
  const { disks, attempt, made } = await openTestDisks()
  await disks.make(attempt("c1"), 16 * MEBIBYTE)
  await expect.poll(() => made().length).toBe(3)
  const other = await disks.make(attempt("c2"), 64 * MEBIBYTE)
  const { blocks, bsize } = statfsSync(other)
  expect(blocks * bsize).toBeGreaterThan(32 * MEBIBYTE)
  await expect
    .poll(() => made().filter((disk) => statfsSync(disk).blocks * bsize > 32 * MEBIBYTE).length, { timeout: 5_000 })
    .toBe(4)
  await expect.poll(() => made().length).toBe(5)
})

test.skipIf(!canMount)("closing leaves the attempts' disks and no spare", async () => {
  const { disks, attempt, made } = await openTestDisks()
  const disk = await disks.make(attempt("c1"), 16 * MEBIBYTE)
  await disks.close()
  expect(made()).toEqual([readlinkSync(disk)])
  await disks.make(attempt("c2"), 16 * MEBIBYTE)
  await new Promise((later) => setTimeout(later, 200))
  expect(made()).toHaveLength(2)
})

interface TestDisks {
  disks: AttemptDisks
  attempt: (name: string) => string
  /** All disks there are, spares included. */
  made: () => string[]
}

async function openTestDisks(): Promise<TestDisks> {
  const home = mkdtempSync(join(tmpdir(), "computalot-disks-"))
  const trash = openTrash(home)
  const disks = await openDisks(home, trash)
  onTestFinished(async () => {
    await disks.sweep([])
    await disks.close()
    await trash[Symbol.asyncDispose]()
    rmSync(home, { recursive: true, force: true })
  })
  return {
    disks,
    attempt(name) {
      mkdirSync(join(home, "attempts", name), { recursive: true })
      return join(home, "attempts", name)
    },
    made: () => readdirSync(join(home, "disks")).map((name) => join(home, "disks", name, "disk")),
  }
}

async function limitedHere(): Promise<boolean> {
  const home = mkdtempSync(join(tmpdir(), "computalot-disks-"))
  try {
    const trash = openTrash(home)
    return (await openDisks(home, trash)).kind !== "none"
  } finally {
    rmSync(home, { recursive: true, force: true })
  }
}
