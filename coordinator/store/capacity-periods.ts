import type { Instant } from "../../protocol/base/clock.ts"
import type { Tx, View } from "./store.ts"

/** From `since` to `until` a live worker was connected. */
export interface CapacityPeriod {
  since: Instant
  until: Instant
}

/** Oldest first. */
export async function capacityPeriods(view: View): Promise<CapacityPeriod[]> {
  return view.all("SELECT since, until FROM capacity_periods ORDER BY since")
}

/** Stores the period, or how far it reaches by now. */
export async function putCapacityPeriod(tx: Tx, { since, until }: CapacityPeriod): Promise<void> {
  await tx.run(
    "INSERT INTO capacity_periods (since, until) VALUES (?, ?) ON CONFLICT (since) DO UPDATE SET until = excluded.until",
    since,
    until,
  )
}

export async function dropCapacityPeriods(tx: Tx, endedBefore: Instant): Promise<void> {
  await tx.run("DELETE FROM capacity_periods WHERE until < ?", endedBefore)
}
