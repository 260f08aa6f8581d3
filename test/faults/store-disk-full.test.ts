import { execFileSync } from "node:child_process"
import { mkdirSync, readdirSync, rmSync, statfsSync, unlinkSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { setTimeout as wait } from "node:timers/promises"
import { afterEach, beforeEach, expect, test } from "vitest"
import type { Store } from "../../coordinator/store/store.ts"
import { systemClock, type Clock } from "../../protocol/base/clock.ts"
import { newDataDir, openTestStore } from "../support/store.ts"

const MIGRATIONS = [
  {
    number: 1,
    name: "0001-blobs",
    sql: `CREATE TABLE blobs (id INTEGER PRIMARY KEY, bytes BLOB NOT NULL) STRICT;
          CREATE TABLE numbers (name TEXT NOT NULL PRIMARY KEY, value INTEGER NOT NULL) STRICT;`,
  },
]
/** Time stands still inside a group, so that a slow machine does not end it early. */
const oneGroup: Clock = { ...systemClock, monotonicMs: () => 0 }
const disk = newDataDir()
const canMount = mountSmallDisk()
if (canMount) unmount()
else console.log("skipped: a full disk is tried on a small tmpfs, and mounting one needs root")

beforeEach(() => void (canMount && mountSmallDisk()))
afterEach(() => {
  if (canMount) unmount()
  rmSync(disk, { recursive: true, force: true })
})

test.runIf(canMount)(
  "a full disk: writes are refused with storage_full, nothing acknowledged is lost, service resumes by itself",
  async () => {
    const dataDir = join(disk, "data")
    mkdirSync(dataDir)
    const kept: number[] = []
    {
      await using store = await openTestStore({ dataDir, migrations: MIGRATIONS })
      writeFileSync(join(disk, "filler"), new Uint8Array(freeBytes() - 1_500_000))
      const refusals = await fill(store, kept)
      expect(refusals).toMatchObject(refusals.map(() => ({ code: "storage_full", status: 503 })))
      expect(store.writeProblem()).toContain("cannot be written")
      expect(await ids(store)).toEqual(kept) // reads go on, and show exactly what was acknowledged
      await expect(store.write(insert(1, 99_999))).rejects.toMatchObject({ code: "storage_full" })

      unlinkSync(join(disk, "filler"))
      while (store.writeProblem() !== null) await wait(50)
      kept.push(await store.write(insert(100_000, 50_000)))
      expect(await ids(store)).toEqual(kept)
    }
    await using store = await openTestStore({ dataDir, migrations: MIGRATIONS })
    expect(await ids(store)).toEqual(kept)
  },
)

test.runIf(canMount)(
  "a disk that fills inside one act takes its whole group back, and no later act is stored alone",
  async () => {
    const dataDir = join(disk, "data")
    mkdirSync(dataDir)
    await using store = await openTestStore({ dataDir, migrations: MIGRATIONS, clock: oneGroup })
    const kept = [await store.write(insert(1_000, 1))]
    writeFileSync(join(disk, "filler"), new Uint8Array(freeBytes() - 1_000_000))
    const group = await Promise.allSettled([
      store.write(insert(1_000, 2)),
      store.write(async (tx) => {
        // More than the page cache holds, so that SQLite writes, and fails, before COMMIT.
        // That it goes on as if nothing had happened must not help.
        for (let id = 1000; id < 1040; id++) await insert(1_000_000, id)(tx).catch(() => undefined)
      }),
      store.write(insert(1_000, 3)),
    ])
    expect(group.map((result) => result.status === "rejected" && (result.reason as { code: string }).code)).toEqual(
      Array(3).fill("storage_full"),
    )
    expect(await ids(store)).toEqual(kept)
  },
)

const canFreeze = freezeFiles(disk, true) && freezeFiles(disk, false)
if (!canFreeze)
  console.log("skipped: a read-only disk is tried with chattr +i, and this machine's temp folder refuses it")

test.runIf(canFreeze)(
  "a disk that became read-only: writes are refused, reads go on, service resumes by itself",
  async () => {
    const dataDir = newDataDir()
    await using store = await openTestStore({ dataDir, migrations: MIGRATIONS })
    const kept = [await store.write(insert(100, 1))]
    freezeFiles(dataDir, true)
    try {
      await expect(store.write(insert(100, 2))).rejects.toMatchObject({ code: "storage_full", status: 503 })
      expect(store.writeProblem()).toContain("cannot be written")
      expect(await ids(store)).toEqual(kept)
    } finally {
      freezeFiles(dataDir, false)
    }
    while (store.writeProblem() !== null) await wait(50)
    kept.push(await store.write(insert(100, 3)))
    expect(await ids(store)).toEqual(kept)
    await store[Symbol.asyncDispose]()
    rmSync(dataDir, { recursive: true })
  },
)

/**
 * Makes a folder's files refuse writes, also through open descriptors; false where that cannot be had. Not the -shm file:
 * it is written through a mapping, where a refusal is no error code but SIGBUS, the end of the process.
 */
function freezeFiles(folder: string, frozen: boolean): boolean {
  mkdirSync(folder, { recursive: true })
  if (readdirSync(folder).length === 0) writeFileSync(join(folder, "probe"), "")
  try {
    for (const file of readdirSync(folder).filter((name) => !name.endsWith("-shm"))) {
      execFileSync("chattr", [frozen ? "+i" : "-i", join(folder, file)], { stdio: "ignore" })
    }
    return true
  } catch {
    return false
  }
}

/** Writes until three groups in a row were refused; gives the refusals. */
async function fill(store: Store, kept: number[]): Promise<unknown[]> {
  const refusals: unknown[] = []
  for (let group = 0; refusals.length < 3; group++) {
    const results = await Promise.allSettled([0, 1, 2].map((index) => store.write(insert(40_000, group * 3 + index))))
    for (const result of results) {
      if (result.status === "fulfilled") kept.push(result.value)
      else refusals.push(result.reason)
    }
  }
  return refusals
}

const insert = (bytes: number, id: number) => async (tx: Parameters<Parameters<Store["write"]>[0]>[0]) => {
  await tx.run("INSERT INTO blobs (id, bytes) VALUES (?, ?)", id, new Uint8Array(bytes).fill(7))
  return id
}

async function ids(store: Store): Promise<number[]> {
  const rows = await store.read((view) => view.all<{ id: number }>("SELECT id FROM blobs ORDER BY id"))
  return rows.map(({ id }) => id)
}

function freeBytes(): number {
  const { bavail, bsize } = statfsSync(disk)
  return bavail * bsize
}

function mountSmallDisk(): boolean {
  mkdirSync(disk, { recursive: true })
  try {
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=8m", "computalot-test", disk], { stdio: "ignore" })
    return true
  } catch {
    return false
  }
}

function unmount(): void {
  execFileSync("umount", [disk])
}
