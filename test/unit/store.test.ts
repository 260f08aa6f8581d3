import { execFile } from "node:child_process"
import { mkdirSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { setTimeout as wait } from "node:timers/promises"
import { promisify } from "node:util"
import { describe, expect, test } from "vitest"
import { systemClock } from "../../protocol/base/clock.ts"
import { nextClaimNumbers, startEpoch } from "../../coordinator/store/meta.ts"
import { knownMigrations, type Migration } from "../../coordinator/store/migrate.ts"
import type { Store, Tx } from "../../coordinator/store/store.ts"
import { newDataDir, openTestStore } from "../support/store.ts"

const NOTES: Migration = {
  number: 1,
  name: "0001-notes",
  sql: `CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE) STRICT;
        CREATE TABLE numbers (name TEXT NOT NULL PRIMARY KEY, value INTEGER NOT NULL) STRICT;`,
}

const openNotes = (options: Parameters<typeof openTestStore>[0] = {}): ReturnType<typeof openTestStore> =>
  openTestStore({ migrations: [NOTES], ...options })

const note = (text: string) => async (tx: Tx) => {
  await tx.run("INSERT INTO notes (text) VALUES (?)", text)
  return text
}

async function texts(store: Store): Promise<string[]> {
  const rows = await store.read((view) => view.all<{ text: string }>("SELECT text FROM notes ORDER BY id"))
  return rows.map(({ text }) => text)
}

describe("acts", () => {
  test("a write resolves with its result once it is stored, and a read then sees it", async () => {
    await using store = await openNotes()
    expect(await store.write(note("a"))).toBe("a")
    expect(await texts(store)).toEqual(["a"])
  })

  test("an act that throws is rolled back alone: its group's others are stored", async () => {
    await using store = await openNotes()
    const results = await Promise.allSettled([
      store.write(note("a")),
      store.write(async (tx) => {
        await note("b")(tx)
        throw new Error("changed my mind")
      }),
      store.write(note("c")),
      store.write(note("a")),
    ])
    expect(results.map(({ status }) => status)).toEqual(["fulfilled", "rejected", "fulfilled", "rejected"])
    expect(await texts(store)).toEqual(["a", "c"])
  })

  test("an act sees what the acts before it changed, a read only what is committed", async () => {
    await using store = await openNotes()
    const first = store.write(note("a"))
    const second = store.write((tx) => tx.all("SELECT text FROM notes"))
    const early = texts(store)
    await first
    expect(await second).toEqual([{ text: "a" }])
    expect([[], ["a"]]).toContainEqual(await early)
  })

  test("one read is one snapshot, whatever is written meanwhile", async () => {
    await using store = await openNotes()
    await store.write(note("a"))
    const counts = await store.read(async (view) => {
      const before = await view.all("SELECT 1 FROM notes")
      const after = await view.all("SELECT 1 FROM notes")
      return [before.length, after.length]
    })
    expect(counts).toEqual([1, 1])
  })

  test("whole numbers are whole numbers in SQL", async () => {
    await using store = await openNotes()
    const row = await store.read((view) => view.get("SELECT 5 / ? AS half, typeof(?) AS kind", 2, 7))
    expect(row).toEqual({ half: 2, kind: "integer" })
  })

  test("a read cannot write", async () => {
    await using store = await openNotes()
    await expect(store.read((view) => view.all("INSERT INTO notes (text) VALUES ('x') RETURNING id"))).rejects.toThrow(
      "readonly",
    )
  })

  test("an act that waits for anything but its tx is refused and nothing of it is stored; others go on", async () => {
    await using store = await openNotes()
    const results = await Promise.allSettled([
      store.write(note("before")),
      store.write(async (tx) => {
        await note("slow")(tx)
        await wait(1)
        await note("late")(tx)
      }),
      store.write(async (tx) => {
        await note("other")(tx)
        await promisify(setImmediate)()
      }),
      store.write(note("after")),
    ])
    expect(results.map(({ status }) => status)).toEqual(["fulfilled", "rejected", "rejected", "fulfilled"])
    expect(String((results[1] as PromiseRejectedResult).reason)).toContain("awaited something other than its tx")
    await wait(20)
    expect(await texts(store)).toEqual(["before", "after"])
  })

  test("a read that waits for anything but its view is refused; others go on", async () => {
    await using store = await openNotes()
    const slow = store.read(async () => wait(1))
    const next = store.read((view) => view.all("SELECT 1 AS one"))
    await expect(slow).rejects.toThrow("awaited something other")
    expect(await next).toEqual([{ one: 1 }])
  })

  test("a tx that outlives its act throws", async () => {
    await using store = await openNotes()
    const kept = await store.write(async (tx) => ({ tx }))
    await expect(kept.tx.run("DELETE FROM notes")).rejects.toThrow("not after the act settled")
  })

  test("an act does not call the store", async () => {
    await using store = await openNotes()
    await expect(store.write(async () => texts(store))).rejects.toThrow("an act does not call the store")
    await expect(store.read(async () => store.write(note("a")))).rejects.toThrow("an act does not call the store")
    expect(await texts(store)).toEqual([])
  })

  test("an act leaves transactions to the store", async () => {
    await using store = await openNotes()
    await expect(store.write((tx) => tx.run("COMMIT"))).rejects.toThrow("leaves transactions to the store")
  })

  test("one write in ten runs twice and is stored once", async () => {
    let asked = 0
    const everyOther = { bytes: (length: number) => new Uint8Array(length), integer: () => asked++ % 2 }
    await using store = await openNotes({ repeatWrites: everyOther })
    let runs = 0
    for (const text of ["a", "b", "c", "d"]) {
      await store.write(async (tx) => {
        runs += 1
        await note(text)(tx)
      })
    }
    expect(runs).toBe(6)
    expect(await texts(store)).toEqual(["a", "b", "c", "d"])
  })

  test("more than 10,000 waiting writes are refused as busy, and the others are stored", async () => {
    await using store = await openNotes()
    const writes = Array.from({ length: 10_005 }, (_, index) => store.write(note(`n${index}`)))
    const results = await Promise.allSettled(writes)
    const refused = results.filter(({ status }) => status === "rejected") as PromiseRejectedResult[]
    expect(refused.map(({ reason }) => (reason as { code: string }).code)).toEqual(Array(5).fill("busy"))
    expect(await texts(store)).toHaveLength(10_000)
  })

  test("writes asked for in one turn run together, also when they follow on earlier ones", async () => {
    await using store = await openNotes({ clock: { ...systemClock, monotonicMs: () => 0 } })
    for (let round = 0; round < 3; round++) {
      let turn = 0
      const counting = setInterval(() => (turn += 1), 0)
      const turns = await Promise.all(Array.from({ length: 400 }, () => store.write(async () => turn)))
      clearInterval(counting)
      expect(new Set(turns).size).toBe(1)
    }
  })

  test("other work goes on between groups of a long queue", async () => {
    await using store = await openNotes()
    let turns = 0
    const ticking = setInterval(() => (turns += 1), 0)
    await Promise.all(Array.from({ length: 5_000 }, (_, index) => store.write(note(`n${index}`))))
    clearInterval(ticking)
    expect(turns).toBeGreaterThan(3)
  })

  test("a COMMIT whose outcome is unknown ends the process: its callers hear nothing, and nothing more is written", async () => {
    const deferred: Migration = {
      number: 1,
      name: "0001-deferred",
      sql: `CREATE TABLE parents (id INTEGER PRIMARY KEY) STRICT;
            CREATE TABLE children (parent INTEGER REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED) STRICT;`,
    }
    const fatal: Error[] = []
    await using store = await openTestStore({ migrations: [deferred], onFatal: (error) => fatal.push(error) })
    const heard: string[] = []
    const write = store.write((tx) => tx.run("INSERT INTO children VALUES (1)"))
    write.then(
      () => heard.push("stored"),
      () => heard.push("refused"),
    )
    while (fatal.length === 0) await wait(5)
    expect(fatal[0]?.message).toContain("may or may not be stored")
    expect(heard).toEqual([])
    expect(store.writeProblem()).toContain("outcome of a write is unknown")
    await expect(store.write(async () => 1)).rejects.toMatchObject({ code: "storage_full" })
  })

  test("closing runs what waits, then refuses", async () => {
    const dataDir = newDataDir()
    const store = await openNotes({ dataDir })
    const last = store.write(note("last"))
    await store[Symbol.asyncDispose]()
    expect(await last).toBe("last")
    await expect(store.write(note("x"))).rejects.toMatchObject({ code: "unavailable" })
    await expect(texts(store)).rejects.toMatchObject({ code: "unavailable" })
    rmSync(dataDir, { recursive: true })
  })
})

describe("the data directory", () => {
  test("one that cannot be made or used is refused with one line", async () => {
    const dataDir = newDataDir()
    writeFileSync(join(dataDir, "file"), "")
    await expect(openTestStore({ dataDir: join(dataDir, "file", "data") })).rejects.toThrow("cannot be made")
    mkdirSync(join(dataDir, "lock"))
    await expect(openTestStore({ dataDir })).rejects.toThrow(`the data directory ${dataDir} cannot be used`)
    rmSync(dataDir, { recursive: true })
  })

  test("a second store of the same process or another is refused with one line, and may open after the first", async () => {
    const dataDir = newDataDir()
    const openInChild = `
      const { openStore } = await import(${JSON.stringify(new URL("../../coordinator/store/open-store.ts", import.meta.url).href)})
      const { systemClock } = await import(${JSON.stringify(new URL("../../protocol/base/clock.ts", import.meta.url).href)})
      const { silentLog } = await import(${JSON.stringify(new URL("../../protocol/base/log.ts", import.meta.url).href)})
      try {
        await using store = await openStore({ dataDir: ${JSON.stringify(dataDir)}, clock: systemClock, log: silentLog, onFatal() {} })
        console.log("opened")
      } catch (error) { console.log(error.message) }`
    const child = async (): Promise<string> =>
      (await promisify(execFile)(process.execPath, ["--input-type=module", "-e", openInChild])).stdout.trim()
    {
      await using _store = await openTestStore({ dataDir })
      await expect(openTestStore({ dataDir })).rejects.toThrow(`${dataDir} is in use by another coordinator`)
      expect(await child()).toBe(`the data directory ${dataDir} is in use by another coordinator`)
    }
    expect(await child()).toBe("opened")
    rmSync(dataDir, { recursive: true })
  })

  test("an older version's data is brought up to date, a migration at a time", async () => {
    const dataDir = newDataDir()
    {
      await using store = await openNotes({ dataDir })
      await store.write(note("kept"))
    }
    const shout: Migration = { number: 2, name: "0002-shout", sql: "UPDATE notes SET text = upper(text);" }
    for (let start = 0; start < 2; start++) {
      await using store = await openNotes({ dataDir, migrations: [NOTES, shout] })
      expect(await texts(store)).toEqual(["KEPT"])
    }
    await expect(openNotes({ dataDir })).rejects.toThrow(
      "the data was written by a newer version (it has migration 0002-shout; this version ends at 0001-notes)",
    )
    const edited = { ...NOTES, sql: `${NOTES.sql} -- better` }
    await expect(openNotes({ dataDir, migrations: [edited, shout] })).rejects.toThrow(
      "0001-notes was edited after it ran",
    )
    rmSync(dataDir, { recursive: true })
  })

  test("a migration that fails changes nothing and says which", async () => {
    const dataDir = newDataDir()
    const broken: Migration = {
      number: 2,
      name: "0002-broken",
      sql: "DELETE FROM notes; INSERT INTO missing VALUES (1);",
    }
    {
      await using store = await openNotes({ dataDir })
      await store.write(note("kept"))
    }
    await expect(openNotes({ dataDir, migrations: [NOTES, broken] })).rejects.toThrow("0002-broken failed")
    await using store = await openNotes({ dataDir })
    expect(await texts(store)).toEqual(["kept"])
    rmSync(dataDir, { recursive: true, force: true })
  })

  test("this version's migrations have names in order and run on an empty directory", async () => {
    const numbers = knownMigrations().map(({ number }) => number)
    expect(numbers).toEqual([...new Set(numbers)].sort((a, b) => a - b))
    await using _store = await openTestStore()
  })
})

describe("numbers", () => {
  test("an epoch is above every earlier one and at least the Unix time", async () => {
    await using store = await openTestStore()
    expect(await store.write((tx) => startEpoch(tx, 1_700_000_000.9))).toBe(1_700_000_000)
    expect(await store.write((tx) => startEpoch(tx, 1_700_000_000))).toBe(1_700_000_001)
    expect(await store.write((tx) => startEpoch(tx, 5))).toBe(1_700_000_002)
  })

  test("claim numbers are given once, also when the clock steps back", async () => {
    await using store = await openTestStore()
    expect(await store.write((tx) => nextClaimNumbers(tx, 3, 1_000))).toBe(1_000)
    expect(await store.write((tx) => nextClaimNumbers(tx, 1, 500))).toBe(1_003)
    expect(await store.write((tx) => nextClaimNumbers(tx, 1, 2_000))).toBe(2_000)
    await expect(store.write((tx) => nextClaimNumbers(tx, 2, Number.MAX_SAFE_INTEGER))).rejects.toThrow("below 2^53")
  })
})
