/**
 * Tells streams that a job's log or live words have grown. Carries no data: whoever is woken reads the store from where it
 * stands, so nothing is queued for slow readers and nothing is missed.
 */
export interface JobWatch {
  /** Calls `woken` after changes of the job, until disposed. Several changes of one turn may wake once. */
  watch(job: number, woken: (change: JobChange) => void): Disposable
  /** The job's rows changed (after COMMIT). */
  changed(jobs: Iterable<number>): void
  /** A running task of the job said something. */
  spoke(job: number, taskIndex: number): void
}

export interface JobChange {
  rows: boolean
  /** Tasks with new live words. */
  spoke: ReadonlySet<number>
}

export function createJobWatch(): JobWatch {
  const watchers = new Map<number, Set<Watcher>>()

  function wake(watcher: Watcher): void {
    if (watcher.waiting) return
    watcher.waiting = true
    setImmediate(() => {
      watcher.waiting = false
      const change = { rows: watcher.rows, spoke: watcher.spoke }
      watcher.rows = false
      watcher.spoke = new Set()
      if (!watcher.over) watcher.woken(change)
    })
  }

  return {
    watch(job, woken) {
      const watcher: Watcher = { woken, rows: false, spoke: new Set(), waiting: false, over: false }
      const all = watchers.get(job) ?? new Set()
      watchers.set(job, all.add(watcher))
      return {
        [Symbol.dispose]() {
          watcher.over = true
          all.delete(watcher)
          if (all.size === 0 && watchers.get(job) === all) watchers.delete(job)
        },
      }
    },
    changed(jobs) {
      for (const job of jobs) {
        for (const watcher of watchers.get(job) ?? []) {
          watcher.rows = true
          wake(watcher)
        }
      }
    },
    spoke(job, taskIndex) {
      for (const watcher of watchers.get(job) ?? []) {
        watcher.spoke.add(taskIndex)
        wake(watcher)
      }
    },
  }
}

interface Watcher {
  woken: (change: JobChange) => void
  rows: boolean
  spoke: Set<number>
  waiting: boolean
  over: boolean
}
