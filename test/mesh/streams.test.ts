import { expect, test } from "vitest"
import { startTestMesh } from "../support/mesh.ts"

const ECHO = { name: "/test/echo/1", largestFrameBytes: 1024 * 1024, streamsPerPeer: 4, unsentBytes: 2 * 1024 * 1024 }

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
