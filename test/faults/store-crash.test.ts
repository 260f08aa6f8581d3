import { spawn } from "node:child_process"
import { rmSync } from "node:fs"
import { createInterface } from "node:readline"
import { expect, test } from "vitest"
import { newDataDir, openTestStore } from "../support/store.ts"

const MIGRATIONS = [
  {
    number: 1,
    name: "0001-pairs",
    sql: "CREATE TABLE pairs (id INTEGER PRIMARY KEY, number INTEGER NOT NULL, half TEXT NOT NULL) STRICT;",
  },
]

test("kill -9 in the middle of writes: everything acknowledged is there, and nothing is there by half", async () => {
  const dataDir = newDataDir()
  let next = 0
  for (let round = 0; round < 3; round++) {
    const acknowledged = await writeUntilKilled(dataDir, next, 300 + round * 137)
    await using store = await openTestStore({ dataDir, migrations: MIGRATIONS })
    const rows = await store.read((view) => view.all<{ number: number }>("SELECT number FROM pairs"))
    const stored = Map.groupBy(rows, ({ number }) => number)
    for (const number of acknowledged) expect(stored.has(number), `number ${number}`).toBe(true)
    for (const halves of stored.values()) expect(halves).toHaveLength(2)
    next = Math.max(...stored.keys()) + 1
  }
  rmSync(dataDir, { recursive: true })
})

/** Starts a writer, kills it after `acknowledgements` answers, and gives the numbers it acknowledged. */
async function writeUntilKilled(dataDir: string, first: number, acknowledgements: number): Promise<number[]> {
  const child = spawn(
    process.execPath,
    [new URL("../support/store-writer.ts", import.meta.url).pathname, dataDir, String(first)],
    {
      stdio: ["ignore", "pipe", "inherit"],
    },
  )
  const acknowledged: number[] = []
  for await (const line of createInterface(child.stdout)) {
    acknowledged.push(Number(line))
    if (acknowledged.length === acknowledgements) child.kill("SIGKILL")
  }
  expect(acknowledged.length).toBeGreaterThanOrEqual(acknowledgements)
  return acknowledged
}
