import { expect, test } from "vitest"
import { createWants, worthPreparing, type OfferedTo } from "../../node-agent/mesh/offers.ts"
import { revisionId } from "../../protocol/domain/ids.ts"
import type { Requirements } from "../../protocol/domain/requirements.ts"
import type { OfferedBucket } from "../../protocol/gossip/offer.ts"

const gpu = (memoryMb: number) => ({ uuid: `GPU-${memoryMb}`, model: "H200", memoryMb })
const NODE: OfferedTo = {
  roles: ["worker"],
  isolation: "namespaces",
  capacity: { cpu: 4, memoryMb: 4096, storageGb: 10, gpus: [gpu(24_576)] },
  knows: (revision) => revision === "rev_known",
}
const NEED: Requirements = { cpu: 4, memoryMb: 4096, storageGb: 10, gpuCount: 0, profile: "cpu" }

function bucket(revision: string, need: Partial<Requirements> = {}, policy = {}): OfferedBucket {
  return {
    bucket: revision,
    requirements: { ...NEED, ...need },
    policy: { role: "worker", isolations: ["gvisor", "namespaces"], placement: "shared", ...policy },
    revision: revisionId(revision),
    count: 1,
  }
}

test("architecture §5.2: a node wants what would fit it whole, what it may run and what it does not know yet, oldest first", () => {
  const buckets = [
    bucket("rev_b"),
    bucket("rev_known"),
    bucket("rev_wide", { cpu: 5 }),
    bucket("rev_fat", { memoryMb: 4097 }),
    bucket("rev_full", { storageGb: 11 }),
    bucket("rev_two", { gpuCount: 2 }),
    bucket("rev_large", { gpuCount: 1, gpuMemoryMb: 40_000 }),
    bucket("rev_boxed", {}, { isolations: ["gvisor"] }),
    bucket("rev_sealed", {}, { role: "sealed" }),
    bucket("rev_a", { gpuCount: 1, gpuMemoryMb: 16_000 }),
    bucket("rev_b", { cpu: 1 }),
  ]
  expect(worthPreparing({ buckets }, NODE)).toEqual(["rev_b", "rev_a"])
})

test("a node asks for a few at a time, each once a connection", () => {
  let nowMs = 0
  const asked: string[][] = []
  const wants = createWants({ clock: { monotonicMs: () => nowMs }, ask: (revisions) => asked.push(revisions) })
  const all = ["a", "b", "c", "d", "e", "f"]
  wants.heard(all)
  wants.heard(all)
  expect(asked).toEqual([["a", "b", "c", "d"]])
  nowMs += 5_000
  wants.heard(all)
  nowMs += 5_000
  wants.heard(all)
  expect(asked.slice(1)).toEqual([["e", "f"]])
  wants.welcome()
  wants.heard(["a"])
  expect(asked.slice(2)).toEqual([["a"]])
})
