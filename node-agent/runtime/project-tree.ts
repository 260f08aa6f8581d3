import { readdirSync, readlinkSync, statSync } from "node:fs"
import { mkdir } from "node:fs/promises"
import { join, relative } from "node:path"
import { runTool } from "./images/run-tool.ts"

/** One name in a small pushed tree, directories before what is in them. */
export interface TreeEntry {
  /** Relative to the tree. */
  path: string
  kind: "directory" | "file" | "link"
  /** Of a link. */
  target: string
}

/** The tarball is not one that can be unpacked here; another node would refuse it too. */
export class TreeRefused extends Error {
  override name = "TreeRefused"
}

/** Up to this a tree is copied by system calls of our own, beyond by a child process. */
const SMALL_TREE_ENTRIES = 64
const SMALL_TREE_BYTES = 1024 * 1024

/**
 * Unpacks the coordinator's normalised tarball (plain files, directories and links inside the tree) into a new directory, in
 * a child process. Rejects with `TreeRefused` when tar does not take it.
 */
export async function unpackTree(tarball: string, directory: string, signal: AbortSignal): Promise<void> {
  await mkdir(directory, { recursive: true })
  const command = [
    "tar",
    "--extract",
    "--gzip",
    "--no-same-owner",
    "--file",
    tarball,
    "--directory",
    directory,
  ] as const
  const end = await runTool([...command], { signal })
  signal.throwIfAborted()
  if (end.exitCode !== 0) throw new TreeRefused(`the tarball cannot be unpacked: ${end.output.trim().slice(-500)}`)
}

/** Copies a directory's content with modes and links, sharing blocks where the file system can. In a child process. */
export async function copyTree(from: string, to: string): Promise<void> {
  const end = await runTool(["cp", "-a", "--reflink=auto", "--no-preserve=ownership", "-T", from, to])
  if (end.exitCode !== 0) throw new Error(`the project's files cannot be copied: ${end.output.trim().slice(-500)}`)
}

/** What is in a small tree, or null when it is large. */
export function listSmallTree(directory: string): TreeEntry[] | null {
  const entries: TreeEntry[] = []
  let bytes = 0
  const left = [directory]
  for (let at = left.pop(); at !== undefined; at = left.pop()) {
    for (const name of readdirSync(at, { withFileTypes: true })) {
      const full = join(at, name.name)
      const path = relative(directory, full)
      if (name.isDirectory()) {
        entries.push({ path, kind: "directory", target: "" })
        left.push(full)
      } else if (name.isSymbolicLink()) {
        entries.push({ path, kind: "link", target: readlinkSync(full) })
      } else {
        entries.push({ path, kind: "file", target: "" })
        bytes += statSync(full).size
      }
      if (entries.length > SMALL_TREE_ENTRIES || bytes > SMALL_TREE_BYTES) return null
    }
  }
  return entries
}

/** Bytes on disk of everything below the directory, as du counts. */
export async function treeBytes(directory: string): Promise<number> {
  const end = await runTool(["du", "-s", "--block-size=1", directory])
  return Number(/^(\d+)/.exec(end.output)?.[1] ?? 0)
}
