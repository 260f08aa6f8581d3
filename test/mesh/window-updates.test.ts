import type { Stream } from "@libp2p/interface"
import { noise } from "@libp2p/noise"
import { tcp } from "@libp2p/tcp"
import { yamux } from "@libp2p/yamux"
import { createLibp2p, type Libp2p } from "libp2p"
import { expect, onTestFinished, test } from "vitest"
import { saveWindowUpdates } from "../../protocol/mesh/window-updates.ts"

const PROTOCOL = "/test/windows/1"
const WINDOW_UPDATE = 1

test("small frames are not answered with window updates one by one, and a sender of much is never left waiting", async () => {
  const { sender, updates, received } = await streamBetweenTwo(saveWindowUpdates)
  for (let n = 0; n < 100; n++) await sendBytes(sender, 100)
  await expect.poll(received).toBe(100 * 100)
  // At most the one that tells the opener that its stream was taken.
  expect(updates()).toBeLessThanOrEqual(1)
  // Four windows and more, which needs updates.
  for (let n = 0; n < 20; n++) await sendBytes(sender, 64 * 1024)
  await expect.poll(received).toBe(100 * 100 + 20 * 64 * 1024)
  expect(updates()).toBeGreaterThan(1)
})

test("without it each piece of data is answered: the stream is of the kind that it knows", async () => {
  const { sender, updates, received } = await streamBetweenTwo(() => {})
  for (let n = 0; n < 100; n++) await sendBytes(sender, 100)
  await expect.poll(received).toBe(100 * 100)
  expect(updates()).toBeGreaterThan(50)
})

/** A stream, and what its receiving side has said of its window and taken. */
async function streamBetweenTwo(
  prepare: (stream: Stream) => void,
): Promise<{ sender: Stream; updates: () => number; received: () => number }> {
  const [from, to] = await Promise.all([startNode(), startNode()])
  let [updates, received] = [0, 0]
  await to.handle(PROTOCOL, (stream) => {
    prepare(stream)
    const inside = stream as unknown as { sendFrame: (header: { type: number }, data?: unknown) => boolean }
    const sendFrame = inside.sendFrame.bind(inside)
    inside.sendFrame = (header, data) => {
      if (header.type === WINDOW_UPDATE) updates += 1
      return sendFrame(header, data)
    }
    stream.addEventListener("message", ({ data }) => (received += data.byteLength))
  })
  const sender = await from.dialProtocol(to.getMultiaddrs(), PROTOCOL)
  return { sender, updates: () => updates, received: () => received }
}

async function startNode(): Promise<Libp2p> {
  const node = await createLibp2p({
    addresses: { listen: ["/ip4/127.0.0.1/tcp/0"] },
    transports: [tcp()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    connectionMonitor: { enabled: false },
  })
  onTestFinished(() => node.stop())
  return node
}

/** In a turn of its own, so that it is a piece of its own. */
async function sendBytes(stream: Stream, bytes: number): Promise<void> {
  if (!stream.send(new Uint8Array(bytes))) await stream.onDrain()
  await new Promise((later) => setTimeout(later, 1))
}
