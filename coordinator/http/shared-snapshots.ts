import type { Clock } from "../../protocol/base/clock.ts"
import type { JobWatch } from "../events/watch.ts"

/** A job's snapshot as a stream sends it. */
export interface JobSnapshot {
  /** The id of its frame. */
  id: number
  /** The pieces of its data, as JSON. */
  pieces: AsyncIterable<string> | Iterable<string>
}

/**
 * Snapshots that were made a moment ago, for streams of the same job that open meanwhile: a thousand clients that come at once
 * read and write each job once. Only of jobs that are watched, since only of these it is known that nothing has changed.
 */
export interface SharedSnapshots {
  /** The job's snapshot, made again where anything of it has changed; null when the job is gone. */
  of(job: number, make: () => Promise<JobSnapshot | null>): Promise<JobSnapshot | null>
}

/** What changes by itself, as the time a task has run, may be as old as this. */
const KEPT_MS = 2_000
/** Larger ones are written piece by piece for each stream: no more than a piece of them is ever held. */
const LARGEST_CHARACTERS = 256 * 1024
/** Of all together. */
const MOST_CHARACTERS = 16 * 1024 * 1024

interface Kept {
  version: number
  id: number
  pieces: string[]
  characters: number
}

export function createSharedSnapshots(clock: Clock, watch: JobWatch): SharedSnapshots {
  const kept = new Map<number, Kept>()
  let characters = 0

  function drop(job: number, entry: Kept | undefined): void {
    if (!entry || kept.get(job) !== entry) return
    kept.delete(job)
    characters -= entry.characters
  }

  /** Where others fill the room they stay: each goes by itself in a moment, and so some are met again. */
  function keep(job: number, entry: Kept): void {
    drop(job, kept.get(job))
    if (characters + entry.characters > MOST_CHARACTERS) return
    kept.set(job, entry)
    characters += entry.characters
    clock.after(KEPT_MS, () => drop(job, entry))
  }

  /** The same pieces; kept when all of them were made and together are not large. */
  async function* keeping(job: number, version: number, { id, pieces }: JobSnapshot): AsyncGenerator<string> {
    const entry: Kept = { version, id, pieces: [], characters: 0 }
    for await (const piece of pieces) {
      entry.characters += piece.length
      if (entry.characters <= LARGEST_CHARACTERS) entry.pieces.push(piece)
      else entry.pieces = []
      yield piece
    }
    if (entry.characters <= LARGEST_CHARACTERS) keep(job, entry)
  }

  return {
    async of(job, make) {
      // Before anything is read: what changes while it is made has another version.
      const version = watch.version(job)
      const known = kept.get(job)
      if (known?.version === version) return { id: known.id, pieces: known.pieces }
      const made = await make()
      return made && { id: made.id, pieces: keeping(job, version, made) }
    },
  }
}
