import { describe, expect, test } from "vitest"
import type { MeshStream } from "../../protocol/mesh/mesh.ts"
import type { StreamProtocol } from "../../protocol/wire/stream-protocol.ts"
import { startTestMesh, type TestNode } from "../support/mesh.ts"

const ECHO = { name: "/test/echo/1", largestFrameBytes: 1024 * 1024, streamsPerPeer: 4, unsentBytes: 2 * 1024 * 1024 }
const SMALL = { name: "/test/small/1", largestFrameBytes: 1024, streamsPerPeer: 3, unsentBytes: 64 * 1024 }
const BULK = { name: "/test/bulk/1", largestFrameBytes: 1 << 20, streamsPerPeer: 2, unsentBytes: 2 << 20 }

async function echoes(stream: MeshStream): Promise<void> {
  for await (const frame of stream.frames()) await stream.send(frame)
}

/** Does one frame come back on a stream of its own? */
async function echo(from: TestNode, to: TestNode, protocol: StreamProtocol): Promise<boolean> {
  const stream = await from.openStream(to.peerId, protocol)
  await stream.send(new Uint8Array([1, 2, 3]))
  const { value } = await stream.frames()[Symbol.asyncIterator]().next()
  await stream.close()
  return value?.length === 3
}

test("a member calls another over a stream of frames, and both close cleanly", async () => {
  await using mesh = await startTestMesh()
  const node = await mesh.member()
  mesh.coordinator.serve(ECHO, async (stream) => {
    for await (const frame of stream.frames()) await stream.send(frame)
  })
  expect(await node.dial(mesh.coordinator.address)).toBe(mesh.coordinator.peerId)
  const stream = await node.openStream(mesh.coordinator.peerId, ECHO)
  const sizes = [0, 1, 300, 65_535, 1024 * 1024]
  for (const size of sizes) await stream.send(new Uint8Array(size).fill(size % 251))
  await stream.close()
  const back: number[] = []
  for await (const frame of stream.frames()) {
    expect(frame.every((byte) => byte === frame.length % 251)).toBe(true)
    back.push(frame.length)
  }
  expect(back).toEqual(sizes)
  await expect.poll(() => stream.ended.aborted).toBe(true)
})

describe("bounds of a stream", () => {
  test("a frame over the limit ends the stream before it is read, and the connection stays", async () => {
    await using mesh = await startTestMesh()
    const node = await mesh.member()
    const errors: string[] = []
    mesh.coordinator.serve(SMALL, async (stream) => {
      try {
        for await (const frame of stream.frames()) await stream.send(frame)
      } catch (error) {
        errors.push(String(error))
        throw error
      }
    })
    await node.dial(mesh.coordinator.address)
    const large = { ...SMALL, largestFrameBytes: 1 << 20, unsentBytes: 1 << 21 }
    const stream = await node.openStream(mesh.coordinator.peerId, large)
    await stream.send(new Uint8Array(SMALL.largestFrameBytes + 1))
    await expect.poll(() => stream.ended.aborted).toBe(true)
    expect(errors).toEqual([expect.stringContaining("is over the limit of 1024")])
    await expect(stream.send(new Uint8Array(1))).rejects.toThrow()
    expect(await echo(node, mesh.coordinator, SMALL)).toBe(true)
  })

  test("we send no frame that the protocol forbids", async () => {
    await using mesh = await startTestMesh()
    const node = await mesh.member()
    mesh.coordinator.serve(SMALL, echoes)
    await node.dial(mesh.coordinator.address)
    const stream = await node.openStream(mesh.coordinator.peerId, SMALL)
    await expect(stream.send(new Uint8Array(1025))).rejects.toThrow("longer than /test/small/1 allows")
    await stream.send(new Uint8Array(1024))
    expect((await stream.frames()[Symbol.asyncIterator]().next()).value?.length).toBe(1024)
  })

  test("one who sends without waiting to a peer that does not read is stopped at twice the limit; others go on", async () => {
    await using mesh = await startTestMesh()
    const node = await mesh.member()
    const stuck = Promise.withResolvers<void>()
    mesh.coordinator.serve(BULK, () => stuck.promise)
    mesh.coordinator.serve(SMALL, echoes)
    await node.dial(mesh.coordinator.address)
    const stream = await node.openStream(mesh.coordinator.peerId, BULK)
    const sends: Promise<unknown>[] = []
    // Far more than both sides' windows: 64 MiB.
    for (let i = 0; i < 64 && !stream.ended.aborted; i++) {
      sends.push(stream.send(new Uint8Array(1 << 20)).catch(String))
      await new Promise((resolve) => setImmediate(resolve))
    }
    expect(stream.ended.aborted).toBe(true)
    expect((await Promise.all(sends)).at(-1)).toContain("reads too slowly")
    // Taken by the windows of both sides and our own queue, never more.
    expect(sends.length).toBeLessThan(24)
    expect(await echo(node, mesh.coordinator, SMALL)).toBe(true)
    stuck.resolve()
  })

  test("one who waits for room sends as fast as the other reads, and neither side holds more than its bounds", async () => {
    await using mesh = await startTestMesh()
    const node = await mesh.member()
    let read = 0
    let mostAhead = 0
    let sent = 0
    mesh.coordinator.serve(BULK, async (stream) => {
      for await (const frame of stream.frames()) {
        mostAhead = Math.max(mostAhead, sent - read)
        read += frame.length
        if (read % (8 << 20) === 0) await new Promise((resolve) => setTimeout(resolve, 20))
      }
    })
    await node.dial(mesh.coordinator.address)
    const stream = await node.openStream(mesh.coordinator.peerId, BULK)
    for (let i = 0; i < 96; i++) {
      await stream.send(new Uint8Array(1 << 20))
      sent += 1 << 20
    }
    await stream.close()
    await expect.poll(() => read).toBe(96 << 20)
    expect(mostAhead).toBeLessThan(24 << 20)
  })

  test("a reader that pauses for long loses nothing, and gets all of it after the other side has closed", async () => {
    await using mesh = await startTestMesh()
    const node = await mesh.member()
    const mayRead = Promise.withResolvers<void>()
    let read = 0
    mesh.coordinator.serve(BULK, async (stream) => {
      await mayRead.promise
      for await (const frame of stream.frames()) read += frame.length
    })
    await node.dial(mesh.coordinator.address)
    const stream = await node.openStream(mesh.coordinator.peerId, BULK)
    // The first frame fills what is read ahead; the second and the end wait in libp2p's own buffer.
    await stream.send(new Uint8Array(1 << 20))
    await stream.send(new Uint8Array(100_000))
    await stream.close()
    mayRead.resolve()
    await expect.poll(() => read).toBe((1 << 20) + 100_000)
    await expect.poll(() => stream.ended.aborted).toBe(true)
  })

  test("a peer holds no more streams of a protocol than allowed; ended ones make room", async () => {
    await using mesh = await startTestMesh()
    const [node, other] = [await mesh.member(), await mesh.member()]
    mesh.coordinator.serve(SMALL, echoes)
    for (const member of [node, other]) await member.dial(mesh.coordinator.address)
    const open: MeshStream[] = []
    for (let i = 0; i < SMALL.streamsPerPeer; i++) open.push(await node.openStream(mesh.coordinator.peerId, SMALL))
    // Our own side refuses first; a peer that asks for more is refused by the other.
    await expect(node.openStream(mesh.coordinator.peerId, SMALL)).rejects.toThrow()
    const greedy = { ...SMALL, streamsPerPeer: 99 }
    const refused = await node.openStream(mesh.coordinator.peerId, greedy).catch(() => null)
    if (refused !== null) await expect.poll(() => refused.ended.aborted).toBe(true)
    expect(await echo(other, mesh.coordinator, SMALL)).toBe(true)
    await open[0]?.close()
    await expect.poll(() => open[0]?.ended.aborted).toBe(true)
    await expect.poll(() => echo(node, mesh.coordinator, SMALL).catch(() => false)).toBe(true)
  })
})

describe("ends of a stream", () => {
  test("a handler that throws resets the stream, one that returns closes it", async () => {
    await using mesh = await startTestMesh()
    const node = await mesh.member()
    await node.dial(mesh.coordinator.address)
    mesh.coordinator.serve(SMALL, async (stream) => {
      for await (const frame of stream.frames()) {
        if (frame.length === 0) throw new Error("no")
        await stream.send(frame)
        return
      }
    })
    const good = await node.openStream(mesh.coordinator.peerId, SMALL)
    await good.send(new Uint8Array(1))
    const frames: number[] = []
    for await (const frame of good.frames()) frames.push(frame.length)
    expect(frames).toEqual([1])
    await good.close()
    await expect.poll(() => good.ended.aborted).toBe(true)
    const bad = await node.openStream(mesh.coordinator.peerId, SMALL)
    await bad.send(new Uint8Array(0))
    await expect(bad.frames()[Symbol.asyncIterator]().next()).rejects.toThrow()
  })

  test("frames of a connection that breaks end with an error, not as if all had come", async () => {
    await using mesh = await startTestMesh()
    const node = await mesh.member()
    mesh.coordinator.serve(SMALL, echoes)
    await node.dial(mesh.coordinator.address)
    const stream = await node.openStream(mesh.coordinator.peerId, SMALL)
    await stream.send(new Uint8Array(1))
    const frames = stream.frames()[Symbol.asyncIterator]()
    await frames.next()
    const next = frames.next()
    await mesh.coordinator.drop(node.peerId, "test")
    await expect(next).rejects.toThrow()
    await expect.poll(() => stream.ended.aborted).toBe(true)
  })

  test("streams to peers that are not connected, and with an aborted signal, reject", async () => {
    await using mesh = await startTestMesh()
    const node = await mesh.member()
    await expect(node.openStream(mesh.coordinator.peerId, SMALL)).rejects.toThrow("is not connected")
    await node.dial(mesh.coordinator.address)
    await expect(node.openStream(mesh.coordinator.peerId, SMALL, AbortSignal.abort())).rejects.toThrow()
    // Nobody serves it there.
    await expect(node.openStream(mesh.coordinator.peerId, SMALL)).rejects.toThrow()
    await expect(node.dial(mesh.coordinator.address, AbortSignal.abort())).rejects.toThrow()
    await expect(node.dial("/ip4/127.0.0.1/tcp/1")).rejects.toThrow()
  })

  test("a node that stops leaves no socket and no server", async () => {
    const open = (): string[] => process.getActiveResourcesInfo().filter((kind) => /TCP|Server/.test(kind))
    // What the tests before this one have left to close.
    await expect.poll(open, { timeout: 20_000 }).toEqual([])
    {
      await using mesh = await startTestMesh()
      const nodes = [await mesh.member(), await mesh.member()]
      mesh.coordinator.serve(SMALL, echoes)
      for (const node of nodes) {
        await node.dial(mesh.coordinator.address)
        expect(await echo(node, mesh.coordinator, SMALL)).toBe(true)
      }
      expect(open()).not.toEqual([])
    }
    await expect.poll(open).toEqual([])
  })
})
