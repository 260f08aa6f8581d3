import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { DatabaseSync } from "node:sqlite"
import { afterEach, beforeEach, expect, test } from "vitest"
import { startProgram, type Program } from "../../scripts/lib/programs.ts"
import { openTestStore } from "../support/store.ts"

/** What the disk does to the coordinator's files is found and said, never served. */

let folder: string
let dataDir: string
let program: Program | null
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "computalot-damage-"))
  dataDir = join(folder, "data")
  program = null
})
afterEach(async () => {
  await program?.stop("SIGKILL")
  rmSync(folder, { recursive: true, force: true })
})

const database = (): string => join(dataDir, "computalot.db")
const logFile = (): string => join(folder, "log")
const lines = (): string[] =>
  existsSync(logFile())
    ? readFileSync(logFile(), "utf8")
        .split("\n")
        .filter((line) => line.startsWith("computalot-coordinator:"))
    : []

async function start(): Promise<Program> {
  const args = [`--data-dir=${dataDir}`, "--http-port=0", "--mesh-port=0"]
  program = await startProgram("coordinator/main.ts", args, { logFile: logFile() })
  return program
}

/** A database with some megabytes of rows in a table that no start reads. */
async function fill(): Promise<void> {
  await (await openTestStore({ dataDir }))[Symbol.asyncDispose]()
  const store = new DatabaseSync(database())
  store.exec("CREATE TABLE unread (id INTEGER PRIMARY KEY, text TEXT)")
  const insert = store.prepare("INSERT INTO unread (text) VALUES (?)")
  for (let row = 0; row < 4_000; row++) insert.run("x".repeat(1_000))
  store.close()
}

/** Pages near the end of the file: rows of the table above. */
function damageUnread(): void {
  const bytes = readFileSync(database())
  for (let at = bytes.length - 40_960; at < bytes.length - 4_096; at++) bytes[at] = (at * 31) & 0xff
  writeFileSync(database(), bytes)
}

const DAMAGED = /^computalot-coordinator: the database in \S+ is damaged \([^\n]+\): restore a backup/

test("after an unclean stop the whole database is read beside the work: damage ends the program, and the next start says so at once", async () => {
  await fill()
  await (await start()).stop("SIGKILL")
  expect(statSync(`${database()}-wal`).size).toBeGreaterThan(0)
  damageUnread()
  const started = await start()
  expect(await started.ended).toBe(78)
  expect(lines()).toEqual([expect.stringMatching(DAMAGED)])
  await expect(start()).rejects.toThrow(/ended with 78: computalot-coordinator: the database in /)
  expect(lines()).toHaveLength(2)
})

test("after an unclean stop a sound database is read and nothing is said, and unfinished files go; a clean stop leaves no doubt", async () => {
  await fill()
  await (await start()).stop("SIGKILL")
  writeFileSync(join(dataDir, "incoming", "half"), "half of a push")
  const started = await start()
  expect(readdirSync(join(dataDir, "incoming"))).toEqual([])
  await new Promise((resolve) => setTimeout(resolve, 1_500))
  expect(started.process.exitCode).toBeNull()
  expect(await started.stop("SIGTERM")).toBe(0)
  expect(existsSync(`${database()}-wal`)).toBe(false)
  expect(lines()).toEqual([])
})

test("a statement that meets damage ends the program; repaired, it starts again", async () => {
  await fill()
  const sound = readFileSync(database())
  // The root page of a table that every request's key is looked up in.
  const store = new DatabaseSync(database())
  const root = Number(store.prepare("SELECT rootpage FROM sqlite_schema WHERE name = 'users'").get()?.["rootpage"])
  const size = Number(store.prepare("PRAGMA page_size").get()?.["page_size"])
  store.close()
  const bytes = readFileSync(database())
  bytes.fill(0xee, (root - 1) * size, root * size)
  const started = await start()
  writeFileSync(database(), bytes)
  const token = readFileSync(join(dataDir, "admin-token"), "utf8").trim()
  const asked = fetch(`${String(started.ready["http"])}/api/v1/admin/users`, {
    headers: { authorization: `Bearer ${token}` },
  }).catch(() => null)
  expect(await started.ended).toBe(78)
  expect((await asked)?.ok ?? false).toBe(false)
  expect(lines()).toEqual([expect.stringMatching(DAMAGED)])
  await expect(start()).rejects.toThrow(/ended with 78/)

  for (const name of readdirSync(dataDir)) if (/-(wal|shm)$/.test(name)) rmSync(join(dataDir, name))
  writeFileSync(database(), sound)
  const again = await start()
  expect(await again.stop("SIGTERM")).toBe(0)
})

test("a file that is no database is said at the start", async () => {
  await fill()
  writeFileSync(database(), "this was a database once, and something else has written over it".repeat(100))
  await expect(start()).rejects.toThrow(/ended with 78: computalot-coordinator: the database in \S+ is damaged \(/)
})
