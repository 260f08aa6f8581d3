import type { AsideRead, View } from "../../coordinator/store/store.ts"

/** Reads for tests of `readAside`: a thread finds them here. */
export const countUpRead: AsideRead<number, [upto: number]> = {
  module: import.meta.url,
  name: "countUpRead",
  run: countUp,
}

/** Some 50 ns a step. */
async function countUp(view: View, upto: number): Promise<number> {
  const row = await view.get<{ last: number }>(
    `WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ?) SELECT max(i) AS last FROM n`,
    upto,
  )
  return row?.last ?? 0
}

/** How many values one name has, asked twice with `waitSteps` between. */
export const twiceRead: AsideRead<[number, number], [waitSteps: number]> = {
  module: import.meta.url,
  name: "twiceRead",
  async run(view, waitSteps) {
    const count = async (): Promise<number> =>
      (await view.get<{ n: number }>("SELECT count(*) AS n FROM numbers"))?.n ?? 0
    const before = await count()
    await countUp(view, waitSteps)
    return [before, await count()]
  },
}

export const brokenRead: AsideRead<number> = {
  module: import.meta.url,
  name: "brokenRead",
  async run(view) {
    return (await view.all("SELECT * FROM no_such_table")).length
  },
}

/** Statement after statement: a thread ends between two of them, never inside one. */
export const forEverRead: AsideRead<never> = {
  module: import.meta.url,
  name: "forEverRead",
  async run(view) {
    for (;;) await countUp(view, 100_000)
  },
}

/**
 * How long `act` kept this thread busy, in ms of processor time: no stall that it causes is longer, and what else the machine
 * does at the same time does not count.
 */
export async function mainThreadMs(act: () => Promise<unknown>): Promise<number> {
  const before = process.threadCpuUsage()
  await act()
  const { user, system } = process.threadCpuUsage(before)
  return (user + system) / 1000
}
