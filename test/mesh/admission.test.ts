import type { Connection } from "@libp2p/interface"
import { connect, type Socket } from "node:net"
import { describe, expect, test } from "vitest"
import { systemClock } from "../../protocol/base/clock.ts"
import { nodeId } from "../../protocol/domain/ids.ts"
import { ADVERTS_TOPIC } from "../../protocol/gossip/topics.ts"
import { accept } from "../../protocol/gossip/verdict.ts"
import { ADMISSION_TIMEOUT_MS } from "../../protocol/mesh/admission.ts"
import { encodeFrame } from "../../protocol/wire/frames.ts"
import { encodeHello } from "../../protocol/wire/hello.ts"
import { newIdentity, startTestMesh, type TestNode } from "../support/mesh.ts"
import { ended, enter, hello, sayHello, startStranger } from "../support/stranger.ts"

const ECHO = { name: "/test/echo/1", largestFrameBytes: 1024, streamsPerPeer: 4, unsentBytes: 64 * 1024 }

const serveEcho = (node: TestNode): string[] => {
  const served: string[] = []
  node.serve(ECHO, async (stream, from) => {
    served.push(from)
    for await (const frame of stream.frames()) await stream.send(frame)
  })
  return served
}

describe("who is let in", () => {
  test("members show one another their certificates, and only then count as peers", async () => {
    await using mesh = await startTestMesh()
    const [a, b] = [await mesh.member(), await mesh.member()]
    const seen: string[] = []
    a.watchPeers(({ peer, connected }) => {
      seen.push(`${connected ? "+" : "-"}${peer}`)
      expect(a.peers().includes(peer)).toBe(connected)
    })
    await a.dial(mesh.coordinator.address)
    await b.dial(a.address)
    await expect.poll(() => a.peers().length).toBe(2)
    await expect.poll(() => b.peers()).toEqual([a.peerId])
    expect(a.membership(b.peerId)?.nodeId).toBe(b.nodeId)
    expect(a.membership(mesh.coordinator.peerId)).toBeNull()
    expect(mesh.coordinator.membership(a.peerId)).toMatchObject({ nodeId: a.nodeId, roles: ["worker"] })
    await b[Symbol.asyncDispose]()
    await expect.poll(() => a.peers()).toEqual([mesh.coordinator.peerId])
    expect(seen.toSorted()).toEqual([`+${mesh.coordinator.peerId}`, `+${b.peerId}`, `-${b.peerId}`].toSorted())
  })

  test("a peer that shows nothing is cut off after 5 s, and is served nothing but identify before", async () => {
    await using mesh = await startTestMesh()
    const served = serveEcho(mesh.coordinator)
    mesh.coordinator.subscribe(ADVERTS_TOPIC, () => accept)
    await using stranger = await startStranger()
    const identified = new Promise<string | undefined>((resolve) => {
      stranger.node.addEventListener("peer:identify", ({ detail }) => resolve(detail.agentVersion), { once: true })
    })
    const started = performance.now()
    const connection = await stranger.dial(mesh.coordinator.address)
    expect(await identified).toBe("computalot-test/1")
    const echo = await connection.newStream([ECHO.name]).catch(() => null)
    if (echo !== null) await ended(echo)
    expect(echo?.status ?? "reset").not.toBe("open")
    const gossip = await connection.newStream(["/meshsub/1.2.0", "/meshsub/1.1.0"]).catch(() => null)
    if (gossip !== null) await ended(gossip)
    expect(gossip?.status ?? "reset").not.toBe("open")
    expect(
      connection.streams.filter((stream) => stream.protocol.startsWith("/meshsub") && stream.direction === "inbound"),
    ).toEqual([])
    await expect.poll(() => connection.status, { timeout: 10_000 }).not.toBe("open")
    const lasted = performance.now() - started
    expect(lasted).toBeGreaterThan(ADMISSION_TIMEOUT_MS - 100)
    expect(lasted).toBeLessThan(ADMISSION_TIMEOUT_MS + 5_000)
    expect(served).toEqual([])
    expect(mesh.coordinator.peers()).toEqual([])
    expect(mesh.coordinator.refusals).toMatchObject([{ by: "us", reason: "too_late" }])
  })

  const cases: { what: string; reason: string; certificate: (facts: Case) => string | null }[] = [
    { what: "no certificate", reason: "no_certificate", certificate: () => null },
    { what: "what is no certificate", reason: "malformed_certificate", certificate: () => "AAAA" },
    {
      what: "a certificate of another deployment",
      reason: "forged_certificate",
      certificate: ({ forged }) => forged,
    },
    { what: "another member's certificate", reason: "foreign_certificate", certificate: ({ foreign }) => foreign },
    { what: "an expired certificate", reason: "expired_certificate", certificate: ({ expired }) => expired },
    { what: "a certificate of tomorrow", reason: "not_yet_valid_certificate", certificate: ({ early }) => early },
  ]
  interface Case {
    forged: string
    foreign: string
    expired: string
    early: string
  }
  test("everyone else is refused, and both sides know why", async () => {
    await using mesh = await startTestMesh()
    await using elsewhere = await startTestMesh()
    for (const { what, reason, certificate } of cases) {
      const identity = await newIdentity()
      const now = Date.now()
      const shown = certificate({
        forged: elsewhere.certificateOf(identity),
        foreign: mesh.certificateOf(await newIdentity()),
        expired: mesh.certificateOf(identity, { issuedAt: now - 9e8, expiresAt: now - 6 * 60_000 }),
        early: mesh.certificateOf(identity, { issuedAt: now + 6 * 60_000 }),
      })
      const node = await mesh.member({ identity, certificate: () => shown })
      await node.dial(mesh.coordinator.address)
      await expect
        .poll(() => node.refusals, { message: what })
        .toMatchObject([{ by: "them", reason, peer: mesh.coordinator.peerId }])
      expect(mesh.coordinator.refusals.at(-1), what).toMatchObject({ by: "us", reason, peer: node.peerId })
      await expect(node.openStream(mesh.coordinator.peerId, ECHO)).rejects.toThrow("not connected")
      expect([...node.peers(), ...mesh.coordinator.peers()], what).toEqual([])
    }
  })

  test("versions that do not meet are refused with the two ranges", async () => {
    await using mesh = await startTestMesh()
    const node = await mesh.member({ versions: { oldest: 7, newest: 9 } })
    await node.dial(mesh.coordinator.address)
    const detail = "we speak versions 1 to 1, you speak 7 to 9"
    await expect.poll(() => node.refusals).toMatchObject([{ by: "them", reason: "version", detail }])
    expect(mesh.coordinator.refusals).toMatchObject([{ by: "us", reason: "version", detail }])
    const both = await mesh.member({ versions: { oldest: 1, newest: 9 } })
    await both.dial(mesh.coordinator.address)
    await expect.poll(() => both.peers()).toEqual([mesh.coordinator.peerId])
  })

  test("the dialed side must prove itself too: a node does not stay with a stranger it dialed", async () => {
    await using mesh = await startTestMesh()
    const impostor = await mesh.member({ certificate: () => null })
    const node = await mesh.member()
    await node.dial(impostor.address)
    await expect.poll(() => node.refusals).toMatchObject([{ by: "us", reason: "no_certificate" }])
    await expect.poll(() => impostor.refusals).toMatchObject([{ by: "them", reason: "no_certificate" }])
    expect(node.peers()).toEqual([])
  })

  test("garbage, and a hello that is too long, end the exchange", async () => {
    await using mesh = await startTestMesh()
    await using stranger = await startStranger()
    for (const bytes of [
      encodeFrame(new Uint8Array(9).fill(255)),
      new Uint8Array([0, 1, 0, 0]),
      encodeFrame(encodeHello({ type: "admitted", version: 1 })),
    ]) {
      const connection = await stranger.dial(mesh.coordinator.address)
      await sayHello(connection, bytes)
      await expect.poll(() => connection.status, { timeout: 10_000 }).not.toBe("open")
    }
    expect(mesh.coordinator.peers()).toEqual([])
  })

  test("a valid hello without its last word serves, but admits nobody: the peer is cut off", async () => {
    await using mesh = await startTestMesh()
    const identity = await newIdentity()
    await using stranger = await startStranger(identity)
    const connection = await stranger.dial(mesh.coordinator.address)
    const answer = await sayHello(connection, hello(mesh.certificateOf(identity)))
    expect(answer).toContain("hello")
    await expect.poll(() => connection.status, { timeout: 10_000 }).not.toBe("open")
    expect(mesh.coordinator.peers()).toEqual([])
  })
})

describe("members over time", () => {
  test("the coordinator admits an expired member it has not revoked, to renew it; others do not", async () => {
    const former = nodeId("node_former")
    await using mesh = await startTestMesh({ admitExpired: (membership) => membership.nodeId === former })
    const membership = { nodeId: former, issuedAt: Date.now() - 9e8, expiresAt: Date.now() - 4e8 }
    const returning = await mesh.member({ membership })
    const other = await mesh.member()
    await returning.dial(mesh.coordinator.address)
    await expect.poll(() => mesh.coordinator.peers()).toEqual([returning.peerId])
    await returning.dial(other.address)
    await expect.poll(() => returning.refusals).toMatchObject([{ reason: "expired_certificate" }])
  })

  test("among members who lack the coordinator an expired certificate counts one more day", async () => {
    await using mesh = await startTestMesh()
    const membership = { issuedAt: Date.now() - 9e8, expiresAt: Date.now() - 20 * 3600_000 }
    const [late, alone] = [await mesh.member({ membership }), await mesh.member()]
    await late.dial(alone.address)
    await expect.poll(() => alone.peers()).toEqual([late.peerId])
    const connected = await mesh.member()
    await connected.dial(mesh.coordinator.address)
    await expect.poll(() => connected.peers()).toEqual([mesh.coordinator.peerId])
    await late.dial(connected.address)
    await expect.poll(() => connected.refusals).toMatchObject([{ reason: "expired_certificate", peer: late.peerId }])
  })

  test("a renewed certificate is shown on open connections, and outlives the former one", async () => {
    await using mesh = await startTestMesh()
    const identity = await newIdentity()
    let certificate = mesh.certificateOf(identity, { roles: ["worker"] })
    const [node, other] = [await mesh.member({ identity, certificate: () => certificate }), await mesh.member()]
    await node.dial(other.address)
    await expect.poll(() => other.membership(node.peerId)?.roles).toEqual(["worker"])
    certificate = mesh.certificateOf(identity, { roles: ["worker", "builder"] })
    await node.showCertificate()
    await expect.poll(() => other.membership(node.peerId)?.roles).toEqual(["worker", "builder"])
    expect(other.peers()).toEqual([node.peerId])
  })

  test("a member whose certificate ends while it is connected, and who shows no newer one, is dropped", async () => {
    let ahead = 0
    await using mesh = await startTestMesh({ clock: { ...systemClock, now: () => Date.now() + ahead } })
    const [idle, fresh] = [await newIdentity(), await newIdentity()]
    const lasting = { expiresAt: Date.now() + 3600_000 }
    let certificate = mesh.certificateOf(fresh, lasting)
    const nodes = [
      await mesh.member({ identity: idle, membership: lasting }),
      await mesh.member({ identity: fresh, certificate: () => certificate }),
    ]
    for (const node of nodes) await node.dial(mesh.coordinator.address)
    await expect.poll(() => mesh.coordinator.peers().length).toBe(2)
    certificate = mesh.certificateOf(fresh)
    await nodes[1]?.showCertificate()
    ahead = 2 * 3600_000
    await expect.poll(() => mesh.coordinator.peers(), { timeout: 15_000 }).toEqual([fresh.peerId])
    expect(mesh.coordinator.refusals).toMatchObject([{ reason: "expired_certificate", peer: idle.peerId }])
  })

  test("a member cannot pile up connections", async () => {
    await using mesh = await startTestMesh()
    const identity = await newIdentity()
    await using strangers = new AsyncDisposableStack()
    const connections: Connection[] = []
    for (let i = 0; i < 8; i++) {
      const stranger = strangers.use(await startStranger(identity))
      const connection = await stranger.dial(mesh.coordinator.address)
      await enter(connection, mesh.certificateOf(identity))
      connections.push(connection)
    }
    await expect.poll(() => connections.filter(({ status }) => status === "open").length).toBe(4)
    expect(connections.at(-1)?.status).toBe("open")
    expect(mesh.coordinator.peers()).toEqual([identity.peerId])
  })

  test("a revoked member is dropped at once, and refused when it returns", async () => {
    await using mesh = await startTestMesh()
    const [bad, good] = [await mesh.member(), await mesh.member()]
    for (const node of [bad, good]) await node.dial(mesh.coordinator.address)
    await expect.poll(() => mesh.coordinator.peers().length).toBe(2)
    mesh.coordinator.setRevoked([bad.nodeId])
    await expect.poll(() => mesh.coordinator.peers()).toEqual([good.peerId])
    await expect.poll(() => bad.peers()).toEqual([])
    await bad.dial(mesh.coordinator.address)
    await expect.poll(() => bad.refusals.at(-1)).toMatchObject({ by: "them", reason: "revoked" })
    expect(good.peers()).toEqual([mesh.coordinator.peerId])
  })

  test("the same key may return at any time, also before its former connection is seen to be dead", async () => {
    await using mesh = await startTestMesh()
    const served = serveEcho(mesh.coordinator)
    const identity = await newIdentity()
    const first = await mesh.member({ identity })
    await first.dial(mesh.coordinator.address)
    await expect.poll(() => mesh.coordinator.peers()).toEqual([identity.peerId])
    const second = await mesh.member({ identity })
    await second.dial(mesh.coordinator.address)
    const stream = await second.openStream(mesh.coordinator.peerId, ECHO)
    await stream.send(new Uint8Array(1))
    await expect.poll(() => served).toEqual([identity.peerId])
    await first[Symbol.asyncDispose]()
    await stream.send(new Uint8Array(1))
    expect(mesh.coordinator.peers()).toEqual([identity.peerId])
    await second[Symbol.asyncDispose]()
    await expect.poll(() => mesh.coordinator.peers()).toEqual([])
  })
})

describe("a crowd of strangers", () => {
  test("a thousand silent connections of the same address keep neither members nor newcomers out", async () => {
    await using mesh = await startTestMesh()
    serveEcho(mesh.coordinator)
    const member = await mesh.member()
    await member.dial(mesh.coordinator.address)
    const stream = await member.openStream(mesh.coordinator.peerId, ECHO)
    const port = Number(mesh.coordinator.address.split("/")[4])
    const sockets: Socket[] = []
    try {
      for (let i = 0; i < 1_000; i++) sockets.push(connect(port, "127.0.0.1").on("error", () => {}))
      await expect.poll(() => sockets.filter((socket) => socket.pending).length, { timeout: 20_000 }).toBe(0)
      const replies = stream.frames()[Symbol.asyncIterator]()
      await stream.send(new Uint8Array([7]))
      expect((await replies.next()).value).toEqual(new Uint8Array([7]))
      const newcomer = await mesh.member()
      await expect
        .poll(
          async () => {
            await newcomer.dial(mesh.coordinator.address).catch(() => {})
            return newcomer.peers()
          },
          { timeout: 20_000, interval: 500 },
        )
        .toEqual([mesh.coordinator.peerId])
      expect(member.peers()).toEqual([mesh.coordinator.peerId])
    } finally {
      for (const socket of sockets) socket.destroy()
    }
  })

  test("strangers who prove a key but show nothing leave room for members", async () => {
    await using mesh = await startTestMesh({ handshakesAtOnce: 3 })
    const member = await mesh.member()
    await member.dial(mesh.coordinator.address)
    await expect.poll(() => mesh.coordinator.peers()).toEqual([member.peerId])
    await using strangers = new AsyncDisposableStack()
    const connections: Connection[] = []
    for (let i = 0; i < 6; i++) {
      const stranger = strangers.use(await startStranger())
      const connection = await stranger.dial(mesh.coordinator.address).catch(() => null)
      if (connection !== null) connections.push(connection)
    }
    await expect.poll(() => connections.filter(({ status }) => status === "open").length).toBeLessThanOrEqual(3)
    // One that was a member before takes a stranger's place at once, without waiting for its time to end.
    await member.drop(mesh.coordinator.peerId, "test")
    await expect.poll(() => [...mesh.coordinator.peers(), ...member.peers()]).toEqual([])
    await member.dial(mesh.coordinator.address)
    await expect.poll(() => member.peers()).toEqual([mesh.coordinator.peerId])
  })
})

test("two that dial each other at the same moment are connected, and stay so", async () => {
  await using mesh = await startTestMesh()
  const [a, b] = [await mesh.member(), await mesh.member()]
  for (const node of [a, b]) serveEcho(node)
  await Promise.all([a.dial(b.address), b.dial(a.address)])
  await expect.poll(() => [a.peers(), b.peers()]).toEqual([[b.peerId], [a.peerId]])
  for (const [from, to] of [
    [a, b],
    [b, a],
  ] as const) {
    const stream = await from.openStream(to.peerId, ECHO)
    await stream.send(new Uint8Array([5]))
    expect((await stream.frames()[Symbol.asyncIterator]().next()).value).toEqual(new Uint8Array([5]))
    await stream.close()
  }
})

test("an address that is taken is an error, with the address in it", async () => {
  await using mesh = await startTestMesh()
  const taken = mesh.coordinator.address.slice(0, mesh.coordinator.address.indexOf("/p2p/"))
  await expect(mesh.member({ listen: [taken] })).rejects.toThrow(`the mesh cannot listen on ${taken}`)
})

test("a node tells others its listening addresses, or the announced ones instead; one that listens nowhere can dial", async () => {
  await using mesh = await startTestMesh()
  const { coordinator } = mesh
  expect(coordinator.addresses()).toEqual([expect.stringMatching(/^\/ip4\/127\.0\.0\.1\/tcp\/\d+\/p2p\/12D3Koo/)])
  const announced = "/ip4/192.0.2.7/tcp/4001"
  const node = await mesh.member({ announce: [announced] })
  expect(node.addresses()).toEqual([`${announced}/p2p/${node.peerId}`])
  const dialer = await mesh.member({ listen: [] })
  expect(dialer.addresses()).toEqual([])
  await dialer.dial(coordinator.address)
  await expect.poll(() => coordinator.peers()).toEqual([dialer.peerId])
  // The coordinator can open streams to it all the same: connections carry both directions.
  serveEcho(dialer)
  const stream = await coordinator.openStream(dialer.peerId, ECHO)
  await stream.send(new Uint8Array([1]))
  expect((await stream.frames()[Symbol.asyncIterator]().next()).value).toEqual(new Uint8Array([1]))
})
