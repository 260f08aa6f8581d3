import { expect, test } from "vitest"
import { openContentStream } from "../../node-agent/mesh/content-stream.ts"
import type { Clock } from "../../protocol/base/clock.ts"
import { peerId } from "../../protocol/domain/ids.ts"
import type { MeshStream } from "../../protocol/mesh/mesh.ts"
import { encodeContent, type ContentReply } from "../../protocol/wire/content.ts"

const peer = peerId("12D3KooWSource")

/** A source that sends these frames, each `stepMs` after the one before, and then hangs. */
async function askOf(frames: Iterable<Uint8Array>, stepMs = 0) {
  let now = 0
  const clock: Clock = { now: () => now, monotonicMs: () => now, after: () => ({ cancel() {} }) }
  const ended = new AbortController()
  const stream: MeshStream = {
    peer,
    ended: ended.signal,
    send: async () => {},
    close: async () => {},
    reset: (reason) => ended.abort(new Error(reason)),
    async *frames() {
      for (const frame of frames) {
        now += stepMs
        yield frame
      }
    },
  }
  const mesh = { peers: () => [peer], dial: async () => peer, openStream: async () => stream }
  const asked = await openContentStream(mesh, clock, { peer, addresses: [] }, new AbortController().signal)
  return { asked, ended: ended.signal }
}

const reply = (message: ContentReply): Uint8Array => encodeContent(message)

test("an answer's bulk is put together from its frames", async () => {
  const { asked } = await askOf([reply({ type: "bytes", size: 3 }), Uint8Array.of(1), Uint8Array.of(2, 3)], 1000)
  expect(await asked.ask({ type: "list" }, 3)).toEqual({ type: "bytes", bytes: Uint8Array.of(1, 2, 3) })
})

test("a source that trickles is given up, though each frame comes in time", async () => {
  function* trickle(): Generator<Uint8Array> {
    yield reply({ type: "bytes", size: 1_000_000 })
    for (;;) yield Uint8Array.of(0)
  }
  const { asked, ended } = await askOf(trickle(), 1000)
  await expect(asked.ask({ type: "piece", index: 0 }, 1_000_000)).rejects.toThrow("too slowly")
  asked[Symbol.dispose]()
  expect(ended.aborted).toBe(true)
})

test("a source that announces or sends more than was asked for is given up", async () => {
  const announced = await askOf([reply({ type: "bytes", size: 11 })])
  await expect(announced.asked.ask({ type: "piece", index: 0 }, 10)).rejects.toThrow("too many bytes")
  const sent = await askOf([reply({ type: "bytes", size: 2 }), new Uint8Array(3)])
  await expect(sent.asked.ask({ type: "piece", index: 0 }, 10)).rejects.toThrow("other bytes than announced")
  const empty = await askOf([reply({ type: "bytes", size: 2 }), new Uint8Array()])
  await expect(empty.asked.ask({ type: "piece", index: 0 }, 10)).rejects.toThrow("other bytes than announced")
})

test("a source that talks nonsense or hangs up is given up", async () => {
  const nonsense = await askOf([Uint8Array.of(255)])
  await expect(nonsense.asked.ask({ type: "have" })).rejects.toThrow("malformed")
  const gone = await askOf([])
  await expect(gone.asked.ask({ type: "have" })).rejects.toThrow("hung up")
})
