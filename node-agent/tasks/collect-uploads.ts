import { basename, join } from "node:path"
import { LARGEST_CHECKPOINT_BYTES } from "../../protocol/domain/runner.ts"
import type { GrantedTask, ResultItem } from "../../protocol/wire/control.ts"
import type { Hasher } from "../cache/hasher.ts"
import type { StoredEnd } from "../outbox/outbox.ts"
import { copyPublishable, NotPublishable, type PublishableRoot } from "./checkpoint-file.ts"
import { ArtifactsTooLarge, describe } from "./collect-results.ts"

/** What a task declared as artifacts of their own (AW-002), as its report names it. */
export interface CollectedUploads {
  artifacts: ResultItem["artifacts"]
  files: StoredEnd["files"]
  /** For the client: what was declared and is not there (GAP-54). */
  warnings: string[]
  /** Paths below the artifact directory that are no part of the archive (C-23). */
  taken: string[]
}

/**
 * Copies each declared file to the attempt's folder. Only plain files of the artifact directory, the first of `roots`, are
 * taken, by whatever links the program leads there. Nothing is moved: what was interrupted is done again from the start.
 * Throws `ArtifactsTooLarge` where one is larger than is taken, or all together are larger than `mostBytes`: a few bytes of a
 * sparse file, or of one that is named often, are many here. Throws `NotPublishable` where this machine cannot copy one.
 */
export async function collectUploads(
  attemptDir: string,
  roots: readonly PublishableRoot[],
  uploads: NonNullable<GrantedTask["uploads"]>,
  { hasher, mostBytes }: { hasher: Hasher; mostBytes: number },
): Promise<CollectedUploads> {
  let leftBytes = mostBytes
  const found: CollectedUploads = { artifacts: [], files: [], warnings: [], taken: [] }
  const artifactRoots = roots.filter(({ host }) => host === roots[0]?.host)
  for (const [index, { name, path, filename, content_type: type }] of uploads.entries()) {
    const to = join(attemptDir, `upload-${index}`)
    try {
      const mostOfOne = Math.min(leftBytes, LARGEST_CHECKPOINT_BYTES)
      await copyPublishable(artifactRoots, path, to, { toldAt: Number.POSITIVE_INFINITY, mostBytes: mostOfOne })
    } catch (error) {
      // Of what is there, and this machine cannot copy, a warning would be no use to anybody: another machine may.
      if (!(error instanceof NotPublishable) || error.cause !== undefined) throw error
      if (error.status === "skipped") throw new ArtifactsTooLarge(`the artifact ${name} is too large: ${error.message}`)
      found.warnings.push(`artifact ${name}: ${error.message}`.slice(0, LONGEST_WARNING))
      continue
    }
    const stored = await describe(to, hasher)
    const { digest, size } = stored
    leftBytes -= size
    found.files.push(stored)
    found.taken.push(path)
    found.artifacts.push({
      name,
      filename: (filename ?? basename(path)).slice(-LONGEST_FILENAME),
      digest,
      size,
      content_type: type ?? "application/octet-stream",
    })
  }
  return found
}

/** What a report carries of them. */
const LONGEST_WARNING = 200
const LONGEST_FILENAME = 255
