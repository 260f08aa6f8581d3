import { spawn } from "node:child_process"
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { DatabaseSync } from "node:sqlite"
import { afterEach, beforeEach, expect, onTestFinished, test } from "vitest"
import { backUp } from "../../coordinator/backup/back-up.ts"
import { restoreBackup } from "../../coordinator/backup/restore.ts"
import { addBlobReference } from "../../coordinator/store/blobs.ts"
import { nextClaimNumbers, recordLaterEpoch, startEpoch } from "../../coordinator/store/meta.ts"
import { digest } from "../../protocol/domain/ids.ts"
import { sha256Hex } from "../../protocol/base/digest.ts"
import { openTestStore } from "../support/store.ts"

/** The backup of a data directory and the way back (architecture §4, epoch and numbers). */

let folder: string
let dataDir: string
let file: string
let target: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "computalot-backup-"))
  dataDir = join(folder, "data")
  file = join(folder, "one.backup")
  target = join(folder, "restored")
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

const KEY = `${"ab".repeat(32)}\n`

/** A data directory as a coordinator leaves it, with `rows` rows of some weight. */
async function makeData(rows = 10): Promise<void> {
  await using store = await openTestStore({ dataDir })
  await store.write((tx) => startEpoch(tx, 100))
  for (let row = 0; row < rows; row++) {
    await store.write((tx) =>
      addBlobReference(tx, digest(sha256Hex(String(row))), { kind: "artifact", owner: `art_${row}` }),
    )
  }
  writeFileSync(join(dataDir, "coordinator.key"), KEY, { mode: 0o600 })
  writeFileSync(join(dataDir, "admin-token"), "fla_x\n", { mode: 0o600 })
}

const epochOf = (dir: string, nowSeconds: number, takeOver = false): Promise<number> =>
  (async () => {
    await using store = await openTestStore({ dataDir: dir })
    return await store.write((tx) => startEpoch(tx, nowSeconds, takeOver))
  })()

test("a backup is one private file that restores keys and rows, and names the blobs it lacks", async () => {
  await makeData(3)
  const made = await backUp(dataDir, file, "1.2.3")
  expect(made).toMatchObject({ epoch: 100, bytes: statSync(file).size })
  expect(statSync(file).mode & 0o777).toBe(0o600)
  expect(readdirSync(folder).toSorted()).toEqual(["data", "one.backup"])

  const there = sha256Hex("1")
  mkdirSync(join(target, "blobs", there.slice(0, 2)), { recursive: true })
  writeFileSync(join(target, "blobs", there.slice(0, 2), there), "1")
  const restored = await restoreBackup(file, target)
  expect(restored).toMatchObject({ epoch: 100, createdAt: made.createdAt, missing: { count: 2 } })
  expect(restored.missing.first.toSorted((a, b) => a.owner.localeCompare(b.owner))).toEqual([
    { digest: sha256Hex("0"), kind: "artifact", owner: "art_0" },
    { digest: sha256Hex("2"), kind: "artifact", owner: "art_2" },
  ])
  expect(readFileSync(join(target, "coordinator.key"), "utf8")).toBe(KEY)
  expect(readFileSync(join(target, "admin-token"), "utf8")).toBe("fla_x\n")
  for (const name of ["coordinator.key", "admin-token", "computalot.db"]) {
    expect(statSync(join(target, name)).mode & 0o777).toBe(0o600)
  }
  expect(existsSync(join(target, "restoring"))).toBe(false)
})

test("a backup taken while another process writes is one moment of it, and does not hold it up", async () => {
  await makeData()
  // Two tables that agree after each commit; rows enough that a copy takes many steps.
  // Two SQLite libraries of one process do not see one another's locks: the writer is a process of its own.
  const writing = spawn(
    process.execPath,
    [
      "-e",
      `const { DatabaseSync } = require("node:sqlite")
     const db = new DatabaseSync(process.argv[1], { timeout: 5000 })
     db.exec("CREATE TABLE a (n INTEGER PRIMARY KEY, text TEXT); CREATE TABLE b (n INTEGER PRIMARY KEY, text TEXT)")
     let n = 0, slowestMs = 0, stopped = false
     process.on("message", () => (stopped = true))
     const turn = () => {
       if (stopped) { db.close(); process.send({ commits: n, slowestMs }, () => process.exit(0)); return }
       const startedMs = performance.now()
       db.exec("BEGIN IMMEDIATE")
       for (const table of ["a", "b"]) db.prepare("INSERT INTO " + table + " VALUES (?, ?)").run(n, "x".repeat(n < 20 ? 2000000 : 500))
       db.exec("COMMIT")
       slowestMs = Math.max(slowestMs, performance.now() - startedMs)
       n += 1
       if (n === 20) { slowestMs = 0; process.send("ready") }
       setImmediate(turn)
     }
     turn()`,
      join(dataDir, "computalot.db"),
    ],
    { stdio: ["ignore", "inherit", "inherit", "ipc"] },
  )
  onTestFinished(() => void writing.kill("SIGKILL"))
  const told = (): Promise<unknown> => new Promise((resolve) => writing.once("message", resolve))
  await told()
  await backUp(dataDir, file, "1.2.3")
  writing.send("stop")
  const { commits, slowestMs } = (await told()) as { commits: number; slowestMs: number }
  await restoreBackup(file, target)
  const copy = new DatabaseSync(join(target, "computalot.db"))
  const [a, b] = ["a", "b"].map((table) =>
    Number(copy.prepare(`SELECT count(*) AS rows FROM ${table}`).get()?.["rows"]),
  )
  expect(copy.prepare("PRAGMA integrity_check").get()).toEqual({ integrity_check: "ok" })
  copy.close()
  expect(a).toBe(b)
  expect(a).toBeGreaterThanOrEqual(20)
  expect(commits).toBeGreaterThan(a ?? 0)
  expect(slowestMs).toBeLessThan(2_000)
})

test("a backup overwrites nothing, and two of one name do not meet", async () => {
  await makeData()
  writeFileSync(file, "mine")
  await expect(backUp(dataDir, file, "1")).rejects.toThrow("exists already")
  expect(readFileSync(file, "utf8")).toBe("mine")
  rmSync(file)
  const both = await Promise.allSettled([backUp(dataDir, file, "1"), backUp(dataDir, file, "1")])
  expect(both.map(({ status }) => status).toSorted()).toEqual(["fulfilled", "rejected"])
  expect(String((both.find(({ status }) => status === "rejected") as PromiseRejectedResult).reason)).toContain(
    "another backup writes it",
  )
  expect(readdirSync(folder).toSorted()).toEqual(["data", "one.backup"])
})

test("a backup of nothing, into a folder that is not there, or of a damaged database leaves no file", async () => {
  await expect(backUp(dataDir, file, "1")).rejects.toThrow(/no coordinator's database/)
  await makeData(2_000)
  await expect(backUp(dataDir, join(folder, "not", "there"), "1")).rejects.toThrow(/ENOENT/)
  damagePages(join(dataDir, "computalot.db"))
  await expect(backUp(dataDir, file, "1")).rejects.toThrow(/is damaged/)
  expect(readdirSync(folder)).toEqual(["data"])
})

test("a restore replaces nothing: what a coordinator has written is refused", async () => {
  await makeData()
  await backUp(dataDir, file, "1")
  await expect(restoreBackup(file, dataDir)).rejects.toThrow(/is not empty \(it has /)
  await using _running = await openTestStore({ dataDir: target })
  await expect(restoreBackup(file, target)).rejects.toThrow(/is in use/)
})

test.each([
  ["cut off", (bytes: Buffer) => bytes.subarray(0, bytes.length - 5_000)],
  ["changed in one byte", (bytes: Buffer) => flipped(bytes, Math.floor(bytes.length / 2))],
  ["something else", () => Buffer.from("not a tar, and no end of it")],
  ["empty", () => Buffer.alloc(0)],
])("a backup that was %s is refused in one line, and no coordinator starts on what is left", async (_how, change) => {
  await makeData(200)
  await backUp(dataDir, file, "1")
  const whole = readFileSync(file)
  writeFileSync(file, change(whole))
  await expect(restoreBackup(file, target)).rejects.toThrow(/^\S+ is (no backup|damaged)[^\n]*$/)
  expect(existsSync(join(target, "computalot.db"))).toBe(false)
  await expect(openTestStore({ dataDir: target })).rejects.toThrow(/a restore into .* did not end: run it again/)
  writeFileSync(file, whole)
  expect(await restoreBackup(file, target)).toMatchObject({ epoch: 100 })
  expect(await epochOf(target, 100)).toBe(101)
})

test("after a restore epochs and claim numbers go on above all that the lost copy can have given", async () => {
  await makeData()
  const before = await (async () => {
    await using store = await openTestStore({ dataDir })
    return await store.write((tx) => nextClaimNumbers(tx, 5, 1_000_000_000))
  })()
  await backUp(dataDir, file, "1")
  expect(await epochOf(dataDir, 500)).toBe(500)
  await restoreBackup(file, target)
  expect(await epochOf(target, 501)).toBe(501)
  await using store = await openTestStore({ dataDir: target })
  expect(await store.write((tx) => nextClaimNumbers(tx, 1, 1_000_000_000))).toBe(before + 5)
  expect(await store.write((tx) => nextClaimNumbers(tx, 1, 2_000_000_000))).toBe(2_000_000_000)
})

test("a copy that was shown a later epoch starts only to take over, and then above it", async () => {
  await makeData()
  await (async () => {
    await using store = await openTestStore({ dataDir })
    await store.write((tx) => recordLaterEpoch(tx, 900))
    await store.write((tx) => recordLaterEpoch(tx, 800))
  })()
  await expect(epochOf(dataDir, 200)).rejects.toThrow(/older copy.*\(epoch 100\).*\(epoch 900\).*--take-over/)
  await expect(epochOf(dataDir, 2_000)).rejects.toThrow(/older copy/)
  expect(await epochOf(dataDir, 200, true)).toBe(901)
  await using store = await openTestStore({ dataDir })
  // This machine's clock is behind: numbers by it alone could repeat those of the other copy.
  expect(await store.write((tx) => nextClaimNumbers(tx, 1, 200_000_000))).toBe(901_000_001)
})

test("once taken over, it starts as always", async () => {
  await makeData()
  await (async () => {
    await using store = await openTestStore({ dataDir })
    await store.write((tx) => recordLaterEpoch(tx, 900))
  })()
  expect(await epochOf(dataDir, 2_000, true)).toBe(2_000)
  expect(await epochOf(dataDir, 2_000)).toBe(2_001)
})

function flipped(bytes: Buffer, at: number): Buffer {
  const changed = Buffer.from(bytes)
  changed[at] = (changed[at] ?? 0) ^ 0xff
  return changed
}

/** Random bytes over pages behind the first ones, which hold the schema. */
function damagePages(database: string): void {
  const bytes = readFileSync(database)
  for (let at = bytes.length - 40_000; at < bytes.length; at++) bytes[at] = (at * 7) & 0xff
  writeFileSync(database, bytes)
}
