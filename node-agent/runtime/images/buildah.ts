import { mkdir, readdir } from "node:fs/promises"
import { join } from "node:path"
import { runTool, TOOL_PATH, type ToolEnd, type ToolOptions } from "./run-tool.ts"

/** buildah with a storage of our own. Every command runs in its own pid and mount namespace. */
export interface Buildah {
  /** A fresh directory for one build: state of runtimes, temporary files, output. `remove` it when done. */
  openWork(): Promise<BuildWork>
  /** Removes what killed builds left: work directories and half-made containers. */
  sweep(): Promise<void>
  /** Deletes images and layer cache when they have grown past `maxBytes`; the next build starts cold. */
  trim(maxBytes: number): Promise<void>
  readonly storageDirectory: string
}

export interface BuildWork {
  directory: string
  /** `buildah ARGS`. */
  buildah(args: readonly string[], options?: BuildahOptions): Promise<ToolEnd>
  /** Takes the layout's image into the storage, under this name. */
  importImage(layout: string, name: string, options?: BuildahOptions): Promise<ToolEnd>
  /** Writes the image as an OCI layout whose layers are plain tars. Layers that lie there already are not written again. */
  exportImage(image: string, layout: string, options?: BuildahOptions): Promise<ToolEnd>
  remove(): Promise<void>
}

export interface BuildahOptions extends Pick<ToolOptions, "signal" | "timeoutMs" | "onOutput"> {
  /** A network namespace to be in (a path of the host); else the machine's. */
  networkNamespace?: string | undefined
  /** Puts the command under limits: given the command, the command to run instead. */
  confine?: Confine | undefined
}

export type Confine = (command: readonly [string, ...string[]]) => [string, ...string[]]

/** @param directory Ours alone, on a file system that can be an overlay's upper directory. */
export async function openBuildah(directory: string): Promise<Buildah> {
  const storage = join(directory, "storage")
  const works = join(directory, "work")
  await mkdir(works, { recursive: true, mode: 0o700 })
  await mkdir(storage, { recursive: true, mode: 0o700 })
  let lastWork = 0

  async function openWork(): Promise<BuildWork> {
    const work = join(works, `${process.pid}-${++lastWork}`)
    await mkdir(join(work, "tmp"), { recursive: true, mode: 0o700 })
    const runroot = join(work, "runroot")
    const run = (command: readonly [string, ...string[]], options: BuildahOptions = {}): Promise<ToolEnd> => {
      const { networkNamespace, confine = (it) => [...it], ...rest } = options
      const network = networkNamespace === undefined ? [] : [`--net=${networkNamespace}`]
      const entered: [string, ...string[]] = ["nsenter", ...network, "--", ...PRIVATE, ...command]
      return runTool(confine(entered), { ...rest, env: { PATH: TOOL_PATH, HOME: work, TMPDIR: join(work, "tmp") } })
    }
    const place = ["--root", storage, "--runroot", runroot, "--storage-driver", "overlay"]
    const stored = `containers-storage:[overlay@${storage}+${runroot}]`
    return {
      directory: work,
      buildah: (args, options) => run(["buildah", ...place, ...args], options),
      // Not `buildah pull oci:`, which makes a name of the path and fails where that has a capital letter.
      importImage(layout, name, options) {
        return run(["skopeo", "--insecure-policy", "copy", "--quiet", `oci:${layout}`, `${stored}${name}`], options)
      },
      exportImage(image, layout, options) {
        const plain = ["--quiet", "--dest-oci-accept-uncompressed-layers"]
        return run(["skopeo", "--insecure-policy", "copy", ...plain, `${stored}@${image}`, `oci:${layout}`], options)
      },
      remove: () => removeTree(work),
    }
  }

  return {
    storageDirectory: storage,
    openWork,

    async sweep() {
      for (const left of await readdir(works)) await removeTree(join(works, left))
      const work = await openWork()
      try {
        await work.buildah(["rm", "--all"])
      } finally {
        await work.remove()
      }
    },

    async trim(maxBytes) {
      const measured = await runTool(["du", "--summarize", "--block-size=1", "--one-file-system", storage])
      if (Number.parseInt(measured.output, 10) <= maxBytes) return
      await removeTree(storage)
      await mkdir(storage, { recursive: true, mode: 0o700 })
    },
  }
}

/**
 * Killing the first process ends every other of the build, runsc's sandboxes included, and takes its mounts along: a
 * build leaves nothing, however it ends. It also ends with the agent.
 */
const PRIVATE = "setpriv --pdeathsig KILL -- unshare --mount --pid --fork --kill-child --mount-proc --".split(" ")

async function removeTree(path: string): Promise<void> {
  const end = await runTool(["rm", "-rf", "--one-file-system", "--", path])
  if (end.exitCode !== 0) throw new Error(`cannot remove ${path}: ${end.output}`)
}
