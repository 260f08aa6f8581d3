import type { z } from "zod"
import { timestampText } from "../../../protocol/api/common.ts"
import type { leaseReply } from "../../../protocol/api/jobs.ts"
import type { Instant } from "../../../protocol/base/clock.ts"
import type { JobHead } from "../../store/jobs.ts"
import { reservationOf, type ReservationRow } from "../../store/reservations.ts"
import { isEnded } from "../job-state.ts"
import { requirementsOnWire } from "./job-object.ts"
import type { ReadJob, ReadParts } from "./read-job.ts"

type LeaseOnWire = z.output<typeof leaseReply>

/** What is reserved for a job, and how far its tasks are (V-005; rulings, `GET /leases/:id`). From rows alone. */
export async function leaseOnWire(parts: Pick<ReadParts, "store" | "clock">, job: ReadJob): Promise<LeaseOnWire> {
  const { head, submission } = job
  const row =
    submission.reservation.mode === "guaranteed"
      ? await parts.store.read((view) => reservationOf(view, head.seq))
      : null
  return {
    leases: { total: head.taskCount, done: head.completed, failed: head.failed, requeued: head.losses },
    ...(row && { reservation: reservationOnWire(job, row, parts.clock.now()) }),
  }
}

function reservationOnWire(
  { head, submission }: ReadJob,
  row: ReservationRow,
  now: Instant,
): NonNullable<LeaseOnWire["reservation"]> {
  const { requirements, reservation } = submission
  const active = isActive(row, head, now)
  return {
    mode: "guaranteed",
    parallelism: row.parallelism,
    guaranteed_for_s: Math.round((row.expiresAt - row.admittedAt) / 1000),
    max_wait_s: reservation.maxWaitSeconds ?? 0,
    routing_profile: requirements.profile,
    requirements: requirementsOnWire(requirements),
    active,
    admitted_at: timestampText(row.admittedAt),
    expires_at: timestampText(row.expiresAt),
    // A task that was handed to a node takes its slot, whether it has started or is about to.
    available_parallelism: active ? Math.max(0, row.parallelism - head.running - head.granted) : 0,
  }
}

const isActive = ({ endedAt, expiresAt }: ReservationRow, head: JobHead, now: Instant): boolean =>
  endedAt === null && now < expiresAt && !isEnded(head.status)
