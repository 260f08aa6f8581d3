import type { JobFilter } from "../../coordinator/store/jobs.ts"

/** Leaves no job out. */
export const EVERY_JOB: JobFilter = {
  account: null,
  statuses: null,
  project: null,
  type: null,
  tag: null,
  clientRef: null,
  userId: null,
  ids: null,
}
