import { writeSync } from "node:fs"
import { openStore } from "../../coordinator/store/open-store.ts"
import { systemClock } from "../../protocol/base/clock.ts"
import { silentLog } from "../../protocol/base/log.ts"

/** Writes pairs of rows, many at a time, and prints each number once it is stored. Runs until it is killed. */
const [dataDir = "", first = "0"] = process.argv.slice(2)
const store = await openStore({
  dataDir,
  clock: systemClock,
  log: silentLog,
  onFatal: () => process.exit(1),
  migrations: [
    {
      number: 1,
      name: "0001-pairs",
      sql: "CREATE TABLE pairs (id INTEGER PRIMARY KEY, number INTEGER NOT NULL, half TEXT NOT NULL) STRICT;",
    },
  ],
})
let next = Number(first)

async function writeForEver(): Promise<never> {
  for (;;) {
    const number = next++
    await store.write(async (tx) => {
      await tx.run("INSERT INTO pairs (number, half) VALUES (?, 'left')", number)
      await tx.run("INSERT INTO pairs (number, half) VALUES (?, 'right')", number)
    })
    writeSync(1, `${number}\n`)
  }
}

await Promise.all(Array.from({ length: 20 }, writeForEver))
