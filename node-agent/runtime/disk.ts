import { execFile } from "node:child_process"
import { existsSync, mkdirSync, readFileSync, rmSync } from "node:fs"
import { open, rename, rm, statfs } from "node:fs/promises"
import { join } from "node:path"
import { setTimeout as pause } from "node:timers/promises"
import { promisify } from "node:util"

/** Gives attempts directories of a fixed size. What kind the machine allows is found out by trying. */
export interface AttemptDisks {
  readonly kind: "loop" | "tmpfs" | "none"
  /** Makes `attemptDir/disk`; a second call changes nothing. */
  make(attemptDir: string, bytes: number): Promise<string>
  /** True when no block or inode is left. */
  isFull(attemptDir: string): Promise<boolean>
  /** Unmounts and removes it with everything in it. Missing disks are fine. */
  remove(attemptDir: string): Promise<void>
}

const run = promisify(execFile)

/**
 * An ext4 file system in a sparse file costs 10 ms and counts exactly; a tmpfs counts as memory; a plain directory has no
 * limit (a plain user can mount neither where the agent could still read it). `scratchDir` is for the trial.
 */
export async function openDisks(scratchDir: string): Promise<AttemptDisks> {
  if (process.getuid?.() !== 0) return createDisks("none")
  for (const kind of ["loop", "tmpfs"] as const) {
    const trial = join(scratchDir, `disk-trial-${process.pid}`)
    const disks = createDisks(kind)
    try {
      mkdirSync(trial, { recursive: true })
      await disks.make(trial, SMALLEST_BYTES)
      return disks
    } catch {
      // The next kind, then.
    } finally {
      await disks.remove(trial)
      await rm(trial, { recursive: true, force: true })
    }
  }
  return createDisks("none")
}

/** ext4 needs some for itself. */
const SMALLEST_BYTES = 8 * 1024 * 1024

/** Without a limit: for the process driver, whose attempts share the machine's disk. */
export const plainDisks: AttemptDisks = createDisks("none")

function createDisks(kind: AttemptDisks["kind"]): AttemptDisks {
  return {
    kind,
    async make(attemptDir, bytes) {
      const disk = join(attemptDir, "disk")
      if (isMounted(disk)) return disk
      if (kind === "none" || existsSync(disk)) {
        mkdirSync(disk, { recursive: true })
        if (kind === "none") return disk
      }
      mkdirSync(disk, { recursive: true })
      if (kind === "tmpfs") await run("mount", ["-t", "tmpfs", "-o", `size=${bytes},mode=0755`, "none", disk])
      else await mountLoop(join(attemptDir, "disk.img"), disk, Math.max(bytes, SMALLEST_BYTES))
      return disk
    },
    async isFull(attemptDir) {
      if (kind === "none") return false
      const room = await statfs(join(attemptDir, "disk"))
      return room.bavail * room.bsize < NEARLY_FULL_BYTES || (room.files > 0 && room.ffree === 0)
    },
    async remove(attemptDir) {
      const disk = join(attemptDir, "disk")
      for (let tries = 0; isMounted(disk) && tries < 100; tries++) {
        // The last process of an attempt may still hold it for a moment; the loop device goes with the mount.
        await run("umount", tries < 50 ? [disk] : ["-l", disk]).catch(() => pause(20))
      }
      if (isMounted(disk)) return
      await rm(join(attemptDir, "disk.img"), { force: true })
      rmSync(disk, { recursive: true, force: true })
    },
  }
}

/** A program that met ENOSPC leaves less than its next write: 64 KiB is what most write at once. */
const NEARLY_FULL_BYTES = 64 * 1024

async function mountLoop(image: string, disk: string, bytes: number): Promise<void> {
  const file = await open(`${image}.new`, "w")
  await file.truncate(bytes)
  await file.close()
  // No journal: nobody mounts it after a crash. No reserved blocks: the limit is the limit.
  await run("mkfs.ext4", [
    "-q",
    "-F",
    "-m",
    "0",
    "-O",
    "^has_journal",
    "-E",
    "lazy_itable_init=1,nodiscard",
    `${image}.new`,
  ])
  await rename(`${image}.new`, image)
  await run("mount", ["-o", "loop,nosuid,nodev", image, disk])
  rmSync(join(disk, "lost+found"), { recursive: true, force: true })
}

function isMounted(path: string): boolean {
  const escaped = path.replaceAll("\\", "\\134").replaceAll(" ", "\\040")
  return readFileSync("/proc/self/mountinfo", "utf8").includes(` ${escaped} `)
}
