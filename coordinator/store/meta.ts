import { assert } from "../../protocol/base/assert.ts"
import { claimNumber, type ClaimNumber } from "../../protocol/domain/ids.ts"
import type { Tx, View } from "./store.ts"

/**
 * Begins this start's epoch: above every earlier one, and at least the Unix time in seconds, so that a start on an
 * older copy of the data is still above what the lost one had reached. Once per start, before a door opens. Throws
 * `OlderCopy`, and changes nothing, where a later epoch than the last of this copy is known and nobody said `takeOver`.
 */
export async function startEpoch(tx: Tx, nowSeconds: number, takeOver = false): Promise<number> {
  const last = (await readNumber(tx, "epoch")) ?? 0
  const later = (await readNumber(tx, LATER_EPOCH)) ?? 0
  const isOlderCopy = later > last
  if (isOlderCopy && !takeOver) throw new OlderCopy(last, later)
  const epoch = Math.max(last + 1, later + 1, Math.floor(nowSeconds))
  await writeNumber(tx, "epoch", epoch)
  // The other copy counted its claims in microseconds too: where this machine's clock is behind, ours begin above its start.
  if (isOlderCopy) await writeNumber(tx, "claim", Math.max((await readNumber(tx, "claim")) ?? 0, epoch * 1_000_000))
  return epoch
}

/** Another copy of this data has reached this epoch, as its own signature proves. From the next start on it counts. */
export async function recordLaterEpoch(tx: Tx, epoch: number): Promise<void> {
  await writeNumber(tx, LATER_EPOCH, Math.max(epoch, (await readNumber(tx, LATER_EPOCH)) ?? 0))
}

/** Nobody but whoever runs the program can decide which copy of the data goes on. */
export class OlderCopy extends Error {
  override name = "OlderCopy"
  constructor(epoch: number, later: number) {
    super(
      `this is an older copy of the data (epoch ${epoch}): nodes were welcomed by a later one (epoch ${later}). ` +
        "Start that one, or give --take-over to go on from this copy: what happened after it runs again",
    )
  }
}

const LATER_EPOCH = "later_epoch"

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

/** A change for its own sake: whoever awaits its write knows that changes are stored. */
export async function noteProbe(tx: Tx, at: number): Promise<void> {
  await writeNumber(tx, "ready_probe", at)
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
