import { usd } from "../../protocol/domain/money.ts"
import { auditRead } from "../store/audit.ts"
import { moneyFrom } from "../store/money.ts"
import type { Store } from "../store/store.ts"

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

/**
 * Do all sums of money agree? From one snapshot, true also in the middle of running jobs (rulings, Audit). Reads the whole
 * ledger, so it runs aside.
 */
export async function auditMoney(store: Pick<Store, "readAside">): Promise<Audit> {
  const found = await store.readAside(auditRead)
  const checks = found.checks.map(({ name, unit, expected, actual }) => ({
    name,
    ok: expected === actual,
    expected: unit === "count" ? expected : usd(moneyFrom(expected)),
    actual: unit === "count" ? actual : usd(moneyFrom(actual)),
  }))
  return {
    ok: checks.every(({ ok }) => ok),
    sums: Object.fromEntries(Object.entries(found.sums).map(([name, amount]) => [name, usd(moneyFrom(amount))])),
    checks,
  }
}
