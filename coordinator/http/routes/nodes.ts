import { pipeline } from "node:stream/promises"
import { Readable } from "node:stream"
import type { z } from "zod"
import { timestampText } from "../../../protocol/api/common.ts"
import {
  adminCreateNodeToken,
  adminListNodes,
  adminPutNode,
  defaultTokenTtlSeconds,
  downloadNodePayload,
  enrolNodeEndpoint,
  nodeInputs,
  nodeResume,
  uploadNodeBlob,
  type NodeInputs,
  type NodeResume,
  type nodeRow,
} from "../../../protocol/api/nodes.ts"
import { ComputalotError, notFound } from "../../../protocol/domain/errors.ts"
import {
  accountId,
  claimNumber,
  digest,
  nodeId,
  peerId,
  taskId,
  type NodeId,
  type PeerId,
} from "../../../protocol/domain/ids.ts"
import type { Capacity } from "../../../protocol/domain/requirements.ts"
import type { ObjectFiles } from "../../artifacts/object-files.ts"
import { certify, createJoinToken, enrolNode, type EnrolmentParts, type JoinToken } from "../../fleet/enrol.ts"
import { freeOf } from "../../fleet/fit.ts"
import { capacityOnWire } from "../../fleet/capacity.ts"
import { isCloned, type Fleet } from "../../fleet/fleet.ts"
import type { HeldAttempt, Member, Members } from "../../fleet/members.ts"
import type { KnownJobs } from "../../jobs/job-facts.ts"
import { mount, type HttpApp, type HttpRequest } from "../app.ts"
import type { RequestOrigin } from "../client-address.ts"
import { createRateLimit, type RateLimit } from "../rate-limit.ts"

export interface NodeRouteParts extends EnrolmentParts {
  coordinator: () => { peerId: PeerId; addresses: string[]; epoch: number }
  fleet: Fleet
  members: Members
  known: KnownJobs
  files: ObjectFiles
  /** May this node still upload for the claim (a live attempt or build of its own)? */
  isLive: (claim: number, node: NodeId) => boolean
  /** Keeps uploaded bytes until their report, if the claim is still live in the write. False: it is spent. */
  stage: (node: NodeId, blob: { claim: number; digest: string; size: number }) => Promise<boolean>
  /** What the attempt of this claim goes on from; null when it is not this node's. */
  resume: (claim: number, node: NodeId) => Promise<NodeResume | null>
  /** The payload as the attempt was granted it. */
  payload: (attempt: HeldAttempt) => Promise<string>
  /** The files that the attempt of this claim is to find; null when it is not this node's. */
  inputs: (claim: number, node: NodeId) => Promise<NodeInputs | null>
  /** A draining node is asked for what it has not started. */
  drain: (member: Member) => void
  /** Takes back what a revoked node holds, and ends its connection. */
  cutOff: (member: Member) => Promise<void>
}

/** Enrolment, what nodes send and fetch by HTTP, and the admin's view of the fleet (interfaces.md). */
export function mountNodes(app: Pick<HttpApp, "add">, parts: NodeRouteParts): void {
  const failedEnrolments = createRateLimit(parts.clock, { exemptLoopback: true, mostOfAll: null })
  const enrol = async ({ body, origin }: Pick<HttpRequest<typeof enrolNodeEndpoint>, "body" | "origin">) => {
    const node = await countFailures(failedEnrolments, origin, () =>
      enrolNode(parts, {
        token: body.token,
        peerId: peerId(body.peer_id),
        publicKey: body.public_key,
        signature: body.signature,
        name: body.name ?? null,
        agentVersion: body.agent_version,
      }),
    )
    const { peerId: own, addresses, epoch } = parts.coordinator()
    const member = parts.members.add({
      id: node.id,
      peer: node.peerId,
      name: node.name,
      roles: node.roles,
      state: node.state,
    })
    return {
      node_id: node.id,
      certificate: certify(parts, node),
      coordinator: { peer_id: own, addrs: addresses },
      peers: parts.fleet.peersFor(member),
      epoch,
    }
  }
  mount(app, enrolNodeEndpoint, enrol, { before: async ({ origin }) => failedEnrolments.check(origin) })

  mount(
    app,
    uploadNodeBlob,
    async (request) => {
      const { digest: named } = request.params
      using blob = await parts.files.put(request.openBody(), {
        maxBytes: uploadNodeBlob.rawBody.limitBytes,
        expectedDigest: digest(named),
      })
      const staged = { claim: Number(request.query.claim), digest: named, size: blob.size }
      if (!(await parts.stage(request.caller.node, staged))) throw spent()
      return { digest: named, size: blob.size }
    },
    {
      before: async ({ query, caller }) => {
        if (!parts.isLive(Number(query.claim), caller.node)) throw spent()
      },
    },
  )

  mount(app, downloadNodePayload, async ({ params, caller, response }) => {
    const attempt = parts.members.attempt(claimNumber(Number(params.claim)))
    if (!attempt || attempt.node !== caller.node) throw notFound("the payload of this claim")
    const payload = Buffer.from(await parts.payload(attempt))
    response.setHeader("content-type", "application/json")
    response.setHeader("content-length", payload.length)
    await pipeline(Readable.from([payload]), response)
  })

  mount(app, nodeResume, async ({ params, caller }) => {
    const resume = await parts.resume(Number(params.claim), caller.node)
    if (!resume) throw notFound("what this claim goes on from")
    return resume
  })

  mount(app, nodeInputs, async ({ params, caller }) => {
    const inputs = await parts.inputs(Number(params.claim), caller.node)
    if (!inputs) throw notFound("what this claim is given")
    return inputs
  })

  mount(app, adminCreateNodeToken, async ({ body, idempotency }) => {
    const wanted = {
      name: body.name ?? null,
      maxUses: body.max_uses ?? 1,
      ttlMs: Math.ceil((body.ttl_s ?? defaultTokenTtlSeconds) * 1000),
      roles: body.roles ?? (["worker"] as const),
      account: body.account_id == null ? null : accountId(body.account_id),
    }
    // A repetition gives the same id without the secret, which is stored nowhere (rulings, Idempotency).
    const again = ({ id, expiresAt }: JoinToken) => ({
      status: 201,
      body: { id, token: null, expires_at: timestampText(expiresAt) },
    })
    const made = await createJoinToken(parts, wanted, idempotency.remember(again))
    return { id: made.id, token: made.token, expires_at: timestampText(made.expiresAt) }
  })

  mount(app, adminListNodes, async () => {
    const rows = await parts.fleet.rows()
    const nodes = rows.map((row) => {
      const member = parts.members.add({
        id: row.id,
        peer: row.peerId,
        name: row.name,
        roles: row.roles,
        state: row.state,
      })
      return rowOf(parts, member, row)
    })
    return { nodes, count: nodes.length }
  })

  mount(app, adminPutNode, async ({ params, body }) => {
    const member = await parts.fleet.setState(nodeId(params.id), body.state, body.reason ?? null)
    member.session?.send({ type: "node_state", state: body.state })
    if (body.state === "draining") parts.drain(member)
    if (body.state === "revoked") await parts.cutOff(member)
    const row = (await parts.fleet.rows()).find(({ id }) => id === member.id)
    if (!row) throw notFound(`the node ${params.id}`)
    return { node: rowOf(parts, member, row) }
  })
}

function spent(): ComputalotError {
  return new ComputalotError("gone", "this claim is spent: its bytes are not wanted any more", {
    recommendedAction: "Drop the attempt; its task runs elsewhere or its job is over.",
  })
}

function rowOf(
  parts: Pick<NodeRouteParts, "members" | "known" | "clock">,
  member: Member,
  row: Awaited<ReturnType<Fleet["rows"]>>[number],
): z.output<typeof nodeRow> {
  const { facts, standing } = member
  const capacity = standing?.capacity ?? facts?.capacity ?? null
  return {
    id: row.id,
    name: row.name,
    peer_id: row.peerId,
    state: row.state,
    contact: parts.members.contact(member),
    last_seen_at: timestampText(member.lastSeenAt ?? row.lastSeenAt),
    roles: [...(facts?.roles ?? row.roles)],
    runtime: facts?.runtime ?? null,
    isolation: facts?.isolation ?? null,
    enforces: [...(facts?.enforces ?? [])],
    network: facts?.network ?? null,
    agent_version: row.agentVersion,
    capacity: capacity && capacityOnWire(capacity),
    free: capacity && capacityOnWire(notNegative(freeOf(capacity, member.used))),
    running: [...member.attempts.values()].flatMap((attempt) => {
      const job = parts.known.get(attempt.job)
      return job ? [{ job_id: job.id, task_id: taskId(job.id, attempt.index), attempt: attempt.number }] : []
    }),
    warm_revisions: standing?.warm.size ?? 0,
    tasks_ended: member.tasksEnded,
    probation: row.probation && { since: timestampText(row.probation.since), reason: row.probation.reason },
    state_reason: row.state !== "revoked" && isCloned(member, parts.clock.now()) ? CLONED : row.stateReason,
    enrolled_at: timestampText(row.enrolledAt),
  }
}

/** Architecture §5.1, and how it ends. */
const CLONED =
  "cloned identity: two machines speak with this node's key, and it gets nothing new. It ends an hour after the second was last heard, or with PUT active."

/** Short tasks may be handed ahead: what they will need is not missing yet. */
function notNegative(free: Capacity): Capacity {
  return {
    cpu: Math.max(0, free.cpu),
    memoryMb: Math.max(0, free.memoryMb),
    storageGb: Math.max(0, free.storageGb),
    gpus: free.gpus,
  }
}

/** A fleet may enrol from one address, however large; whoever guesses tokens fails. */
async function countFailures<T>(limit: RateLimit, origin: RequestOrigin, act: () => Promise<T>): Promise<T> {
  try {
    return await act()
  } catch (error) {
    if (error instanceof ComputalotError && (error.status === 401 || error.status === 403)) limit.count(origin)
    throw error
  }
}
