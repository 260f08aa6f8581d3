import { lstatSync, mkdirSync, readdirSync, renameSync, rmSync, unlinkSync, type Stats } from "node:fs"
import { join } from "node:path"
import type { Trash } from "./trash.ts"

/**
 * Empty directories, and empty directories in them, that serve one attempt after another: a file system that has just removed
 * many passes over every one of them for each that it makes (ext4 for five seconds), and short attempts made and removed six
 * each. Lies among the attempts, so that the next agent's sweep takes what a killed one left.
 */
export interface SpareTrees extends Disposable {
  /** Puts an empty tree at the path, or says false: there is none. */
  take(path: string): boolean
  /** The path is gone when this resolves: emptied and kept where that is little work, else in the trash. Missing ones are fine. */
  put(path: string): Promise<void>
}

/** As many as attempts usually end at once. */
const MOST_SPARES = 16
/** More is not removed one by one. */
const MOST_REMOVED = 16
/** Directories in the tree, and none below those. */
const MOST_DIRECTORIES = 8

export function openSpareTrees(attemptsDir: string, trash: Trash): SpareTrees {
  const home = join(attemptsDir, `.spares-${process.pid}`)
  const spares: string[] = []
  /** As a directory is when this process has made it. */
  let fresh: Stats | null = null
  let named = 0

  /** Not a link, not a mount, and nothing in owner or rights that a program would notice. */
  function isAsMade(path: string, like: Stats): boolean {
    const { dev, uid, gid, mode } = lstatSync(path)
    return dev === like.dev && uid === like.uid && gid === like.gid && mode === like.mode
  }

  /** Throws, or says false, where more is there than is worth it; some of it is gone then. */
  function empty(tree: string, like: Stats): boolean {
    const directories = [tree]
    let removed = 0
    for (const directory of directories) {
      if (!isAsMade(directory, like)) return false
      for (const entry of readdirSync(directory, { withFileTypes: true })) {
        const path = join(directory, entry.name)
        if (!entry.isDirectory()) {
          if (++removed > MOST_REMOVED) return false
          unlinkSync(path)
        } else if (directory !== tree || directories.push(path) > MOST_DIRECTORIES) return false
      }
    }
    return true
  }

  return {
    take(path) {
      const spare = spares.pop()
      if (spare === undefined) return false
      try {
        renameSync(spare, path)
        return true
      } catch {
        // A sweep took our folder, or something is at the path.
        return false
      }
    },
    async put(path) {
      try {
        if (fresh === null) {
          mkdirSync(home, { recursive: true })
          fresh = lstatSync(home)
        }
        if (spares.length < MOST_SPARES && empty(path, fresh)) {
          const spare = join(home, String(++named))
          renameSync(path, spare)
          spares.push(spare)
          return
        }
      } catch {
        // It is missing or not to be emptied, or a sweep took our folder: the trash takes what there is.
        fresh = null
      }
      await trash.put(path)
    },
    [Symbol.dispose]() {
      spares.length = 0
      rmSync(home, { recursive: true, force: true })
    },
  }
}
