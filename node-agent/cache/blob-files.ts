import { open, readdir, readFile, rm, stat, type FileHandle } from "node:fs/promises"
import { join } from "node:path"
import type { Instant } from "../../protocol/base/clock.ts"
import { digest, DIGEST_PATTERN, type Digest } from "../../protocol/domain/ids.ts"
import { decodePieceList, onePieceList, PIECE_BYTES, type PieceList } from "../../protocol/wire/piece-list.ts"

/** Names inside a blob directory: whole, partial (as long as the blob, with holes), piece list of more than one piece. */
export const wholePath = (directory: string, blob: Digest): string => join(directory, `${blob}.blob`)
export const partialPath = (directory: string, blob: Digest): string => join(directory, `${blob}.part`)
export const listPath = (directory: string, blob: Digest): string => join(directory, `${blob}.list`)

export interface FoundBlob {
  list: PieceList
  whole: boolean
  lastUsedAt: Instant
}

/** The blobs in `directory`; whatever a crash left half done, or nobody understands, is deleted. */
export async function scanBlobFiles(directory: string): Promise<FoundBlob[]> {
  const names = new Set(await readdir(directory))
  const found: FoundBlob[] = []
  const kept = new Set<string>()
  for (const name of names) {
    const [stem = "", kind] = name.split(".")
    if (!DIGEST_PATTERN.test(stem) || (kind !== "blob" && kind !== "part")) continue
    const whole = kind === "blob"
    if (!whole && names.has(`${stem}.blob`)) continue
    const { size, mtimeMs } = await stat(join(directory, name))
    const list = await findList(directory, digest(stem), size)
    if (list === null) continue
    found.push({ list, whole, lastUsedAt: mtimeMs })
    kept.add(name)
    if (size > PIECE_BYTES) kept.add(`${stem}.list`)
  }
  const swept = [...names].filter((name) => !kept.has(name))
  await Promise.all(swept.map((name) => rm(join(directory, name), { recursive: true, force: true })))
  return found
}

/** The list of a blob file of `size` bytes; null when there is none that fits. */
async function findList(directory: string, blob: Digest, size: number): Promise<PieceList | null> {
  if (size <= PIECE_BYTES) return onePieceList({ digest: blob, size })
  const bytes = await readFile(listPath(directory, blob)).catch(() => null)
  const list = bytes === null ? null : decodePieceList(bytes)
  return list?.digest === blob && list.size === size ? list : null
}

/** The bytes of a range; null when the file is gone or shorter. */
export async function readRange(path: string, range: { offset: number; length: number }): Promise<Uint8Array | null> {
  try {
    await using file = await open(path, "r")
    const bytes = new Uint8Array(range.length)
    for (let done = 0; done < range.length;) {
      const { bytesRead } = await file.read(bytes, done, range.length - done, range.offset + done)
      if (bytesRead === 0) return null
      done += bytesRead
    }
    return bytes
  } catch {
    return null
  }
}

export async function writeAll(file: FileHandle, bytes: Uint8Array, offset: number): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    const { bytesWritten } = await file.write(bytes, done, bytes.length - done, offset + done)
    done += bytesWritten
  }
}

/** Forces a file's bytes, or a directory's names, to the disk. */
export async function syncPath(path: string): Promise<void> {
  await using file = await open(path, "r")
  await file.sync()
}
