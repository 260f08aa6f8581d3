import { chmodSync, chownSync, mkdirSync, rmSync, writeFileSync } from "node:fs"
import { release } from "node:os"
import { join } from "node:path"
import { RuntimeRefusal, type AttemptSpec } from "./driver.ts"
import { directoriesBelow, findCommand, isDirectory, makeMountPoint, resolveInside, viewImage } from "./image-view.ts"
import type { SupervisedMount } from "./supervisor.ts"

/** Where an attempt's root is composed, in its own mount namespace: a directory that every Linux machine has. */
const STAGE = "/mnt"
export const SANDBOX_ROOT = `${STAGE}/root`
/** The attempt's own /tmp, on its disk. */
export const SANDBOX_TMP = `${STAGE}/write/tmp`

/**
 * Without it the kernel writes the attempt's whole disk back when the overlay goes, and the end of the task waits for that: for
 * files that nobody reads again. What counts is named by digest when it is collected. Kernels know the option since 5.10.
 */
const UNSYNCED = isKernelSince(release(), 5, 10) ? ",volatile" : ""

/** More directories than this below a workdir stay read-only for a sandbox without root (bubblewrap). */
const MOST_OWNED_DIRECTORIES = 2_000

export interface SandboxRoot {
  mounts: SupervisedMount[]
  /** The image's own path of the command. */
  program: string
}

/**
 * Composes the root of an attempt: its layers, never written, below a writable layer on the attempt's disk, and the mounts.
 * `owner` is the user (and group) inside which the program runs; the workdir's directories become its own, so that it can
 * create and replace files there. Throws a `RuntimeRefusal` when the image lacks the command.
 */
export function composeSandboxRoot(spec: AttemptSpec, disk: string, owner: number, resolvConf: string): SandboxRoot {
  const layers = spec.rootfs?.layers ?? []
  if (layers.length === 0) throw new RuntimeRefusal("sandbox_error", "a sandboxed attempt needs an image")
  const write = join(disk, ".root")
  const upper = join(write, "upper")
  rmSync(write, { recursive: true, force: true })
  for (const path of [upper, join(write, "work"), join(write, "tmp")]) mkdirSync(path, { recursive: true })
  chmodSync(join(write, "tmp"), 0o1777)
  // The program's user must pass through, but must not list or change.
  chmodSync(upper, 0o755)

  const view = viewImage([...layers, upper])
  const etc = join(upper, "etc")
  mkdirSync(etc, { recursive: true })
  const hostname = spec.rootfs?.hostname ?? "task"
  writeFileSync(join(etc, "resolv.conf"), resolvConf)
  writeFileSync(join(etc, "hostname"), `${hostname}\n`)
  writeFileSync(join(etc, "hosts"), `127.0.0.1 localhost ${hostname}\n::1 localhost\n`)
  for (const path of ["/proc", "/dev", "/sys", "/tmp"]) makeMountPoint(view, upper, path, "directory")

  const workdir = resolveInside(view, spec.workdir)
  makeMountPoint(view, upper, workdir, "directory")
  if (owner !== 0 && workdir !== "/") {
    for (const path of directoriesBelow(layers, workdir, MOST_OWNED_DIRECTORIES)) {
      mkdirSync(join(upper, path), { recursive: true })
      chownSync(join(upper, path), owner, owner)
    }
    chownSync(join(upper, workdir), owner, owner)
  }

  const inside = spec.mounts.map((mount) => ({ ...mount, path: resolveInside(view, mount.path) }))
  for (const mount of inside) {
    makeMountPoint(view, upper, mount.path, isDirectory(mount.hostPath) ? "directory" : "file")
    if (owner !== 0 && !mount.readonly) chownSync(mount.hostPath, owner, owner)
  }
  const command = spec.command[0] ?? ""
  const program = findCommand(viewImage([...layers, upper], inside), command, spec.env["PATH"], spec.workdir)
  if (program === null)
    throw new RuntimeRefusal("preparation_failed", `the image has no command ${command} in its PATH`)
  const numbered = layers.map((layer, index) => ({ layer, at: `${STAGE}/l${index}` }))
  return {
    program,
    mounts: [
      { kind: "tmpfs", target: STAGE, options: "mode=0711,size=1m" },
      ...["root", "write"].map((name): SupervisedMount => ({ kind: "mkdir", target: `${STAGE}/${name}` })),
      { kind: "bind", source: write, target: `${STAGE}/write` },
      // Short names: the options of an overlay must fit into one page, and a path may hold a colon.
      ...numbered.flatMap(({ layer, at }): SupervisedMount[] => [
        { kind: "mkdir", target: at },
        { kind: "bind", source: layer, target: at },
      ]),
      {
        kind: "overlay",
        target: SANDBOX_ROOT,
        options: `lowerdir=${numbered
          .map(({ at }) => at)
          .toReversed()
          .join(":")},upperdir=${STAGE}/write/upper,workdir=${STAGE}/write/work${UNSYNCED}`,
      },
      { kind: "bind", source: `${STAGE}/write/tmp`, target: `${SANDBOX_ROOT}${resolveInside(view, "/tmp")}` },
      ...inside.map((mount): SupervisedMount => ({
        kind: mount.readonly ? "readonly-bind" : "bind",
        source: mount.hostPath,
        target: SANDBOX_ROOT + mount.path,
      })),
    ],
  }
}

/** `running` as uname tells it: `5.10.0-28-amd64`. */
export function isKernelSince(running: string, major: number, minor: number): boolean {
  const [found = 0, below = 0] = running.split(".").map((part) => Number.parseInt(part, 10))
  return found > major || (found === major && below >= minor)
}
