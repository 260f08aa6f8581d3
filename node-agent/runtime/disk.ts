import { execFile } from "node:child_process"
import { mkdirSync, readdirSync, readFileSync, readlinkSync, rmSync, symlinkSync } from "node:fs"
import { open, rm, statfs } from "node:fs/promises"
import { dirname, join } from "node:path"
import { setTimeout as pause } from "node:timers/promises"
import { promisify } from "node:util"
import type { SpareTrees } from "./spare-trees.ts"
import type { Trash } from "./trash.ts"

/** Gives attempts directories of a fixed size. What kind the machine allows is found out by trying. */
export interface AttemptDisks {
  readonly kind: "loop" | "tmpfs" | "none"
  /** Makes `attemptDir/disk`; a second call changes nothing. */
  make(attemptDir: string, bytes: number): Promise<string>
  /** Something of the attempt may live on: what it wrote to is given to no other. */
  keepApart?(attemptDir: string): void
  /** True when no block or inode is left. */
  isFull(attemptDir: string): Promise<boolean>
  /** Unmounts and removes it with everything in it. Missing disks are fine. */
  remove(attemptDir: string): Promise<void>
  /** Removes the disks of all attempts but those named, and what was made in advance. */
  sweep(keep: Iterable<string>): Promise<void>
  /** Removes what was made in advance; attempts keep theirs. */
  close(): Promise<void>
}

const run = promisify(execFile)

/**
 * An ext4 file system in a sparse file costs 20 ms and counts exactly; a tmpfs counts as memory; a plain directory has no
 * limit (a plain user can mount neither where the agent could still read it).
 */
export async function openDisks(dataDir: string, trash: Trash): Promise<AttemptDisks> {
  if (process.getuid?.() !== 0) return plainDisks(trash)
  for (const kind of ["loop", "tmpfs"] as const) {
    const place = join(dataDir, "disks", `trial-${process.pid}`)
    try {
      await makeDisk(kind, place, SMALLEST_BYTES)
      return createDisks(kind, join(dataDir, "disks"))
    } catch {
      // The next kind, then.
    } finally {
      await removeDisk(place)
    }
  }
  return plainDisks(trash)
}

/** Without a limit: for the process driver, whose attempts share the machine's disk. With `spares`, what they leave empty serves others. */
export function plainDisks(trash: Trash, spares?: SpareTrees): AttemptDisks {
  /** Made here, and nothing is known to be left that could still write there. */
  const reusable = new Set<string>()
  return {
    kind: "none",
    async make(attemptDir) {
      const disk = join(attemptDir, "disk")
      if (reusable.has(disk)) return disk
      if (!spares?.take(disk)) mkdirSync(disk, { recursive: true })
      if (spares) reusable.add(disk)
      return disk
    },
    isFull: async () => false,
    keepApart: (attemptDir) => void reusable.delete(join(attemptDir, "disk")),
    async remove(attemptDir) {
      const disk = join(attemptDir, "disk")
      if (spares && reusable.delete(disk)) await spares.put(disk)
      else await trash.put(disk)
    },
    async sweep() {},
    async close() {
      spares?.[Symbol.dispose]()
    },
  }
}

/** ext4 needs some for itself. */
const SMALLEST_BYTES = 8 * 1024 * 1024

/** Disks that wait, at most: as many as starts usually come at once. */
const MOST_SPARES = 4
/** To make one takes as much of the machine as to start a task does: it must not do both at once where it has the choice. */
const SPARE_DELAY_MS = 50

/**
 * Disks lie in `home`, one folder each, and an attempt's `disk` is a link to its own: so some can be made before anybody asks.
 * Spares are of the size asked for last, and are made one after another, a little after a start.
 */
function createDisks(kind: "loop" | "tmpfs", home: string): AttemptDisks {
  /** Oldest first; the last may still be in the making. */
  let spares: { bytes: number; place: Promise<string> }[] = []
  let wanted = 1
  let made = 0
  let timer: NodeJS.Timeout | null = null
  let filling: Promise<void> = Promise.resolve()
  let closed = false

  async function makeOne(bytes: number): Promise<string> {
    const place = join(home, `${process.pid}-${Date.now().toString(36)}-${++made}`)
    await makeDisk(kind, place, bytes)
    return place
  }

  async function takeOne(bytes: number): Promise<string> {
    const index = spares.findIndex((spare) => spare.bytes === bytes)
    if (index < 0) {
      wanted = Math.min(wanted + 1, MOST_SPARES)
      return await makeOne(bytes)
    }
    // Off the list before anything is waited for: two who ask at once must not get the same.
    const [spare] = spares.splice(index, 1)
    return await (spare?.place ?? makeOne(bytes)).catch(() => makeOne(bytes))
  }

  function fillSoon(bytes: number): void {
    if (closed) return
    timer ??= setTimeout(() => {
      timer = null
      filling = filling.then(() => fill(bytes))
    }, SPARE_DELAY_MS).unref()
  }

  async function fill(bytes: number): Promise<void> {
    const others = spares.filter((spare) => spare.bytes !== bytes)
    spares = spares.filter((spare) => spare.bytes === bytes)
    await drop(others)
    while (!closed && spares.length < wanted) {
      const spare = { bytes, place: makeOne(bytes) }
      spares.push(spare)
      try {
        await spare.place
      } catch {
        // Who took it has heard, and makes one itself; the next start tries again.
        spares = spares.filter((other) => other !== spare)
        return
      }
    }
  }

  async function drop(dropped: typeof spares): Promise<void> {
    for (const { place } of dropped) {
      const found = await place.catch(() => null)
      if (found !== null) await removeDisk(found)
    }
  }

  async function dropAll(): Promise<void> {
    if (timer !== null) clearTimeout(timer)
    timer = null
    await filling
    await drop(spares.splice(0))
  }

  return {
    kind,
    async make(attemptDir, bytes) {
      const disk = join(attemptDir, "disk")
      if (linkOf(disk) !== null) return disk
      symlinkSync(join(await takeOne(bytes), "disk"), disk)
      fillSoon(bytes)
      return disk
    },
    async isFull(attemptDir) {
      const room = await statfs(join(attemptDir, "disk"))
      return room.bavail * room.bsize < NEARLY_FULL_BYTES || (room.files > 0 && room.ffree === 0)
    },
    async remove(attemptDir) {
      const disk = linkOf(join(attemptDir, "disk"))
      if (disk === null) return
      await removeDisk(dirname(disk))
      await rm(join(attemptDir, "disk"), { force: true })
    },
    async sweep(keep) {
      await dropAll()
      const kept = new Set([...keep].map((attemptDir) => linkOf(join(attemptDir, "disk"))))
      for (const name of namesIn(home)) if (!kept.has(join(home, name, "disk"))) await removeDisk(join(home, name))
    },
    async close() {
      closed = true
      await dropAll()
    },
  }
}

async function makeDisk(kind: "loop" | "tmpfs", place: string, bytes: number): Promise<void> {
  const disk = join(place, "disk")
  mkdirSync(disk, { recursive: true })
  if (kind === "tmpfs") await run("mount", ["-t", "tmpfs", "-o", `size=${bytes},mode=0755`, "none", disk])
  else await mountLoop(join(place, "image"), disk, Math.max(bytes, SMALLEST_BYTES))
}

async function removeDisk(place: string): Promise<void> {
  const disk = join(place, "disk")
  for (let tries = 0; isMounted(disk) && tries < 100; tries++) {
    // The last process of an attempt may still hold it for a moment; the loop device goes with the mount.
    await run("umount", tries < 50 ? [disk] : ["-l", disk]).catch(() => pause(20))
  }
  if (!isMounted(disk)) await rm(place, { recursive: true, force: true })
}

function linkOf(path: string): string | null {
  try {
    return readlinkSync(path)
  } catch {
    return null
  }
}

function namesIn(directory: string): string[] {
  try {
    return readdirSync(directory)
  } catch {
    return []
  }
}

/** A program that met ENOSPC leaves less than its next write: 64 KiB is what most write at once. */
const NEARLY_FULL_BYTES = 64 * 1024

async function mountLoop(image: string, disk: string, bytes: number): Promise<void> {
  const file = await open(image, "w", 0o600)
  await file.truncate(bytes)
  await file.close()
  // No journal: nobody mounts it after a crash. No reserved blocks: the limit is the limit.
  await run("mkfs.ext4", ["-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", image])
  await run("mount", ["-o", "loop,nosuid,nodev", image, disk])
  rmSync(join(disk, "lost+found"), { recursive: true, force: true })
}

function isMounted(path: string): boolean {
  const escaped = path.replaceAll("\\", "\\134").replaceAll(" ", "\\040")
  return readFileSync("/proc/self/mountinfo", "utf8").includes(` ${escaped} `)
}
