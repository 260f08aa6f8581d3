import { constants } from "node:fs"
import { chmod, copyFile, link, mkdir, rm, writeFile } from "node:fs/promises"
import { join } from "node:path"
import type { NodeInputs } from "../../protocol/api/nodes.ts"
import { createBackoff } from "../../protocol/base/backoff.ts"
import { sleep } from "../../protocol/base/clock.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import { joinJsonObject, splitJsonObject } from "../../protocol/base/json-text.ts"
import { ComputalotError } from "../../protocol/domain/errors.ts"
import { peerId, type ClaimNumber } from "../../protocol/domain/ids.ts"
import { ARTIFACT_PREFIX, inputVariables, SHARED_PREFIX } from "../../protocol/domain/task-inputs.ts"
import { fromWireRef } from "../../protocol/wire/content-source.ts"
import { RuntimeRefusal } from "../runtime/driver.ts"
import { askUntilAnswered, fetchPinned, untilConnected, type AttemptContentParts } from "./attempt-content.ts"
import { plainName } from "./checkpoint-file.ts"

/** Where the program finds a file: its name in the payload, and its path as the program sees it. */
export interface InputFile {
  name: string
  path: string
}

/** One directory, as this machine and as the program names it. */
export interface InputPlace {
  host: string
  inside: string
  /** Nothing keeps the program from writing to the files: each gets copies of its own. */
  copies: boolean
}

/**
 * Brings the files that a task is given into `place`, before the program starts (AW-003): each is fetched once for all tasks of
 * this node and kept in its cache. Rejects with a `RuntimeRefusal` (`artifact_unavailable`, or `sandbox_error` where they are
 * there and this node cannot have them), with the signal's reason, and where the claim is not ours any more.
 */
export type FetchInputs = (claim: ClaimNumber, place: InputPlace, signal: AbortSignal) => Promise<InputFile[]>

export interface InputsParts extends AttemptContentParts {
  ask: (claim: ClaimNumber, signal: AbortSignal) => Promise<NodeInputs>
}

/** Asked again each time: what was there may be gone meanwhile, and others may have it. */
const TRIES = 4
const NOT_TOLD = "the files of an attempt will be asked for again"

type GivenFile = NodeInputs["files"][number]

export function createFetchInputs(parts: InputsParts): FetchInputs {
  const { blobs, clock, log } = parts

  /** Its path in the cache, pinned for `holder`. */
  async function cached(
    { content_grant: grant }: NodeInputs,
    file: GivenFile["file"],
    holders: GivenFile["holders"],
    holder: string,
    signal: AbortSignal,
  ): Promise<string> {
    const peers = holders.map(({ peer_id, addresses }) => ({ peer: peerId(peer_id), addresses }))
    return await fetchPinned(parts, fromWireRef(file), holder, { holders: peers, grant: grant ?? "", signal })
  }

  async function fetchAll(
    given: NodeInputs,
    holder: string,
    place: InputPlace,
    signal: AbortSignal,
  ): Promise<InputFile[]> {
    const found: InputFile[] = []
    for (const [index, { name, filename, file, holders }] of given.files.entries()) {
      const folder = String(index)
      const plain = plainName(filename)
      await mkdir(join(place.host, folder), { recursive: true })
      const to = join(place.host, folder, plain)
      await rm(to, { force: true })
      if (file.size === 0) await writeFile(to, "", { mode: READ_ONLY })
      else await placeFile(await cached(given, file, holders, holder, signal), to, place.copies)
      found.push({ name, path: join(place.inside, folder, plain) })
    }
    return found
  }

  return async (claim, place, signal) => {
    const holder = `inputs-${claim}`
    const backoff = createBackoff(parts.random, 500, 5_000)
    for (let failures = 0; ;) {
      const given = await askUntilAnswered(parts, parts.ask, claim, NOT_TOLD, signal)
      if (given.unavailable !== null) throw new RuntimeRefusal("artifact_unavailable", given.unavailable)
      try {
        return await fetchAll(given, holder, place, signal)
      } catch (error) {
        signal.throwIfAborted()
        log.warn("the files of an attempt cannot be had", { claim, failures, error: errorText(error) })
        // Without contact nobody can tell whether they are there, so that is waited for.
        if (parts.connected() && ++failures === TRIES) {
          throw new RuntimeRefusal("sandbox_error", `its artifacts: ${reasonOf(error)}`, error)
        }
      } finally {
        blobs.unpinAll(holder)
      }
      if (parts.connected()) await sleep(clock, backoff.next(), signal)
      await untilConnected(parts, signal)
    }
  }
}

/** Where nothing can write to it the cache's own file gets another name: its bytes stay as long as either name does. */
async function placeFile(from: string, to: string, copies: boolean): Promise<void> {
  const isLinked = !copies && (await link(from, to).then(() => true, isNotPossible))
  if (isLinked) return await chmod(to, READABLE)
  await copyFile(from, to, constants.COPYFILE_FICLONE)
  await chmod(to, READ_ONLY)
}

/** Another disk, or a file system without links: then it is copied. */
function isNotPossible(error: NodeJS.ErrnoException): false {
  if (["EXDEV", "EPERM", "EMLINK", "ENOTSUP"].includes(error.code ?? "")) return false
  throw error
}

/** The program may run as another user than the agent. */
const READABLE = 0o644
const READ_ONLY = 0o444

/** For the client: what went wrong on this machine, and where, is for its operator's log. */
function reasonOf(error: unknown): string {
  const isFull = error instanceof ComputalotError && error.code === "storage_full"
  return isFull ? "they do not fit into the machine's cache" : "they could not be brought to the machine"
}

/** The payload with the paths of its files in it (AW-005). */
export function payloadWithFiles(payload: string, files: readonly InputFile[]): string {
  const members = splitJsonObject(payload) ?? new Map<string, string>()
  const artifacts = splitJsonObject(members.get("_artifacts") ?? "{}") ?? new Map<string, string>()
  const paths = files.map(({ name, path }) => [name, JSON.stringify(path)] as const)
  return joinJsonObject(members.set("_artifacts", joinJsonObject(artifacts.set("local_paths", joinJsonObject(paths)))))
}

/** Files by their paths (AW-006); of the shared values in the payload strings as they are, numbers and booleans as JSON (SS-003). */
export function variablesOfInputs(
  payload: string,
  { shares, files }: { shares: boolean; files: readonly InputFile[] },
): Record<string, string> {
  const paths = inputVariables(
    ARTIFACT_PREFIX,
    files.map(({ name, path }) => [name, path] as const),
  )
  return shares ? { ...paths, ...inputVariables(SHARED_PREFIX, sharedScalars(payload)) } : paths
}

function sharedScalars(payload: string): [string, string][] {
  const shared = splitJsonObject(splitJsonObject(payload)?.get("_shared") ?? "{}")
  const values = splitJsonObject(shared?.get("values") ?? "{}") ?? new Map<string, string>()
  return [...values].flatMap(([alias, text]): [string, string][] => {
    if (text.startsWith('"')) return [[alias, JSON.parse(text) as string]]
    return /^[-\dtf]/.test(text) ? [[alias, text]] : []
  })
}
