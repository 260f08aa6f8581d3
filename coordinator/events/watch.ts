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

  return {
    watch(job, woken) {
      const known = watched.get(job) ?? { version: ++versions, watchers: new Set() }
      watched.set(job, known)
      const watcher = new Watcher(woken, () => {
        known.watchers.delete(watcher)
        if (known.watchers.size === 0 && watched.get(job) === known) watched.delete(job)
      })
      known.watchers.add(watcher)
      return watcher
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
        for (const watcher of known.watchers) watcher.changed()
      }
      for (const listener of listeners) listener.changed?.()
    },
    spoke(job, taskIndex) {
      const known = watched.get(job)
      if (known) known.version = ++versions
      for (const watcher of known?.watchers ?? []) watcher.heard(taskIndex)
      for (const listener of listeners) listener.spoke?.(job)
    },
  }
}

interface WatchedJob {
  version: number
  watchers: Set<Watcher>
}

class Watcher implements Disposable {
  readonly #woken: (change: JobChange) => void
  readonly #leave: () => void
  #rows = false
  #spoke: Set<number> | null = null
  #waiting = false
  #over = false

  constructor(woken: (change: JobChange) => void, leave: () => void) {
    this.#woken = woken
    this.#leave = leave
  }

  changed(): void {
    this.#rows = true
    this.#wake()
  }

  heard(taskIndex: number): void {
    this.#spoke ??= new Set()
    this.#spoke.add(taskIndex)
    this.#wake()
  }

  #wake(): void {
    if (this.#waiting) return
    this.#waiting = true
    setImmediate(() => {
      this.#waiting = false
      const change = { rows: this.#rows, spoke: this.#spoke ?? NOTHING }
      this.#rows = false
      this.#spoke = null
      if (!this.#over) this.#woken(change)
    })
  }

  [Symbol.dispose](): void {
    this.#over = true
    this.#leave()
  }
}

const NOTHING: ReadonlySet<number> = new Set()
