import type { Store } from "../../coordinator/store/store.ts"

/** A store whose process can be made to crash at a commit. */
export interface Crashes {
  /** The `commits`-th write from now on is the last that is durable, and nobody hears of it. 0: that happened already. */
  crashAfter(commits: number): void
  hasCrashed(): boolean
  /** The next process has the store as it was left. */
  recover(): void
}

/** The same store; once it has crashed nothing is read or written by it. */
export function crashingStore<S extends Store>(store: S): { store: S; crashes: Crashes } {
  let left = Number.POSITIVE_INFINITY
  const alive = (): void => {
    if (left <= 0) throw new Error("the process has crashed")
  }
  return {
    store: {
      ...store,
      async write(act) {
        alive()
        left -= 1
        const result = await store.write(act)
        alive()
        return result
      },
      async read(look) {
        alive()
        const result = await store.read(look)
        alive()
        return result
      },
    },
    crashes: {
      crashAfter(commits) {
        left = commits
      },
      hasCrashed: () => left <= 0,
      recover() {
        left = Number.POSITIVE_INFINITY
      },
    },
  }
}
