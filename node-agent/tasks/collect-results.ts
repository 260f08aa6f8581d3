import { constants, lstatSync, opendirSync } from "node:fs"
import { copyFile, lstat, open, opendir, rename, stat, writeFile } from "node:fs/promises"
import { join } from "node:path"
import { Worker } from "node:worker_threads"
import { sha256Hex } from "../../protocol/base/digest.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import { splitCheckpoint } from "../../protocol/domain/resume.ts"
import { LARGEST_RESULT_BYTES } from "../../protocol/domain/runner.ts"
import { LARGEST_INLINE_BYTES, type ResultItem } from "../../protocol/wire/control.ts"
import { pieceBytesFor } from "../../protocol/wire/piece-list.ts"
import type { Hasher } from "../cache/hasher.ts"
import type { StoredEnd } from "../outbox/outbox.ts"
import { packArtifacts } from "../runtime/pack-artifacts.ts"
import type { CheckJsonAnswer, CheckJsonOrder } from "./check-json-worker.ts"

/** What an attempt left behind, as its report names it; the files lie in the attempt's folder until it is discarded. */
export interface Collected {
  result: ResultItem["result"]
  resultProblem: string | null
  /** A checkpoint object in the result, as its own JSON text (CK-002). */
  checkpoint: string | null
  artifacts: ResultItem["artifacts"]
  files: StoredEnd["files"]
}

/** As much as a node may upload in one piece (AR-003). */
const LARGEST_ARCHIVE_BYTES = 2 * 1024 ** 3

/** More was written into the artifact directory than can be uploaded. */
export class ArtifactsTooLarge extends Error {
  override name = "ArtifactsTooLarge"
}

/**
 * Reads the result file, which any program may have written anything to. Large ones become a file of the attempt's folder.
 * None: both null. Not JSON or too large: no result, and why.
 */
export async function collectResult(
  attemptDir: string,
  resultPath: string,
  hasher: Hasher,
): Promise<Pick<Collected, "result" | "resultProblem" | "checkpoint" | "files">> {
  const none = { result: null, resultProblem: null, checkpoint: null, files: [] }
  const problem = (resultProblem: string) => ({ ...none, resultProblem })
  if (isMissing(resultPath)) return none
  // Links are not followed and a pipe is not waited for: the file is read with the agent's rights.
  const file = await open(resultPath, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK).catch(
    (error: NodeJS.ErrnoException) => error,
  )
  if (file instanceof Error) {
    if (file.code === "ENOENT" || file.code === "ENOTDIR") return none
    return problem(file.code === "ELOOP" ? "the result path is a link" : "the result file cannot be read")
  }
  try {
    const found = await file.stat()
    if (!found.isFile()) return problem("the result path is no plain file")
    if (found.size === 0) return problem("the result file is empty")
    if (found.size > LARGEST_RESULT_BYTES) {
      return problem(`the result file has ${found.size} bytes; at most ${LARGEST_RESULT_BYTES} are taken`)
    }
    if (found.size <= LARGEST_INLINE_BYTES) {
      const text = UTF8.decode(await file.readFile())
      JSON.parse(text)
      return { ...none, result: { text }, checkpoint: splitCheckpoint(text)?.checkpoint ?? null }
    }
  } catch (error) {
    return problem(`the result file is not JSON: ${errorText(error)}`.slice(0, 500))
  } finally {
    await file.close()
  }
  const path = join(attemptDir, "result.json")
  await moveFile(resultPath, path)
  const checked = await checkJson(path)
  if (checked.problem !== null) return problem(`the result file is not JSON: ${checked.problem}`.slice(0, 500))
  const stored = await describe(path, hasher)
  const { digest, size } = stored
  return { result: { digest, size }, resultProblem: null, checkpoint: checked.checkpoint, files: [stored] }
}

/** A small result becomes a file too where its report would not fit into a frame with what else goes with it. */
export async function putAside(attemptDir: string, text: string, hasher: Hasher): Promise<StoredEnd["files"][number]> {
  const path = join(attemptDir, "result.json")
  await writeFile(path, text)
  return await describe(path, hasher)
}

/**
 * Packs what lies in the artifact directory into one tar.gz (AW-001), but for the files `taken` below it, which became
 * artifacts of their own (C-23); nothing there: nothing is made.
 */
export async function collectArtifacts(
  attemptDir: string,
  artifactsDir: string,
  hasher: Hasher,
  taken: readonly string[] = [],
): Promise<Pick<Collected, "artifacts" | "files">> {
  const none = { artifacts: [], files: [] }
  if (isEmptyDirectory(artifactsDir) || !(await holdsFiles(artifactsDir, new Set(taken)))) return none
  const path = join(attemptDir, "artifacts.tar.gz")
  const leftOut = join(attemptDir, "left-out")
  if (taken.length > 0) await writeFile(leftOut, listOf(taken))
  await packArtifacts(artifactsDir, path, taken.length > 0 ? leftOut : null)
  const stored = await describe(path, hasher)
  if (stored.size > LARGEST_ARCHIVE_BYTES) {
    throw new ArtifactsTooLarge(
      `the artifacts pack to ${stored.size} bytes; at most ${LARGEST_ARCHIVE_BYTES} are taken`,
    )
  }
  const { digest, size } = stored
  const item = { name: null, filename: "artifacts.tar.gz", digest, size, content_type: "application/gzip" }
  return { artifacts: [item], files: [stored] }
}

/** As the packer compares it: in order of bytes, each ended by a NUL. */
function listOf(paths: readonly string[]): Buffer {
  const sorted = paths.map((path) => Buffer.from(`${path}\0`)).toSorted((a, b) => Buffer.compare(a, b))
  return Buffer.concat(sorted)
}

/** The item with its digest: sha256 of its canonical JSON (keys in order), by which a repeat is told from a contradiction. */
export function sealItem(item: Omit<ResultItem, "digest">): ResultItem {
  return { ...item, digest: sha256Hex(canonicalJson(item)) }
}

function canonicalJson(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(",")}]`
  if (typeof value !== "object" || value === null) return JSON.stringify(value)
  const members = Object.entries(value)
    .filter(([, member]) => member !== undefined)
    .toSorted(([a], [b]) => (a < b ? -1 : 1))
  return `{${members.map(([key, member]) => `${JSON.stringify(key)}:${canonicalJson(member)}`).join(",")}}`
}

/** A file of the attempt's folder as a report names it. */
export async function describe(path: string, hasher: Hasher): Promise<StoredEnd["files"][number]> {
  const { size } = await stat(path)
  const { digest } = await hasher.file(path, pieceBytesFor(size))
  return { digest, size, path }
}

/** Off the attempt's disk, which goes before the answer comes. */
async function moveFile(from: string, to: string): Promise<void> {
  try {
    await rename(from, to)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EXDEV") throw error
    await copyFile(from, to)
  }
}

/** Most tasks leave nothing: asked in place, for the thread pool takes ten times as long. False where it cannot be said. */
function isMissing(path: string): boolean {
  try {
    return lstatSync(path, { throwIfNoEntry: false }) === undefined
  } catch {
    return false
  }
}

function isEmptyDirectory(path: string): boolean {
  try {
    // The program may have put a link in its place.
    if (!lstatSync(path).isDirectory()) return false
    const directory = opendirSync(path)
    const first = directory.readSync()
    directory.closeSync()
    return first === null
  } catch {
    return false
  }
}

/** Stops at the first file or link that is not `taken`: what is packed is decided by the packer. */
async function holdsFiles(root: string, taken: ReadonlySet<string>): Promise<boolean> {
  const top = await lstat(root).catch(() => null)
  // The program may have put something else in its place.
  if (top === null || !top.isDirectory()) return false
  const left = [""]
  for (let at = left.pop(), seen = 0; at !== undefined; at = left.pop()) {
    const directory = await opendir(join(root, at)).catch(() => null)
    if (directory === null) continue
    for await (const entry of directory) {
      const path = at === "" ? entry.name : `${at}/${entry.name}`
      if ((entry.isFile() || entry.isSymbolicLink()) && !taken.has(path)) return true
      if (entry.isDirectory()) left.push(path)
      if (++seen > MOST_LOOKED_AT) return true
    }
  }
  return false
}

const MOST_LOOKED_AT = 10_000

/** In a thread: 64 MiB take a second to parse. */
function checkJson(path: string): Promise<CheckJsonAnswer> {
  const worker = new Worker(WORKER, { workerData: { path } satisfies CheckJsonOrder })
  return new Promise((resolve, reject) => {
    worker.once("message", (answer: CheckJsonAnswer) => resolve(answer))
    worker.once("error", reject)
    worker.once("exit", () => reject(new Error("the thread that checks results ended")))
  })
}

const UTF8 = new TextDecoder("utf-8", { fatal: true })
/** The compiled program runs the compiled worker. */
const WORKER = new URL(
  import.meta.url.endsWith(".ts") ? "./check-json-worker.ts" : "./check-json-worker.js",
  import.meta.url,
)
