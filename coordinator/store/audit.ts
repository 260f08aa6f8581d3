import { present } from "../../protocol/base/assert.ts"
import type { AsideRead, View } from "./store.ts"

/** A sum that must be what another says, or a count of offenders that must be zero. */
export interface AuditCheckRow {
  name: string
  unit: "micro_usd" | "count"
  expected: number
  actual: number
}

/** Totals over all accounts in micro-dollars, and the checks, all from one snapshot. Reads the whole ledger. */
export interface AuditRows {
  sums: Record<string, number>
  checks: AuditCheckRow[]
}

export const auditRead: AsideRead<AuditRows> = { module: import.meta.url, name: "auditRead", run: readAudit }

async function readAudit(view: View): Promise<AuditRows> {
  const sums = present(await view.get<Record<string, number>>(SUMS), "the audit's sums")
  const checks: AuditCheckRow[] = []
  for (const { name, unit, sql } of CHECKS) {
    const row = present(await view.get<{ expected: number; actual: number }>(sql), `the sums of ${name}`)
    checks.push({ name, unit, expected: row.expected, actual: row.actual })
  }
  return { sums, checks }
}

const offenders = (sql: string): string => `SELECT 0 AS expected, count(*) AS actual FROM (${sql}) AS offenders`
const SIGNED = "CASE WHEN type = 'credit' THEN amount ELSE -amount END"

const SUMS = `SELECT
  (SELECT coalesce(sum(amount), 0) FROM ledger_entries WHERE type = 'credit') AS credits_usd,
  (SELECT coalesce(sum(amount), 0) FROM ledger_entries WHERE type = 'debit') AS debits_usd,
  (SELECT coalesce(sum(balance), 0) FROM ledger_accounts WHERE account IS NOT NULL) AS ledger_balance_usd,
  (SELECT coalesce(sum(held), 0) FROM ledger_accounts) AS held_usd,
  (SELECT coalesce(sum(charged), 0) FROM holds WHERE status = 'active') AS charged_unsettled_usd,
  (SELECT coalesce(sum(amount), 0) FROM ledger_entries WHERE reason = 'usage') AS settled_usd,
  (SELECT balance FROM ledger_accounts WHERE id = 'revenue') AS revenue_usd,
  (SELECT -balance FROM ledger_accounts WHERE id = 'grants') AS grants_usd,
  (SELECT -balance FROM ledger_accounts WHERE id = 'payments') AS payments_usd`

const CHECKS: { name: string; unit: "micro_usd" | "count"; sql: string }[] = [
  {
    name: "what customers have, the house gave or earned: all balances cancel out",
    unit: "micro_usd",
    sql: "SELECT 0 AS expected, coalesce(sum(balance), 0) AS actual FROM ledger_accounts",
  },
  {
    name: "customer balances are credits less debits",
    unit: "micro_usd",
    sql: `SELECT (SELECT coalesce(sum(${SIGNED}), 0) FROM ledger_entries) AS expected,
      (SELECT coalesce(sum(balance), 0) FROM ledger_accounts WHERE account IS NOT NULL) AS actual`,
  },
  {
    name: "accounts whose balance is not the sum of their entries",
    unit: "count",
    sql: offenders(`SELECT id FROM ledger_accounts AS owner WHERE balance <>
      coalesce((SELECT sum(${SIGNED}) FROM ledger_entries WHERE account = owner.id), 0)
      - coalesce((SELECT sum(${SIGNED}) FROM ledger_entries WHERE counter_account = owner.id), 0)`),
  },
  {
    name: "entries whose running balance does not follow from those before",
    unit: "count",
    sql: offenders(`SELECT seq FROM (SELECT seq, balance_after,
      sum(${SIGNED}) OVER (PARTITION BY account ORDER BY seq) AS running FROM ledger_entries) AS entries
      WHERE balance_after <> running`),
  },
  {
    name: "accounts that hold more than they have",
    unit: "count",
    sql: offenders("SELECT id FROM ledger_accounts WHERE account IS NOT NULL AND (held < 0 OR balance < held)"),
  },
  {
    name: "held money is the sum of active holds",
    unit: "micro_usd",
    sql: `SELECT (SELECT coalesce(sum(amount), 0) FROM holds WHERE status = 'active') AS expected,
      (SELECT coalesce(sum(held), 0) FROM ledger_accounts) AS actual`,
  },
  {
    name: "accounts whose held money is not the sum of their active holds",
    unit: "count",
    sql: offenders(`SELECT id FROM ledger_accounts AS owner WHERE owner.account IS NOT NULL AND held <>
      coalesce((SELECT sum(amount) FROM holds WHERE holds.account = owner.account AND status = 'active'), 0)`),
  },
  {
    name: "charges are what their holds say was charged",
    unit: "micro_usd",
    sql: `SELECT (SELECT coalesce(sum(amount), 0) FROM charges) AS expected,
      (SELECT coalesce(sum(charged), 0) FROM holds) AS actual`,
  },
  {
    name: "holds charged more than their amount, or other than the sum of their charges",
    unit: "count",
    sql: offenders(`SELECT id FROM holds WHERE charged > amount OR charged <>
      coalesce((SELECT sum(amount) FROM charges WHERE charges.hold = holds.id), 0)`),
  },
  {
    name: "settled holds without their one debit",
    unit: "count",
    sql: offenders(`SELECT id FROM holds WHERE status = 'settled' AND NOT EXISTS
      (SELECT 1 FROM ledger_entries WHERE ledger_entries.hold = holds.id AND type = 'debit'
        AND ledger_entries.amount = holds.settled_amount AND ledger_entries.job_id = holds.job_id)`),
  },
  {
    name: "debits for use without a settled hold",
    unit: "count",
    sql: offenders(`SELECT seq FROM ledger_entries WHERE reason = 'usage' AND NOT EXISTS
      (SELECT 1 FROM holds WHERE holds.id = ledger_entries.hold AND holds.status = 'settled')`),
  },
  {
    name: "paid quotes without their one credit, or credits without a paid quote",
    unit: "count",
    sql: offenders(`SELECT quotes.id FROM quotes LEFT JOIN ledger_entries ON ledger_entries.quote = quotes.id
      WHERE (quotes.paid_at IS NOT NULL) <> (ledger_entries.seq IS NOT NULL)
        OR ledger_entries.amount <> quotes.amount`),
  },
  {
    name: "jobs without exactly one hold for each of their rounds, the last one theirs",
    unit: "count",
    sql: offenders(`SELECT jobs.id FROM jobs LEFT JOIN holds ON holds.id = jobs.hold
      WHERE holds.id IS NULL OR holds.job_id <> jobs.id OR holds.round <> jobs.round
        OR jobs.round <> (SELECT count(*) FROM holds AS its WHERE its.job_id = jobs.id)`),
  },
  {
    name: "holds of earlier rounds that are still active",
    unit: "count",
    sql: offenders(`SELECT holds.id FROM holds JOIN jobs ON jobs.id = holds.job_id
      WHERE holds.status = 'active' AND holds.id <> jobs.hold`),
  },
  {
    name: "jobs whose hold ended before them or outlived them",
    unit: "count",
    sql: offenders(`SELECT jobs.id FROM jobs JOIN holds ON holds.id = jobs.hold
      WHERE (jobs.status IN ('completed', 'partial', 'failed', 'cancelled')) = (holds.status = 'active')`),
  },
]
