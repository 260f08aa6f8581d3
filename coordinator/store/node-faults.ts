import type { Instant } from "../../protocol/base/clock.ts"
import { nodeId, type NodeId } from "../../protocol/domain/ids.ts"
import type { Tx, View } from "./store.ts"
import type { TaskKey } from "./tasks.ts"

/** `failed_task`: it failed here and completed elsewhere. `content`: pieces that were not what their digests say. */
export type FaultKind = "failed_task" | "refused_report" | "idle_claim" | "protocol" | "content"

export interface NewFault {
  node: NodeId
  kind: FaultKind
  job: number | null
  witness: NodeId | null
  detail: string | null
  at: Instant
}

/** Stores a fault. A job counts once against a node, and so does a witness of its content: false then. */
export async function insertFault(tx: Tx, { node, kind, job, witness, detail, at }: NewFault): Promise<boolean> {
  const known = kind === "content" ? await hasWitness(tx, node, witness) : job !== null && (await hasJob(tx, node, job))
  if (known) return false
  await tx.run(
    "INSERT INTO node_faults (node, kind, job, witness, detail, at) VALUES (?, ?, ?, ?, ?, ?)",
    node,
    kind,
    job,
    witness,
    detail,
    at,
  )
  return true
}

async function hasJob(tx: Tx, node: NodeId, job: number): Promise<boolean> {
  return (await tx.get("SELECT id FROM node_faults WHERE node = ? AND job = ?", node, job)) !== undefined
}

async function hasWitness(tx: Tx, node: NodeId, witness: NodeId | null): Promise<boolean> {
  const sql = "SELECT id FROM node_faults WHERE node = ? AND kind = 'content' AND witness = ?"
  return (await tx.get(sql, node, witness)) !== undefined
}

/**
 * A task completed on `witness`: nodes on which it failed before, in ways that a bad node can cause, are to blame. One entry
 * for each failed attempt; `isNew` with the first of the job.
 */
export async function blameFailures(
  tx: Tx,
  { task, job, witness, at }: { task: TaskKey; job: number; witness: NodeId; at: Instant },
): Promise<Blame[]> {
  const rows = await tx.all<{ node: string; failure_kind: string }>(
    `SELECT node, failure_kind FROM attempts WHERE task = ? AND state = 'failed' AND node <> ?
     AND failure_kind IN ('exit_code', 'signal', 'timeout', 'oom', 'disk_full', 'sandbox_error', 'preparation_failed')`,
    task,
    witness,
  )
  const blames: Blame[] = []
  for (const row of rows) {
    const node = nodeId(row.node)
    const fault = { node, kind: "failed_task" as const, job, witness, detail: row.failure_kind, at }
    blames.push({ node, isNew: await insertFault(tx, fault) })
  }
  return blames
}

export interface Blame {
  node: NodeId
  /** The job did not count against the node before. */
  isNew: boolean
}

/** What counts against a node since some time. */
export interface FaultCounts {
  /** Distinct jobs. */
  jobs: number
  /** Of those: where only another node's word stands against it. */
  toldJobs: number
  /** Distinct nodes that completed what failed here. */
  jobWitnesses: number
  offences: number
  /** Distinct nodes that found its pieces wrong. */
  contentWitnesses: number
  /** Of the last offence. */
  lastOffence: string | null
}

export async function countFaults(view: View, node: NodeId, since: Instant): Promise<FaultCounts> {
  const row = await view.get<Omit<FaultCounts, "lastOffence">>(
    `SELECT count(DISTINCT job) AS jobs,
       count(DISTINCT CASE WHEN kind = 'failed_task' THEN job END) AS toldJobs,
       count(DISTINCT CASE WHEN kind = 'failed_task' THEN witness END) AS jobWitnesses,
       count(CASE WHEN kind = 'protocol' THEN 1 END) AS offences,
       count(DISTINCT CASE WHEN kind = 'content' THEN witness END) AS contentWitnesses
     FROM node_faults WHERE node = ? AND at > ?`,
    node,
    since,
  )
  const last = await view.get<{ detail: string | null }>(
    "SELECT detail FROM node_faults WHERE node = ? AND at > ? AND kind = 'protocol' ORDER BY id DESC LIMIT 1",
    node,
    since,
  )
  const none = { jobs: 0, toldJobs: 0, jobWitnesses: 0, offences: 0, contentWitnesses: 0 }
  return { ...none, ...row, lastOffence: last?.detail ?? null }
}

/** What the rows say of a node's standing. */
export async function standingOf(
  view: View,
  node: NodeId,
): Promise<{ state: string; probationSince: Instant | null; pardonedAt: Instant | null } | null> {
  const row = await view.get<{ state: string; probation_since: number | null; pardoned_at: number | null }>(
    "SELECT state, probation_since, pardoned_at FROM nodes WHERE id = ?",
    node,
  )
  return row ? { state: row.state, probationSince: row.probation_since, pardonedAt: row.pardoned_at } : null
}

/** False when it is on probation already, or revoked. */
export async function putOnProbation(tx: Tx, node: NodeId, reason: string, at: Instant): Promise<boolean> {
  const { changes } = await tx.run(
    `UPDATE nodes SET probation_since = ?, probation_reason = ?
     WHERE id = ? AND probation_since IS NULL AND state <> 'revoked'`,
    at,
    reason,
    node,
  )
  return changes === 1
}

/** Ends probation and what was said of clones; faults up to now count no more. */
export async function pardon(tx: Tx, node: NodeId, at: Instant): Promise<void> {
  await tx.run(
    `UPDATE nodes SET probation_since = NULL, probation_reason = NULL, cloned_at = NULL, pardoned_at = ?
     WHERE id = ?`,
    at,
    node,
  )
}

export async function storeCloned(tx: Tx, node: NodeId, at: Instant): Promise<void> {
  await tx.run("UPDATE nodes SET cloned_at = ? WHERE id = ?", at, node)
}

/** Faults of before are forgotten, pardoned or not. */
export async function dropFaults(tx: Tx, before: Instant, limit: number): Promise<number> {
  const { changes } = await tx.run(
    "DELETE FROM node_faults WHERE id IN (SELECT id FROM node_faults WHERE at < ? ORDER BY at LIMIT ?)",
    before,
    limit,
  )
  return changes
}
