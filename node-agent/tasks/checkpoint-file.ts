import { constants, type BigIntStats } from "node:fs"
import { copyFile, mkdir, open, readlink, rm, stat, type FileHandle } from "node:fs/promises"
import { basename, dirname, join, posix } from "node:path"
import { setTimeout as pause } from "node:timers/promises"
import { LARGEST_CHECKPOINT_BYTES } from "../../protocol/domain/runner.ts"

/** A directory of the attempt out of which files may be published, as its program names it and as this machine does. */
export interface PublishableRoot {
  inside: string
  host: string
}

/** `failed`: what the program named cannot be published; `cause`: by a fault of this machine. `skipped`: it is larger than is taken. */
export class NotPublishable extends Error {
  override name = "NotPublishable"
  readonly status: "failed" | "skipped"
  constructor(status: NotPublishable["status"], reason: string, options?: ErrorOptions) {
    super(reason, options)
    this.status = status
  }
}

/** The file is no longer what the line told of, or not yet: a later look may find it still. */
export class StillChanging extends NotPublishable {
  constructor(path: string) {
    super(
      "failed",
      `${path} changed before it was copied: write each checkpoint under a name of its own, then rename it`,
    )
  }
}

/** Links from one name to another, as `latest` is one. */
const MOST_LINKS = 8

/**
 * Copies the file that a checkpoint names to `to`, as it is now: what the program does with it later changes nothing. Relative
 * paths are taken from the first root (rulings, Checkpoints). Only plain files below a root are read, by whatever way the
 * program leads there (GAP-47). `toldAt` is when its line was seen (wall clock, ms): what was written later is another
 * checkpoint's. Of more than `mostBytes` it is not taken. Returns its path below its root. Throws `NotPublishable`, and leaves
 * nothing behind.
 */
export async function copyPublishable(
  roots: readonly PublishableRoot[],
  path: string,
  to: string,
  { toldAt, mostBytes = LARGEST_CHECKPOINT_BYTES }: { toldAt: number; mostBytes?: number },
): Promise<string> {
  await mkdir(dirname(to), { recursive: true })
  const { file, relative } = await openPublishable(roots, path)
  try {
    if (!(await copyWhole(file, to, toldAt, mostBytes))) throw new StillChanging(path)
    return relative
  } catch (error) {
    await rm(to, { force: true })
    if (error instanceof NotPublishable) throw error
    // The code alone: the rest of it names places on this machine.
    const code = (error as NodeJS.ErrnoException).code ?? "unknown"
    throw new NotPublishable("failed", `${path} cannot be copied: ${code}`, { cause: error })
  } finally {
    await file.close()
  }
}

/** False: it is not the file that was told of, or not all of it. */
async function copyWhole(file: FileHandle, to: string, toldAt: number, mostBytes: number): Promise<boolean> {
  const before = await settled(file)
  if (!before.isFile()) throw new NotPublishable("failed", "the path leads to no plain file")
  if (before.size > BigInt(mostBytes)) {
    const sizes = `it has ${before.size} bytes; at most ${mostBytes} are taken`
    throw new NotPublishable("skipped", sizes)
  }
  if (Number(before.mtimeMs) > toldAt) return false
  // Shares the blocks where the file system can.
  await copyFile(descriptorPath(file), to, constants.COPYFILE_FICLONE)
  const after = await file.stat({ bigint: true })
  const copied = await stat(to, { bigint: true })
  return before.size === after.size && before.mtimeNs === after.mtimeNs && copied.size === after.size
}

/** Its facts, at a moment from which a further write would show: file systems tell times in ticks of some milliseconds. */
async function settled(file: FileHandle): Promise<BigIntStats> {
  const found = await file.stat({ bigint: true })
  const ageMs = Date.now() - Number(found.mtimeMs)
  if (ageMs < 0 || ageMs > TICK_MS) return found
  await pause(TICK_MS)
  return await file.stat({ bigint: true })
}

const TICK_MS = 20

/** `relative`: below its root. */
async function openPublishable(
  roots: readonly PublishableRoot[],
  path: string,
): Promise<{ file: FileHandle; relative: string }> {
  let wanted = posix.resolve(roots[0]?.inside ?? "/", path)
  for (let links = 0; links <= MOST_LINKS; links++) {
    const root = roots.find(({ inside }) => wanted.startsWith(`${inside}/`))
    if (!root) break
    const relative = wanted.slice(root.inside.length + 1)
    const found = await openBelow(root.host, relative.split("/"))
    if (found === null) throw new NotPublishable("failed", `there is no plain file at ${path}`)
    if (typeof found !== "string") return { relative, file: found }
    wanted = posix.resolve(dirname(wanted), found)
  }
  throw new NotPublishable("failed", `${path} leads outside the artifact directory`)
}

/**
 * Opens a file below a directory step by step, each from the one before, so that no link is followed and nothing can be
 * exchanged on the way. A link in the last place: its target. Null: not there, or a link on the way.
 */
async function openBelow(directory: string, names: readonly string[]): Promise<FileHandle | string | null> {
  let at = await openAt(directory, constants.O_DIRECTORY)
  try {
    for (const name of names.slice(0, -1)) {
      if (at === null) return null
      const next: FileHandle | null = await openAt(join(descriptorPath(at), name), constants.O_DIRECTORY)
      await at.close()
      at = next
    }
    if (at === null) return null
    const last = join(descriptorPath(at), names.at(-1) ?? "")
    return (await openAt(last, constants.O_NONBLOCK)) ?? (await readlink(last).catch(() => null))
  } finally {
    await at?.close()
  }
}

async function openAt(path: string, flags: number): Promise<FileHandle | null> {
  try {
    return await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | flags)
  } catch {
    return null
  }
}

/** Another way to the very file that is open. */
const descriptorPath = (file: FileHandle): string => `/proc/self/fd/${file.fd}`

/** A name for the file where it goes, whatever the program called it. */
export function plainName(path: string): string {
  const name = basename(path)
    .replaceAll(/[^\w.+-]/g, "_")
    .slice(-LONGEST_NAME)
  return /^\.*$/.test(name) ? "checkpoint" : name
}

const LONGEST_NAME = 120
