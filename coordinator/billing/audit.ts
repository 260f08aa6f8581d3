import { usd } from "../../protocol/domain/money.ts"
import { readAuditSums, runAuditChecks } from "../store/audit.ts"
import { moneyFrom } from "../store/money.ts"
import type { View } from "../store/store.ts"

export interface Audit {
  ok: boolean
  /** Dollars. */
  sums: Record<string, number>
  checks: AuditCheck[]
}

export interface AuditCheck {
  name: string
  ok: boolean
  /** Dollars, or a number of offenders. */
  expected: number
  actual: number
}

/** Do all sums of money agree? From one snapshot, true also in the middle of running jobs (rulings, Audit). */
export async function auditMoney(view: View): Promise<Audit> {
  const sums = await readAuditSums(view)
  const checks = (await runAuditChecks(view)).map(({ name, unit, expected, actual }) => ({
    name,
    ok: expected === actual,
    expected: unit === "count" ? expected : usd(moneyFrom(expected)),
    actual: unit === "count" ? actual : usd(moneyFrom(actual)),
  }))
  return {
    ok: checks.every(({ ok }) => ok),
    sums: Object.fromEntries(Object.entries(sums).map(([name, amount]) => [name, usd(moneyFrom(amount))])),
    checks,
  }
}
