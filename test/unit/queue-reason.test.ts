import { expect, test } from "vitest"
import type { Capacity, Requirements } from "../../protocol/domain/requirements.ts"
import { queueReason, type QueueFacts, type QueueNode } from "../../coordinator/scheduler/queue-reason.ts"

const need: Requirements = { cpu: 1, memoryMb: 512, storageGb: 1, gpuCount: 0, profile: "cpu" }
const capacity: Capacity = { cpu: 2, memoryMb: 4096, storageGb: 10, gpus: [] }
const node = (busyCores = 0, more: Partial<QueueNode> = {}): QueueNode => ({
  roles: ["worker"],
  isolation: "gvisor",
  enforces: ["memory", "cpu", "pids"],
  capacity,
  used: { cpu: busyCores, memoryMb: busyCores * 512, storageGb: busyCores, gpus: new Set() },
  held: busyCores,
  most: Number.POSITIVE_INFINITY,
  ...more,
})
const facts = (more: Partial<QueueFacts>): QueueFacts => ({
  nodes: [node()],
  requirements: need,
  policy: { allowUnsandboxed: false, allowUnenforced: false },
  runtime: { state: "ready" },
  higherWaits: false,
  budgetShort: false,
  kept: null,
  etaSeconds: null,
  ownWaits: null,
  ...more,
})

test("without a machine, or none large enough, there is no matching capacity, and it says which", () => {
  const none = queueReason(facts({ nodes: [] }))
  expect(none).toMatchObject({ code: "no_matching_capacity", eligible_slots: 0, busy_slots: 0 })
  expect(none.message).toContain("no machine is connected")
  const small = queueReason(facts({ requirements: { ...need, cpu: 64 } }))
  expect([small.code, small.message]).toEqual(["no_matching_capacity", expect.stringContaining("64 cores")])
  const gpu = queueReason(facts({ requirements: { ...need, gpuCount: 1, profile: "gpu" } }))
  expect([gpu.code, gpu.message]).toEqual(["no_matching_capacity", expect.stringContaining("1 GPU")])
})

test("rulings, Mesh: a node without a sandbox or limits is no capacity unless the deployment allows it", () => {
  const bare = node(0, { isolation: "none", enforces: [] })
  expect(queueReason(facts({ nodes: [bare] })).code).toBe("no_matching_capacity")
  const policy = { allowUnsandboxed: true, allowUnenforced: true }
  expect(queueReason(facts({ nodes: [bare], policy })).code).not.toBe("no_matching_capacity")
})

test("taken slots are counted, over all machines that fit", () => {
  const reason = queueReason(facts({ nodes: [node(2), node(2)] }))
  expect(reason).toMatchObject({ code: "capacity_busy", eligible_slots: 4, busy_slots: 4 })
  expect(queueReason(facts({ nodes: [node(2), node(1)] }))).toMatchObject({ eligible_slots: 4, busy_slots: 3 })
  // Handed ahead of free slots: more than all is still all.
  expect(queueReason(facts({ nodes: [node(5)] }))).toMatchObject({ eligible_slots: 2, busy_slots: 2 })
})

test("a node on probation is one slot, whatever it lends", () => {
  expect(queueReason(facts({ nodes: [node(0, { most: 1 })] }))).toMatchObject({ eligible_slots: 1, busy_slots: 0 })
  expect(queueReason(facts({ nodes: [node(1, { most: 1 })] }))).toMatchObject({
    code: "capacity_busy",
    eligible_slots: 1,
    busy_slots: 1,
  })
})

test("a runtime that is not there is named before busy slots, and says when nobody can build it", () => {
  const nodes = [node(2)]
  const building = queueReason(facts({ nodes, runtime: { state: "building", noBuilder: false } }))
  expect(building.code).toBe("runtime_preparing")
  const nobody = queueReason(facts({ nodes, runtime: { state: "building", noBuilder: true } }))
  expect([nobody.code, nobody.message]).toEqual([
    "runtime_preparing",
    expect.stringContaining("no machine that builds"),
  ])
  const failed = queueReason(facts({ nodes, runtime: { state: "failed", fault: "project", message: "pip said no" } }))
  expect([failed.code, failed.message]).toEqual(["runtime_failed", expect.stringContaining("pip said no")])
  expect(failed.suggestion).toContain("push again")
  const unable = queueReason(facts({ nodes, runtime: { state: "failed", fault: "machine", message: "no base layer" } }))
  expect([unable.code, unable.message]).toEqual(["runtime_failed", expect.stringContaining("no base layer")])
  expect(unable.suggestion).toContain("Nothing to correct in the project")
})

test("architecture §5.4: a job says when a machine is kept for it, and one that waits behind such a job says that", () => {
  const large = queueReason(facts({ nodes: [node(1)], kept: "for_it", requirements: { ...need, cpu: 2 } }))
  expect([large.code, large.message]).toEqual(["capacity_busy", expect.stringContaining("kept for it")])
  const small = queueReason(facts({ nodes: [node(2)], kept: "for_others" }))
  expect([small.code, small.message]).toEqual(["capacity_busy", expect.stringContaining("waited longer")])
  expect(queueReason(facts({ nodes: [node(2)] })).message).not.toContain("kept")
})

test("V-006, SC-006: who waits for seats that were promised, or for a machine to itself, says so with its counts", () => {
  const seats = queueReason(facts({ nodes: [node(2)], ownWaits: "seats" }))
  expect(seats).toMatchObject({ code: "reservation_wait", eligible_slots: 2, busy_slots: 2 })
  const alone = queueReason(facts({ nodes: [node(1)], ownWaits: "node", higherWaits: true }))
  expect(alone).toMatchObject({ code: "reservation_wait", eligible_slots: 2, busy_slots: 1 })
  expect(alone.message).toContain("free of other accounts")
  expect(queueReason(facts({ nodes: [], ownWaits: "node" })).code).toBe("no_matching_capacity")
})

test("eta_s is told where it is known, and left out where nothing tells", () => {
  expect(queueReason(facts({ nodes: [node(2)], etaSeconds: 7 }))).toMatchObject({ code: "capacity_busy", eta_s: 7 })
  expect(queueReason(facts({ nodes: [node(2)] }))).not.toHaveProperty("eta_s")
  expect(queueReason(facts({ nodes: [node(0)], etaSeconds: 7 }))).not.toHaveProperty("eta_s")
})

test("a job behind another of its account, and one whose hold is reserved, say so", () => {
  expect(queueReason(facts({ nodes: [node(2)], higherWaits: true })).code).toBe("held_by_priority")
  expect(queueReason(facts({ nodes: [], budgetShort: true })).code).toBe("waiting_for_budget")
})

test("every waiting job says something, also in the moment before it starts", () => {
  expect(queueReason(facts({}))).toMatchObject({ code: "runtime_preparing", eligible_slots: 2, busy_slots: 0 })
})
