import { expect, test } from "vitest"
import { accountId } from "../../protocol/domain/ids.ts"
import { createSnapshotTurns, type SnapshotTurn } from "../../coordinator/http/snapshot-turns.ts"

let nowMs = 0
const clock = { now: () => 0, monotonicMs: () => nowMs, after: () => ({ cancel() {} }) }

/** Lets what was resolved go on. */
const settled = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

test("few snapshots are made at a time, and one account with many does not keep the others waiting", async () => {
  const turns = createSnapshotTurns(clock)
  const order: string[] = []
  const held: SnapshotTurn[] = []
  const take = async (name: string, account: number): Promise<void> => {
    const turn = await turns.take(accountId(account))
    order.push(name)
    held.push(turn)
  }
  for (let n = 0; n < 7; n++) void take(`a${n}`, 1)
  void take("b0", 2)
  await settled()
  expect(order).toEqual(["a0", "a1", "a2", "a3"])
  for (let n = 0; n < 3; n++) {
    held.shift()?.[Symbol.dispose]()
    await settled()
  }
  expect(order.slice(4)).toEqual(["a4", "b0", "a5"])
})

test("a turn is over while its reader is waited for, and once it has lasted long others come between", async () => {
  const turns = createSnapshotTurns(clock)
  const mine = await turns.take(accountId(1))
  const others = await Promise.all([1, 1, 1].map((account) => turns.take(accountId(account))))
  let came = 0
  const next = async (): Promise<void> => {
    using _turn = await turns.take(accountId(2))
    came += 1
  }
  void next()
  await mine.goOn()
  await settled()
  expect(came, "still mine").toBe(0)
  mine.pause()
  await settled()
  expect(came).toBe(1)
  await mine.goOn()
  void next()
  nowMs += 100
  await mine.goOn()
  expect(came).toBe(2)
  for (const turn of [mine, ...others]) turn[Symbol.dispose]()
  mine[Symbol.dispose]()
  const all = await Promise.all([1, 2, 3, 4].map((account) => turns.take(accountId(account))))
  expect(all).toHaveLength(4)
})
