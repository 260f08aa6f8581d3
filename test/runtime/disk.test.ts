import { execFileSync } from "node:child_process"
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readlinkSync,
  rmSync,
  statfsSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
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

test.skipIf(!canMount)("a disk that comes back with little in it serves the next attempt, empty", async () => {
  const { disks, attempt, made } = await openTestDisks()
  const disk = await disks.make(attempt("c1"), 16 * MEBIBYTE)
  const place = readlinkSync(disk)
  mkdirSync(join(disk, ".root/work/work"), { recursive: true, mode: 0 })
  mkdirSync(join(disk, "work/a/b"), { recursive: true })
  writeFileSync(join(disk, "work/a/b/.secret"), "c1's")
  symlinkSync("/etc", join(disk, "work/link"))
  const { bfree, ffree } = statfsSync(disk)
  await disks.remove(attempt("c1"))
  await disks.remove(attempt("c1"))
  const next = await disks.make(attempt("c2"), 16 * MEBIBYTE)
  expect(readlinkSync(next)).toBe(place)
  expect(readdirSync(next)).toEqual([])
  expect(statfsSync(next).ffree).toBeGreaterThan(ffree)
  expect(statfsSync(next).bfree).toBeGreaterThan(bfree)
  expect(readdirSync("/etc").length).toBeGreaterThan(0)
  // The first is asked to go once more, late: it has nothing of the second's.
  await disks.remove(attempt("c1"))
  expect(made()).toContain(place)
})

const notReused: Record<string, (disk: string, disks: AttemptDisks, attemptDir: string) => void> = {
  "its attempt did not end well": (_, disks, attemptDir) => disks.keepApart?.(attemptDir),
  "hundreds of files are in it": (disk) => {
    for (let n = 0; n < 300; n++) writeFileSync(join(disk, String(n)), "")
  },
  "it took much room": (disk) => writeFileSync(join(disk, "large"), Buffer.alloc(24 * MEBIBYTE, 1)),
  "somebody still has a file of it open": (disk) => {
    writeFileSync(join(disk, "open"), "x")
    const held = openSync(join(disk, "open"), "r")
    setTimeout(() => closeSync(held), 1_000)
  },
}

for (const [why, spoil] of Object.entries(notReused)) {
  test.skipIf(!canMount)(`a disk is given to no other when ${why}`, async () => {
    const { disks, attempt, made } = await openTestDisks()
    const disk = await disks.make(attempt("c1"), 64 * MEBIBYTE)
    const place = readlinkSync(disk)
    spoil(disk, disks, attempt("c1"))
    // The machine's image grows when the kernel writes back.
    execFileSync("sync", ["-f", disk])
    await disks.remove(attempt("c1"))
    await expect.poll(() => made().includes(place)).toBe(false)
    expect(readlinkSync(await disks.make(attempt("c2"), 64 * MEBIBYTE))).not.toBe(place)
  })
}

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
