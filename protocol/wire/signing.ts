import { createPrivateKey, createPublicKey, sign, verify, type KeyObject } from "node:crypto"
import type { PeerId } from "../domain/ids.ts"

/** Raw Ed25519 keys: 32 bytes each. The seed is the private key. */
export interface SigningKey {
  seed: Uint8Array
  publicKey: Uint8Array
}

const PUBLIC_KEY_BYTES = 32
export const SIGNATURE_BYTES = 64

export function signingKeyFromSeed(seed: Uint8Array): SigningKey {
  const exported = createPublicKey(privateKeyObject(seed)).export({ format: "der", type: "spki" })
  return { seed, publicKey: new Uint8Array(exported.subarray(SPKI_PREFIX.length)) }
}

/** The 64 byte Ed25519 signature of `bytes`. The same bytes and key give the same signature. */
export function signBytes(seed: Uint8Array, bytes: Uint8Array): Uint8Array {
  return new Uint8Array(sign(null, bytes, privateKeyObject(seed)))
}

/** False for a wrong signature, and for a key or signature that is none. */
export function verifyBytes(publicKey: Uint8Array, bytes: Uint8Array, signature: Uint8Array): boolean {
  if (publicKey.length !== PUBLIC_KEY_BYTES || signature.length !== SIGNATURE_BYTES) return false
  try {
    return verify(null, bytes, publicKeyObject(publicKey), signature)
  } catch {
    return false
  }
}

/** The libp2p peer id of an Ed25519 key: base58 of the identity multihash of the key's protobuf. */
export function peerIdOfPublicKey(publicKey: Uint8Array): PeerId {
  return base58(Buffer.concat([PEER_ID_PREFIX, publicKey])) as PeerId
}

/** The raw key inside an Ed25519 peer id, or null when the text is none (RSA and other ids carry no key). */
export function publicKeyOfPeerId(peer: string): Uint8Array | null {
  // 52 characters hold the 38 bytes; longer texts are refused before the quadratic decoding.
  if (peer.length > 64) return null
  const bytes = unbase58(peer)
  if (bytes === null || bytes.length !== PEER_ID_PREFIX.length + PUBLIC_KEY_BYTES) return null
  return PEER_ID_PREFIX.every((byte, i) => bytes[i] === byte) ? bytes.subarray(PEER_ID_PREFIX.length) : null
}

/** What a node signs to enrol: proof that whoever holds the token also holds the key (rulings, Enrolment). */
export function signEnrolment(key: SigningKey, token: string, peer: PeerId): { publicKey: string; signature: string } {
  return {
    publicKey: Buffer.from(key.publicKey).toString("base64"),
    signature: Buffer.from(signBytes(key.seed, enrolmentBytes(token, peer))).toString("base64"),
  }
}

/**
 * Judges an enrolment: `malformed` when the key or signature is no base64 of 32 and 64 bytes or the key is not the peer
 * id's (422), `forged` when the signature is wrong (401), `genuine` else.
 */
export function judgeEnrolment(request: {
  token: string
  peerId: string
  publicKey: string
  signature: string
}): "genuine" | "forged" | "malformed" {
  const publicKey = unbase64(request.publicKey)
  const signature = unbase64(request.signature)
  if (publicKey?.length !== PUBLIC_KEY_BYTES || signature?.length !== SIGNATURE_BYTES) return "malformed"
  if (peerIdOfPublicKey(publicKey) !== request.peerId) return "malformed"
  return verifyBytes(publicKey, enrolmentBytes(request.token, request.peerId), signature) ? "genuine" : "forged"
}

/** The bytes of canonical base64 text, or null: Node's own decoder skips what it does not know. */
export function unbase64(text: string): Uint8Array | null {
  const bytes = Buffer.from(text, "base64")
  return bytes.toString("base64") === text ? new Uint8Array(bytes) : null
}

function enrolmentBytes(token: string, peer: string): Uint8Array {
  return new TextEncoder().encode(`computalot-enroll:${token}:${peer}`)
}

/** DER around a raw Ed25519 key (RFC 8410). */
const PKCS8_PREFIX = Buffer.from("302e020100300506032b657004220420", "hex")
const SPKI_PREFIX = Buffer.from("302a300506032b6570032100", "hex")
/** Identity multihash (0x00) of 36 bytes (0x24): protobuf key type Ed25519 (08 01), 32 bytes of key (12 20). */
const PEER_ID_PREFIX = Buffer.from("002408011220", "hex")

function privateKeyObject(seed: Uint8Array): KeyObject {
  return createPrivateKey({ key: Buffer.concat([PKCS8_PREFIX, seed]), format: "der", type: "pkcs8" })
}

function publicKeyObject(publicKey: Uint8Array): KeyObject {
  return createPublicKey({ key: Buffer.concat([SPKI_PREFIX, publicKey]), format: "der", type: "spki" })
}

const BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

function base58(bytes: Uint8Array): string {
  let value = BigInt(`0x${Buffer.from(bytes).toString("hex") || "0"}`)
  let text = ""
  while (value > 0n) {
    text = BASE58.charAt(Number(value % 58n)) + text
    value /= 58n
  }
  for (let i = 0; i < bytes.length && bytes[i] === 0; i++) text = `1${text}`
  return text
}

function unbase58(text: string): Uint8Array | null {
  let value = 0n
  for (const character of text) {
    const digit = BASE58.indexOf(character)
    if (digit < 0) return null
    value = value * 58n + BigInt(digit)
  }
  let zeros = 0
  while (text.charAt(zeros) === "1") zeros++
  const hex = value === 0n ? "" : value.toString(16)
  const rest = Buffer.from(hex.length % 2 === 0 ? hex : `0${hex}`, "hex")
  return new Uint8Array(Buffer.concat([Buffer.alloc(zeros), rest]))
}
