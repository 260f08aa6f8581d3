import fc from "fast-check"
import { expect, test } from "vitest"
import { accountId } from "../../protocol/domain/ids.ts"
import { createReadyQueue, type ReadyJob, type ReadyQueue } from "../../coordinator/scheduler/ready-queue.ts"

/** What each job must still have: waiting, and set aside. */
type Model = Map<number, { waiting: number; blocked: number; taken: number; kind: string }>

type Step = (queue: ReadyQueue, model: Model) => void

const seq = fc.integer({ min: 0, max: 7 })
const few = fc.integer({ min: 1, max: 4 })

const kindOf = (of: number): string => `k${of % 3}`
const jobOf = (of: number, tasks: number): ReadyJob => ({
  seq: of,
  account: accountId(of % 2),
  priority: of % 3 === 0 ? "high" : "low",
  kind: kindOf(of),
  readySince: 0,
  tasks,
  cost: 1 + of,
})

const step: fc.Arbitrary<Step> = fc.oneof(
  fc.tuple(seq, few).map(([of, tasks]): Step => (queue, model) => {
    if (model.has(of)) return
    queue.put(jobOf(of, tasks))
    model.set(of, { waiting: tasks, blocked: 0, taken: 0, kind: kindOf(of) })
  }),
  fc.tuple(seq, fc.integer({ min: -3, max: 3 })).map(([of, tasks]): Step => (queue, model) => {
    queue.add(of, tasks)
    const known = model.get(of)
    if (known) known.waiting = Math.max(0, known.waiting + tasks)
  }),
  fc.tuple(fc.subarray(["k0", "k1", "k2"]), fc.nat(1_000_000)).map(([kinds, nowMs]): Step => (queue, model) => {
    const next = queue.take(nowMs, (kind) => kinds.includes(kind))
    const couldBe = [...model.values()].some(({ waiting, kind }) => waiting > 0 && kinds.includes(kind))
    expect(next !== null).toBe(couldBe)
    if (!next) return
    expect(kinds).toContain(next.kind)
    const known = model.get(next.seq)
    expect(known?.waiting).toBeGreaterThan(0)
    if (!known) return
    known.waiting -= 1
    known.taken += 1
  }),
  seq.map((of): Step => (queue, model) => {
    const known = model.get(of)
    if (!known || known.taken === 0) return
    queue.putBack(of, 1)
    known.taken -= 1
    known.waiting += 1
  }),
  seq.map((of): Step => (queue, model) => {
    const known = model.get(of)
    if (!known) return
    queue.block(of, known.taken)
    known.blocked += known.waiting + known.taken
    known.waiting = known.taken = 0
  }),
  seq.map((of): Step => (queue, model) => {
    queue.unblock(of)
    const known = model.get(of)
    if (!known) return
    known.waiting += known.blocked
    known.blocked = 0
  }),
  seq.map((of): Step => (queue, model) => {
    queue.remove(of)
    model.delete(of)
  }),
  fc.tuple(seq, fc.integer({ min: 0, max: 20 })).map(([of, used]): Step => (queue, model) => {
    queue.ended(of, used)
    const known = model.get(of)
    if (known && known.taken > 0) known.taken -= 1
  }),
  fc.tuple(seq, few).map(([of, tasks]): Step => (queue, model) => {
    queue.returned(of, tasks)
    const known = model.get(of)
    if (known) known.taken = Math.max(0, known.taken - tasks)
  }),
)

test("no order of acts loses a task or invents one", () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 120 }), (steps) => {
      const queue = createReadyQueue(400_000)
      const model: Model = new Map()
      for (const act of steps) {
        act(queue, model)
        for (let of = 0; of < 8; of++) expect(queue.waiting(of)).toBe(model.get(of)?.waiting ?? 0)
      }
      const waiting = [...model.values()].reduce((sum, one) => sum + one.waiting, 0)
      const demanded = [...queue.demand().values()].reduce((sum, { tasks }) => sum + tasks, 0)
      expect(demanded).toBe(waiting)
      const taken = new Map<number, number>()
      for (let next = queue.take(0, () => true); next; next = queue.take(0, () => true)) {
        taken.set(next.seq, (taken.get(next.seq) ?? 0) + 1)
      }
      for (const [of, known] of model) expect(taken.get(of) ?? 0).toBe(known.waiting)
    }),
    { numRuns: 400 },
  )
})

test("two accounts that always want something get the same, whatever the jobs they have", () => {
  const jobs = fc.array(fc.record({ cost: fc.integer({ min: 1, max: 50 }), tasks: fc.constant(500) }), {
    minLength: 1,
    maxLength: 5,
  })
  fc.assert(
    fc.property(jobs, jobs, (mine, theirs) => {
      const queue = createReadyQueue(400_000)
      let next = 0
      for (const [account, all] of [mine, theirs].entries()) {
        for (const one of all) queue.put({ ...jobOf(next++, one.tasks), cost: one.cost, account: accountId(account) })
      }
      const spent = [0, 0]
      for (let n = 0; n < 300; n++) {
        const took = queue.take(0, () => true)
        if (took) spent[Number(took.account)] = (spent[Number(took.account)] ?? 0) + took.cost
      }
      expect(Math.abs((spent[0] ?? 0) - (spent[1] ?? 0))).toBeLessThanOrEqual(50)
    }),
    { numRuns: 60 },
  )
})
