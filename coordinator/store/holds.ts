import type { Instant } from "../../protocol/base/clock.ts"
import { slices } from "../../protocol/base/slices.ts"
import {
  accountId,
  claimNumber,
  holdId,
  jobId,
  type AccountId,
  type ClaimNumber,
  type HoldId,
  type JobId,
} from "../../protocol/domain/ids.ts"
import type { MicroUsd } from "../../protocol/domain/money.ts"
import { moneyFrom } from "./money.ts"
import type { SqlValue, Tx, View } from "./store.ts"

export interface HoldRow {
  id: HoldId
  account: AccountId
  job: JobId
  round: number
  amount: MicroUsd
  /** What the attempts were charged so far. */
  charged: MicroUsd
  status: HoldStatus
  /** Null while active. */
  settledAmount: MicroUsd | null
  createdAt: Instant
  settledAt: Instant | null
}

/** `released`: ended without a charge. */
export type HoldStatus = "active" | "settled" | "released"

export interface ChargeRow {
  claim: ClaimNumber
  hold: HoldId
  amount: MicroUsd
  milliseconds: number
  at: Instant
}

export async function insertHold(
  tx: Tx,
  hold: { id: HoldId; account: AccountId; job: JobId; round: number; amount: MicroUsd; at: Instant },
): Promise<void> {
  await tx.run(
    "INSERT INTO holds (id, account, job_id, round, amount, created_at) VALUES (?, ?, ?, ?, ?, ?)",
    hold.id,
    hold.account,
    hold.job,
    hold.round,
    hold.amount,
    hold.at,
  )
}

export async function findHold(view: View, id: HoldId): Promise<HoldRow | null> {
  const row = await view.get<RawHold>(`SELECT ${HOLD_COLUMNS} FROM holds WHERE id = ?`, id)
  return row ? toHold(row) : null
}

type ShownHold = Pick<HoldRow, "id" | "amount" | "status">

/** A job's large texts, and the hold of its present round where it has one: one statement, since clients poll jobs. */
export async function textsAndHold(
  view: View,
  job: { seq: number; hold: HoldId },
): Promise<{ request: string; outcome: string | null; hold: ShownHold | null } | null> {
  const row = await view.get<RawShownHold & { request: string; outcome: string | null }>(
    `SELECT jobs.request, jobs.outcome, holds.amount, holds.status ${JOB_WITH_HOLD}`,
    job.seq,
  )
  return row ? { request: row.request, outcome: row.outcome, hold: toShownHold(job.hold, row) } : null
}

/** The same without the request, which may be large: lists of results show none. */
export async function outcomeAndHold(
  view: View,
  job: { seq: number; hold: HoldId },
): Promise<{ outcome: string | null; hold: ShownHold | null } | null> {
  const row = await view.get<RawShownHold & { outcome: string | null }>(
    `SELECT jobs.outcome, holds.amount, holds.status ${JOB_WITH_HOLD}`,
    job.seq,
  )
  return row ? { outcome: row.outcome, hold: toShownHold(job.hold, row) } : null
}

const JOB_WITH_HOLD = "FROM jobs LEFT JOIN holds ON holds.id = jobs.hold WHERE jobs.seq = ? + 0"

interface RawShownHold {
  amount: number | null
  status: HoldStatus | null
}

function toShownHold(id: HoldId, { amount, status }: RawShownHold): ShownHold | null {
  return amount === null || status === null ? null : { id, amount: moneyFrom(amount), status }
}

/** All rounds of a job, the first one first. */
export async function holdsOfJob(view: View, job: JobId): Promise<HoldRow[]> {
  const rows = await view.all<RawHold>(`SELECT ${HOLD_COLUMNS} FROM holds WHERE job_id = ? ORDER BY round`, job)
  return rows.map(toHold)
}

/** Newest first; `status` null for all. */
export async function listHolds(
  view: View,
  account: AccountId,
  page: { status: HoldStatus | null; limit: number; offset: number },
): Promise<HoldRow[]> {
  const filter = page.status === null ? "" : "AND status = ?"
  const rows = await view.all<RawHold>(
    `SELECT ${HOLD_COLUMNS} FROM holds WHERE account = ? ${filter} ORDER BY created_at DESC, id DESC LIMIT ? OFFSET ?`,
    account,
    ...(page.status === null ? [] : [page.status]),
    page.limit,
    page.offset,
  )
  return rows.map(toHold)
}

/** Ends an active hold at what was charged; null when it is not active any more. */
export async function endHold(tx: Tx, id: HoldId, at: Instant): Promise<HoldRow | null> {
  const row = await tx.get<RawHold>(
    `UPDATE holds SET status = CASE WHEN charged = 0 THEN 'released' ELSE 'settled' END,
       settled_amount = charged, settled_at = ?
     WHERE id = ? AND status = 'active' RETURNING ${HOLD_COLUMNS}`,
    at,
    id,
  )
  return row ? toHold(row) : null
}

/** Which of these claims were charged before, and how much. */
export async function findCharges(view: View, claims: ClaimNumber[]): Promise<Map<ClaimNumber, MicroUsd>> {
  const charges = new Map<ClaimNumber, MicroUsd>()
  for (const some of slices(claims, ROWS_PER_STATEMENT)) {
    const rows = await view.all<{ claim: number; amount: number }>(
      `SELECT claim, amount FROM charges WHERE claim IN (${marks(some.length)})`,
      ...some,
    )
    for (const row of rows) charges.set(claimNumber(row.claim), moneyFrom(row.amount))
  }
  return charges
}

/** Stores charges and adds `sum` to their hold. False, with nothing changed there, when the hold is not active. */
export async function insertCharges(tx: Tx, hold: HoldId, charges: ChargeRow[], sum: MicroUsd): Promise<boolean> {
  const { changes } = await tx.run(
    "UPDATE holds SET charged = charged + ? WHERE id = ? AND status = 'active'",
    sum,
    hold,
  )
  if (changes !== 1) return false
  for (const some of slices(charges, ROWS_PER_STATEMENT)) {
    const values: SqlValue[] = some.flatMap((charge) => [
      charge.claim,
      charge.hold,
      charge.amount,
      charge.milliseconds,
      charge.at,
    ])
    await tx.run(
      `INSERT INTO charges (claim, hold, amount, milliseconds, at) VALUES ${some.map(() => "(?, ?, ?, ?, ?)").join(", ")}`,
      ...values,
    )
  }
  return true
}

/** Rows in one statement: few enough texts for the statement cache, far below SQLite's 32,766 parameters. */
const ROWS_PER_STATEMENT = 100

const marks = (count: number): string => Array(count).fill("?").join(", ")

interface RawHold {
  id: string
  account: number
  job_id: string
  round: number
  amount: number
  charged: number
  status: HoldStatus
  settled_amount: number | null
  created_at: number
  settled_at: number | null
}

const HOLD_COLUMNS = "id, account, job_id, round, amount, charged, status, settled_amount, created_at, settled_at"

function toHold(row: RawHold): HoldRow {
  return {
    id: holdId(row.id),
    account: accountId(row.account),
    job: jobId(row.job_id),
    round: row.round,
    amount: moneyFrom(row.amount),
    charged: moneyFrom(row.charged),
    status: row.status,
    settledAmount: row.settled_amount === null ? null : moneyFrom(row.settled_amount),
    createdAt: row.created_at,
    settledAt: row.settled_at,
  }
}
