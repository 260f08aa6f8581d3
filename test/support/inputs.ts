import type { NodeInputs } from "../../protocol/api/nodes.ts"
import { systemClock } from "../../protocol/base/clock.ts"
import { silentLog } from "../../protocol/base/log.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import { digest } from "../../protocol/domain/ids.ts"
import { toWireRef } from "../../protocol/wire/content-source.ts"
import type { Blobs } from "../../node-agent/cache/blobs.ts"
import { createFetchInputs, type FetchInputs } from "../../node-agent/tasks/inputs.ts"

/** What attempts are given, on a node whose coordinator is the test. */
export interface InputsRig {
  fetch: FetchInputs
  /** What the next attempts are told. */
  given: NodeInputs
  /** How often it was asked for. */
  asked: number
  /** Downloads fail so many times more. */
  failing: number
  /** Puts the bytes into the cache, and names them to the next attempts. */
  give(name: string, filename: string, bytes: string | Uint8Array): Promise<void>
}

export function startInputsRig(blobs: () => Blobs): InputsRig {
  const rig: InputsRig = {
    fetch: (claim, place, signal) =>
      createFetchInputs({
        ask: async () => {
          rig.asked += 1
          return rig.given
        },
        blobs: blobs(),
        // What is not in the cache cannot be had.
        fetch: {
          async fetchBlob(blob) {
            if (rig.failing-- > 0 || blobs().find(blob.digest) === null) throw new Error("no source could give it")
            return { blob, bytesFromPeers: 0, bytesFromOrigin: 0, culprits: [] }
          },
        },
        origin: () => null,
        connected: () => true,
        clock: systemClock,
        random: systemRandom,
        log: silentLog,
      })(claim, place, signal),
    given: { files: [], content_grant: "grant", unavailable: null },
    asked: 0,
    failing: 0,
    async give(name, filename, bytes) {
      const whole = typeof bytes === "string" ? Buffer.from(bytes) : bytes
      const empty = { digest: digest("0".repeat(64)), size: 0, pieceListDigest: null }
      const ref = whole.length === 0 ? empty : await blobs().put({ stream: chunk(whole) })
      rig.given.files.push({ name, filename, file: toWireRef(ref), holders: [] })
    },
  }
  return rig
}

async function* chunk(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes
}
