import { buffer } from "node:stream/consumers"
import { gzipSync } from "node:zlib"
import { pack } from "tar-stream"

/** One member of a tarball that a test makes; what is left out has tar's defaults. */
export interface Member {
  name: string
  content?: string | Uint8Array
  type?: "file" | "directory" | "symlink" | "link" | "character-device" | "fifo"
  linkname?: string
  mode?: number
  mtime?: Date
  uid?: number
  devmajor?: number
  devminor?: number
  pax?: Record<string, string>
}

/** A tar archive with these members as they stand, hostile ones included. */
export async function tarOf(members: Member[]): Promise<Buffer> {
  const archive = pack()
  for (const { content, ...header } of members) {
    if (content === undefined) archive.entry(header)
    else archive.entry(header, typeof content === "string" ? content : Buffer.from(content))
  }
  archive.finalize()
  return buffer(archive as unknown as AsyncIterable<Uint8Array>)
}

export async function tarballOf(members: Member[]): Promise<Buffer> {
  return gzipSync(await tarOf(members), { level: 1 })
}

/** The 512 bytes of one member without content. */
export function rawHeader(member: { name: string; type?: "file" | "directory" }): Buffer {
  const block = Buffer.alloc(512)
  block.write(member.name, 0)
  block.write("000644 \0", 100)
  block.write("000000 \0", 108)
  block.write("000000 \0", 116)
  block.write("00000000000 ", 124)
  block.write("00000000000 ", 136)
  block.write("        ", 148)
  block.write(member.type === "directory" ? "5" : "0", 156)
  block.write("ustar\x0000", 257)
  const sum = block.reduce((total, byte) => total + byte, 0)
  block.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148)
  return block
}
