import fc from "fast-check"
import { expect, test } from "vitest"
import { createReserving, type Reserving } from "../support/reserving.ts"

/** Whatever comes and goes: what is reserved stays free for its job, and what is dedicated is its project's alone. */

type Step = (world: Reserving) => void

const account = fc.integer({ min: 1, max: 3 })
const cpu = fc.constantFrom(1, 1, 2, 3)
const machine = fc.integer({ min: 0, max: 4 })
let seqs = 0

const step: fc.Arbitrary<Step> = fc.oneof(
  fc.tuple(account, cpu, fc.integer({ min: 1, max: 6 })).map(([of, cores, tasks]): Step => (world) => {
    world.put({ seq: ++seqs, account: of, cpu: cores, tasks })
  }),
  fc
    .tuple(account, cpu, fc.integer({ min: 1, max: 5 }), fc.integer({ min: 0, max: 6 }), fc.boolean())
    .map(([of, cores, parallelism, tasks, dedicated]): Step => (world) => {
      const { couldSeat, closes } = seatsFree(world, cores)
      const seq = ++seqs
      const admitted = world.reserve({ seq, account: of, cpu: cores, tasks, parallelism, dedicated, forMs: 5_000 })
      // A shared one is refused only when so many are not free.
      if (!dedicated && !closes && !hasDedicated(world)) expect(admitted).toBe(couldSeat >= parallelism)
      if (admitted) expect(couldSeat).toBeGreaterThanOrEqual(parallelism)
    }),
  fc.tuple(account, fc.integer({ min: 1, max: 4 })).map(([of, tasks]): Step => (world) => {
    world.put({ seq: ++seqs, account: of, tasks, dedicated: true })
  }),
  fc.nat(50).map((which): Step => (world) => {
    const claims = [...world.attempts.keys()]
    const claim = claims[which % Math.max(1, claims.length)]
    if (claim !== undefined) world.end(claim)
  }),
  fc.nat(50).map((which): Step => (world) => {
    const all = [...world.jobs.keys()]
    const seq = all[which % Math.max(1, all.length)]
    if (seq !== undefined) world.over(seq)
  }),
  fc.tuple(machine, fc.integer({ min: 1, max: 6 })).map(([of, cores]): Step => (world) => {
    const id = `m${of}`
    if (world.machines.has(id)) world.leave(id)
    else world.machines.set(id, cores)
  }),
  fc.integer({ min: 1, max: 4_000 }).map(
    (ms): Step =>
      (world) =>
        world.pass(ms),
  ),
)

/** How many seats of this size fit beside everything that runs and every idle seat. */
function seatsFree(world: Reserving, cores: number): { couldSeat: number; closes: boolean } {
  const nodes = world.nodes()
  const { closing } = world.reservations.look(nodes)
  const free = nodes.map(({ capacity, used }) => Math.max(0, Math.floor((capacity.cpu - used.cpu) / cores)))
  return { couldSeat: free.reduce((sum, one) => sum + one, 0), closes: closing.size > 0 }
}

function hasDedicated(world: Reserving): boolean {
  return [...world.jobs.values()].some(({ dedicated }) => dedicated)
}

function check(world: Reserving): void {
  const before = new Set(world.attempts.keys())
  const { round, reserved } = world.look()
  const nodes = new Map(world.nodes().map((node) => [node.id, node]))
  const placed = [...world.attempts.values()].filter(({ claim }) => !before.has(claim))
  expect(placed).toHaveLength(round.places.length)

  // Nothing is handed ahead where a seat is, dedicated or not: the agent would start it there.
  for (const { node } of reserved.seats) expect(reserved.quiet).toContain(node)
  for (const [id, { job, node }] of world.attempts) {
    if (before.has(id) && world.reservations.isGuaranteed(job)) expect(reserved.quiet).toContain(node)
  }

  // Where everything stands after the placing: idle seats beside all that runs, never more than there is.
  const after = world.nodes()
  const { seats } = world.reservations.look(after)
  const idle = new Map<string, number>()
  for (const { job, node } of seats) {
    idle.set(node, (idle.get(node) ?? 0) + (world.jobs.get(job)?.requirements.cpu ?? 0))
  }
  for (const [id, { capacity, used }] of nodes) {
    expect(used.cpu + (idle.get(id) ?? 0), id).toBeLessThanOrEqual(capacity.cpu)
  }

  for (const [seq, { guaranteed }] of world.jobs) {
    if (!world.reservations.isGuaranteed(seq)) continue
    const running = [...world.attempts.values()].filter(({ job }) => job === seq).length
    const its = seats.filter(({ job }) => job === seq).length
    const owed = world.reservations.waitsFor(seq) === "seats"
    // Neither more nor less than was promised; what is not there is owed.
    if (!owed) expect(its).toBe(Math.max(0, guaranteed - running))
    else expect(its).toBeLessThan(guaranteed - running)
    // No task of its own waits beside an idle seat.
    if (its > 0) expect(world.queue.waiting(seq)).toBe(0)
  }

  // Dedicated work never has a stranger beside it that was placed later, nor is it placed beside one.
  for (const { claim, job, node } of placed) {
    const own = world.jobs.get(job)
    for (const other of world.attempts.values()) {
      const its = world.jobs.get(other.job)
      if (other.claim === claim || other.node !== node || !own || !its) continue
      if (isAlone(world, its.seq) && its.account !== own.account) expect.fail(`${job} beside dedicated ${other.job}`)
      if (isAlone(world, job) && its.account !== own.account) expect.fail(`dedicated ${job} beside ${other.job}`)
    }
  }
  // A closed node takes the job that it is closed for, and who has a seat there.
  const seated = new Set(reserved.seats.map(({ job, node }) => `${job} on ${node}`))
  for (const [id, job] of reserved.closing) {
    const others = placed.filter(({ node, job: other }) => node === id && other !== job)
    expect(others.filter(({ job: other }) => !seated.has(`${other} on ${id}`))).toEqual([])
  }
}

/** Its window is still open. */
function isAlone(world: Reserving, seq: number): boolean {
  const facts = world.jobs.get(seq)
  return facts?.dedicated === true && (facts.guaranteed === 0 || world.reservations.isGuaranteed(seq))
}

test("V-002, V-003, V-006, SC-006: no order of events lends a reserved slot, promises one twice, or puts a stranger on a dedicated node", () => {
  fc.assert(
    fc.property(fc.array(step, { minLength: 5, maxLength: 80 }), (steps) => {
      const world = createReserving(2_000)
      for (const n of [0, 1, 2]) world.machines.set(`m${n}`, 2 + n)
      for (const act of steps) {
        act(world)
        check(world)
      }
    }),
    { numRuns: 250 },
  )
})
