import type { Instant } from "../../protocol/base/clock.ts"
import type { ClaimNumber, NodeId } from "../../protocol/domain/ids.ts"
import type { Tx, View } from "./store.ts"
import type { TaskKey } from "./tasks.ts"

/** Contact with the attempt's node is lost since `since`. False when that is stored already, or the attempt is over. */
export async function storeContactLost(tx: Tx, claim: ClaimNumber, since: Instant): Promise<boolean> {
  const { changes } = await tx.run(
    `UPDATE attempts SET contact_lost_at = ? WHERE claim = ? AND contact_lost_at IS NULL AND ${LIVE}`,
    since,
    claim,
  )
  return changes === 1
}

/** Contact returned after `ms`: that time is never billed. False when no loss is stored, or the attempt is over. */
export async function storeContactReturned(tx: Tx, claim: ClaimNumber, ms: number): Promise<boolean> {
  const { changes } = await tx.run(
    `UPDATE attempts SET contact_lost_at = NULL, died = 0, lost_contact_ms = lost_contact_ms + ?
     WHERE claim = ? AND contact_lost_at IS NOT NULL AND ${LIVE}`,
    ms,
    claim,
  )
  return changes === 1
}

/** The agent came back without it. */
export async function storeDeath(tx: Tx, claim: ClaimNumber): Promise<void> {
  await tx.run(`UPDATE attempts SET died = 1 WHERE claim = ? AND ${LIVE}`, claim)
}

/** All live claims that have no extension get this one. */
export async function extendLiveClaims(tx: Tx, until: Instant): Promise<void> {
  await tx.run(`UPDATE attempts SET extended_until = ? WHERE ${LIVE} AND extended_until IS NULL`, until)
}

/** Their node was heard: a later pause may extend them again. */
export async function endExtensions(tx: Tx, claims: readonly ClaimNumber[]): Promise<void> {
  for (const claim of claims) {
    await tx.run("UPDATE attempts SET extended_until = NULL WHERE claim = ? AND extended_until IS NOT NULL", claim)
  }
}

/** Deaths among the attempts of a task, and on how many nodes they were: the one that still waits to be ended included. */
export async function deathsOfTask(view: View, task: TaskKey): Promise<{ deaths: number; nodes: number }> {
  const row = await view.get<{ deaths: number; nodes: number }>(
    "SELECT count(*) AS deaths, count(DISTINCT node) AS nodes FROM attempts WHERE task = ? AND died = 1",
    task,
  )
  return row ?? { deaths: 0, nodes: 0 }
}

/**
 * The node shows that it has a lost attempt after all: its task, if this is told for the first time and the attempt is one of
 * fewer than `most` of its task; else null.
 */
export async function storeDisproved(
  tx: Tx,
  node: NodeId,
  claim: number,
  most: number,
): Promise<{ task: TaskKey } | null> {
  const row = await tx.get<{ task: number }>(
    `UPDATE attempts SET disproved = 1
     WHERE claim = ? AND node = ? AND state = 'lost' AND died = 0 AND disproved = 0
       AND (SELECT count(*) FROM attempts other WHERE other.task = attempts.task AND other.disproved = 1) < ?
     RETURNING task`,
    claim,
    node,
    most,
  )
  return row ?? null
}

/** One loss less. False when the task has none, or is over. */
export async function takeLossBack(tx: Tx, task: TaskKey): Promise<boolean> {
  const { changes } = await tx.run(
    `UPDATE tasks SET losses = losses - 1
     WHERE id = ? AND losses > 0 AND state IN ('queued', 'granted', 'running', 'lost')`,
    task,
  )
  return changes === 1
}

/** What a spent attempt reported late: evidence, nothing else. The first one stays. */
export async function keepLateDigest(tx: Tx, claim: ClaimNumber, digest: string): Promise<void> {
  await tx.run(
    "UPDATE attempts SET item_digest = ? WHERE claim = ? AND state = 'lost' AND item_digest IS NULL",
    digest,
    claim,
  )
}

const LIVE = "state IN ('offered', 'accepted', 'running')"
