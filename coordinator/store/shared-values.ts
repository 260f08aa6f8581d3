import { assert } from "../../protocol/base/assert.ts"
import type { ClaimNumber } from "../../protocol/domain/ids.ts"
import type { Tx, View } from "./store.ts"

/**
 * Remembers what a granted attempt is given of the shared state. False when the attempt is no longer to be sent to its node:
 * nothing changes then.
 */
export async function giveSharedValues(
  tx: Tx,
  given: { job: number; claim: ClaimNumber; digest: string; text: string },
): Promise<boolean> {
  await tx.run(
    "INSERT INTO shared_values (job, digest, text) VALUES (?, ?, ?) ON CONFLICT (job, digest) DO NOTHING",
    given.job,
    given.digest,
    given.text,
  )
  const row = await tx.get<{ id: number }>(
    "SELECT id FROM shared_values WHERE job = ? AND digest = ?",
    given.job,
    given.digest,
  )
  assert(row, "values that were just stored are found")
  const { changes } = await tx.run(
    "UPDATE attempts SET shared_values = ? WHERE claim = ? AND state = 'offered'",
    row.id,
    given.claim,
  )
  return changes === 1
}

/** What the attempt was given, as JSON text; null: nothing. */
export async function sharedValuesOf(view: View, claim: ClaimNumber): Promise<string | null> {
  const row = await view.get<{ text: string }>(
    "SELECT v.text FROM attempts a JOIN shared_values v ON v.id = a.shared_values WHERE a.claim = ?",
    claim,
  )
  return row?.text ?? null
}

/** Drops up to `most` of what jobs that have ended were given; how many. No attempt of theirs asks for it any more. */
export async function dropSpentSharedValues(tx: Tx, most: number): Promise<number> {
  const { changes } = await tx.run(
    `DELETE FROM shared_values WHERE id IN
       (SELECT v.id FROM shared_values v CROSS JOIN jobs j WHERE j.seq = v.job AND j.completed_at IS NOT NULL LIMIT ?)`,
    most,
  )
  return changes
}
