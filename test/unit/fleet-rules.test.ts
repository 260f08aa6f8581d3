import { describe, expect, test } from "vitest"
import { systemClock } from "../../protocol/base/clock.ts"
import { nodeId, peerId } from "../../protocol/domain/ids.ts"
import { MOST_HELD } from "../../protocol/wire/control.ts"
import type { Capacity, Requirements } from "../../protocol/domain/requirements.ts"
import { fit, freeOf, mayRunProjects, requirementsKey, slots } from "../../coordinator/fleet/fit.ts"
import { fleetFacts, hasLiveWorker, liveWorkers } from "../../coordinator/fleet/fleet.ts"
import { createMembers } from "../../coordinator/fleet/members.ts"
import {
  contactOf,
  heartbeatIntervalMs,
  isOurFault,
  newIntervalMs,
  patienceMs,
} from "../../coordinator/fleet/liveness.ts"
import { aheadOf, createPace } from "../../coordinator/scheduler/pace.ts"
import { chooseAhead, chooseSlot, type PlaceableNode, type Wanted } from "../../coordinator/scheduler/place.ts"

const need = (more: Partial<Requirements> = {}): Requirements => ({
  cpu: 1,
  memoryMb: 512,
  storageGb: 1,
  gpuCount: 0,
  profile: "cpu",
  ...more,
})
const gpu = (uuid: string, memoryMb: number) => ({ uuid, model: "any", memoryMb })
const machine = (more: Partial<Capacity> = {}): Capacity => ({
  cpu: 4,
  memoryMb: 8192,
  storageGb: 100,
  gpus: [],
  ...more,
})
const nothing = { cpu: 0, memoryMb: 0, storageGb: 0, gpus: new Set<string>() }

describe("fit", () => {
  test("SC-001: requirements are minimums: a larger machine is fine, a smaller one is not", () => {
    expect(fit(machine({ cpu: 8 }), need({ cpu: 2 }))).toEqual([])
    expect(fit(machine({ cpu: 8 }), need({ cpu: 16 }))).toBeNull()
    expect(fit(machine(), need({ memoryMb: 8193 }))).toBeNull()
    expect(fit(machine(), need({ storageGb: 101 }))).toBeNull()
  })

  test("GPUs: the smallest that do, none that are too small or of unknown memory where memory is asked", () => {
    const gpus = [gpu("large", 80_000), gpu("small", 24_000), gpu("unknown", 0)]
    expect(fit(machine({ gpus }), need({ gpuCount: 1, gpuMemoryMb: 16_000 }))).toEqual(["small"])
    expect(fit(machine({ gpus }), need({ gpuCount: 2, gpuMemoryMb: 16_000 }))).toEqual(["small", "large"])
    expect(fit(machine({ gpus }), need({ gpuCount: 3, gpuMemoryMb: 16_000 }))).toBeNull()
    expect(fit(machine({ gpus }), need({ gpuCount: 3 }))).toHaveLength(3)
  })

  test("what is used is not free, and a GPU belongs to one task", () => {
    const used = { cpu: 3.5, memoryMb: 4096, storageGb: 50, gpus: new Set(["a"]) }
    const free = freeOf(machine({ gpus: [gpu("a", 1), gpu("b", 1)] }), used)
    expect(free).toEqual({ cpu: 0.5, memoryMb: 4096, storageGb: 50, gpus: [gpu("b", 1)] })
    expect(fit(free, need())).toBeNull()
    expect(fit(free, need({ cpu: 0.5, gpuCount: 1 }))).toEqual(["b"])
  })

  test("lent capacity is exactly schedulable, in tenths of cores too", () => {
    expect(slots(machine({ cpu: 1 }), need({ cpu: 0.1, memoryMb: 1 }))).toBe(10)
    let used = 0
    for (let n = 0; n < 10; n++) {
      expect(fit(freeOf(machine({ cpu: 1 }), { ...nothing, cpu: used }), need({ cpu: 0.1 }))).toEqual([])
      used += 0.1
    }
    expect(fit(freeOf(machine({ cpu: 1 }), { ...nothing, cpu: used }), need({ cpu: 0.1 }))).toBeNull()
  })

  test("slots: the scarcest thing decides, never below zero", () => {
    expect(slots(machine(), need({ memoryMb: 4096 }))).toBe(2)
    expect(slots(machine({ gpus: [gpu("a", 1), gpu("b", 1), gpu("c", 1)] }), need({ gpuCount: 2 }))).toBe(1)
    expect(slots(machine(), need({ gpuCount: 1 }))).toBe(0)
    expect(slots(machine({ cpu: -3 }), need())).toBe(0)
  })

  test("work of one key fits the same nodes: anything that fit looks at is in it", () => {
    const all = [need(), need({ cpu: 2 }), need({ memoryMb: 1 }), need({ storageGb: 2 }), need({ gpuCount: 1 })]
    all.push(need({ gpuCount: 1, gpuMemoryMb: 0 }), need({ profile: "gpu" }))
    expect(new Set(all.map(requirementsKey)).size).toBe(all.length)
    expect(requirementsKey(need())).toBe(requirementsKey(need()))
  })

  test("a node without sandbox or limits runs project work only where the deployment says so", () => {
    const bare = { roles: ["worker" as const], isolation: "none" as const, enforces: [] }
    const strict = { allowUnsandboxed: false, allowUnenforced: false }
    expect(mayRunProjects(bare, strict)).toBe(false)
    expect(mayRunProjects(bare, { ...strict, allowUnsandboxed: true })).toBe(false)
    expect(mayRunProjects(bare, { allowUnsandboxed: true, allowUnenforced: true })).toBe(true)
    const good = {
      ...bare,
      isolation: "gvisor" as const,
      enforces: ["memory" as const, "cpu" as const, "pids" as const],
    }
    expect(mayRunProjects(good, strict)).toBe(true)
    expect(mayRunProjects({ ...good, roles: ["builder"] }, strict)).toBe(false)
  })
})

describe("contact", () => {
  const facts = { streamOpen: true, silentMs: 0, heartbeatMs: 1_000, claimLifetimeMs: 300_000 }

  test("three heartbeats missed make a node suspect, four lose contact, a closed stream is suspect at once", () => {
    const at = (silentMs: number, streamOpen = true) => contactOf({ ...facts, silentMs, streamOpen })
    expect([0, 3_000, 3_001, 4_000, 4_001, 300_000, 300_001].map((silent) => at(silent))).toEqual([
      "connected",
      "connected",
      "suspect",
      "suspect",
      "lost_contact",
      "lost_contact",
      "offline",
    ])
    expect([at(0, false), at(4_001, false)]).toEqual(["suspect", "lost_contact"])
  })

  test("rulings, Mesh: each second up to 500 nodes, then 500 heartbeats a second from all, a few within every claim", () => {
    expect([1, 500, 501, 1_000, 5_000].map((members) => heartbeatIntervalMs(members, 300_000))).toEqual([
      1_000, 1_000, 1_002, 2_000, 10_000,
    ])
    expect(heartbeatIntervalMs(1_000_000, 300_000)).toBe(50_000)
    expect(heartbeatIntervalMs(1, 3_000)).toBe(1_000)
    expect([1_000, 1_249, 1_250, 751, 750].map((due) => newIntervalMs(1_000, due))).toEqual([
      null,
      null,
      1_250,
      null,
      750,
    ])
  })

  test("a node is judged by the interval that it was told itself", () => {
    let nowMs = 0
    const clock = { ...systemClock, monotonicMs: () => nowMs }
    const members = createMembers(clock, { heartbeatMs: 1_000, claimLifetimeMs: 300_000 })
    const [early, late] = ["a", "b"].map((id) => {
      const member = members.add({ id: nodeId(`nod_${id}`), peer: peerId(id), name: null, roles: [], state: "active" })
      return Object.assign(member, { session: { send: () => {}, close: () => {} }, lastHeardMs: 0 })
    })
    if (!early || !late) throw new Error("both are members")
    late.heartbeatMs = 4_000
    const contactsAt = (atMs: number): string[] => {
      nowMs = atMs
      return [early, late].map((member) => members.contact(member))
    }
    expect(contactsAt(3_500)).toEqual(["suspect", "connected"])
    expect(contactsAt(12_001)).toEqual(["lost_contact", "suspect"])
    expect(contactsAt(16_001)).toEqual(["lost_contact", "lost_contact"])
  })

  test("the wait is what the work is worth: at least the shortest, at most the claim", () => {
    expect(patienceMs(0, 5_000, 300_000)).toBe(5_000)
    expect(patienceMs(60_000, 5_000, 300_000)).toBe(60_000)
    expect(patienceMs(3_600_000, 5_000, 250_000)).toBe(250_000)
    expect(patienceMs(0, 5_000, 2_000)).toBe(2_000)
  })

  test("our own fault: two nodes and more than half of all contacts within ten seconds", () => {
    expect(isOurFault([], 0)).toBe(false)
    expect(isOurFault([0], 1)).toBe(false)
    expect(isOurFault([0, 10_000], 2)).toBe(true)
    expect(isOurFault([0, 10_001], 2)).toBe(false)
    expect(isOurFault([0, 1], 4)).toBe(false)
    expect(isOurFault([0, 1, 2], 4)).toBe(true)
    expect(isOurFault([0, 50_000, 50_001, 50_002], 5)).toBe(true)
    expect(isOurFault([0, 20_000, 40_000], 5)).toBe(false)
  })
})

describe("where a task goes", () => {
  const node = (id: string, more: Partial<PlaceableNode> = {}): PlaceableNode => ({
    id,
    capacity: machine(),
    used: nothing,
    held: 0,
    heldAtFirst: more.held ?? 0,
    most: MOST_HELD,
    credit: 8,
    hasGpu: false,
    ...more,
  })
  const wanted = (more: Partial<Wanted> = {}): Wanted => ({
    requirements: need(),
    paceMs: null,
    isWarm: ({ id }) => id.startsWith("warm"),
    mayRun: () => true,
    ...more,
  })
  const full = { ...nothing, cpu: 4 }
  const place = (nodes: PlaceableNode[], more: Partial<Wanted> = {}): string | null =>
    (chooseSlot(nodes, wanted(more)) ?? chooseAhead(nodes, wanted(more)))?.node.id ?? null

  test("a warm node comes before one with more room, a cold one before none", () => {
    expect(place([node("cold"), node("warm", { used: { ...nothing, cpu: 2 } })])).toBe("warm")
    expect(place([node("cold"), node("warm", { used: full })])).toBe("cold")
    expect(place([node("cold", { used: full })])).toBeNull()
  })

  test("among equals the one with most room, and none that may not run it", () => {
    expect(place([node("a", { used: { ...nothing, cpu: 1 } }), node("b")])).toBe("b")
    expect(place([node("a"), node("b")], { mayRun: ({ id }) => id === "b" })).toBe("b")
  })

  test("SC-002: CPU work leaves GPU nodes for last, and takes them when there is nothing else", () => {
    const gpus = node("gpu", { hasGpu: true, capacity: machine({ cpu: 64, gpus: [gpu("a", 1)] }) })
    expect(place([gpus, node("cpu", { used: { ...nothing, cpu: 3 } })])).toBe("cpu")
    expect(place([gpus])).toBe("gpu")
    expect(place([gpus, node("cpu")], { requirements: need({ gpuCount: 1, profile: "gpu" }) })).toBe("gpu")
    expect(place([node("cpu")], { requirements: need({ gpuCount: 1, profile: "gpu" }) })).toBeNull()
  })

  test("only short tasks go ahead of free slots, on warm nodes, and never GPUs", () => {
    const busy = node("warm", { used: full, held: 4 })
    expect(place([busy], { paceMs: 100 })).toBe("warm")
    expect(place([busy], { paceMs: null })).toBeNull()
    expect(place([busy], { paceMs: 5_000 })).toBeNull()
    expect(place([node("cold", { used: full, held: 4 })], { paceMs: 100 })).toBeNull()
    expect(place([{ ...busy, held: 12 }], { paceMs: 100 })).toBeNull()
    expect(place([busy, node("cold")], { paceMs: 100 })).toBe("cold")
    const gpus = node("warm", {
      hasGpu: true,
      capacity: machine({ gpus: [gpu("a", 1)] }),
      used: { ...nothing, gpus: new Set(["a"]) },
    })
    expect(place([gpus], { paceMs: 100, requirements: need({ gpuCount: 1 }) })).toBeNull()
  })

  test("a node that holds as many attempts as it may gets no more, however large it is", () => {
    const large = node("warm", { capacity: machine({ cpu: 1_000, memoryMb: 1e7, storageGb: 1e6 }) })
    expect(place([{ ...large, held: MOST_HELD - 1 }])).toBe("warm")
    expect(place([{ ...large, held: MOST_HELD }])).toBeNull()
    expect(place([{ ...large, held: MOST_HELD }, node("cold")])).toBe("cold")
    const onProbation = node("warm", { used: full, held: 1, most: 1 })
    expect(place([onProbation], { paceMs: 100 })).toBeNull()
    expect(place([{ ...onProbation, most: 2 }], { paceMs: 100 })).toBe("warm")
  })

  test("a node gets more ahead when half of it is used up, and then all it takes", () => {
    const ahead = (held: number, heldAtFirst: number): string | null =>
      place([node("warm", { used: full, held, heldAtFirst })], { paceMs: 100 })
    expect(ahead(9, 9)).toBeNull()
    expect(ahead(8, 8)).toBe("warm")
    expect(ahead(11, 8)).toBe("warm")
    expect(ahead(12, 8)).toBeNull()
  })

  test("at most two seconds of work for each slot, and what the node takes", () => {
    expect(aheadOf(500, 2, 100)).toBe(8)
    expect(aheadOf(500, 2, 3)).toBe(3)
    expect(aheadOf(0, 1, 4096)).toBe(2_000)
    expect([aheadOf(null, 2, 9), aheadOf(5_000, 2, 9)]).toEqual([0, 0])
  })

  test("a job's pace follows its tasks, and is forgotten with it", () => {
    const pace = createPace()
    expect(pace.of(1)).toBeNull()
    pace.took(1, 10_000)
    for (let n = 0; n < 60; n++) pace.took(1, 100)
    expect(pace.of(1)).toBeGreaterThan(99)
    expect(pace.of(1)).toBeLessThan(200)
    pace.forget(1)
    expect(pace.of(1)).toBeNull()
  })
})

test("who is silent, or one of two machines with one key, is no live worker: nothing waits for it", () => {
  let nowMs = 0
  const clock = { ...systemClock, monotonicMs: () => nowMs, now: () => nowMs }
  const members = createMembers(clock, { heartbeatMs: 1_000, claimLifetimeMs: 300_000 })
  const policy = { allowUnsandboxed: true, allowUnenforced: true }
  const standing = { open: true, draining: false, capacity: machine(), warm: new Set<string>(), credit: 1 }
  const facts = { roles: ["worker"], runtime: "process", isolation: "none", enforces: [] }
  const [first, second] = ["a", "b"].map((id) => {
    const member = members.add({ id: nodeId(id), peer: peerId(id), name: null, roles: ["worker"], state: "active" })
    return Object.assign(member, { session: { send: () => {}, close: () => {} }, lastHeardMs: 0, facts, standing })
  })
  if (!first || !second) throw new Error("both are members")
  const live = () => liveWorkers(members, policy, nowMs).map(({ id }) => id)
  expect(live()).toEqual(["a", "b"])
  first.clonedUntil = 1_000
  expect(live()).toEqual(["b"])
  expect(fleetFacts(members, policy, nowMs).workers).toBe(1)
  second.clonedUntil = 1_000
  expect(hasLiveWorker(members, nowMs)).toBe(false)
  nowMs = 1_000
  expect([live(), hasLiveWorker(members, nowMs)]).toEqual([["a", "b"], true])
  nowMs = 5_000
  expect([live(), hasLiveWorker(members, nowMs)]).toEqual([[], false])
})
