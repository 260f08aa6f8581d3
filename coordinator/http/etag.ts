/** Does `If-None-Match` name these bytes? */
export function namesEtag(header: string | undefined, etag: string): boolean {
  if (header === undefined) return false
  return header.trim() === "*" || header.split(",").some((one) => one.trim().replace(/^W\//, "") === etag)
}
