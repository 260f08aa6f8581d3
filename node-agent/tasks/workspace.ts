import {
  chmodSync,
  constants,
  copyFileSync,
  existsSync,
  mkdirSync,
  realpathSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
import { basename, dirname, join } from "node:path"
import type { Mount, RootfsSpec } from "../runtime/driver.ts"
import { viewImage } from "../runtime/image-view.ts"
import { copyTree, type TreeEntry } from "../runtime/project-tree.ts"
import type { PublishableRoot } from "./checkpoint-file.ts"
import type { PlatformPaths } from "./environment.ts"
import type { InputPlace } from "./inputs.ts"
import type { ResumePlace } from "./resume.ts"

/** A revision made ready on this node: what all its attempts start from. Never written. */
export type RuntimeFiles =
  /** The process runtime: the pushed tree itself. */
  | {
      kind: "tree"
      directory: string
      /** What is in it, when it is small. */
      entries: TreeEntry[] | null
      /** Has it a `.venv/bin/python`? */
      venv: boolean
      /** What people are shown as the working directory. */
      workdir: string | null
    }
  /** Sandboxes: unpacked layers, lowest first. */
  | { kind: "image"; layers: string[]; env: Record<string, string>; workdir: string | null }

/** The places of one attempt on this machine and as its program sees them. Follows from the folder and the runtime alone. */
export interface Workspace {
  /** On this machine, all on the attempt's disk but the payload. */
  host: PlatformPaths
  inside: PlatformPaths
  workdir: string
  mounts: Mount[]
  rootfs: RootfsSpec | null
  venvBin: string | null
  /** How paths of the attempt's folder are shown to people, longer ones first. */
  shown: { host: string; shown: string }[]
}

/** Where sandboxes see the platform's files. */
const INSIDE = "/computalot"
/** Shown for the process runtime when neither manifest nor project names a directory. */
const DEFAULT_WORKDIR = "/workspace"

/** Where an attempt's files are on this machine. `disk` is the driver's directory for what the attempt writes. */
export function hostPaths(attemptDir: string, disk: string): PlatformPaths {
  return {
    payload: join(attemptDir, "payload.json"),
    result: join(disk, "result", "result.json"),
    artifacts: join(disk, "artifacts"),
    scratch: join(disk, "scratch"),
  }
}

/** How paths of the attempt's folder are shown to people, longer ones first. The folder exists. */
export function shownPaths(attemptDir: string, disk: string, workdir: string | null): Workspace["shown"] {
  const hosts = [join(disk, "work"), attemptDir]
  // A program that asks where it is gets the real path, also when the data directory is reached through a link.
  const real = join(realParent(attemptDir), basename(attemptDir))
  if (real !== attemptDir) hosts.push(...hosts.map((host) => real + host.slice(attemptDir.length)))
  const shown = workdir ?? DEFAULT_WORKDIR
  return hosts.toSorted((a, b) => b.length - a.length).map((host) => ({ host, shown }))
}

/** Out of which directories an attempt may publish checkpoints, as its program names them (GAP-47). The folder exists. */
export function publishableRoots(attemptDir: string, disk: string, isImage: boolean): PublishableRoot[] {
  const { artifacts, scratch } = hostPaths(attemptDir, disk)
  const inImage = [
    { inside: `${INSIDE}/artifacts`, host: artifacts },
    { inside: `${INSIDE}/scratch`, host: scratch },
  ]
  if (isImage) return inImage
  const real = join(realParent(attemptDir), basename(attemptDir))
  return [artifacts, scratch].flatMap((host) => [
    { inside: host, host },
    { inside: real + host.slice(attemptDir.length), host },
  ])
}

/** Where an attempt finds the file of the checkpoint that it goes on from. */
export function resumePlace(attemptDir: string, isImage: boolean): ResumePlace {
  const host = join(attemptDir, "resume")
  return { host, inside: isImage ? `${INSIDE}/resume` : host }
}

/** Where an attempt finds the files that it is given. */
export function inputPlace(attemptDir: string, isImage: boolean): InputPlace {
  const host = join(attemptDir, "inputs")
  return { host, inside: isImage ? `${INSIDE}/inputs` : host, copies: !isImage }
}

/** All attempts lie in one directory: it is looked up once. */
const realParents = new Map<string, string>()
function realParent(path: string): string {
  const parent = dirname(path)
  const known = realParents.get(parent) ?? realpathSync(parent)
  realParents.set(parent, known)
  return known
}

/** Names the places; touches nothing. The attempt's folder exists, with what it goes on from and what it is given. */
export function planWorkspace(attemptDir: string, disk: string, files: RuntimeFiles): Workspace {
  const host = hostPaths(attemptDir, disk)
  const shown = shownPaths(attemptDir, disk, files.workdir)
  if (files.kind === "tree") {
    const workdir = join(disk, "work")
    const venvBin = files.venv ? join(workdir, ".venv", "bin") : null
    return { host, inside: host, workdir, mounts: [], rootfs: null, venvBin, shown }
  }
  const workdir = files.workdir ?? "/"
  const inside: PlatformPaths = {
    payload: `${INSIDE}/payload.json`,
    result: `${INSIDE}/result/result.json`,
    artifacts: `${INSIDE}/artifacts`,
    scratch: `${INSIDE}/scratch`,
  }
  const venvBin = join(workdir, ".venv", "bin")
  const brought = [resumePlace(attemptDir, true), inputPlace(attemptDir, true)].filter(({ host: at }) => existsSync(at))
  return {
    host,
    inside,
    workdir,
    mounts: [
      { hostPath: host.payload, path: inside.payload, readonly: true },
      { hostPath: join(disk, "result"), path: `${INSIDE}/result`, readonly: false },
      { hostPath: host.artifacts, path: inside.artifacts, readonly: false },
      { hostPath: host.scratch, path: inside.scratch, readonly: false },
      ...brought.map((place) => ({ hostPath: place.host, path: place.inside, readonly: true })),
    ],
    rootfs: { layers: files.layers, hostname: "task" },
    venvBin: viewImage(files.layers).find(join(venvBin, "python")) === null ? null : venvBin,
    shown,
  }
}

/** Makes the places and, for the process runtime, the private copy of the tree. The folder and its disk exist. */
export async function makeWorkspace(
  workspace: Workspace,
  disk: string,
  files: RuntimeFiles,
  payload: Uint8Array | string,
): Promise<void> {
  for (const directory of [join(disk, "result"), workspace.host.artifacts, workspace.host.scratch]) {
    mkdirSync(directory, { recursive: true })
    // The program may run as another user than the agent; nobody else gets past the attempts' directory.
    if (workspace.rootfs !== null) chmodSync(directory, 0o777)
  }
  writeFileSync(workspace.host.payload, payload)
  if (files.kind === "image") return
  if (files.entries === null) return await copyTree(files.directory, workspace.workdir)
  copyEntries(files.directory, workspace.workdir, files.entries)
}

/** Small trees are copied without a child process: it would cost more than the copying. */
function copyEntries(from: string, to: string, entries: readonly TreeEntry[]): void {
  mkdirSync(to, { recursive: true })
  for (const { path, kind, target } of entries) {
    const place = join(to, path)
    if (kind === "directory") mkdirSync(place, { recursive: true })
    else if (kind === "link") symlinkSync(target, place)
    else copyFileSync(join(from, path), place, constants.COPYFILE_FICLONE)
  }
}
