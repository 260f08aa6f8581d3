import { z } from "zod"
import type { StreamProtocol } from "./stream-protocol.ts"
import { DIGEST_PATTERN } from "../domain/ids.ts"
import { imageRecord } from "../domain/image.ts"
import { LARGEST_CHECKPOINT_STATE_BYTES } from "../domain/runner.ts"
import { ENFORCEABLE, FAILURE_KINDS, ISOLATIONS, NODE_ROLES } from "../domain/statuses.ts"
import { MOST_UPLOADS } from "../domain/task-inputs.ts"

/**
 * The control stream between a node and the coordinator (architecture §5.3): one long-lived stream, JSON frames.
 * Frames are only transport; what must not be lost is an item (accept, result) with a key of its own, and both sides are
 * idempotent by key. Large things travel as blobs beside it.
 *
 * Version history: 1 the first.
 */
export const CONTROL_VERSION = 1

export const CONTROL_PROTOCOL: StreamProtocol = {
  name: `/computalot/control/${CONTROL_VERSION}`,
  /** Grants and reports are cut to fit (architecture §5.3). */
  largestFrameBytes: 256 * 1024,
  /** Two, because a node redials before the coordinator notices that the first stream broke. */
  streamsPerPeer: 2,
  /** Past 4 MiB unsent the stream is reset; reconciliation restores everything. */
  unsentBytes: 2 * 1024 * 1024,
}

/** A payload or result above this travels as a blob named by digest, so that nothing waits behind it. */
export const LARGEST_INLINE_BYTES = 64 * 1024
/** What a batch of grants or reports may weigh in one frame, with room for the frame's own words. */
export const BATCH_BYTES = 192 * 1024
/** A progress line that goes with an attempt's end: what else goes with it may take the rest of the frame. */
export const LARGEST_LAST_PROGRESS = 8 * 1024
/** Items in one frame: bounds what one frame costs to judge. */
export const BATCH_ITEMS = 256

/**
 * Attempts that one node may hold: accepted, running, and ended without an answer. The node takes no more, so that hello,
 * welcome, heartbeat and its reply fit into their frames: two hundred cores full of the smallest tasks.
 */
export const MOST_HELD = 2048
/** Revoked members in one frame: a longer list goes ahead of the welcome, in frames of its own. */
export const REVOKED_IN_FRAME = 500

/** Warm revisions in a standing claim. */
export const MOST_WARM = 256
/** Revisions in one `want`: more than a node makes ready at once anyway. */
const MOST_WANTED = 32

/** What one node may lend, a whole cluster behind one agent included; more is not a large machine but nonsense. */
const MOST_CPUS = 65_536
const LARGEST_MEMORY_MB = 1024 ** 3
const LARGEST_STORAGE_GB = 1024 ** 3

const claim = z.int().positive()
const digest = z.string().regex(DIGEST_PATTERN)
const milliseconds = z.number().nonnegative()
const gpu = z.object({
  uuid: z.string().max(128),
  model: z.string().max(128),
  memory_mb: z.number().nonnegative().max(LARGEST_MEMORY_MB),
})
const capacity = z.object({
  cpu: z.number().nonnegative().max(MOST_CPUS),
  memory_mb: z.number().nonnegative().max(LARGEST_MEMORY_MB),
  storage_gb: z.number().nonnegative().max(LARGEST_STORAGE_GB),
  gpus: z.array(gpu).max(64),
})
/** A blob, and the piece list by which its pieces are verified; null for blobs of a single piece. */
const blob = z.object({ digest, size: z.int().nonnegative(), piece_list: digest.nullable() })
/** Small text inline, large text by digest (uploaded to or fetched from the coordinator by HTTP). */
const textOrBlob = z.union([z.object({ text: z.string() }), z.object({ digest, size: z.int().nonnegative() })])

// ── node → coordinator ──────────────────────────────────────────────────────────────────────────────────────────────

/** First frame of every connection: who speaks, and every claim number it holds. */
const hello = z.object({
  type: z.literal("hello"),
  version: z.int(),
  agent_version: z.string().max(64),
  boot_id: z.string().max(64),
  /** The highest epoch the node was ever welcomed with; 0 before the first. */
  epoch: z.int().nonnegative(),
  /** The coordinator's signature of that epoch, so that an older copy of the coordinator can be told the truth. */
  epoch_proof: z.string().max(512).nullable(),
  roles: z.array(z.enum(NODE_ROLES)).max(3),
  capacity,
  runtime: z.string().max(32),
  isolation: z.enum(ISOLATIONS),
  enforces: z.array(z.enum(ENFORCEABLE)).max(16),
  network: z.enum(["none", "outbound"]),
  addresses: z.array(z.string().max(256)).max(16),
  attempts: z.array(z.object({ claim, state: z.enum(["accepted", "running", "done"]) })).max(MOST_HELD),
})

/** The standing claim: what the node lends now. It stands until the next one; capacity 0 or `open: false` withdraws it. */
const standing = z.object({
  type: z.literal("claim"),
  open: z.boolean(),
  draining: z.boolean(),
  capacity,
  /** Revisions whose runtime is ready here. */
  warm: z.array(z.string().max(64)).max(MOST_WARM),
  /** Tasks the node takes beyond its free slots when they are short. */
  credit: z.int().nonnegative().max(4096),
})

/** These grants are stored: the node will run each at most once. */
const accept = z.object({ type: z.literal("accept"), claims: z.array(claim).max(BATCH_ITEMS) })

/** These grants are not started and never will be: they go back to the queue and are no loss. */
const giveBack = z.object({
  type: z.literal("give_back"),
  items: z.array(z.object({ claim, reason: z.string().max(200) })).max(BATCH_ITEMS),
})

/** The user's processes of these attempts run now. */
const started = z.object({ type: z.literal("started"), claims: z.array(claim).max(BATCH_ITEMS) })

/** Life: renews the attempts it names, and only those. `running_ms` is what a cancel may bill. */
const heartbeat = z.object({
  type: z.literal("heartbeat"),
  n: z.int().nonnegative(),
  attempts: z.array(z.object({ claim, running_ms: milliseconds.nullable() })).max(MOST_HELD),
  /** Content fetched from other nodes since the agent started; the coordinator only counts it. */
  peer_bytes: z.int().nonnegative().optional(),
})

/** Live words of running attempts; may be lost, never answered. */
const progress = z.object({
  type: z.literal("progress"),
  items: z
    .array(
      z.object({
        claim,
        /** The last valid progress line, as its own JSON text. */
        progress: z.string().max(LARGEST_INLINE_BYTES).nullable(),
        output_tail: z.string().max(16_384).nullable(),
      }),
    )
    .max(BATCH_ITEMS),
})

const artifactItem = z.object({
  name: z.string().max(255).nullable(),
  filename: z.string().max(255),
  digest,
  size: z.int().nonnegative(),
  content_type: z.string().max(255),
})

/**
 * What a running program left to go on from. Its key is (claim, n), which grows within an attempt; `digest` tells a repeat
 * from a contradiction. The bytes of its file are uploaded before it is sent.
 */
export const checkpointItem = z.object({
  claim,
  n: z.int().positive(),
  digest,
  /** The checkpoint object, as its own JSON text. */
  state: z.string().max(LARGEST_CHECKPOINT_STATE_BYTES),
  /** The other fields of the line that carried it, as a JSON object. */
  line: z.string().max(LARGEST_CHECKPOINT_STATE_BYTES),
  file: z.object({ digest, size: z.int().nonnegative(), filename: z.string().min(1).max(255) }).nullable(),
  /** Why the file that it names is not published; null where it is, or where none is named. */
  problem: z.object({ status: z.enum(["failed", "skipped"]), reason: z.string().max(500) }).nullable(),
})
export type CheckpointItem = z.infer<typeof checkpointItem>

/** The one end of an attempt. Its key is the claim number; `digest` tells a repeat from a contradiction. */
export const resultItem = z.object({
  claim,
  digest,
  failure_kind: z.enum(FAILURE_KINDS).nullable(),
  exit_code: z.int().nullable(),
  signal: z.string().max(32).nullable(),
  /** For people: names the limit that was hit, say. */
  message: z.string().max(2000).nullable(),
  runtime_ms: milliseconds,
  cpu_ms: milliseconds.nullable(),
  peak_memory_bytes: z.number().nonnegative().nullable(),
  /** Tail of standard output and error together, marker line included. */
  output: z.string().max(16_384),
  /** Tail of standard error. */
  error_tail: z.string().max(8192),
  /** What the runner wrote, as its own JSON text; null when it wrote nothing, or nothing usable. */
  result: textOrBlob.nullable(),
  /** Why a result file was not usable (not JSON, too large); null when it was, or when there was none. */
  result_problem: z.string().max(500).nullable(),
  artifacts: z.array(artifactItem).max(1000),
  /** The last progress line, for the next attempt: live ones may be lost. Only where checkpoints are wanted, and of a small one. */
  progress: z.string().max(LARGEST_LAST_PROGRESS).optional(),
  /** The last checkpoint, where it was not answered by itself before the end: stored in the report's write. */
  checkpoint: checkpointItem.nullable().optional(),
  /** What the client should know of a completed attempt: declared files that were not there. */
  warnings: z.array(z.string().max(200)).max(MOST_UPLOADS).optional(),
})
export type ResultItem = z.infer<typeof resultItem>

const report = z.object({ type: z.literal("report"), items: z.array(resultItem).max(BATCH_ITEMS) })

/** Answered with a verdict after COMMIT, like a result. */
const checkpoint = z.object({ type: z.literal("checkpoint"), item: checkpointItem })

/** The attempt could not read these checkpoints and goes on from an older one, or anew. For people; may be lost. */
const fellBack = z.object({
  type: z.literal("fell_back"),
  claim,
  unreadable: z.array(z.object({ claim, n: z.int().positive(), reason: z.string().max(300) })).max(2),
})

/** A revision's runtime on this node. */
const replica = z.object({
  type: z.literal("replica"),
  revision: z.string().max(64),
  /** `failed`: by the revision's doing; `unable`: by this node's, which says nothing about the revision. */
  state: z.enum(["initializing", "ready", "failed", "unable", "removed"]),
  /** Why, of `failed` and `unable`; clients read it. */
  message: z.string().max(2000).nullable(),
  log_tail: z.string().max(16_384).nullable(),
  /** Of `unable`: the blob of the image that nobody could give. */
  missing: digest.optional(),
})

/** The end of a build. Answered with a verdict after COMMIT, like a result. */
const built = z.object({
  type: z.literal("built"),
  claim,
  outcome: z.union([
    z.object({ ok: z.literal(true), image: imageRecord }),
    z.object({ ok: z.literal(false), kind: z.enum(["project", "node"]), message: z.string().max(2000) }),
  ]),
  log_tail: z.string().max(65_536),
})

/**
 * The node could serve demand that it heard of, and is not warm for it (architecture §5.2). A hint: answered with `prepare`
 * where that helps, and else not at all.
 */
const want = z.object({ type: z.literal("want"), revisions: z.array(z.string().max(64)).max(MOST_WANTED) })

/** Pieces or a piece list of this peer were not what their digests say. One word among several, never proof. */
const complaint = z.object({
  type: z.literal("complaint"),
  peer_id: z.string().max(128),
  /** Wrong pieces; or an address at which it was connected a moment ago refuses, twice: its agent is gone. */
  kind: z.enum(["content", "refuses"]),
})

const takenBack = z.object({
  type: z.literal("taken_back"),
  not_started: z.array(claim).max(BATCH_ITEMS),
  started: z.array(claim).max(BATCH_ITEMS),
})

export const toCoordinator = z.discriminatedUnion("type", [
  hello,
  standing,
  accept,
  giveBack,
  started,
  heartbeat,
  progress,
  report,
  checkpoint,
  fellBack,
  replica,
  built,
  takenBack,
  want,
  complaint,
])
export type ToCoordinator = z.infer<typeof toCoordinator>
export type Hello = z.infer<typeof hello>
export type StandingClaim = z.infer<typeof standing>
export type WireCapacity = z.infer<typeof capacity>

// ── coordinator → node ──────────────────────────────────────────────────────────────────────────────────────────────

const revoked = z.array(z.string().max(128)).max(REVOKED_IN_FRAME)

/** What does not fit into the welcome that follows. The list counts once the welcome has come, so it is never in parts. */
const revokedAhead = z.object({ type: z.literal("revoked"), nodes: revoked })

const welcome = z.object({
  type: z.literal("welcome"),
  version: z.int(),
  epoch: z.int().positive(),
  /** Signature of the epoch (see `signEpoch`); shown back in the next hello. */
  epoch_proof: z.string().max(512),
  /** Coordinator time in ms, from which the node learns how its own clock is off. */
  now: z.number(),
  heartbeat_ms: z.number().positive(),
  claim_lifetime_ms: z.number().positive(),
  members: z.int().nonnegative(),
  /** One verdict for each claim number hello listed. */
  attempts: z
    .array(z.object({ claim, verdict: z.enum(["keep", "stop", "spent"]), expires_in_ms: milliseconds.nullable() }))
    .max(MOST_HELD),
  peers: z.array(z.string().max(256)).max(64),
  revocation_version: z.int().nonnegative(),
  /** Members whose certificates have not ended by themselves: with those sent ahead on this stream, all of them. */
  revoked,
  /** Bearer for this connection's uploads and downloads (`/api/v1/nodes/blobs`). Replaces any earlier one. */
  transfer_token: z.string().max(128),
  certificate: z.string().max(4096).nullable(),
})

/** The other side cannot or will not work with us; the stream ends after it. */
const refusal = z.object({
  type: z.literal("refusal"),
  reason: z.enum(["version", "revoked", "epoch", "malformed", "starting", "cloned"]),
  message: z.string().max(500),
})

/** How the runtime of a revision is made. `image` null: not built (process runtime: the tarball is the workspace). */
const runtimeSpec = z.object({
  revision: z.string().max(64),
  tarball: blob,
  image: imageRecord.nullable(),
  /** Where commands run inside; null: the image's own. */
  workdir: z.string().max(4096).nullable(),
  /** Another path to the same code (C-06). */
  remote_dir: z.string().max(4096).nullable(),
  setup_timeout_ms: milliseconds,
  /** Checks of the manifest, run once per node and revision at preparation. */
  validation: z
    .object({
      executables: z.array(z.string()),
      files: z.array(z.string()),
      commands: z.array(
        z.object({
          label: z.string(),
          command: z.array(z.string()),
          /** Below the workdir, or absolute; absent: the workdir. */
          cwd: z.string().optional(),
          env: z.record(z.string(), z.string()).optional(),
        }),
      ),
      /** Layers above the image's environment for all of them, as tasks get them (M-009); absent: none. */
      env: z.record(z.string(), z.string()).optional(),
    })
    .nullable(),
  /** Signed leave to fetch the blobs named in it, and who may have them. */
  content_grant: z.string(),
  holders: z.array(z.object({ peer_id: z.string(), addresses: z.array(z.string()) })).max(32),
})
export type RuntimeSpec = z.infer<typeof runtimeSpec>

/** What all tasks of one grant from the same job share. */
const taskSpec = z.object({
  job_id: z.string(),
  runtime: runtimeSpec,
  command: z.array(z.string()).min(1),
  /** Layers above the image's environment, in order, later wins (M-009). */
  env: z.record(z.string(), z.string()),
  cpu: z.number().positive(),
  memory_mb: z.number().positive(),
  storage_gb: z.number().positive(),
  timeout_ms: z.number().positive(),
  /** Less than `timeout_ms` where the hold buys no more: reaching it is `budget_spent`. */
  budget_ms: z.number().nonnegative().optional(),
  /** Checkpoints of these tasks are wanted. */
  checkpoints: z.boolean().optional(),
})
export type TaskSpec = z.infer<typeof taskSpec>

const grantedTask = z.object({
  claim,
  /** Position in `specs`. */
  spec: z.int().nonnegative(),
  index: z.int().nonnegative(),
  attempt: z.int().positive(),
  payload: textOrBlob,
  gpus: z.array(z.string()).max(64),
  /** An earlier attempt left something to go on from: asked for by HTTP (`/api/v1/nodes/resumes`) before the start. */
  resumes: z.boolean().optional(),
  /** `_shared.values` of the payload are variables too. */
  shares: z.boolean().optional(),
  /** Files of artifacts are to be there: asked for by HTTP (`/api/v1/nodes/inputs`) before the start. */
  downloads: z.boolean().optional(),
  /** Files of the artifact directory that become artifacts of their own. */
  uploads: z
    .array(
      z.object({
        name: z.string().max(64),
        path: z.string().max(512),
        filename: z.string().max(255).nullable(),
        content_type: z.string().max(255).nullable(),
      }),
    )
    .max(MOST_UPLOADS)
    .optional(),
})
export type GrantedTask = z.infer<typeof grantedTask>

const grant = z.object({
  type: z.literal("grant"),
  expires_in_ms: milliseconds,
  specs: z.array(taskSpec).max(BATCH_ITEMS),
  tasks: z.array(grantedTask).max(BATCH_ITEMS),
})

/** Answers to items, after COMMIT. Nothing else lets a node delete an item. */
const verdicts = z.object({
  type: z.literal("verdicts"),
  items: z
    .array(
      z.object({
        claim,
        kind: z.enum(["result", "build", "checkpoint"]),
        /** Of a checkpoint. */
        n: z.int().positive().optional(),
        verdict: z.enum(["stored", "already", "spent", "refused"]),
        reason: z.string().max(500).nullable(),
      }),
    )
    .max(BATCH_ITEMS),
})
export type ItemVerdict = z.infer<typeof verdicts>["items"][number]

const heartbeatReply = z.object({
  type: z.literal("heartbeat_reply"),
  n: z.int().nonnegative(),
  /** Renewed for the claim's life from when the node sent this heartbeat. */
  renewed: z.array(claim).max(MOST_HELD),
  /** No longer the node's: stop these and drop what they made. */
  spent: z.array(claim).max(MOST_HELD),
  /** From now on the node beats at this interval: the fleet has grown or shrunk. Absent: as before. */
  heartbeat_ms: z.number().positive().optional(),
})

const cancel = z.object({
  type: z.literal("cancel"),
  claims: z.array(claim).max(BATCH_ITEMS),
  reason: z.string().max(1000),
})
const takeBack = z.object({ type: z.literal("take_back"), claims: z.array(claim).max(BATCH_ITEMS) })

/** Make this revision's runtime ready (init, or an offer the node asked about). */
const prepare = z.object({ type: z.literal("prepare"), runtime: runtimeSpec })

const build = z.object({
  type: z.literal("build"),
  claim,
  revision: z.string().max(64),
  tarball: blob,
  content_grant: z.string(),
  dockerfile: z.string().max(1024),
  context: z.string().max(1024),
  target: z.string().max(256).nullable(),
  args: z.record(z.string(), z.string()),
  timeout_ms: milliseconds,
})
export type BuildOrder = z.infer<typeof build>

/** A newer push made this build pointless. */
const cancelBuild = z.object({ type: z.literal("cancel_build"), claim })

/** What the admin decided about this node. */
const nodeState = z.object({ type: z.literal("node_state"), state: z.enum(["active", "draining", "revoked"]) })
const certificate = z.object({ type: z.literal("certificate"), certificate: z.string().max(4096) })

export const toNode = z.discriminatedUnion("type", [
  revokedAhead,
  welcome,
  refusal,
  grant,
  verdicts,
  heartbeatReply,
  cancel,
  takeBack,
  prepare,
  build,
  cancelBuild,
  nodeState,
  certificate,
])
export type ToNode = z.infer<typeof toNode>
export type RevokedAhead = z.infer<typeof revokedAhead>
export type Welcome = z.infer<typeof welcome>
export type Grant = z.infer<typeof grant>

// ── frames ──────────────────────────────────────────────────────────────────────────────────────────────────────────

export function encodeMessage(message: ToCoordinator | ToNode): Uint8Array {
  return ENCODER.encode(JSON.stringify(message))
}

/** The message in `frame`; throws with the reason when it is none. The peer that sent it is then dropped. */
export function decodeToCoordinator(frame: Uint8Array): ToCoordinator {
  return toCoordinator.parse(JSON.parse(DECODER.decode(frame)))
}

/** As `decodeToCoordinator`, for the other direction. */
export function decodeToNode(frame: Uint8Array): ToNode {
  return toNode.parse(JSON.parse(DECODER.decode(frame)))
}

/** Items in the order given, as many at a time as one frame carries; one that is larger than a batch goes alone. */
export function* inFrames<T>(items: Iterable<T>): Generator<T[], void, undefined> {
  let batch: T[] = []
  let bytes = 0
  for (const item of items) {
    const itemBytes = jsonBytes(item) + 1
    if (batch.length === BATCH_ITEMS || (batch.length > 0 && bytes + itemBytes > BATCH_BYTES)) {
      yield batch
      batch = []
      bytes = 0
    }
    batch.push(item)
    bytes += itemBytes
  }
  if (batch.length > 0) yield batch
}

/** The end of a text that takes at most `bytes` in a frame, where control characters take six times their length. */
export function lastThatFits(text: string, bytes: number): string {
  let tail = text.slice(-bytes)
  for (let over = jsonBytes(tail) - bytes; over > 0; over = jsonBytes(tail) - bytes) {
    tail = tail.slice(Math.max(1, Math.floor(over / LONGEST_ESCAPE)))
  }
  return tail
}

/** As in `\u0001`. */
const LONGEST_ESCAPE = 6
const jsonBytes = (value: unknown): number => Buffer.byteLength(JSON.stringify(value))

const ENCODER = new TextEncoder()
const DECODER = new TextDecoder("utf-8", { fatal: true })
