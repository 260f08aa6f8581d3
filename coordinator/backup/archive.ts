import { createHash } from "node:crypto"
import { createReadStream, createWriteStream } from "node:fs"
import { open, stat } from "node:fs/promises"
import { join } from "node:path"
import { Transform } from "node:stream"
import { pipeline } from "node:stream/promises"
import { extract, pack, type Pack } from "tar-stream"
import { z } from "zod"
import { DATABASE_NAME } from "../store/database-file.ts"

/**
 * A backup is a plain tar of these members, in this order: the keys, the database, and a list of contents that proves them
 * whole. Blobs are not in it: they are files named by their sha256 that never change, and any tool copies them.
 */
export const MEMBERS = ["coordinator.key", "admin-token", DATABASE_NAME] as const
type Member = (typeof MEMBERS)[number]

/** An operator may give the admin token in the environment instead. */
const OPTIONAL_MEMBERS: readonly Member[] = ["admin-token"]
const CONTENTS = "contents.json"

const memberFacts = z.object({ size: z.int().nonnegative(), sha256: z.string() })
const contents = z.object({
  format: z.literal(1),
  created_at: z.string(),
  version: z.string(),
  epoch: z.int().nonnegative(),
  members: z.partialRecord(z.enum(MEMBERS), memberFacts),
})
export type Contents = z.output<typeof contents>

/** Writes a new file (mode 0600) and syncs it. */
export async function writeArchive(
  file: string,
  members: readonly { name: Member; path: string }[],
  facts: Omit<Contents, "format" | "members">,
): Promise<void> {
  const tar = pack()
  const writing = pipeline(tar, createWriteStream(file, { flags: "r+", flush: true }))
  const filling = (async () => {
    const listed: Contents["members"] = {}
    for (const { name, path } of members) listed[name] = await addFile(tar, name, path)
    addText(tar, CONTENTS, `${JSON.stringify({ format: 1, ...facts, members: listed } satisfies Contents)}\n`)
    tar.finalize()
  })()
  filling.catch((error: Error) => tar.destroy(error))
  await Promise.all([writing, filling])
}

async function addFile(tar: Pack, name: Member, path: string): Promise<{ size: number; sha256: string }> {
  const { size } = await stat(path)
  const hashed = hashing()
  await pipeline(createReadStream(path, { highWaterMark: CHUNK_BYTES }), hashed, tar.entry({ name, size, mode: 0o600 }))
  return { size, sha256: hashed.sha256() }
}

function addText(tar: Pack, name: string, text: string): void {
  tar.entry({ name, mode: 0o600 }, text)
}

/**
 * Takes an archive apart into files (mode 0600, synced) of an existing, empty folder. Throws one clear line for what is no
 * backup, is cut off or was changed; the folder's content is then worth nothing.
 */
export async function readArchive(file: string, folder: string): Promise<Contents> {
  const found = new Map<string, { size: number; sha256: string }>()
  let listed: Contents | null = null
  const reader = createReadStream(file, { highWaterMark: CHUNK_BYTES })
  const tar = extract()
  const reading = pipeline(reader, tar)
  reading.catch(() => {})
  try {
    for await (const entry of tar) {
      const { name } = entry.header
      if (name === CONTENTS) listed = contents.parse(JSON.parse(await textOf(entry as AsyncIterable<Buffer>)))
      else if (isMember(name) && !found.has(name))
        found.set(name, await store(entry as AsyncIterable<Buffer>, join(folder, name)))
      else throw new Error(`it has a member ${JSON.stringify(name)}`)
    }
    await reading
  } catch (error) {
    reader.destroy()
    throw new Error(`${file} is no backup, or is damaged`, { cause: error })
  }
  refuseUnlessWhole(file, listed, found)
  return listed
}

function refuseUnlessWhole(
  file: string,
  listed: Contents | null,
  found: ReadonlyMap<string, { size: number; sha256: string }>,
): asserts listed is Contents {
  if (listed === null) throw new Error(`${file} is no backup, or its end is missing`)
  for (const name of MEMBERS) {
    const said = listed.members[name]
    const is = found.get(name)
    if (said === undefined && is === undefined && OPTIONAL_MEMBERS.includes(name)) continue
    if (said?.sha256 !== is?.sha256 || said?.size !== is?.size || is === undefined) {
      throw new Error(`${file} is damaged: its ${name} is not what was put in`)
    }
  }
}

async function store(entry: AsyncIterable<Buffer>, path: string): Promise<{ size: number; sha256: string }> {
  const hashed = hashing()
  await pipeline(entry, hashed, createWriteStream(path, { flags: "wx", mode: 0o600, flush: true }))
  return { size: hashed.size(), sha256: hashed.sha256() }
}

async function textOf(entry: AsyncIterable<Buffer>): Promise<string> {
  let text = ""
  for await (const chunk of entry) {
    text += chunk.toString("utf8")
    if (text.length > LONGEST_CONTENTS) throw new Error("its list of contents is too long")
  }
  return text
}

/** Hands on what comes, and knows its size and digest at the end. */
function hashing(): Transform & { size: () => number; sha256: () => string } {
  const hash = createHash("sha256")
  let size = 0
  const stream = new Transform({
    transform(chunk: Buffer, _encoding, done) {
      hash.update(chunk)
      size += chunk.length
      done(null, chunk)
    },
  })
  return Object.assign(stream, { size: () => size, sha256: () => hash.digest("hex") })
}

/** A rename is durable once its folder is. */
export async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, "r")
  try {
    await folder.sync()
  } finally {
    await folder.close()
  }
}

const isMember = (name: string): name is Member => MEMBERS.some((member) => member === name)
const CHUNK_BYTES = 256 * 1024
const LONGEST_CONTENTS = 64 * 1024
