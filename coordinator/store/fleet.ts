import type { Instant } from "../../protocol/base/clock.ts"
import { nodeId, peerId, type AccountId, type NodeId, type PeerId } from "../../protocol/domain/ids.ts"
import type { NodeRole } from "../../protocol/domain/statuses.ts"
import type { Tx, View } from "./store.ts"

export type NodeState = "active" | "draining" | "revoked"

export interface NodeTokenRow {
  id: string
  name: string | null
  maxUses: number
  uses: number
  roles: NodeRole[]
  accountId: number | null
  expiresAt: Instant
  createdAt: Instant
}

export interface NodeRow {
  id: NodeId
  peerId: PeerId
  name: string | null
  token: string
  roles: NodeRole[]
  state: NodeState
  stateReason: string | null
  agentVersion: string
  /** The last hello's facts as JSON, null before the first. */
  facts: string | null
  enrolledAt: Instant
  lastSeenAt: Instant | null
  revokedAt: Instant | null
  probation: { since: Instant; reason: string } | null
  /** When two machines were last seen to speak with its key. */
  clonedAt: Instant | null
}

export async function insertNodeToken(
  tx: Tx,
  token: {
    id: string
    hash: string
    name: string | null
    maxUses: number
    roles: readonly NodeRole[]
    account: AccountId | null
    expiresAt: Instant
    at: Instant
  },
): Promise<void> {
  await tx.run(
    "INSERT INTO node_tokens (id, hash, name, max_uses, roles, account, expires_at, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    token.id,
    token.hash,
    token.name,
    token.maxUses,
    JSON.stringify(token.roles),
    token.account,
    token.expiresAt,
    token.at,
  )
}

export async function nodeTokenByHash(view: View, hash: string): Promise<NodeTokenRow | null> {
  const row = await view.get<RawToken>("SELECT * FROM node_tokens WHERE hash = ?", hash)
  if (!row) return null
  return {
    id: row.id,
    name: row.name,
    maxUses: row.max_uses,
    uses: row.uses,
    roles: JSON.parse(row.roles) as NodeRole[],
    accountId: row.account,
    expiresAt: row.expires_at,
    createdAt: row.created_at,
  }
}

/** Uses the token up by one. False when it has expired or has no use left. */
export async function spendNodeToken(tx: Tx, id: string, at: Instant): Promise<boolean> {
  const { changes } = await tx.run(
    "UPDATE node_tokens SET uses = uses + 1 WHERE id = ? AND uses < max_uses AND expires_at > ?",
    id,
    at,
  )
  return changes === 1
}

export async function insertNode(
  tx: Tx,
  node: {
    id: NodeId
    peerId: PeerId
    name: string | null
    token: string
    account: number | null
    roles: readonly NodeRole[]
    agentVersion: string
    at: Instant
  },
): Promise<void> {
  await tx.run(
    `INSERT INTO nodes (id, peer_id, name, token, account, roles, state, agent_version, enrolled_at)
     VALUES (?, ?, ?, ?, ?, ?, 'active', ?, ?)`,
    node.id,
    node.peerId,
    node.name,
    node.token,
    node.account,
    JSON.stringify(node.roles),
    node.agentVersion,
    node.at,
  )
}

/**
 * Takes in again a member whose row was lost with newer data: its certificate, which the coordinator signed, says who it is.
 * Which token and account it came with is not known any more.
 */
export async function readmitNode(
  tx: Tx,
  node: { id: NodeId; peerId: PeerId; roles: readonly NodeRole[]; enrolledAt: Instant; agentVersion: string },
): Promise<void> {
  await tx.run(
    `INSERT INTO node_tokens (id, hash, name, max_uses, uses, roles, expires_at, created_at)
     VALUES (?, ?, 'nodes taken in again by their certificates', 1, 1, '[]', 0, 0) ON CONFLICT DO NOTHING`,
    LOST_TOKEN,
    LOST_TOKEN,
  )
  const { id, peerId: peer, roles, enrolledAt: at, agentVersion } = node
  await insertNode(tx, {
    id,
    peerId: peer,
    name: null,
    token: LOST_TOKEN,
    account: null,
    roles: [...roles],
    agentVersion,
    at,
  })
}

/** No token has this as the hash of its text. */
const LOST_TOKEN = "lost"

export async function nodeByPeer(view: View, peer: PeerId): Promise<NodeRow | null> {
  const row = await view.get<RawNode>("SELECT * FROM nodes WHERE peer_id = ?", peer)
  return row ? nodeFrom(row) : null
}

export async function nodeById(view: View, id: NodeId): Promise<NodeRow | null> {
  const row = await view.get<RawNode>("SELECT * FROM nodes WHERE id = ?", id)
  return row ? nodeFrom(row) : null
}

export async function allNodes(view: View): Promise<NodeRow[]> {
  return (await view.all<RawNode>("SELECT * FROM nodes ORDER BY enrolled_at, id")).map(nodeFrom)
}

/** Changes the state, unless the node is revoked already: that is final. */
export async function updateNodeState(
  tx: Tx,
  id: NodeId,
  { state, reason, at }: { state: NodeState; reason: string | null; at: Instant },
): Promise<boolean> {
  const { changes } = await tx.run(
    "UPDATE nodes SET state = ?, state_reason = ?, revoked_at = ? WHERE id = ? AND state <> 'revoked'",
    state,
    reason,
    state === "revoked" ? at : null,
    id,
  )
  return changes === 1
}

export async function recordHello(tx: Tx, id: NodeId, agentVersion: string, facts: string, at: Instant): Promise<void> {
  await tx.run(
    "UPDATE nodes SET agent_version = ?, facts = ?, last_seen_at = ? WHERE id = ?",
    agentVersion,
    facts,
    at,
    id,
  )
}

export async function recordSeen(tx: Tx, id: NodeId, at: Instant): Promise<void> {
  await tx.run("UPDATE nodes SET last_seen_at = ? WHERE id = ?", at, id)
}

interface RawToken {
  id: string
  name: string | null
  max_uses: number
  uses: number
  roles: string
  account: number | null
  expires_at: number
  created_at: number
}

interface RawNode {
  id: string
  peer_id: string
  name: string | null
  token: string
  roles: string
  state: NodeState
  state_reason: string | null
  agent_version: string
  facts: string | null
  enrolled_at: number
  last_seen_at: number | null
  revoked_at: number | null
  probation_since: number | null
  probation_reason: string | null
  cloned_at: number | null
}

function nodeFrom(row: RawNode): NodeRow {
  return {
    id: nodeId(row.id),
    peerId: peerId(row.peer_id),
    name: row.name,
    token: row.token,
    roles: JSON.parse(row.roles) as NodeRole[],
    state: row.state,
    stateReason: row.state_reason,
    agentVersion: row.agent_version,
    facts: row.facts,
    enrolledAt: row.enrolled_at,
    lastSeenAt: row.last_seen_at,
    revokedAt: row.revoked_at,
    probation: row.probation_since === null ? null : { since: row.probation_since, reason: row.probation_reason ?? "" },
    clonedAt: row.cloned_at,
  }
}
