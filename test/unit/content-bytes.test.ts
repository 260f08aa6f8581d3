import { expect, test } from "vitest"
import { createContentBytes } from "../../coordinator/fleet/content-bytes.ts"
import type { Member } from "../../coordinator/fleet/members.ts"
import { nodeId } from "../../protocol/domain/ids.ts"

const member = (id: string, bootId: string): Pick<Member, "id" | "facts"> => ({
  id: nodeId(id),
  facts: {
    agentVersion: "1",
    bootId,
    roles: ["worker"],
    runtime: "process",
    isolation: "none",
    enforces: [],
    network: "none",
    addresses: [],
    capacity: { cpu: 1, memoryMb: 1, storageGb: 1, gpus: [] },
  },
})

test("rulings, /metrics: what nodes fetch from one another is counted once, whatever they say again", () => {
  const bytes = createContentBytes()
  // It was up before this start: what it fetched until then is not ours to count.
  bytes.heard(member("a", "boot-1"), 1_000)
  expect(bytes.total).toEqual({ origin: 0, peer: 0 })
  for (const said of [1_500, 1_500, 1_200, 1_300]) bytes.heard(member("a", "boot-1"), said)
  expect(bytes.total.peer).toBe(600)
  bytes.heard(member("a", "boot-2"), 0)
  bytes.heard(member("a", "boot-2"), 50)
  bytes.heard(member("b", "boot-3"), 0)
  bytes.heard(member("b", "boot-3"), 7)
  bytes.heard({ id: nodeId("c"), facts: null }, 9)
  bytes.sent(11)
  expect(bytes.total).toEqual({ origin: 11, peer: 657 })
})
