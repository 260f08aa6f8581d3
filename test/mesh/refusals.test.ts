import { afterEach, beforeEach, expect, test } from "vitest"
import { watchRefusals } from "../../node-agent/mesh/refusals.ts"
import { systemClock } from "../../protocol/base/clock.ts"
import type { ToCoordinator } from "../../protocol/wire/control.ts"
import { startTestMesh, type TestMesh, type TestNode } from "../support/mesh.ts"

/** Architecture §5.5: a member whose address refuses after it was connected there is gone. Through real libp2p. */

let mesh: TestMesh
let node: TestNode
let said: ToCoordinator[]
let watching: Disposable

beforeEach(async () => {
  mesh = await startTestMesh()
  node = await mesh.member()
  await node.dial(mesh.coordinator.address)
  said = []
  watching = watchRefusals({
    mesh: node,
    clock: systemClock,
    coordinator: mesh.coordinator.peerId,
    send: (message) => said.push(message),
  })
})
afterEach(async () => {
  watching[Symbol.dispose]()
  await mesh[Symbol.asyncDispose]()
})

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))

test("a peer we had dialled that ended is told of, once, after two refusals", async () => {
  const other = await mesh.member()
  await node.dial(other.address)
  await expect.poll(() => node.peers()).toContain(other.peerId)
  const endedAt = performance.now()
  await other[Symbol.asyncDispose]()
  await expect.poll(() => said).toEqual([{ type: "complaint", peer_id: other.peerId, kind: "refuses" }])
  expect(performance.now() - endedAt).toBeGreaterThan(1_900)
  await pause(3_000)
  expect(said).toHaveLength(1)
})

test("a peer that is back within the two tries is not", async () => {
  const other = await mesh.member()
  await node.dial(other.address)
  await expect.poll(() => node.peers()).toContain(other.peerId)
  const { identity, address } = other
  await other[Symbol.asyncDispose]()
  await mesh.member({ identity, listen: [address.slice(0, address.indexOf("/p2p/"))] })
  await pause(4_000)
  expect(said).toEqual([])
})

test("a peer that had dialled us, and the coordinator, are not", async () => {
  const other = await mesh.member()
  await other.dial(node.address)
  await expect.poll(() => node.peers()).toContain(other.peerId)
  await Promise.all([other[Symbol.asyncDispose](), mesh.coordinator[Symbol.asyncDispose]()])
  await pause(4_000)
  expect(said).toEqual([])
})
