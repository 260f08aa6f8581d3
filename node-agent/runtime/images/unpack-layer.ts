import { spawn, type ChildProcess } from "node:child_process"
import { once } from "node:events"
import { fstatSync } from "node:fs"
import { stdin, stdout } from "node:process"
import type { Readable, Writable } from "node:stream"
import { pipeline } from "node:stream/promises"
import { extract, pack, type Header } from "tar-stream"
import { errorText } from "../../../protocol/base/error-text.ts"
import { LayerRefusal, plainTar } from "./layer-stream.ts"

/**
 * The child program that unpacks one layer: blob on standard input, files into the working directory, an `UnpackAnswer` on
 * standard output. It runs in a sandbox where only that directory is writable (layer-store.ts); what is refused here would
 * not get out either.
 */
async function main(): Promise<never> {
  const order = JSON.parse(process.argv[2] ?? "") as UnpackOrder
  const answer = await unpack(order).catch((error: unknown): UnpackAnswer => {
    return { ok: false, refused: !isMachines(error), reason: errorText(error) }
  })
  await new Promise((written) => stdout.write(JSON.stringify(answer), written))
  // A refused layer leaves its reader in the middle of the blob.
  process.exit()
}

export interface UnpackOrder {
  diffId: string
  maxBytes: number
  maxEntries: number
  maxRatio: number
  /** Keep owners and mark opaque directories with `trusted.`; without root: `user.`, and everything is the caller's. */
  asRoot: boolean
}

export type UnpackAnswer =
  | { ok: true; tarBytes: number; diskBytes: number; entries: number }
  /** `refused`: the layer's own doing; otherwise this machine's. */
  | { ok: false; refused: boolean; reason: string }

async function unpack(order: UnpackOrder): Promise<UnpackAnswer> {
  const { tar, finished } = await plainTar(stdin, { ...order, blobBytes: fstatSync(0).size })
  const target = startTar(order, [])
  const copied = Promise.all([copyEntries(tar, target.input, order), finished, target.done])
  const [{ opaque, diskBytes, entries }, { diffId, bytes }] = await copied.catch(async (error: unknown) => {
    // A tar that gave up says why a moment after its input broke.
    if (error instanceof Error && "code" in error && error.code === "EPIPE") await target.done
    throw error
  })
  if (diffId !== order.diffId) throw new LayerRefusal(`its content is ${diffId}, not ${order.diffId}`)
  if (opaque.size > 0) await markOpaque(opaque, order)
  return { ok: true, tarBytes: bytes, diskBytes, entries }
}

type PassedHeader = Partial<Header> & Pick<Header, "name">

interface Copied {
  /** Directories that hide what lower layers have in them. */
  opaque: Map<string, PassedHeader>
  diskBytes: number
  entries: number
}

/** Reads the layer's entries, refuses what has no place in one, and writes the rest on for tar. */
async function copyEntries(tar: Readable, target: Writable, order: UnpackOrder): Promise<Copied> {
  const reading = extract()
  const writing = pack()
  const opaque = new Map<string, PassedHeader>()
  const directories = new Map<string, PassedHeader>()
  let diskBytes = 0
  let entries = 0

  const fed = pipeline(tar, reading)
  const written = pipeline(writing, target)
  fed.catch(() => {})
  written.catch(() => {})
  for await (const entry of reading) {
    if (target.writableNeedDrain) await once(target, "drain")
    if (++entries > order.maxEntries) throw new LayerRefusal(`it has more than ${order.maxEntries} entries`)
    const header = checkEntry(entry.header)
    const { directory, base } = splitName(header.name)
    if (header.type === "directory") directories.set(header.name, header)
    diskBytes += BYTES_PER_ENTRY + (header.size ?? 0)
    if (base === OPAQUE_MARK) {
      opaque.set(directory, { ...DIRECTORY, name: directory })
    } else if (base.startsWith(WHITEOUT)) {
      const hidden = base.slice(WHITEOUT.length)
      if (hidden === "" || hidden === "." || hidden === "..") throw new LayerRefusal(`${header.name} hides nothing`)
      // The rest of aufs' own marks mean nothing.
      if (!hidden.startsWith(WHITEOUT)) writing.entry({ ...WHITEOUT_DEVICE, name: join(directory, hidden) })
    } else if (header.type === "file") {
      const into = writing.entry(header)
      for await (const chunk of entry as AsyncIterable<Buffer>) {
        if (!into.write(chunk)) await once(into, "drain")
      }
      into.end(null)
      continue
    } else {
      writing.entry(header)
    }
    entry.resume()
  }
  writing.finalize()
  await Promise.all([fed, written])
  for (const directory of opaque.keys()) {
    const known = directories.get(directory)
    if (known) opaque.set(directory, known)
  }
  return { opaque, diskBytes, entries }
}

const WHITEOUT = ".wh."
const OPAQUE_MARK = ".wh..wh..opq"
/** What overlayfs takes for a hidden name. The kernel lets anyone make this one device. */
const WHITEOUT_DEVICE = {
  type: "character-device",
  devmajor: 0,
  devminor: 0,
  mode: 0,
  uid: 0,
  gid: 0,
  mtime: new Date(0),
} as const
const DIRECTORY = { type: "directory", mode: 0o755, uid: 0, gid: 0, mtime: new Date(0) } as const
/** A directory entry and an inode, about. */
const BYTES_PER_ENTRY = 512
/** Set-user and set-group bits are dropped: nothing in a task needs another's rights. */
const KEPT_MODE = 0o1777

/** The entry as we pass it on: a relative name, no attributes beyond mode, owner and time. */
function checkEntry(header: Header): PassedHeader {
  const name = relative(header.name, "the name")
  const kept = { name, mode: (header.mode ?? 0o644) & KEPT_MODE, uid: header.uid ?? 0, gid: header.gid ?? 0 }
  const mtime = header.mtime ?? new Date(0)
  switch (header.type) {
    case "file":
    case "contiguous-file":
      return { ...kept, mtime, type: "file", size: header.size ?? 0 }
    case "directory":
      return { ...kept, mtime, type: "directory" }
    case "symlink":
      return { ...kept, mtime, type: "symlink", linkname: header.linkname ?? "" }
    case "link":
      return { ...kept, mtime, type: "link", linkname: relative(header.linkname ?? "", "the link target") }
    case "block-device":
    case "character-device":
    case "fifo":
    default:
      throw new LayerRefusal(`${name} is a ${header.type ?? "thing of no known kind"}`)
  }
}

function relative(name: string, what: string): string {
  if (name.startsWith("/")) throw new LayerRefusal(`${what} ${JSON.stringify(name)} is absolute`)
  if (name.includes("\0") || name.includes("\ufffd"))
    throw new LayerRefusal(`${what} ${JSON.stringify(name)} is not text`)
  const parts = name.split("/").filter((part) => part !== "" && part !== ".")
  if (parts.includes("..")) throw new LayerRefusal(`${what} ${JSON.stringify(name)} leads out of the layer`)
  return parts.length === 0 ? "." : parts.join("/")
}

function splitName(name: string): { directory: string; base: string } {
  const at = name.lastIndexOf("/")
  return at < 0 ? { directory: ".", base: name } : { directory: name.slice(0, at), base: name.slice(at + 1) }
}

function join(directory: string, name: string): string {
  return directory === "." ? name : `${directory}/${name}`
}

async function markOpaque(directories: ReadonlyMap<string, PassedHeader>, order: UnpackOrder): Promise<void> {
  const attribute = order.asRoot ? "trusted.overlay.opaque" : "user.overlay.opaque"
  const target = startTar(order, ["--xattrs", `--xattrs-include=${attribute}`])
  const writing = pack()
  for (const header of directories.values()) {
    writing.entry({ ...header, pax: { [`SCHILY.xattr.${attribute}`]: "y" } })
  }
  writing.finalize()
  await Promise.all([pipeline(writing, target.input), target.done])
}

/** Only what marks directories may set `trusted.` attributes, and it reads nothing of the layer but their names. */
function startTar(order: UnpackOrder, attributes: string[]): { input: Writable; done: Promise<void> } {
  const owner = order.asRoot ? ["--same-owner", "--numeric-owner"] : ["--no-same-owner"]
  const tar = ["tar", "--extract", "--file=-", "--same-permissions", ...owner, ...attributes]
  const weakened = order.asRoot && attributes.length === 0 ? ["setpriv", "--bounding-set=-sys_admin", "--"] : []
  const [program = "tar", ...args] = [...weakened, ...tar]
  const child = spawn(program, args, { stdio: ["pipe", "ignore", "pipe"] })
  return { input: child.stdin, done: ended(child, child.stderr) }
}

async function ended(child: ChildProcess, stderr: Readable): Promise<void> {
  let said = ""
  stderr.on("data", (chunk: Buffer) => (said = (said + chunk.toString()).slice(0, 2000)))
  const [code] = (await once(child, "close")) as [number | null]
  if (code === 0) return
  // Otherwise tar stops at names that lead through links out of the directory.
  const reason = `tar: ${said.trim()}`
  throw /No space left|quota exceeded|Cannot allocate/i.test(said) ? new MachineFault(reason) : new LayerRefusal(reason)
}

class MachineFault extends Error {}

/** Everything else that fails here fails by what is in the blob: no tar, broken compression. */
function isMachines(error: unknown): boolean {
  return error instanceof MachineFault || (error instanceof Error && "syscall" in error)
}

await main()
