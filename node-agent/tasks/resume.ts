import { constants } from "node:fs"
import { chmod, copyFile, mkdir } from "node:fs/promises"
import { join } from "node:path"
import type { NodeResume } from "../../protocol/api/nodes.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import { joinJsonObject, splitJsonObject } from "../../protocol/base/json-text.ts"
import { ComputalotError } from "../../protocol/domain/errors.ts"
import type { ClaimNumber } from "../../protocol/domain/ids.ts"
import { resumeText } from "../../protocol/domain/resume.ts"
import { fromWireRef } from "../../protocol/wire/content-source.ts"
import type { ToCoordinator } from "../../protocol/wire/control.ts"
import { askUntilAnswered, fetchPinned, untilConnected, type AttemptContentParts } from "./attempt-content.ts"
import { plainName } from "./checkpoint-file.ts"

/** What an attempt finds of an earlier one: the member of its payload, as JSON text. */
export interface Resumed {
  key: string
  text: string
}

/**
 * Fetches what an earlier attempt left into `place`, before the program starts (CK-006). A checkpoint that cannot be read falls
 * back to the one before, then to none; it never fails a task (architecture §5.6). Null: the attempt starts anew. Rejects with
 * the signal's reason, and where the claim is not ours any more.
 */
export type Resume = (claim: ClaimNumber, place: ResumePlace, signal: AbortSignal) => Promise<Resumed | null>

/** One directory, as this machine and as the program names it. */
export interface ResumePlace {
  host: string
  inside: string
}

export interface ResumeParts extends AttemptContentParts {
  ask: (claim: ClaimNumber, signal: AbortSignal) => Promise<NodeResume>
  send: (message: ToCoordinator) => void
}

type Point = NodeResume["points"][number]
type Unreadable = Extract<ToCoordinator, { type: "fell_back" }>["unreadable"]

const NOT_TOLD = "what an attempt goes on from will be asked for again"

export function createResume(parts: ResumeParts): Resume {
  /** The path of its file as the program sees it; null: it has none. */
  async function fetchFile(
    claim: ClaimNumber,
    point: Point,
    grant: string,
    place: ResumePlace,
    signal: AbortSignal,
  ): Promise<string | null> {
    if (point.file === null) return null
    const holder = `resume-${claim}`
    try {
      const cached = await fetchPinned(parts, fromWireRef(point.file), holder, { holders: [], grant, signal })
      const name = plainName(point.filename)
      await mkdir(place.host, { recursive: true })
      // A copy: the program may write to it, and others are given the original.
      await copyFile(cached, join(place.host, name), constants.COPYFILE_FICLONE)
      await chmod(join(place.host, name), 0o644)
      return join(place.inside, name)
    } finally {
      parts.blobs.unpinAll(holder)
    }
  }

  /** As `fetchFile`; without contact nobody can tell whether a checkpoint is readable, so that is waited for. */
  async function readable(...wanted: Parameters<typeof fetchFile>): Promise<{ path: string | null } | { why: string }> {
    const signal = wanted[4]
    for (;;) {
      try {
        return { path: await fetchFile(...wanted) }
      } catch (error) {
        signal.throwIfAborted()
        parts.log.warn("a checkpoint cannot be read", {
          claim: wanted[0],
          of: wanted[1].claim,
          error: errorText(error),
        })
        if (parts.connected()) return { why: reasonOf(error) }
      }
      await untilConnected(parts, signal)
    }
  }

  return async (claim, place, signal) => {
    const left = await askUntilAnswered(parts, parts.ask, claim, NOT_TOLD, signal)
    const { payload_key: key, progress, points, content_grant: grant } = left
    const unreadable: Unreadable = []
    let text = points.length === 0 ? resumeText({ progress, line: null, checkpoint: null }) : null
    for (const point of points) {
      const found = await readable(claim, point, grant ?? "", place, signal)
      if ("path" in found) {
        const { line, checkpoint } = point
        // Progress made after a checkpoint that is lost tells of work that is lost.
        text = resumeText({ progress: unreadable.length === 0 ? progress : null, line, checkpoint }, found.path)
        break
      }
      unreadable.push({ claim: point.claim, n: point.n, reason: found.why.slice(0, 300) })
    }
    if (unreadable.length > 0) parts.send({ type: "fell_back", claim, unreadable })
    return text === null || key === "" ? null : { key, text }
  }
}

/** For the client: what went wrong on this machine, and where, is for its operator's log. */
const reasonOf = (error: unknown): string =>
  error instanceof ComputalotError ? error.message : "its bytes are not what was stored"

/** The payload with what an earlier attempt left in it. */
export function payloadWith(payload: Uint8Array | string, { key, text }: Resumed): string {
  const given = typeof payload === "string" ? payload : Buffer.from(payload).toString("utf8")
  return joinJsonObject((splitJsonObject(given) ?? new Map<string, string>()).set(key, text))
}
