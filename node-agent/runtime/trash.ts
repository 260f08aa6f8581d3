import { spawn } from "node:child_process"
import { lstatSync, mkdirSync, renameSync } from "node:fs"
import { rm } from "node:fs/promises"
import { join } from "node:path"

/**
 * Where folders go that nobody needs any more. Each leaves its place at once, by one rename; what is in them is deleted later,
 * many at a time, by one other process: a disk may let whoever removes a directory wait, and each one removed by this process
 * would take its way through the thread pool. Lies among the attempts, so that the next agent's sweep takes what a killed one left.
 */
export interface Trash extends AsyncDisposable {
  /** The path is gone when this returns or resolves. Missing ones are fine. */
  put(path: string): Promise<void>
}

/** Much written within it stays on the disk for as long. */
const EMPTY_INTERVAL_MS = 1_000

export function openTrash(attemptsDir: string): Trash {
  const home = join(attemptsDir, `.trash-${process.pid}`)
  let open = false
  let named = 0
  let timer: NodeJS.Timeout | null = null
  let emptying: Promise<unknown> = Promise.resolve()

  function moveAside(path: string): void {
    if (!open) {
      mkdirSync(home, { recursive: true, mode: 0o700 })
      open = true
      timer ??= setTimeout(empty, EMPTY_INTERVAL_MS).unref()
    }
    renameSync(path, join(home, String(++named)))
  }

  function empty(): void {
    if (timer !== null) clearTimeout(timer)
    timer = null
    open = false
    const full = `${home}.${++named}`
    try {
      renameSync(home, full)
    } catch {
      // There is none.
      return
    }
    emptying = Promise.all([emptying, removeTree(full)])
  }

  return {
    async put(path) {
      if (lstatSync(path, { throwIfNoEntry: false }) === undefined) return
      try {
        moveAside(path)
      } catch {
        // The disk is full, or a sweep took our folder.
        open = false
        await rm(path, { recursive: true, force: true })
      }
    },
    async [Symbol.asyncDispose]() {
      empty()
      await emptying
    },
  }
}

/** What cannot be removed now is left to the next sweep. */
function removeTree(path: string): Promise<void> {
  return new Promise((resolve) => {
    const child = spawn("rm", ["-rf", "--", path], { stdio: "ignore" })
    child.once("error", () => resolve(rm(path, { recursive: true, force: true }).catch(() => {})))
    child.once("exit", () => resolve())
  })
}
