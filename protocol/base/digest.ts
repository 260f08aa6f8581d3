import { hash } from "node:crypto"

/** sha256 of a small buffer or text, as 64 lower-case hex digits. Large files are hashed in a worker or a child. */
export function sha256Hex(data: Uint8Array | string): string {
  return hash("sha256", data, "hex")
}
