/**
 * Tells streams that a job's log or live words have grown. Carries no data: whoever is woken reads the store from where it
 * stands, so nothing is queued for slow readers and nothing is missed.
 */
export interface JobWatch {
  /** Calls `woken` after changes of the job, until disposed. Several changes of one turn may wake once. */
  watch(job: number, woken: (change: JobChange) => void): Disposable
  /** Calls `heard` for whatever job, at once, until disposed. */
  listen(heard: JobListener): Disposable
  /** Of a watched job: what was read at one version holds as long as it has that version. */
  version(job: number): number
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

export interface JobListener {
  changed?: () => void
  spoke?: (job: number) => void
}

export function createJobWatch(): JobWatch {
  const watched = new Map<number, WatchedJob>()
  const listeners = new Set<JobListener>()
  let versions = 0

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
      const known = watched.get(job) ?? { version: ++versions, watchers: new Set() }
      watched.set(job, known)
      known.watchers.add(watcher)
      return {
        [Symbol.dispose]() {
          watcher.over = true
          known.watchers.delete(watcher)
          if (known.watchers.size === 0 && watched.get(job) === known) watched.delete(job)
        },
      }
    },
    listen(heard) {
      listeners.add(heard)
      return { [Symbol.dispose]: () => void listeners.delete(heard) }
    },
    version: (job) => watched.get(job)?.version ?? ++versions,
    changed(jobs) {
      for (const job of jobs) {
        const known = watched.get(job)
        if (!known) continue
        known.version = ++versions
        for (const watcher of known.watchers) {
          watcher.rows = true
          wake(watcher)
        }
      }
      for (const listener of listeners) listener.changed?.()
    },
    spoke(job, taskIndex) {
      for (const watcher of watched.get(job)?.watchers ?? []) {
        watcher.spoke.add(taskIndex)
        wake(watcher)
      }
      for (const listener of listeners) listener.spoke?.(job)
    },
  }
}

interface WatchedJob {
  version: number
  watchers: Set<Watcher>
}

interface Watcher {
  woken: (change: JobChange) => void
  rows: boolean
  spoke: Set<number>
  waiting: boolean
  over: boolean
}
