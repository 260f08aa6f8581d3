import { assert } from "../../protocol/base/assert.ts"
import { claimNumber, type ClaimNumber } from "../../protocol/domain/ids.ts"
import type { Tx, View } from "./store.ts"

/**
 * Begins this start's epoch: above every earlier one, and at least the Unix time in seconds, so that a start on an
 * older copy of the data is still above what the lost one had reached. Once per start, before a door opens.
 */
export async function startEpoch(tx: Tx, nowSeconds: number): Promise<number> {
  const epoch = Math.max(((await readNumber(tx, "epoch")) ?? 0) + 1, Math.floor(nowSeconds))
  await writeNumber(tx, "epoch", epoch)
  return epoch
}

/**
 * Takes `count` claim numbers and gives the first; the others follow it. Global, only growing, below 2^53; at least
 * the Unix time in microseconds, so that a restored older copy never gives a number twice.
 */
export async function nextClaimNumbers(tx: Tx, count: number, nowMicros: number): Promise<ClaimNumber> {
  assert(Number.isSafeInteger(count) && count > 0, "claim numbers are taken one at least")
  const first = Math.max(((await readNumber(tx, "claim")) ?? 0) + 1, Math.floor(nowMicros))
  await writeNumber(tx, "claim", first + (count - 1)) // in this order: above 2^53 the sum of three would round
  return claimNumber(first)
}

/**
 * Notes for how long certificates are made valid from now on, and gives the longest such time that there ever was: no
 * certificate made before `at` outlives `at` plus that. Once per start, before a certificate is made.
 */
export async function longestCertificateMs(tx: Tx, certificateTtlMs: number): Promise<number> {
  const longest = Math.max((await readNumber(tx, "certificate_ttl")) ?? 0, certificateTtlMs)
  await writeNumber(tx, "certificate_ttl", longest)
  return longest
}

async function readNumber(view: View, name: string): Promise<number | undefined> {
  const row = await view.get<{ value: number }>("SELECT value FROM numbers WHERE name = ?", name)
  return row?.value
}

async function writeNumber(tx: Tx, name: string, value: number): Promise<void> {
  assert(Number.isSafeInteger(value), `the number ${name} stays below 2^53`)
  await tx.run(
    "INSERT INTO numbers (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
    name,
    value,
  )
}
