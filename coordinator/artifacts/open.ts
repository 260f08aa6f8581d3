import type { Readable } from "node:stream"
import { notFound } from "../../protocol/domain/errors.ts"
import type { AccountId, ArtifactId } from "../../protocol/domain/ids.ts"
import { findArtifact, type Artifact, type LocalArtifact } from "../store/artifacts.ts"
import type { ArtifactParts } from "./put.ts"

/**
 * The record of an artifact while it lasts. Unknown, expired and other accounts' ones are all `not_found` (AR-019);
 * `account` null is an administrator without an account, who may see any.
 */
export async function getArtifact(parts: ArtifactParts, id: ArtifactId, account: AccountId | null): Promise<Artifact> {
  const artifact = await parts.store.read((view) => findArtifact(view, id, account, parts.clock.now()))
  if (artifact === null) throw notFound(`the artifact ${id}`)
  return artifact
}

/** The same for reading: bytes that lie here. */
export async function getLocalArtifact(
  parts: ArtifactParts,
  id: ArtifactId,
  account: AccountId | null,
): Promise<LocalArtifact> {
  const artifact = await getArtifact(parts, id, account)
  if (isLocal(artifact)) return artifact
  throw notFound(`the bytes of the artifact ${id}`)
}

const isLocal = (artifact: Artifact): artifact is LocalArtifact => artifact.source === "local"

/** First and last byte, both inclusive. */
export interface ByteRange {
  start: number
  end: number
}

/** Opens the bytes, or a part of them. A removal meanwhile does not end a running read. */
export async function openArtifact(
  parts: ArtifactParts,
  artifact: LocalArtifact,
  range?: ByteRange,
): Promise<Readable> {
  try {
    return await parts.files.open(artifact.digest, range)
  } catch (error) {
    // Removed between the look at the record and this, or lost by the disk.
    if ((error as NodeJS.ErrnoException).code === "ENOENT") throw notFound(`the bytes of the artifact ${artifact.id}`)
    throw error
  }
}

/**
 * The part a Range header asks for: null means all of it (no header, several ranges, another unit or not understood: RFC 9110
 * lets us), "unsatisfiable" that it lies outside.
 */
export function parseRange(header: string | undefined, size: number): ByteRange | "unsatisfiable" | null {
  const match = /^bytes=\s*(\d{0,15})-(\d{0,15})\s*$/.exec(header ?? "")
  if (!match) return null
  const [, first = "", last = ""] = match
  if (first === "" && last === "") return null
  if (first === "") {
    const length = Math.min(Number(last), size)
    return length === 0 ? "unsatisfiable" : { start: size - length, end: size - 1 }
  }
  const start = Number(first)
  const end = last === "" ? size - 1 : Math.min(Number(last), size - 1)
  if (last !== "" && Number(last) < start) return null
  return start >= size ? "unsatisfiable" : { start, end }
}
