/**
 * What a client called its file, as we keep it: the last part of its path, without control characters, at most 255 bytes.
 * HTTP headers arrive as latin1; most clients put UTF-8 in them.
 */
export function filenameFromHeader(header: string | undefined): string {
  if (header === undefined) return DEFAULT_FILENAME
  const name = utf8OrSame(header).split(/[/\\]/).at(-1) ?? ""
  const kept = Array.from(name)
    .filter((char) => !isControl(char.codePointAt(0) ?? 0))
    .join("")
    .trim()
  if (kept === "" || kept === "." || kept === "..") return DEFAULT_FILENAME
  return shortened(kept)
}

const DEFAULT_FILENAME = "artifact.bin"
const LONGEST_BYTES = 255

/** For saving, never for showing in the page: whatever it holds, a browser runs none of it (RFC 6266, RFC 8187). */
export function contentDisposition(filename: string): string {
  const ascii = filename.replaceAll(/[^\x20-\x7e]|["\\%]/g, "_")
  const encoded = encodeURIComponent(filename).replaceAll(
    /['()*]/g,
    (char) => `%${char.charCodeAt(0).toString(16).toUpperCase()}`,
  )
  return `attachment; filename="${ascii}"; filename*=UTF-8''${encoded}`
}

function utf8OrSame(header: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(Buffer.from(header, "latin1"))
  } catch {
    return header
  }
}

const isControl = (code: number): boolean => code < 0x20 || (code >= 0x7f && code <= 0x9f)

/** Whole characters from the end go first, then nothing of the ending is lost. */
function shortened(name: string): string {
  const dot = name.lastIndexOf(".")
  const ending = dot > 0 && name.length - dot <= 16 ? name.slice(dot) : ""
  let stem = Array.from(name.slice(0, name.length - ending.length))
  while (Buffer.byteLength(stem.join("") + ending) > LONGEST_BYTES) stem = stem.slice(0, -1)
  return stem.join("") + ending
}
