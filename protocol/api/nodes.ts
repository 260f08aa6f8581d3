import { z } from "zod"
import { DIGEST_PATTERN } from "../domain/ids.ts"
import { NODE_ROLES } from "../domain/statuses.ts"
import { MOST_DOWNLOADS } from "../domain/task-inputs.ts"
import { listOf, timestamp } from "./common.ts"
import { endpoint } from "./endpoint.ts"

/** What a node uploads for its attempts and builds may be this large: the limit of controller uploads (AR-003). */
const LARGEST_NODE_BLOB_BYTES = 2 * 1024 ** 3
/** A join token lives a day unless the admin says otherwise, and at most a year. */
const DEFAULT_TOKEN_TTL_S = 86_400
const LONGEST_TOKEN_TTL_S = 366 * 86_400

export const enrolNodeEndpoint = endpoint({
  id: "nodes-enroll",
  method: "POST",
  path: "/api/v1/nodes/enroll",
  access: "public",
  summary:
    "Takes a node into the fleet: a join token and a signature with the node's key against a membership certificate.",
  body: z.object({
    token: z.string().min(1).max(256),
    peer_id: z.string().min(1).max(128),
    public_key: z.string().max(64),
    signature: z.string().max(128),
    name: z.string().max(128).nullish(),
    agent_version: z.string().min(1).max(64),
  }),
  status: 201,
  reply: z.object({
    node_id: z.string(),
    certificate: z.string(),
    coordinator: z.object({ peer_id: z.string(), addrs: z.array(z.string()) }),
    peers: z.array(z.string()),
    epoch: z.int(),
  }),
  replies: {
    401: { description: "the token is unknown, spent or expired, or the signature does not fit" },
    403: { description: "the node's key was revoked" },
    429: { description: "too many failures from one address: come back after Retry-After seconds" },
  },
})

const blobParams = z.object({ digest: z.string().regex(DIGEST_PATTERN, "must be 64 lower-case hex digits") })
const claimQuery = z.object({ claim: z.string().regex(/^\d{1,16}$/, "must be a claim number") })

export const uploadNodeBlob = endpoint({
  id: "nodes-blob-put",
  method: "PUT",
  path: "/api/v1/nodes/blobs/:digest",
  access: "node",
  summary: "A node sends the bytes its report will name. The same bytes again change nothing.",
  params: blobParams,
  query: claimQuery,
  rawBody: { limitBytes: LARGEST_NODE_BLOB_BYTES, contentType: "application/octet-stream" },
  reply: z.object({ digest: z.string(), size: z.int() }),
  replies: { 410: { description: "the claim is spent: its bytes are not wanted any more" } },
})

export const downloadNodePayload = endpoint({
  id: "nodes-payload-get",
  method: "GET",
  path: "/api/v1/nodes/payloads/:claim",
  access: "node",
  summary: "A node fetches the payload of a task it holds, where it was too large for the grant.",
  params: z.object({ claim: z.string().regex(/^\d{1,16}$/, "must be a claim number") }),
  stream: "bytes",
})

const resumePoint = z.object({
  claim: z.int(),
  n: z.int(),
  /** The checkpoint object and the other fields of its line, as JSON texts. */
  checkpoint: z.string(),
  line: z.string(),
  file: z
    .object({
      digest: z.string().regex(DIGEST_PATTERN),
      size: z.int().nonnegative(),
      piece_list: z.string().nullable(),
    })
    .nullable(),
  filename: z.string(),
})
export const nodeResume = endpoint({
  id: "nodes-resume-get",
  method: "GET",
  path: "/api/v1/nodes/resumes/:claim",
  access: "node",
  summary: "A node asks what earlier attempts of a task it holds left to go on from, newest first.",
  params: z.object({ claim: z.string().regex(/^\d{1,16}$/, "must be a claim number") }),
  reply: z.object({
    payload_key: z.string(),
    /** The last progress line, as JSON text. */
    progress: z.string().nullable(),
    points: z.array(resumePoint).max(2),
    /** Leave to fetch their files; null where none has one. */
    content_grant: z.string().nullable(),
  }),
})
export type NodeResume = z.output<typeof nodeResume.reply>

const inputFile = z.object({
  /** As the payload names it. */
  name: z.string(),
  filename: z.string(),
  file: z.object({
    digest: z.string().regex(DIGEST_PATTERN),
    size: z.int().nonnegative(),
    piece_list: z.string().nullable(),
  }),
  /** Members that were given it before. */
  holders: z.array(z.object({ peer_id: z.string(), addresses: z.array(z.string()) })).max(8),
})
export const nodeInputs = endpoint({
  id: "nodes-inputs-get",
  method: "GET",
  path: "/api/v1/nodes/inputs/:claim",
  access: "node",
  summary: "A node asks for the files that a task it holds is to find.",
  params: z.object({ claim: z.string().regex(/^\d{1,16}$/, "must be a claim number") }),
  reply: z.object({
    files: z.array(inputFile).max(MOST_DOWNLOADS),
    /** Leave to fetch them; null where there are none. */
    content_grant: z.string().nullable(),
    /** Why they cannot be had; null where they can. */
    unavailable: z.string().nullable(),
  }),
})
export type NodeInputs = z.output<typeof nodeInputs.reply>

export const adminCreateNodeToken = endpoint({
  id: "admin-node-tokens-create",
  method: "POST",
  path: "/api/v1/admin/nodes/tokens",
  access: "admin",
  summary: "Makes a join token; it is shown once.",
  body: z.object({
    name: z.string().max(128).nullish(),
    max_uses: z.int().min(1).max(10_000).nullish(),
    ttl_s: z.number().positive().max(LONGEST_TOKEN_TTL_S).nullish(),
    roles: z.array(z.enum(NODE_ROLES)).min(1).nullish(),
    account_id: z.int().positive().nullish(),
  }),
  status: 201,
  creates: true,
  reply: z.object({ id: z.string(), token: z.string().nullable(), expires_at: timestamp }),
})
export const defaultTokenTtlSeconds = DEFAULT_TOKEN_TTL_S

const capacityRow = z.object({
  cpu: z.number(),
  memory_mb: z.number(),
  storage_gb: z.number(),
  gpus: z.array(z.object({ uuid: z.string(), model: z.string(), memory_mb: z.number() })),
})

export const nodeRow = z
  .object({
    id: z.string(),
    name: z.string().nullable(),
    peer_id: z.string(),
    state: z.enum(["active", "draining", "revoked"]),
    contact: z.enum(["connected", "suspect", "lost_contact", "offline"]),
    last_seen_at: timestamp.nullable(),
    roles: z.array(z.enum(NODE_ROLES)),
    runtime: z.string().nullable(),
    isolation: z.string().nullable(),
    enforces: z.array(z.string()),
    network: z.string().nullable(),
    agent_version: z.string(),
    capacity: capacityRow.nullable(),
    free: capacityRow.nullable(),
    running: z.array(z.object({ job_id: z.string(), task_id: z.string(), attempt: z.int() })),
    warm_revisions: z.int(),
    /** Since the coordinator started. */
    tasks_ended: z.int(),
    probation: z.object({ since: timestamp, reason: z.string() }).nullable(),
    state_reason: z.string().nullable(),
    enrolled_at: timestamp,
  })
  .meta({ id: "Node" })

export const adminListNodes = endpoint({
  id: "admin-nodes-list",
  method: "GET",
  path: "/api/v1/admin/nodes",
  access: "admin",
  summary: "The fleet: the one place where identities of machines show.",
  reply: listOf("nodes", nodeRow),
})

export const adminPutNode = endpoint({
  id: "admin-nodes-put",
  method: "PUT",
  path: "/api/v1/admin/nodes/:id",
  access: "admin",
  summary: "Drains a node, takes it back into service, or revokes it for good.",
  body: z.object({ state: z.enum(["active", "draining", "revoked"]), reason: z.string().max(500).nullish() }),
  reply: z.object({ node: nodeRow }),
  replies: { 409: { description: "the node is revoked, and that is final" } },
})

export const nodeEndpoints = [
  enrolNodeEndpoint,
  uploadNodeBlob,
  downloadNodePayload,
  nodeResume,
  nodeInputs,
  adminCreateNodeToken,
  adminListNodes,
  adminPutNode,
] as const
