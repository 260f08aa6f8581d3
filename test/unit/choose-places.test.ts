import { expect, test } from "vitest"
import { createPlacing, machineOf } from "../support/placing.ts"

const AGEING_MS = 300_000

test("short tasks go ahead of slots only when no slot is free", () => {
  const placing = createPlacing(AGEING_MS)
  placing.put({ seq: 1, account: 1, cpu: 1, tasks: 7, paceMs: 100 })
  const nodes = [machineOf("full", 4, 4), machineOf("free", 4, 2)]
  const { places } = placing.look(nodes, 0)
  expect(places.slice(0, 2).map(({ node }) => node.id)).toEqual(["free", "free"])
  expect(places).toHaveLength(7)
})

test("architecture §5.4: who waits for a slot is not passed by short tasks that are handed ahead of it", () => {
  const placing = createPlacing(AGEING_MS)
  placing.put({ seq: 1, account: 1, cpu: 1, tasks: 1000, paceMs: 100 })
  // A full node: the first round hands ahead, and its account is charged for it.
  const before = placing.look([machineOf("n0", 4, 4)], 0)
  expect(before.places.length).toBeGreaterThan(4)
  expect(before.awaited.size).toBe(1)
  placing.put({ seq: 2, account: 2, cpu: 1 })
  const after = placing.look([machineOf("n0", 4, 4)], 1)
  expect(after.places).toEqual([])
  expect([...after.awaited].map(([{ id }, job]) => [id, job])).toEqual([["n0", 2]])
  // With one slot free it is the one who gets it.
  expect(placing.look([machineOf("n0", 4, 3)], 2).places[0]?.job).toBe(2)
})

test("tasks ahead of slots do not keep out who fits beside them, as many as there is room for", () => {
  const placing = createPlacing(AGEING_MS)
  placing.put({ seq: 1, account: 1, cpu: 1, tasks: 3 })
  const crowded = (cpu: number) =>
    machineOf("n0", 10, 40, { lookBeside: () => ({ cpu, memoryMb: cpu, storageGb: cpu, gpus: new Set() }) })
  expect(placing.look([crowded(8)], 0).places.map(({ node }) => node.id)).toEqual(["n0", "n0"])
  expect(placing.look([crowded(10)], 1).places).toEqual([])
  expect(placing.look([machineOf("n0", 10, 40)], 2).places).toEqual([])
})

test("no more slots are awaited than tasks wait, so that others go on being handed ahead elsewhere", () => {
  const placing = createPlacing(AGEING_MS)
  placing.put({ seq: 1, account: 1, cpu: 1, tasks: 1000, paceMs: 100 })
  placing.queue.runs(1)
  placing.put({ seq: 2, account: 2, cpu: 1, tasks: 5 })
  const nodes = ["n0", "n1", "n2"].map((id) => machineOf(id, 4, 4))
  const { places, awaited } = placing.look(nodes, 0)
  expect([...awaited.values()].filter((job) => job === 2)).toHaveLength(2)
  const ahead = new Set(places.map(({ node, job }) => `${job} on ${node.id}`))
  expect(ahead).toEqual(new Set(["1 on n2"]))
})

test("a kept node gets nothing ahead either", () => {
  const placing = createPlacing(AGEING_MS)
  placing.put({ seq: 1, account: 1, cpu: 4 })
  placing.put({ seq: 2, account: 2, cpu: 1, tasks: 1000, paceMs: 100 })
  const nodes = () => [machineOf("n0", 4, 3.5), machineOf("n1", 2, 2)]
  placing.look(nodes(), 0)
  const { places, kept } = placing.look(nodes(), AGEING_MS)
  expect([...kept].map(([{ id }, job]) => [id, job])).toEqual([["n0", 1]])
  expect(new Set(places.map(({ node }) => node.id))).toEqual(new Set(["n1"]))
})
