import fc from "fast-check"
import { expect, test } from "vitest"
import { openTestStore } from "../support/store.ts"

const MIGRATIONS = [
  {
    number: 1,
    name: "0001-rows",
    sql: `CREATE TABLE rows (id INTEGER PRIMARY KEY, act INTEGER NOT NULL, key INTEGER NOT NULL UNIQUE) STRICT;`,
  },
]

/** Keys an act writes, whether it throws at its end, whether it waits outside, and how many turns pass before it. */
const anAct = fc.record({
  keys: fc.array(fc.integer({ min: 0, max: 60 }), { minLength: 1, maxLength: 4 }),
  ends: fc.constantFrom("well", "well", "well", "throws", "waits outside"),
  turnsBefore: fc.constantFrom(0, 0, 0, 1),
})

test("exactly the acts whose promise resolved are stored, each whole", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(anAct, { minLength: 1, maxLength: 40, size: "max" }), async (acts) => {
      await using store = await openTestStore({ migrations: MIGRATIONS })
      const asked: Promise<number>[] = []
      for (const [index, { keys, ends, turnsBefore }] of acts.entries()) {
        for (let turn = 0; turn < turnsBefore; turn++) await new Promise((resolve) => setImmediate(resolve))
        const asking = store.write(async (tx) => {
          for (const key of keys) await tx.run("INSERT INTO rows (act, key) VALUES (?, ?)", index, key)
          if (ends === "throws") throw new Error("refused")
          if (ends === "waits outside") await new Promise((resolve) => setTimeout(resolve, 0))
          return index
        })
        asking.catch(() => undefined) // looked at below; a later act may still be waiting for its turn
        asked.push(asking)
      }
      const results = await Promise.allSettled(asked)
      const kept = results.flatMap((result) => (result.status === "fulfilled" ? [result.value] : []))
      const stored = await store.read((view) => view.all<{ act: number; key: number }>("SELECT act, key FROM rows"))
      const byAct = Map.groupBy(stored, ({ act }) => act)
      expect([...byAct.keys()].sort((a, b) => a - b)).toEqual(kept)
      for (const [act, rows] of byAct) {
        expect(new Set(rows.map(({ key }) => key))).toEqual(new Set(acts[act]?.keys))
        expect(acts[act]?.ends).toBe("well")
      }
    }),
    { numRuns: 100 },
  )
})
