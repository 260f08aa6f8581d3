import { neededBlobs, type NeededBlob } from "../store/blobs.ts"
import type { Store } from "../store/store.ts"
import type { ObjectFiles } from "./object-files.ts"

export interface BlobInspection {
  /** How many blobs records need. */
  needed: number
  missingCount: number
  /** The first ones by digest. */
  missing: NeededBlob[]
  /** Found by reads since the start. */
  damaged: (NeededBlob & { problem: string })[]
}

/** Looks which of the blobs that records need are not there, a page at a time; reads none of them. */
export async function inspectBlobs(
  { store, files }: { store: Store; files: ObjectFiles },
  signal?: AbortSignal,
): Promise<BlobInspection> {
  const found: BlobInspection = { needed: 0, missingCount: 0, missing: [], damaged: [] }
  let page: NeededBlob[]
  let after = ""
  do {
    signal?.throwIfAborted()
    const from = after
    page = await store.read((view) => neededBlobs(view, from, PAGE))
    for (const blob of page) {
      const problem = files.damaged().get(blob.digest)
      if (problem !== undefined) found.damaged.push({ ...blob, problem })
      else if ((await files.size(blob.digest)) === null) {
        found.missingCount += 1
        if (found.missing.length < MOST_NAMED) found.missing.push(blob)
      }
    }
    found.needed += page.length
    after = page.at(-1)?.digest ?? after
  } while (page.length === PAGE)
  return found
}

const PAGE = 500
const MOST_NAMED = 1_000
