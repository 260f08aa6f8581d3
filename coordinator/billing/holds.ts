import { assert, present } from "../../protocol/base/assert.ts"
import type { Instant } from "../../protocol/base/clock.ts"
import { invalidField } from "../../protocol/domain/errors.ts"
import type { AccountId, ClaimNumber, HoldId, JobId } from "../../protocol/domain/ids.ts"
import { lesser, usd, type MicroUsd } from "../../protocol/domain/money.ts"
import * as rows from "../store/holds.ts"
import { holdMoney, postEntry, releaseMoney } from "../store/ledger.ts"
import type { Store, Tx, View } from "../store/store.ts"
import { missingFunds, type Shortfall } from "./shortfall.ts"

export type Hold = rows.HoldRow

export type Placement = { placed: true; hold: Hold } | { placed: false; shortfall: Shortfall }

/**
 * Sets aside what a job may cost, in the write that makes the job. When the account is short nothing changes and the
 * shortfall comes back. 422 above any sum that can be held. A second hold for the same job and round throws.
 */
export async function placeHold(
  tx: Tx,
  hold: { id: HoldId; account: AccountId; job: JobId; round: number; amount: MicroUsd; at: Instant },
): Promise<Placement> {
  if (hold.amount > LARGEST_HOLD) {
    throw invalidField("", `would cost up to $${usd(hold.amount)}, more than can be held; ask for less, or split it`)
  }
  if (!(await holdMoney(tx, hold.account, hold.amount))) {
    const shortfall = await missingFunds(tx, hold.account, hold.amount)
    return { placed: false, shortfall: present(shortfall, "what the account lacks") }
  }
  await rows.insertHold(tx, hold)
  return { placed: true, hold: await getHold(tx, hold.id) }
}

/** A billion dollars: far above any account, and sums of it stay below 2^53 micro-dollars. */
const LARGEST_HOLD: MicroUsd = 1_000_000_000_000_000n

export interface Charge {
  claim: ClaimNumber
  hold: HoldId
  /** What the attempt would cost. */
  amount: MicroUsd
  milliseconds: number
  at: Instant
}

/** `repeated`: charged before, `amount` is that charge. `closed`: the hold had ended, nothing was charged. */
export interface ChargeOutcome {
  claim: ClaimNumber
  kind: "charged" | "repeated" | "closed"
  amount: MicroUsd
}

/**
 * Charges attempts to their holds, each claim once for ever and no hold above its amount: what would exceed it is cut.
 * Outcomes come in the order of the charges. Many at once cost few statements.
 */
export async function chargeAttempts(tx: Tx, charges: Charge[]): Promise<ChargeOutcome[]> {
  const known = await rows.findCharges(
    tx,
    charges.map(({ claim }) => claim),
  )
  const holds = new Map<HoldId, { hold: Hold; fresh: rows.ChargeRow[]; sum: MicroUsd }>()
  const outcomes: ChargeOutcome[] = []
  for (const { claim, hold: id, amount: wanted, milliseconds, at } of charges) {
    assert(wanted >= 0n, "a charge is not negative")
    const before = known.get(claim)
    if (before !== undefined) {
      outcomes.push({ claim, kind: "repeated", amount: before })
      continue
    }
    const open = holds.get(id) ?? { hold: await getHold(tx, id), fresh: [], sum: 0n }
    holds.set(id, open)
    if (open.hold.status !== "active") {
      outcomes.push({ claim, kind: "closed", amount: 0n })
      continue
    }
    const amount = lesser(wanted, open.hold.amount - open.hold.charged - open.sum)
    open.sum += amount
    open.fresh.push({ claim, hold: id, amount, milliseconds, at })
    known.set(claim, amount)
    outcomes.push({ claim, kind: "charged", amount })
  }
  for (const [id, { fresh, sum }] of holds) {
    if (fresh.length > 0) assert(await rows.insertCharges(tx, id, fresh, sum), "an active hold takes charges")
  }
  return outcomes
}

/**
 * Ends a hold at what its attempts were charged: one debit, and the rest is available again, in the job's last write.
 * Without charges it is released and the ledger has no entry. A second call gives the first settlement again.
 */
export async function settleHold(tx: Tx, id: HoldId, at: Instant): Promise<Hold> {
  const ended = await rows.endHold(tx, id, at)
  if (ended === null) return getHold(tx, id)
  if (ended.charged === 0n) {
    await releaseMoney(tx, ended.account, ended.amount)
    return ended
  }
  const debit = {
    account: ended.account,
    counterAccount: "revenue",
    type: "debit",
    reason: "usage",
    amount: ended.charged,
    description: `${ended.job}${ended.round === 1 ? "" : `, round ${ended.round}`}`,
    job: ended.job,
    hold: ended.id,
    quote: null,
    at,
  } as const
  await postEntry(tx, debit, ended.amount)
  return ended
}

/** The hold of this id; it exists. */
export async function getHold(view: View, id: HoldId): Promise<Hold> {
  return present(await rows.findHold(view, id), `the hold ${id}`)
}

/** All rounds of a job, the first one first. */
export const holdsOfJob = (view: View, job: JobId): Promise<Hold[]> => rows.holdsOfJob(view, job)

/** What a job was charged so far, over all its rounds. */
export async function chargedByJob(view: View, job: JobId): Promise<MicroUsd> {
  return (await holdsOfJob(view, job)).reduce((sum, { charged }) => sum + charged, 0n)
}

/** What these attempts were charged; claims without a charge are left out. */
export const chargesOf = (view: View, claims: ClaimNumber[]): Promise<Map<ClaimNumber, MicroUsd>> =>
  rows.findCharges(view, claims)

/** An account's holds, newest first; `status` null for all (C-09). */
export async function listHolds(
  store: Store,
  account: AccountId,
  page: { status: rows.HoldStatus | null; limit: number; offset: number },
): Promise<Hold[]> {
  return store.read((view) => rows.listHolds(view, account, page))
}
