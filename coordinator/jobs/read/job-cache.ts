import type { JobId } from "../../../protocol/domain/ids.ts"
import type { Store } from "../../store/store.ts"

/** What was read of jobs that clients ask for again and again. Each holds until a write changes anything of its job. */
export interface JobCache<Seen> {
  get(id: JobId): Seen | null
  /** To be asked before the read begins: `keep` then knows whether what was read still holds. */
  version(): number
  /** Keeps what was read of the job; not where some job was changed since `version`, or where its texts are long. */
  keep(job: { id: JobId; seq: number }, seen: Seen, characters: number, version: number): void
}

/** Those kept longest make room for new ones. */
const MOST_KEPT = 1_000
/** Characters of one job's texts: those of most jobs are fewer. */
const LARGEST_KEPT = 16 * 1024

export function createJobCache<Seen>(store: Pick<Store, "onJobsChanged">): JobCache<Seen> {
  const kept = new Map<JobId, Seen>()
  const ids = new Map<number, JobId>()
  let versions = 0

  function forget(seq: number): void {
    const id = ids.get(seq)
    if (id === undefined) return
    ids.delete(seq)
    kept.delete(id)
  }

  store.onJobsChanged((jobs) => {
    versions += 1
    for (const seq of jobs) forget(seq)
  })

  return {
    get: (id) => kept.get(id) ?? null,
    version: () => versions,
    keep({ id, seq }, seen, characters, version) {
      if (version !== versions || characters > LARGEST_KEPT) return
      for (const [oldest] of ids) {
        if (ids.size < MOST_KEPT) break
        forget(oldest)
      }
      ids.set(seq, id)
      kept.set(id, seen)
    },
  }
}
