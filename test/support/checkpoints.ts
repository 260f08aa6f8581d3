import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import type { Blobs } from "../../node-agent/cache/blobs.ts"
import type { Hasher } from "../../node-agent/cache/hasher.ts"
import { openOutbox, type Outbox } from "../../node-agent/outbox/outbox.ts"
import { createCheckpoints, type Checkpoints } from "../../node-agent/tasks/checkpoints.ts"
import { createResume, type Resume } from "../../node-agent/tasks/resume.ts"
import type { NodeResume } from "../../protocol/api/nodes.ts"
import { systemClock } from "../../protocol/base/clock.ts"
import { silentLog } from "../../protocol/base/log.ts"
import { systemRandom } from "../../protocol/base/random.ts"
import { toWireRef } from "../../protocol/wire/content-source.ts"
import type { CheckpointItem, ToCoordinator } from "../../protocol/wire/control.ts"

/** What attempts leave and go on from, on a node whose coordinator is the test. */
export interface CheckpointRig extends AsyncDisposable {
  outbox: Outbox
  checkpoints: Checkpoints
  resume: Resume
  /** What was sent to the coordinator, oldest first. */
  said: ToCoordinator[]
  items(): CheckpointItem[]
  /** Uploaded bytes by digest. */
  uploads: Map<string, Buffer>
  /** Are checkpoints answered `stored` at once? */
  answering: boolean
  /** Do uploads hang until they are given up? */
  hanging: boolean
  /** How many did. */
  hung: number
  /** What the next attempts are told to go on from. */
  remains: NodeResume
  /** A point to go on from whose file was uploaded before. */
  pointOf(item: CheckpointItem, blobs: Blobs): Promise<NodeResume["points"][number]>
}

export function startCheckpointRig({ blobs, hasher }: { blobs: () => Blobs; hasher: Hasher }): CheckpointRig {
  const home = mkdtempSync(join(tmpdir(), "computalot-outbox-"))
  const outbox = openOutbox(join(home, "outbox.sqlite"), Date.now())
  const base = { clock: systemClock, random: systemRandom, log: silentLog }
  const send = (message: ToCoordinator): void => {
    rig.said.push(message)
    if (message.type !== "checkpoint" || !rig.answering) return
    const { claim, n } = message.item
    setImmediate(() => {
      rig.checkpoints.verdicts([{ claim, kind: "checkpoint", n, verdict: "stored", reason: null }])
    })
  }
  const rig: CheckpointRig = {
    outbox,
    checkpoints: createCheckpoints({
      ...base,
      outbox,
      hasher,
      send,
      async upload(_, file, signal) {
        if (rig.hanging) {
          rig.hung += 1
          await new Promise((_, reject) => signal.addEventListener("abort", () => reject(new Error("cut"))))
        }
        rig.uploads.set(file.digest, readFileSync(file.path))
      },
    }),
    resume: (claim, place, signal) =>
      createResume({
        ...base,
        ask: async () => rig.remains,
        blobs: blobs(),
        // What is not in the cache cannot be had.
        fetch: {
          async fetchBlob(blob) {
            if (blobs().find(blob.digest) === null) throw new Error("no source could give it")
            return { blob, bytesFromPeers: 0, bytesFromOrigin: 0, culprits: [] }
          },
        },
        origin: () => null,
        connected: () => true,
        send,
      })(claim, place, signal),
    said: [],
    items: () => rig.said.flatMap((message) => (message.type === "checkpoint" ? [message.item] : [])),
    uploads: new Map(),
    answering: true,
    hanging: false,
    hung: 0,
    remains: { payload_key: "_resume", progress: null, points: [], content_grant: null },
    async pointOf({ claim, n, state, line, file }, into) {
      if (!file) throw new Error("it has a file")
      const bytes = rig.uploads.get(file.digest) ?? Buffer.alloc(0)
      const ref = await into.put({ stream: chunk(bytes) })
      return { claim, n, checkpoint: state, line, file: toWireRef(ref), filename: file.filename }
    },
    async [Symbol.asyncDispose]() {
      await rig.checkpoints[Symbol.asyncDispose]()
      outbox[Symbol.dispose]()
      rmSync(home, { recursive: true, force: true })
    },
  }
  return rig
}

async function* chunk(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes
}
