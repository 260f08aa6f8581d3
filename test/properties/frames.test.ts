import fc from "fast-check"
import { expect, test } from "vitest"
import { createFrameDecoder, encodeFrame, FRAME_HEADER_BYTES } from "../../protocol/wire/frames.ts"

const LIMIT = 64
const bodies = fc.array(fc.uint8Array({ maxLength: LIMIT }), { maxLength: 12 })

/** The bytes cut at the given places, in any order and number. */
function cut(bytes: Uint8Array, places: number[]): Uint8Array[] {
  const at = [0, ...places.map((place) => place % (bytes.length + 1)), bytes.length].sort((a, b) => a - b)
  return at.slice(1).map((end, i) => bytes.subarray(at[i], end))
}

test("any chunking of a stream gives the same frames", () => {
  fc.assert(
    fc.property(bodies, fc.array(fc.nat(), { maxLength: 20 }), (frames, places) => {
      const decoder = createFrameDecoder(LIMIT)
      const got: Uint8Array[] = []
      for (const chunk of cut(Buffer.concat(frames.map(encodeFrame)), places)) {
        const pushed = decoder.push(chunk)
        expect(pushed.tooLong).toBeUndefined()
        got.push(...pushed.frames)
      }
      expect(got.map((frame) => [...frame])).toEqual(frames.map((frame) => [...frame]))
      expect(decoder.insideFrame).toBe(false)
    }),
  )
})

test("a frame over the limit is refused at its header, after the frames before it", () => {
  fc.assert(
    fc.property(
      bodies,
      fc.integer({ min: LIMIT + 1, max: 2 ** 32 - 1 }),
      fc.array(fc.nat()),
      (frames, length, places) => {
        const header = new Uint8Array(FRAME_HEADER_BYTES)
        new DataView(header.buffer).setUint32(0, length)
        const decoder = createFrameDecoder(LIMIT)
        let got = 0
        let refused: number | undefined
        for (const chunk of cut(Buffer.concat([...frames.map(encodeFrame), header]), places)) {
          const pushed = decoder.push(chunk)
          got += pushed.frames.length
          refused = pushed.tooLong
          if (refused !== undefined) break
        }
        expect(refused).toBe(length)
        expect(got).toBe(frames.length)
        expect(() => decoder.push(new Uint8Array(1))).toThrow("refused frame")
      },
    ),
  )
})

test("a stream cut short inside a frame is seen as such", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: LIMIT }), fc.nat(), (body, place) => {
      const frame = encodeFrame(body)
      const decoder = createFrameDecoder(LIMIT)
      const part = frame.subarray(0, 1 + (place % (frame.length - 1)))
      expect(decoder.push(part).frames).toEqual([])
      expect(decoder.insideFrame).toBe(true)
    }),
  )
})

test("frames are buffers of their own: the received chunk may be used again", () => {
  const chunk = encodeFrame(new Uint8Array([1, 2, 3]))
  const { frames } = createFrameDecoder(LIMIT).push(chunk)
  chunk.fill(9)
  expect(frames.map((frame) => [...frame])).toEqual([[1, 2, 3]])
})
