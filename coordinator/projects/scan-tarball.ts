import { createHash } from "node:crypto"
import { createReadStream } from "node:fs"
import { open, readFile, rm, type FileHandle } from "node:fs/promises"
import { pipeline } from "node:stream/promises"
import { createGunzip, createGzip } from "node:zlib"
import { extract, pack, type Extract, type Header, type Pack } from "tar-stream"
import { present } from "../../protocol/base/assert.ts"
import { sha256Hex } from "../../protocol/base/digest.ts"
import { ComputalotError } from "../../protocol/domain/errors.ts"
import { digest as asDigest, type Digest } from "../../protocol/domain/ids.ts"
import { ENV_FILE_NAMES, MANIFEST_NAME, type Manifest } from "../../protocol/domain/manifest.ts"
import { parseEnvFile, type EnvMap } from "./env-files.ts"
import { checkManifest, parseManifest, parseManifestText } from "./manifest-check.ts"
import {
  addDirectories,
  diffListings,
  findEscape,
  listingOf,
  normaliseName,
  objectionToTarget,
  type TarballDiff,
  type TreeEntry,
} from "./tree.ts"

export interface ScanInput {
  /** The pushed bytes. */
  path: string
  size: number
  /** Where the normalised tarball and the listing are to be written. */
  tarballPath: string
  listingPath: string
  /** The listing of the active revision, when there is one. */
  previousListingPath: string | null
  /** What the project itself says, for a tarball without a manifest or a Dockerfile. */
  projectManifest: unknown
  imageRef: string | null
}

export interface Scan {
  /** sha256 of the listing: names, executable bits and bytes of the tree. */
  contentHash: Digest
  tarball: WrittenFile
  listing: WrittenFile
  /** The tarball's own; null when it has none. */
  manifest: Manifest | null
  hasDockerfile: boolean
  /** The env files, layered. */
  env: EnvMap
  diff: TarballDiff | null
}

interface WrittenFile {
  path: string
  digest: Digest
  size: number
}

/**
 * Reads a pushed tarball once, from end to end, and writes it again in a form that holds nothing but plain files, directories
 * and links inside the tree: what nodes unpack is then exactly what was checked, whatever another reader would have made of
 * the original. Throws a refusal with `{entry, reason}`, leaving no file behind. Busy for seconds on large input: runs in a
 * worker.
 */
export async function scanTarball(input: ScanInput): Promise<Scan> {
  try {
    await refuseUnlessGzip(input.path)
    const tree = new Map<string, TreeEntry>()
    const texts = new Map<string, string>()
    const tarball = await rewrite(input, tree, texts)

    const escape = findEscape(tree)
    if (escape !== null) throw invalidTarball(escape.entry, escape.reason)
    addDirectories(tree)
    const manifestText = texts.get(MANIFEST_NAME)
    const manifest = manifestText === undefined ? null : parseManifestText(manifestText)
    const effective = manifest ?? (input.projectManifest === null ? null : parseManifest(input.projectManifest))
    const { hasDockerfile } = checkManifest(effective, tree, input.imageRef)

    const listing = listingOf(tree)
    const written = await writeListing(input.listingPath, listing)
    const previous = input.previousListingPath === null ? null : await readIfThere(input.previousListingPath)
    return {
      contentHash: written.digest,
      tarball,
      listing: written,
      manifest,
      hasDockerfile,
      env: layered(texts),
      diff: previous === null ? null : diffListings(previous, listing),
    }
  } catch (error) {
    await rm(input.tarballPath, { force: true })
    await rm(input.listingPath, { force: true })
    throw error
  }
}

const MOST_ENTRIES = 100_000
const LARGEST_TREE_BYTES = 4 * 2 ** 30
const HIGHEST_RATIO = 200
/** A few repetitive files may well shrink more than 200 times; nobody is harmed by a megabyte. */
const RATIO_FLOOR_BYTES = 2 ** 20
/** What a manifest or env file may have. */
const LONGEST_TEXT_BYTES = 1024 * 1024
/** Every member gets this time. Not 1970: zip, and with it pip's wheels, cannot write times before 1980. */
const MEMBER_TIME = new Date("2000-01-01T00:00:00Z")

async function refuseUnlessGzip(path: string): Promise<void> {
  const file = await open(path, "r")
  try {
    const { bytesRead, buffer } = await file.read(Buffer.alloc(3), 0, 3, 0)
    if (bytesRead === 3 && buffer[0] === 0x1f && buffer[1] === 0x8b && buffer[2] === 8) return
  } finally {
    await file.close()
  }
  throw new ComputalotError("not_gzip", "the body is not gzip", {
    recommendedAction: "Send the bytes of a tar.gz as the raw body: curl --data-binary @code.tar.gz",
  })
}

/** Fills `tree` and `texts` (manifest and env files) from the pushed bytes and writes the normalised tarball beside. */
async function rewrite(
  input: ScanInput,
  tree: Map<string, TreeEntry>,
  texts: Map<string, string>,
): Promise<WrittenFile> {
  // Opened before anything flows: a pipeline that is put together after one of its streams ended waits for ever.
  const file = await open(input.tarballPath, "wx", 0o600)
  const source = extract()
  const copy = pack()
  const reading = pipeline(createReadStream(input.path), createGunzip(), limitUnpacked(input.size), source)
  // The types of streamx leave its iterator out.
  const writing = writeHashed(file, copy as unknown as AsyncIterable<Uint8Array>)
  // Either may fail while the loop below still waits for an entry; both are awaited in the end.
  reading.catch(() => {})
  writing.catch((error: unknown) => source.destroy(error as Error))
  try {
    let entries = 0
    for await (const entry of source) {
      if (++entries > MOST_ENTRIES)
        throw invalidTarball(entry.header.name, `there are more than ${MOST_ENTRIES} entries`)
      await takeEntry(entry, tree, texts, copy)
    }
    await reading
    if (entries === 0) throw invalidTarball(null, "the archive is empty")
    copy.finalize()
    return { path: input.tarballPath, ...(await writing) }
  } catch (error) {
    source.destroy()
    copy.destroy()
    await Promise.allSettled([reading, writing])
    throw asRefusal(error)
  } finally {
    await file.close()
  }
}

/** Counts what comes out of gzip; a bomb ends here, long before it is unpacked. */
function limitUnpacked(packedBytes: number) {
  const byRatio = Math.max(RATIO_FLOOR_BYTES, packedBytes * HIGHEST_RATIO)
  return async function* (unpacked: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    let size = 0
    for await (const chunk of unpacked) {
      size += chunk.byteLength
      if (size > LARGEST_TREE_BYTES) throw invalidTarball(null, "it unpacks to more than 4 GiB")
      if (size > byRatio) throw invalidTarball(null, `it unpacks to more than ${HIGHEST_RATIO} times its size`)
      yield chunk
    }
  }
}

type Entry = Extract extends AsyncIterable<infer Member> ? Member : never
type MemberHeader = Partial<Header> & Pick<Header, "name">

async function takeEntry(
  entry: Entry,
  tree: Map<string, TreeEntry>,
  texts: Map<string, string>,
  copy: Pack,
): Promise<void> {
  const { header } = entry
  const refuse = (reason: string): ComputalotError => invalidTarball(header.name, reason)
  const normal = normaliseName(header.name)
  if ("reason" in normal) throw refuse(normal.reason)
  const { name } = normal
  const earlier = tree.get(name)
  const again = header.type === "directory" && earlier?.type === "directory"
  if (earlier !== undefined && !again) throw refuse("the name appears twice")
  if (header.type !== "file" && header.type !== "contiguous-file" && NEVER_THROUGH_LINKS.has(name)) {
    throw refuse("it must be a plain file, not a link or directory")
  }

  switch (header.type) {
    case "file":
    case "contiguous-file": {
      if (name === "") throw refuse("the name is empty")
      if (Object.keys(header.pax ?? {}).some((key) => key.startsWith("GNU.sparse")))
        throw refuse("sparse files are not taken")
      const executable = (header.mode & 0o111) !== 0
      const digest = await copyFile(entry, name, executable, texts, copy)
      tree.set(name, { type: "file", executable, digest })
      return
    }
    case "directory":
      await drain(entry)
      if (name === "" || again) return
      tree.set(name, { type: "directory" })
      return addMember(copy, { name: `${name}/`, type: "directory", mode: 0o755 })
    case "symlink": {
      const target = (header.linkname as string | null) ?? ""
      const objection = name === "" ? "the name is empty" : objectionToTarget(target)
      if (objection !== null) throw refuse(objection)
      await drain(entry)
      tree.set(name, { type: "symlink", target })
      return addMember(copy, { name, type: "symlink", linkname: target, mode: 0o777 })
    }
    case "link": {
      const target = normaliseName((header.linkname as string | null) ?? "")
      if ("reason" in target) throw refuse(`the link leaves the tree: ${target.reason}`)
      const linked = tree.get(target.name)
      if (linked?.type !== "file") throw refuse("the hard link names no earlier file of the tarball")
      await drain(entry)
      tree.set(name, linked)
      return addMember(copy, { name, type: "link", linkname: target.name, mode: modeOf(linked.executable) })
    }
    case "character-device":
    case "block-device":
    case "fifo":
      throw refuse(`devices and fifos are not taken (${header.type})`)
    default:
      throw refuse("entries of this type are not taken")
  }
}

/** Read by the platform itself, so never from wherever a link leads. */
const NEVER_THROUGH_LINKS: ReadonlySet<string> = new Set(["Dockerfile", MANIFEST_NAME, ...ENV_FILE_NAMES])
/** Of these the text is needed here. */
const READ_AS_TEXT: ReadonlySet<string> = new Set([MANIFEST_NAME, ...ENV_FILE_NAMES])

const modeOf = (executable: boolean): number => (executable ? 0o755 : 0o644)

/** Copies one file into the new tarball and answers its sha256. */
async function copyFile(
  entry: Entry,
  name: string,
  executable: boolean,
  texts: Map<string, string>,
  copy: Pack,
): Promise<string> {
  const size = entry.header.size
  const kept: Uint8Array[] | null = READ_AS_TEXT.has(name) ? [] : null
  if (kept !== null && size > LONGEST_TEXT_BYTES) throw invalidTarball(name, "it is larger than 1 MiB")
  const hash = createHash("sha256")
  const member = Promise.withResolvers<void>()
  member.promise.catch(() => {})
  const header = { name, type: "file", size, mode: modeOf(executable), mtime: MEMBER_TIME } as const
  const sink = copy.entry(header, (error) => (error ? member.reject(error) : member.resolve()))
  for await (const chunk of entry as AsyncIterable<Uint8Array>) {
    hash.update(chunk)
    kept?.push(chunk)
    if (!sink.write(chunk)) await Promise.race([drained(sink), member.promise])
  }
  sink.end(null)
  await member.promise
  if (kept !== null) texts.set(name, Buffer.concat(kept).toString("utf8"))
  return hash.digest("hex")
}

const drained = (sink: ReturnType<Pack["entry"]>): Promise<void> =>
  new Promise((resolve) => sink.once("drain", () => resolve()))

function addMember(copy: Pack, header: MemberHeader): Promise<void> {
  return new Promise((resolve, reject) => {
    copy.entry({ ...header, mtime: MEMBER_TIME }, (error) => (error ? reject(error) : resolve()))
  })
}

async function drain(entry: Entry): Promise<void> {
  for await (const _ of entry) continue
}

/** gzip, because every tool can read it; level 1, because the disk is not the bottleneck and the worker is. */
async function writeHashed(
  file: FileHandle,
  copy: AsyncIterable<Uint8Array>,
): Promise<{ digest: Digest; size: number }> {
  const hash = createHash("sha256")
  let size = 0
  await pipeline(copy, createGzip({ level: 1 }), async (packed: AsyncIterable<Uint8Array>) => {
    for await (const chunk of packed) {
      hash.update(chunk)
      size += chunk.byteLength
      await file.writeFile(chunk)
    }
  })
  await file.sync()
  return { digest: asDigest(hash.digest("hex")), size }
}

async function writeListing(path: string, listing: string): Promise<WrittenFile> {
  const file = await open(path, "wx", 0o600)
  try {
    await file.writeFile(listing)
    await file.sync()
  } finally {
    await file.close()
  }
  return { path, digest: asDigest(sha256Hex(listing)), size: Buffer.byteLength(listing) }
}

/** The previous revision's listing may have been removed meanwhile: then there is nothing to compare with (P-020). */
async function readIfThere(path: string): Promise<string | null> {
  try {
    return await readFile(path, "utf8")
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null
    throw error
  }
}

function layered(texts: ReadonlyMap<string, string>): EnvMap {
  const files = ENV_FILE_NAMES.filter((name) => texts.has(name))
  return Object.assign({}, ...files.map((name) => parseEnvFile(present(texts.get(name), name)))) as EnvMap
}

/** 422 with the literal the contract gives (P-017) and what was wrong with which entry (rulings, Tarball intake). */
export function invalidTarball(entry: string | null, reason: string): ComputalotError {
  return new ComputalotError("invalid_tarball", "invalid tarball", {
    recommendedAction: "Correct what details name, pack the project again and push it.",
    details: { entry, reason },
  })
}

/** What gzip and tar say of bytes that are not theirs is the sender's to mend; a full disk is ours. */
function asRefusal(error: unknown): unknown {
  if (error instanceof ComputalotError || !(error instanceof Error)) return error
  const code = (error as NodeJS.ErrnoException).code ?? ""
  if (code === "Z_BUF_ERROR") return invalidTarball(null, "the gzip data ends early")
  if (code.startsWith("Z_")) return invalidTarball(null, `the gzip data is damaged: ${error.message}`)
  if (code === "" && error.name === "Error") return invalidTarball(null, `it is not a tar archive: ${error.message}`)
  return error
}
