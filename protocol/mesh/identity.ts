import { generateKeyPairFromSeed } from "@libp2p/crypto/keys"
import type { Ed25519PrivateKey } from "@libp2p/interface"
import { closeSync, fsyncSync, openSync, readFileSync, renameSync, writeSync } from "node:fs"
import type { Random } from "../base/random.ts"
import type { PeerId } from "../domain/ids.ts"
import { peerIdOfPublicKey, signingKeyFromSeed, type SigningKey } from "../wire/signing.ts"

/** Who a machine is in the mesh: an Ed25519 key and the peer id made of it. */
export interface Identity extends SigningKey {
  peerId: PeerId
  /** The same key as libp2p wants it. */
  privateKey: Ed25519PrivateKey
}

/**
 * The identity in `file` (mode 0600, the seed as 64 hex digits), made there at the first call. Throws when the file cannot
 * be read or holds something else: a node must not become another one by accident.
 */
export async function loadOrCreateIdentity(file: string, random: Random): Promise<Identity> {
  return identityFromSeed(readSeed(file) ?? writeSeed(file, random.bytes(SEED_BYTES)))
}

export async function identityFromSeed(seed: Uint8Array): Promise<Identity> {
  const key = signingKeyFromSeed(seed)
  return {
    ...key,
    peerId: peerIdOfPublicKey(key.publicKey),
    privateKey: await generateKeyPairFromSeed("Ed25519", seed),
  }
}

const SEED_BYTES = 32

function readSeed(file: string): Uint8Array | null {
  let text: string
  try {
    text = readFileSync(file, "utf8").trim()
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return null
    throw error
  }
  if (!/^[0-9a-f]{64}$/.test(text)) throw new Error(`${file} does not hold a node's key`)
  return new Uint8Array(Buffer.from(text, "hex"))
}

/** Written beside it, flushed, then renamed: after a crash there is the whole key or none. */
function writeSeed(file: string, seed: Uint8Array): Uint8Array {
  const draft = `${file}.new`
  const handle = openSync(draft, "w", 0o600)
  try {
    writeSync(handle, `${Buffer.from(seed).toString("hex")}\n`)
    fsyncSync(handle)
  } finally {
    closeSync(handle)
  }
  renameSync(draft, file)
  return seed
}
