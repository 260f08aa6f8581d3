import type { Instant } from "../../protocol/base/clock.ts"
import type { Tx, View } from "./store.ts"

/** Capacity that was promised to a job at its submission. */
export interface ReservationRow {
  job: number
  /** Tasks of the job that can run side by side whatever others want. */
  parallelism: number
  admittedAt: Instant
  expiresAt: Instant
  /** Null until the job is terminal. */
  endedAt: Instant | null
}

export async function insertReservation(tx: Tx, row: Omit<ReservationRow, "endedAt">): Promise<void> {
  await tx.run(
    "INSERT INTO reservations (job, parallelism, admitted_at, expires_at) VALUES (?, ?, ?, ?)",
    row.job,
    row.parallelism,
    row.admittedAt,
    row.expiresAt,
  )
}

/** The job is terminal. Jobs without a reservation are fine; a second call changes nothing. */
export async function endReservation(tx: Tx, job: number, at: Instant): Promise<void> {
  await tx.run("UPDATE reservations SET ended_at = ? WHERE job = ? AND ended_at IS NULL", at, job)
}

export async function reservationOf(view: View, job: number): Promise<ReservationRow | null> {
  return (await view.get<ReservationRow>(`SELECT ${COLUMNS} FROM reservations WHERE job = ?`, job)) ?? null
}

/** Those whose job is not over, in the order in which they were admitted. */
export async function openReservations(view: View): Promise<ReservationRow[]> {
  return view.all<ReservationRow>(`SELECT ${COLUMNS} FROM reservations WHERE ended_at IS NULL ORDER BY job`)
}

const COLUMNS = "job, parallelism, admitted_at AS admittedAt, expires_at AS expiresAt, ended_at AS endedAt"
