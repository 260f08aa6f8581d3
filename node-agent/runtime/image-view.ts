import { lstatSync, mkdirSync, readdirSync, readlinkSync, statSync, writeFileSync, type Stats } from "node:fs"
import { dirname, join, posix } from "node:path"

/**
 * The layers of an image as the kernel's overlay will show them, without mounting them: names are looked up from the topmost
 * layer down, links are followed inside the image only. A hostile image's links never lead to the host's files.
 */
export interface ImageView {
  /** What a path inside the image leads to, links followed; null when nothing is there. */
  find(path: string): { path: string; stats: Stats } | null
}

/** As many links as the kernel follows. */
const MOST_LINKS = 40

/** `layers` lowest first; `mounts` lie over them, the last over the others, at resolved places. */
export function viewImage(
  layers: readonly string[],
  mounts: readonly { hostPath: string; path: string }[] = [],
): ImageView {
  const topDown = layers.toReversed()
  const lastFirst = mounts.toReversed()

  function look(path: string): { host: string; stats: Stats } | null {
    const mount = lastFirst.find((candidate) => path === candidate.path || path.startsWith(`${candidate.path}/`))
    if (mount !== undefined) {
      const host = join(mount.hostPath, path.slice(mount.path.length))
      const stats = lstatOf(host)
      return stats === null ? null : { host, stats }
    }
    for (const layer of topDown) {
      const host = join(layer, path)
      const stats = lstatOf(host)
      if (stats === null) continue
      return stats.isCharacterDevice() && stats.rdev === 0 ? null : { host, stats }
    }
    return null
  }

  return {
    find(path) {
      let left = path.split("/").filter((part) => part !== "" && part !== ".")
      let at = "/"
      let links = 0
      let found = look("/")
      while (left.length > 0) {
        const [part = "", ...rest] = left
        left = rest
        if (part === "..") {
          at = posix.dirname(at)
          continue
        }
        found = look(posix.join(at, part))
        if (found === null) return null
        if (!found.stats.isSymbolicLink()) {
          at = posix.join(at, part)
          continue
        }
        if (++links > MOST_LINKS) return null
        const target = readlinkSync(found.host)
        if (target.startsWith("/")) at = "/"
        left = [...target.split("/").filter((piece) => piece !== "" && piece !== "."), ...left]
      }
      found = look(at)
      return found === null ? null : { path: at, stats: found.stats }
    },
  }
}

/** Where a path inside leads when as much of it as exists is followed: the place to mount at or to create. */
export function resolveInside(view: ImageView, path: string): string {
  const missing: string[] = []
  let at = posix.normalize(path)
  while (at !== "/") {
    const found = view.find(at)
    if (found !== null) return posix.join(found.path, ...missing)
    missing.unshift(posix.basename(at))
    at = posix.dirname(at)
  }
  return posix.join("/", ...missing)
}

/** Looks a command up as execvp does. Null when the image lacks it. */
export function findCommand(
  view: ImageView,
  command: string,
  path: string | undefined,
  workdir: string,
): string | null {
  if (command === "") return null
  const candidates = command.includes("/")
    ? [posix.resolve(workdir, command)]
    : (path ?? "").split(":").map((directory) => posix.resolve(workdir, directory, command))
  return (
    candidates.find((candidate) => {
      const found = view.find(candidate)
      return found !== null && found.stats.isFile() && (found.stats.mode & 0o111) !== 0
    }) ?? null
  )
}

/** Makes a mount point in the writable layer, unless the image has one. `path` is resolved. */
export function makeMountPoint(view: ImageView, upper: string, path: string, kind: "directory" | "file"): void {
  if (view.find(path) !== null) return
  const host = join(upper, path)
  mkdirSync(kind === "directory" ? host : dirname(host), { recursive: true })
  if (kind === "file") writeFileSync(host, "", { flag: "a" })
}

/** Directories below a path of the image, itself included, at most `most`. Links are not followed. */
export function directoriesBelow(layers: readonly string[], path: string, most: number): string[] {
  const found = new Set<string>()
  const left = [path]
  while (left.length > 0 && found.size < most) {
    const at = left.pop() ?? ""
    found.add(at)
    for (const layer of layers) {
      for (const name of directoryNames(join(layer, at))) {
        const below = posix.join(at, name)
        if (!found.has(below)) left.push(below)
      }
    }
  }
  return [...found]
}

function directoryNames(host: string): string[] {
  try {
    if (lstatOf(host)?.isDirectory() !== true) return []
    return readdirSync(host, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map((entry) => entry.name)
  } catch {
    return []
  }
}

function lstatOf(path: string): Stats | null {
  try {
    // Most places are missing in most layers, and a thrown error costs more than ten such calls.
    return lstatSync(path, { throwIfNoEntry: false }) ?? null
  } catch {
    return null
  }
}

export function isDirectory(hostPath: string): boolean {
  return statSync(hostPath).isDirectory()
}
