import { assert } from "../base/assert.ts"

/** A frame is its length as u32 big endian, then that many bytes. */
export const FRAME_HEADER_BYTES = 4

/** The other side announced a frame over the protocol's limit. */
export class FrameTooLong extends Error {}

/** The frame with its header, as one new buffer: the caller may reuse `body`. */
export function encodeFrame(body: Uint8Array): Uint8Array {
  const frame = new Uint8Array(FRAME_HEADER_BYTES + body.length)
  new DataView(frame.buffer).setUint32(0, body.length)
  frame.set(body, FRAME_HEADER_BYTES)
  return frame
}

export interface FrameDecoder {
  /**
   * Takes the next bytes of the stream and gives the frames that they complete, each a buffer of its own. `tooLong` is the
   * announced length of a frame over the limit; it is refused at its header, the frames before it are still given, and
   * nothing may be pushed after it.
   */
  push(chunk: Uint8Array): { frames: Uint8Array[]; tooLong?: number }
  /** Has a frame begun that is not complete? At the end of a stream that means it was cut short. */
  readonly insideFrame: boolean
}

/** Cuts a stream into frames of at most `largestFrameBytes`. Holds no more than one incomplete frame. */
export function createFrameDecoder(largestFrameBytes: number): FrameDecoder {
  const header = new Uint8Array(FRAME_HEADER_BYTES)
  let headerFilled = 0
  let body: Uint8Array | null = null
  let bodyFilled = 0
  let refused = false

  return {
    push(chunk) {
      assert(!refused, "nothing is pushed after a refused frame")
      const frames: Uint8Array[] = []
      let at = 0
      while (at < chunk.length) {
        if (body === null) {
          const taken = Math.min(FRAME_HEADER_BYTES - headerFilled, chunk.length - at)
          header.set(chunk.subarray(at, at + taken), headerFilled)
          headerFilled += taken
          at += taken
          if (headerFilled < FRAME_HEADER_BYTES) break
          const length = new DataView(header.buffer).getUint32(0)
          if (length > largestFrameBytes) {
            refused = true
            return { frames, tooLong: length }
          }
          body = new Uint8Array(length)
          bodyFilled = 0
          headerFilled = 0
        }
        const taken = Math.min(body.length - bodyFilled, chunk.length - at)
        body.set(chunk.subarray(at, at + taken), bodyFilled)
        bodyFilled += taken
        at += taken
        if (bodyFilled === body.length) {
          frames.push(body)
          body = null
        }
      }
      return { frames }
    },
    get insideFrame() {
      return headerFilled > 0 || body !== null
    },
  }
}
