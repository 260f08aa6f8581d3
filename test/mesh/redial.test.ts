import { describe, expect, test } from "vitest"
import { systemClock } from "../../protocol/base/clock.ts"
import { silentLog } from "../../protocol/base/log.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import { keepConnected, redialWindowMs, type RedialOptions } from "../../protocol/mesh/redial.ts"
import { startTestMesh, type TestMesh, type TestNode } from "../support/mesh.ts"

/** Supervises `node` until disposed. */
function supervise(mesh: TestMesh, node: TestNode, more: Partial<RedialOptions> = {}): AsyncDisposable {
  const stop = new AbortController()
  const done = keepConnected({
    mesh: node,
    clock: systemClock,
    random: systemRandom,
    log: silentLog,
    coordinator: { peerId: mesh.coordinator.peerId, addresses: () => [mesh.coordinator.address] },
    peerAddresses: () => [],
    members: () => 3,
    signal: stop.signal,
    ...more,
  })
  return {
    async [Symbol.asyncDispose]() {
      stop.abort()
      await done
    },
  }
}

describe("a supervised node", () => {
  test("comes back to a coordinator that was away, at the same address and with the same key", async () => {
    await using mesh = await startTestMesh()
    const node = await mesh.member()
    await using _supervision = supervise(mesh, node)
    await expect.poll(() => node.peers()).toEqual([mesh.coordinator.peerId])
    const { identity, address } = mesh.coordinator
    await mesh.coordinator[Symbol.asyncDispose]()
    await expect.poll(() => node.peers()).toEqual([])
    const listen = [address.slice(0, address.indexOf("/p2p/"))]
    const again = await mesh.member({ identity, listen, isCoordinator: true })
    await expect.poll(() => node.peers(), { timeout: 20_000 }).toEqual([identity.peerId])
    await expect.poll(() => again.peers()).toEqual([node.peerId])
  })

  test("starts while the coordinator is away, and finds it when it comes", async () => {
    await using mesh = await startTestMesh()
    const node = await mesh.member()
    let addresses = ["/ip4/127.0.0.1/tcp/1"]
    await using _supervision = supervise(mesh, node, {
      coordinator: { peerId: mesh.coordinator.peerId, addresses: () => addresses },
    })
    await new Promise((resolve) => setTimeout(resolve, 300))
    expect(node.peers()).toEqual([])
    addresses = [mesh.coordinator.address]
    await expect.poll(() => node.peers(), { timeout: 20_000 }).toEqual([mesh.coordinator.peerId])
  })

  test("keeps two peers beside the coordinator, and replaces one that goes", async () => {
    await using mesh = await startTestMesh()
    const node = await mesh.member()
    const others = [await mesh.member(), await mesh.member(), await mesh.member()]
    await using _supervision = supervise(mesh, node, {
      peerAddresses: () => [node.address, mesh.coordinator.address, ...others.map(({ address }) => address)],
    })
    await expect.poll(() => node.peers().length, { timeout: 20_000 }).toBe(3)
    const gone = others.find(({ peerId }) => node.peers().includes(peerId))
    await gone?.[Symbol.asyncDispose]()
    await expect.poll(() => node.peers().includes(gone?.peerId ?? node.peerId)).toBe(false)
    await expect.poll(() => node.peers().length, { timeout: 20_000 }).toBe(3)
    expect(node.peers()).toContain(mesh.coordinator.peerId)
  })

  test("keeps trying a coordinator that refuses it, without haste, and stops when it is told to", async () => {
    await using mesh = await startTestMesh()
    const node = await mesh.member({ certificate: () => null })
    {
      await using _supervision = supervise(mesh, node)
      await expect.poll(() => node.refusals.length, { timeout: 20_000 }).toBeGreaterThanOrEqual(2)
      expect(node.refusals.length).toBeLessThan(20)
    }
    const refused = node.refusals.length
    await new Promise((resolve) => setTimeout(resolve, 1_200))
    expect(node.refusals.length - refused).toBeLessThanOrEqual(1)
  })
})

test("members return at most at fifty a second: within a second in a small mesh, within minutes in a large one", () => {
  expect([0, 3, 50, 500, 5_000, 1_000_000].map(redialWindowMs)).toEqual([1_000, 1_000, 1_000, 10_000, 100_000, 300_000])
})
