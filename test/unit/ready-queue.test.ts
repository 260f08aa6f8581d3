import { expect, test } from "vitest"
import { accountId } from "../../protocol/domain/ids.ts"
import type { Priority } from "../../protocol/domain/statuses.ts"
import { createReadyQueue, rankOf, type ReadyJob, type ReadyQueue } from "../../coordinator/scheduler/ready-queue.ts"

const AGEING_MS = 300_000
const always = (): boolean => true

function job(seq: number, more: Partial<Omit<ReadyJob, "account">> & { account?: number } = {}): ReadyJob {
  const { account = 1, ...rest } = more
  return { seq, priority: "normal", kind: "k", readySince: 0, tasks: 1, cost: 10, ...rest, account: accountId(account) }
}

function queueOf(...jobs: ReadyJob[]): ReadyQueue {
  const queue = createReadyQueue(AGEING_MS)
  for (const one of jobs) queue.put(one)
  return queue
}

const order = (queue: ReadyQueue, count: number, nowMs = 0): number[] =>
  Array.from({ length: count }, () => queue.take(nowMs, always)?.seq ?? -1)
const countOf = (seqs: number[], seq: number): number => seqs.filter((one) => one === seq).length

test("SC-004: inside an account high goes before normal before low", () => {
  const priorities: Priority[] = ["low", "normal", "high"]
  expect(order(queueOf(...priorities.map((priority, seq) => job(seq, { priority }))), 4)).toEqual([2, 1, 0, -1])
})

test("SC-004: a waiting job rises one level per ageing interval, so that low is not starved", () => {
  expect(
    [0, AGEING_MS - 1, AGEING_MS, 2 * AGEING_MS, 9 * AGEING_MS].map((now) =>
      rankOf(job(1, { priority: "low" }), now, AGEING_MS),
    ),
  ).toEqual([2, 2, 1, 0, 0])
  const queue = queueOf(
    job(1, { priority: "low" }),
    job(2, { priority: "high", tasks: 100, readySince: 2 * AGEING_MS }),
  )
  expect(order(queue, 2)).toEqual([2, 2])
  expect(order(queue, 4, 2 * AGEING_MS)).toContain(1)
})

test("GAP-64: accounts share fairly whatever their priorities and whoever came first", () => {
  const taken = order(
    queueOf(job(1, { priority: "low", tasks: 100 }), job(2, { account: 2, priority: "high", tasks: 100 })),
    40,
  )
  expect([countOf(taken, 1), countOf(taken, 2)]).toEqual([20, 20])
})

test("fair share counts cost, not tasks", () => {
  const taken = order(queueOf(job(1, { tasks: 100, cost: 30 }), job(2, { account: 2, tasks: 100, cost: 10 })), 40)
  expect(countOf(taken, 2) / countOf(taken, 1)).toBeCloseTo(3, 0)
})

test("SC-003: a small job is not kept waiting by a large one of the same account", () => {
  expect(order(queueOf(job(1, { tasks: 100 }), job(2)), 3)).toContain(2)
})

test("becoming active earns no credit: who was away does not take over", () => {
  const queue = queueOf(job(1, { tasks: 1000 }))
  for (const seq of order(queue, 100)) queue.ended(seq, 10)
  queue.put(job(2, { account: 2, tasks: 100 }))
  queue.put(job(3, { tasks: 100 }))
  const taken = order(queue, 40)
  expect(countOf(taken, 2)).toBeLessThanOrEqual(21)
  expect(countOf(taken, 3)).toBeLessThanOrEqual(11)
})

test("being served while nobody else wanted anything costs nothing later", () => {
  const queue = queueOf(job(1, { tasks: 1000 }))
  for (const seq of order(queue, 1000)) queue.ended(seq, 10)
  queue.put(job(2, { account: 2, tasks: 100 }))
  queue.put(job(3, { tasks: 100 }))
  const taken = order(queue, 40)
  expect(countOf(taken, 3)).toBeGreaterThanOrEqual(19)
})

test("what a task counts while it runs makes way for what it has used", () => {
  const queue = queueOf(job(1, { tasks: 200, cost: 100 }), job(2, { account: 2, tasks: 200, cost: 10 }))
  const taken: number[] = []
  for (let n = 0; n < 80; n++) {
    const next = queue.take(0, always)
    taken.push(next?.seq ?? -1)
    if (next) queue.ended(next.seq, 10)
  }
  expect(countOf(taken, 1)).toBeGreaterThanOrEqual(39)
})

test("who has less in use is served next, whatever the time limits, and whoever has used more before", () => {
  const queue = queueOf(job(1, { tasks: 1000, cost: 100 }))
  for (const seq of order(queue, 500)) queue.ended(seq, 7)
  // Eight slots are its own; then another account comes, and slots become free one by one.
  order(queue, 8)
  queue.put(job(2, { account: 2, tasks: 100, cost: 100 }))
  const held = [1, 1, 1, 1, 1, 1, 1, 1]
  for (let n = 0; n < 8; n++) {
    queue.ended(held.shift() ?? 0, 7)
    held.push(queue.take(0, always)?.seq ?? -1)
  }
  expect([countOf(held, 1), countOf(held, 2)]).toEqual([4, 4])
})

test("a job that ends with tasks in use leaves its account nothing to pay for", () => {
  const queue = queueOf(job(1, { tasks: 50, cost: 100 }), job(2, { account: 2, tasks: 500, cost: 100 }))
  expect(countOf(order(queue, 40), 1)).toBe(20)
  queue.remove(1)
  queue.put(job(3, { tasks: 500, cost: 100 }))
  expect(countOf(order(queue, 20), 3)).toBe(20)
})

test("what came back unused counts nothing; what ran before a restart counts", () => {
  const queue = queueOf(job(1, { tasks: 100 }), job(2, { account: 2, tasks: 100 }))
  for (let n = 0; n < 6; n++) queue.runs(1)
  expect(order(queue, 6)).toEqual([2, 2, 2, 2, 2, 2])
  queue.returned(1, 6)
  expect(order(queue, 6)).toEqual([1, 1, 1, 1, 1, 1])
})

test("jobs of one account share it as accounts share the fleet, also when many wait", () => {
  const queue = queueOf(
    ...Array.from({ length: 20 }, (_, seq) => job(seq, { tasks: 1000, cost: seq % 2 === 0 ? 100 : 10 })),
  )
  const taken: number[] = []
  for (let n = 0; n < 2000; n++) {
    const next = queue.take(0, always)
    taken.push(next?.seq ?? -1)
    if (next) queue.ended(next.seq, 10)
  }
  for (let seq = 0; seq < 20; seq++) expect(Math.abs(countOf(taken, seq) - 100)).toBeLessThanOrEqual(15)
})

test("work that fitted nowhere for a long time takes over no fleet when it fits", () => {
  const queue = queueOf(job(1, { kind: "gpu", tasks: 100 }), job(2, { account: 2, tasks: 10_000 }))
  for (let n = 0; n < 5_000; n++) queue.ended(queue.take(0, (kind) => kind === "k")?.seq ?? 0, 10)
  const taken = Array.from({ length: 60 }, () => {
    const next = queue.take(0, always)
    if (next) queue.ended(next.seq, 10)
    return next?.seq ?? -1
  })
  expect(countOf(taken, 1)).toBeLessThanOrEqual(32)
})

test("a kind that fits nowhere is passed over, and waits on", () => {
  const queue = queueOf(job(1, { kind: "gpu", priority: "high" }), job(2, { kind: "cpu" }))
  expect(queue.take(0, (kind) => kind === "cpu")?.seq).toBe(2)
  expect(queue.take(0, (kind) => kind === "cpu")).toBeNull()
  expect(queue.take(0, always)?.seq).toBe(1)
})

test("a blocked job is passed over until it is unblocked, with all its tasks", () => {
  const queue = queueOf(job(1, { tasks: 5 }), job(2, { tasks: 1 }))
  expect(queue.take(0, always)?.seq).toBe(1)
  queue.block(1, 1)
  expect(order(queue, 2)).toEqual([2, -1])
  queue.unblock(1)
  expect(order(queue, 6)).toEqual([1, 1, 1, 1, 1, -1])
})

test("a job that is over is gone, and unknown jobs are fine", () => {
  const queue = queueOf(job(1, { tasks: 5 }))
  queue.remove(1)
  for (const seq of [1, 7]) {
    queue.add(seq, 3)
    queue.putBack(seq, 1)
    queue.block(seq, 1)
    queue.unblock(seq)
    queue.ended(seq, 4)
    queue.returned(seq, 1)
    queue.runs(seq)
    queue.remove(seq)
  }
  expect(queue.take(0, always)).toBeNull()
  expect(queue.demand().size).toBe(0)
})

test("a job waits behind another of its account only while that one has a higher rank", () => {
  const queue = queueOf(job(1, { priority: "low" }), job(2, { priority: "high" }), job(3, { account: 2 }))
  expect([1, 2, 3].map((seq) => queue.isFirst(seq, 0))).toEqual([false, true, true])
})

test("20,000 jobs of 100,000 tasks are put and taken quickly", () => {
  const queue = createReadyQueue(AGEING_MS)
  const startedAt = performance.now()
  for (let seq = 0; seq < 20_000; seq++) {
    queue.put(job(seq, { account: seq % 50, kind: `k${seq % 20}`, tasks: 5, cost: 1 + (seq % 7) }))
  }
  for (let n = 0; n < 100_000; n++) expect(queue.take(0, always)).not.toBeNull()
  expect(queue.take(0, always)).toBeNull()
  // Some two microseconds each on an idle machine; a limit that only a wrong algorithm exceeds.
  expect(performance.now() - startedAt).toBeLessThan(20_000)
})
