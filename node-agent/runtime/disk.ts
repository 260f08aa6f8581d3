import { execFile } from "node:child_process"
import {
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmdirSync,
  rmSync,
  statfsSync,
  statSync,
  symlinkSync,
  unlinkSync,
} from "node:fs"
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
  /** Something of the attempt may live on, or it did not end well: what it wrote to is given to no other. */
  keepApart?(attemptDir: string): void
  /** True when no block or inode is left. */
  isFull(attemptDir: string): Promise<boolean>
  /** Takes it from the attempt with everything in it. Missing disks are fine, and so is a second call. */
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

/** Disks made in advance, at most: as many as starts usually come at once. */
const MOST_SPARES = 4
/** Disks that wait, with those that come back. */
const MOST_IDLE = 16
/** One with more in it is made anew: to remove that would hold up the agent. */
const MOST_REMOVED = 128
/** A disk's image keeps the room that its files once took; one that has grown by more goes. */
const MOST_GROWN_BYTES = 16 * 1024 * 1024
/** For so long the kernel may still hold what the last process of an attempt had open. */
const FREED_TRIES = 20
const FREED_PAUSE_MS = 10
/** To make one takes as much of the machine as to start a task does: it must not do both at once where it has the choice. */
const SPARE_DELAY_MS = 50

/** A disk of this process, and what it had when it was new. */
interface MadeDisk {
  bytes: number
  place: string
  fresh: { blocks: number; inodes: number; imageBytes: number }
}

/**
 * Disks lie in `home`, one folder each, and an attempt's `disk` is a link to its own: so some can be made before anybody asks,
 * and one whose attempt ended well and left little is emptied and waits for the next (to make, mount and unmount one takes the
 * machine as long as to run a short task). Spares are of the size asked for last; they are made one after another, a little
 * after a start.
 */
function createDisks(kind: "loop" | "tmpfs", home: string): AttemptDisks {
  /** Those that came back, then those made in advance; the last may still be in the making. */
  let spares: { bytes: number; disk: Promise<MadeDisk> }[] = []
  /** Those that attempts have, by place. */
  const lent = new Map<string, MadeDisk>()
  let lastAsked = 0
  let wanted = 1
  let made = 0
  let timer: NodeJS.Timeout | null = null
  let filling: Promise<void> = Promise.resolve()
  let closed = false

  async function makeOne(bytes: number): Promise<MadeDisk> {
    const place = join(home, `${process.pid}-${Date.now().toString(36)}-${++made}`)
    await makeDisk(kind, place, bytes)
    return { bytes, place, fresh: { ...freeOf(place), imageBytes: imageBytes(place) } }
  }

  async function takeOne(bytes: number): Promise<MadeDisk> {
    const index = spares.findIndex((spare) => spare.bytes === bytes)
    if (index < 0) {
      wanted = Math.min(wanted + 1, MOST_SPARES)
      return await makeOne(bytes)
    }
    // Off the list before anything is waited for: two who ask at once must not get the same.
    const [spare] = spares.splice(index, 1)
    return await (spare?.disk ?? makeOne(bytes)).catch(() => makeOne(bytes))
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
      const spare = { bytes, disk: makeOne(bytes) }
      spares.push(spare)
      try {
        await spare.disk
      } catch {
        // Who took it has heard, and makes one itself; the next start tries again.
        spares = spares.filter((other) => other !== spare)
        return
      }
    }
  }

  /** Says false where the disk is not as it was when it was new. */
  async function takeBack(disk: MadeDisk): Promise<boolean> {
    if (!isWanted(disk) || !isSound(disk) || !empty(join(disk.place, "disk"))) return false
    for (let tries = 0; !isAsNew(disk); tries++) {
      if (tries === FREED_TRIES) return false
      await pause(FREED_PAUSE_MS)
    }
    if (!isWanted(disk)) return false
    spares.unshift({ bytes: disk.bytes, disk: Promise.resolve(disk) })
    return true
  }

  function isWanted(disk: MadeDisk): boolean {
    return !closed && disk.bytes === lastAsked && spares.length < MOST_IDLE
  }

  async function drop(dropped: typeof spares): Promise<void> {
    for (const { disk } of dropped) {
      const found = await disk.catch(() => null)
      if (found !== null) await removeDisk(found.place)
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
      lastAsked = bytes
      const taken = await takeOne(bytes)
      symlinkSync(join(taken.place, "disk"), disk)
      lent.set(taken.place, taken)
      fillSoon(bytes)
      return disk
    },
    keepApart(attemptDir) {
      const disk = linkOf(join(attemptDir, "disk"))
      if (disk !== null) lent.delete(dirname(disk))
    },
    async isFull(attemptDir) {
      const room = await statfs(join(attemptDir, "disk"))
      return room.bavail * room.bsize < NEARLY_FULL_BYTES || (room.files > 0 && room.ffree === 0)
    },
    async remove(attemptDir) {
      const link = join(attemptDir, "disk")
      const disk = linkOf(link)
      if (disk === null) return
      // First, so that nobody else takes it from the attempt, or reaches it through the attempt once another has it.
      unlinkSync(link)
      const place = dirname(disk)
      const own = lent.get(place)
      lent.delete(place)
      if (own === undefined || !(await takeBack(own))) await removeDisk(place)
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

/** The machine has room for all that it may hold: an image that could not be written everywhere is not to be trusted. */
function isSound({ bytes, place, fresh }: MadeDisk): boolean {
  try {
    const machine = statfsSync(place)
    return machine.bavail * machine.bsize >= bytes && imageBytes(place) <= fresh.imageBytes + MOST_GROWN_BYTES
  } catch {
    return false
  }
}

/** Says false where more is there than is worth it, or something will not go; some of it is gone then. */
function empty(disk: string): boolean {
  let removed = 0
  try {
    const { uid, gid, mode } = lstatSync(disk)
    return uid === 0 && gid === 0 && (mode & 0o7777) === 0o755 && emptyDirectory(disk)
  } catch {
    return false
  }

  function emptyDirectory(directory: string): boolean {
    for (const entry of readdirSync(directory, { withFileTypes: true })) {
      if (++removed > MOST_REMOVED) return false
      const path = join(directory, entry.name)
      if (!entry.isDirectory()) unlinkSync(path)
      else if (emptyDirectory(path)) rmdirSync(path)
      else return false
    }
    return true
  }
}

function isAsNew({ place, fresh }: MadeDisk): boolean {
  try {
    const { blocks, inodes } = freeOf(place)
    return blocks === fresh.blocks && inodes === fresh.inodes && readdirSync(join(place, "disk")).length === 0
  } catch {
    return false
  }
}

function freeOf(place: string): { blocks: number; inodes: number } {
  const { bfree, ffree } = statfsSync(join(place, "disk"))
  return { blocks: bfree, inodes: ffree }
}

/** What the machine holds of it; a tmpfs has none. */
function imageBytes(place: string): number {
  return (statSync(join(place, "image"), { throwIfNoEntry: false })?.blocks ?? 0) * 512
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
