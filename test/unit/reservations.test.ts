import { expect, test } from "vitest"
import { claimNumber } from "../../protocol/domain/ids.ts"
import { leaseOnWire } from "../../coordinator/jobs/read/lease.ts"
import { readJobBySeq } from "../../coordinator/jobs/read/read-job.ts"
import { reservationOf } from "../../coordinator/store/reservations.ts"
import { fundedAccount } from "../support/accounts.ts"
import { startJobRig } from "../support/job-rig.ts"
import { createReserving } from "../support/reserving.ts"

const AGEING_MS = 10_000

test("V-006: reserved work comes first, whatever it has used and whatever the priorities are", () => {
  const world = createReserving()
  world.machines.set("m", 4)
  world.put({ seq: 1, account: 2, tasks: 100 })
  expect(world.reserve({ seq: 2, account: 1, tasks: 3, parallelism: 2 })).toBe(true)
  const { round } = world.look()
  expect(round.places.map(({ job }) => job).toSorted((a, b) => a - b)).toEqual([1, 1, 2, 2])
  // Its third task follows in the slot that one of its own left.
  const [mine] = [...world.attempts.values()].filter(({ job }) => job === 2)
  world.end(mine?.claim ?? 0)
  expect(world.look().round.places.map(({ job }) => job)).toEqual([2])
})

test("rulings, Reservations: free slots are those beside what runs, less other jobs' idle slots", () => {
  const world = createReserving()
  world.machines.set("m0", 2)
  world.machines.set("m1", 3)
  world.put({ seq: 1, account: 2, tasks: 1 })
  world.look()
  expect(world.reserve({ seq: 2, account: 1, tasks: 0, parallelism: 5 })).toBe(false)
  expect(world.reserve({ seq: 2, account: 1, tasks: 0, parallelism: 3 })).toBe(true)
  expect(world.reserve({ seq: 3, account: 3, tasks: 0, parallelism: 2 })).toBe(false)
  expect(world.reserve({ seq: 3, account: 3, tasks: 0, parallelism: 1 })).toBe(true)
  world.over(2)
  expect(world.reserve({ seq: 4, account: 3, tasks: 0, parallelism: 3 })).toBe(true)
})

test("a submission that comes to nothing gives back what was held for it", () => {
  const world = createReserving()
  world.machines.set("m", 2)
  const wanted = { account: 1 as never, project: "p", requirements: needsOf(world), parallelism: 2, dedicated: false }
  const held = world.reservations.admit(wanted, world.nodes(), [])
  expect(world.reserve({ seq: 1, account: 2, tasks: 0, parallelism: 1 })).toBe(false)
  held[Symbol.dispose]()
  expect(world.reserve({ seq: 1, account: 2, tasks: 0, parallelism: 1 })).toBe(true)
})

test("what is on its way to the rows is no free room, and a stranger's keeps a node from being dedicated", () => {
  const world = createReserving()
  world.machines.set("m", 2)
  world.put({ seq: 1, account: 2, tasks: 0 })
  const wanted = { account: 1 as never, project: "p", requirements: needsOf(world), parallelism: 1, dedicated: true }
  expect(() => world.reservations.admit(wanted, world.nodes(), [{ job: 1, node: "m" }])).toThrow(/can be now/)
  using held = world.reservations.admit(wanted, world.nodes(), [])
  expect(held).toBeDefined()
})

test("nothing is handed ahead on a node with a reserved slot: the agent would start it there", () => {
  const world = createReserving()
  world.machines.set("m0", 2)
  world.machines.set("m1", 2)
  expect(world.reserve({ seq: 1, account: 1, tasks: 1, parallelism: 1 })).toBe(true)
  const { reserved } = world.look()
  expect(reserved.quiet.size).toBe(1)
  // It runs now, and its slot is still its own when it ends.
  expect(world.look().reserved.quiet).toEqual(reserved.quiet)
})

test("V-006, SC-006: nor is it on a dedicated node with a reserved slot, by another job of the project", () => {
  const world = createReserving()
  world.machines.set("m", 2)
  expect(world.reserve({ seq: 1, account: 1, tasks: 1, parallelism: 2, dedicated: true })).toBe(true)
  // One runs and one is idle; then both run.
  for (let tasks = 1; tasks <= 2; tasks++) {
    expect(world.look().reserved.quiet).toEqual(new Set(["m"]))
    world.queue.add(1, 1)
  }
  const other = world.put({ seq: 2, account: 1, tasks: 5 })
  expect(world.reservations.mayUse(other, "m")).toBe(true)
  expect(world.look().round.places).toEqual([])
  // A node without seats is shared with the project as any other.
  const lone = createReserving()
  lone.machines.set("m", 2)
  lone.put({ seq: 1, account: 1, tasks: 1, dedicated: true })
  lone.look()
  expect(lone.look().reserved.quiet).toEqual(new Set())
})

test("V-006: a slot whose node is gone moves to the next room, before anybody else", () => {
  const world = createReserving()
  world.machines.set("m0", 1)
  expect(world.reserve({ seq: 1, account: 1, tasks: 0, parallelism: 1 })).toBe(true)
  world.leave("m0")
  world.put({ seq: 2, account: 2, tasks: 5 })
  world.look()
  expect(world.reservations.waitsFor(1)).toBe("seats")
  world.machines.set("m1", 2)
  expect(world.look().round.places.map(({ job }) => job)).toEqual([2])
  expect(world.reservations.waitsFor(1)).toBeNull()
})

test("V-006: for a large slot that is owed a node takes nothing new until there is room", () => {
  const world = createReserving()
  world.machines.set("m0", 4)
  world.machines.set("m1", 4)
  world.put({ seq: 2, account: 2, tasks: 6 })
  world.look()
  world.machines.set("m2", 4)
  expect(world.reserve({ seq: 1, account: 1, tasks: 1, cpu: 4, parallelism: 1 })).toBe(true)
  world.put({ seq: 3, account: 2, tasks: 50 })
  world.leave("m2")
  const { reserved } = world.look()
  const [[closing] = ["none"]] = [...reserved.closing]
  for (const { claim, node } of world.attempts.values()) if (node === closing) world.end(claim)
  world.look()
  expect([...world.attempts.values()].find(({ job }) => job === 1)?.node).toBe(closing)
})

test("V-003: what has expired is everybody's", () => {
  const world = createReserving()
  world.machines.set("m", 1)
  expect(world.reserve({ seq: 1, account: 1, tasks: 0, parallelism: 1, forMs: 1_000 })).toBe(true)
  world.put({ seq: 2, account: 2, tasks: 1 })
  expect(world.look().round.places).toEqual([])
  world.pass(1_000)
  expect(world.look().round.places.map(({ job }) => job)).toEqual([2])
})

test("V-002: what an earlier start promised is kept, what has expired is not", () => {
  const world = createReserving()
  world.machines.set("m", 2)
  const row = { parallelism: 1, admittedAt: 0, endedAt: null }
  world.reservations.restore([
    { ...row, job: 1, expiresAt: 1_000_500 },
    { ...row, job: 2, expiresAt: 999_000 },
  ])
  for (const seq of [1, 2]) world.put({ seq, account: 1, tasks: 0, parallelism: 1 })
  expect(world.look().reserved.seats.map(({ job }) => job)).toEqual([1])
})

test("V-007: a promise of an earlier start ends with its job, also one that nothing more was done for; its retry has none", () => {
  const world = createReserving()
  world.machines.set("m", 1)
  world.reservations.restore([{ job: 1, parallelism: 1, admittedAt: 0, endedAt: null, expiresAt: 9_000_000 }])
  // Its results were being merged.
  world.over(1)
  const { seq } = world.put({ seq: 1, account: 1, tasks: 0, parallelism: 1 })
  world.put({ seq: 2, account: 2, tasks: 1 })
  const { round, reserved } = world.look()
  expect([reserved.seats, world.reservations.isGuaranteed(seq)]).toEqual([[], false])
  expect(round.places.map(({ job }) => job)).toEqual([2])
})

test("SC-006: the smallest free node that does is dedicated, and its project shares it", () => {
  const world = createReserving()
  world.machines.set("large", 8)
  world.machines.set("small", 2)
  world.put({ seq: 1, account: 1, tasks: 3, dedicated: true })
  world.put({ seq: 2, account: 1, tasks: 1, project: "other" })
  world.put({ seq: 3, account: 2, tasks: 1 })
  world.look()
  const nodeOf = (seq: number): string[] =>
    [...world.attempts.values()].filter(({ job }) => job === seq).map(({ node }) => node)
  expect([nodeOf(1), nodeOf(2), nodeOf(3)]).toEqual([["small", "small"], ["large"], ["large"]])
  world.end([...world.attempts.values()].find(({ job }) => job === 1)?.claim ?? 0)
  world.look()
  world.end([...world.attempts.values()].find(({ job }) => job === 1)?.claim ?? 0)
  world.put({ seq: 4, account: 1, tasks: 9 })
  world.look()
  expect(nodeOf(4)).toContain("small")
})

test("SC-006: a dedicated job makes a node free only after an ageing interval, at most a quarter of the fleet", () => {
  const world = createReserving(AGEING_MS)
  for (const n of [0, 1, 2, 3]) world.machines.set(`m${n}`, 2)
  world.put({ seq: 1, account: 2, tasks: 4 })
  world.look()
  for (const seq of [2, 3]) world.put({ seq, account: 1, tasks: 1, dedicated: true })
  expect(world.look().reserved.closing.size).toBe(0)
  expect(world.reservations.waitsFor(2)).toBe("node")
  world.pass(AGEING_MS)
  expect(world.look().reserved.closing.size).toBe(1)
})

test("V-005, V-007: the reservation ends in the write that ends its job, finished or cancelled; time ends it too", async () => {
  await using rig = await startJobRig()
  const account = await fundedAccount(rig.store, 1_000_000_000n)
  await rig.project(account)
  const reservation = { mode: "guaranteed", parallelism: 3, guaranteed_for_s: 60 }
  const [done, cancelled, expired] = [
    await rig.queued(account, { reservation }),
    await rig.queued(account, { reservation }),
    await rig.queued(account, { reservation }),
  ]
  const leaseOf = async ({ seq }: { seq: number }) => {
    const job = await readJobBySeq(rig.store, seq)
    if (!job) throw new Error("the job is there")
    return await leaseOnWire(rig, job)
  }
  const [claim = claimNumber(0)] = await rig.grant(done, 1)
  await rig.start([claim])
  expect(await leaseOf(done)).toMatchObject({ reservation: { active: true, available_parallelism: 2 } })
  await rig.report(claim)
  await rig.finish(await rig.row(done))
  await rig.cancel(cancelled)
  for (const job of [done, cancelled]) {
    expect(await rig.store.read((view) => reservationOf(view, job.seq))).toMatchObject({ endedAt: expect.any(Number) })
    expect(await leaseOf(job)).toMatchObject({ reservation: { active: false, available_parallelism: 0 } })
  }
  expect(await leaseOf(expired)).toMatchObject({ reservation: { active: true, available_parallelism: 3 } })
  rig.pass(60_000)
  expect(await leaseOf(expired)).toMatchObject({ reservation: { active: false, available_parallelism: 0 } })
  expect(await rig.store.read((view) => reservationOf(view, expired.seq))).toMatchObject({ endedAt: null })
})

function needsOf(world: ReturnType<typeof createReserving>) {
  return world.put({ seq: 99, account: 9, tasks: 0 }).requirements
}
