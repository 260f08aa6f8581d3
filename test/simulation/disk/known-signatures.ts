import * as crypto from "node:crypto"

/**
 * `node:crypto` as it is, but for signatures: a mesh of a thousand simulated nodes in one process checks the same words of the
 * same signer a thousand times. The same key, bytes and signature give the same answer, so each is worked out once. Every check
 * is still asked for by the real validators, and what was not seen before is really checked.
 */
export * from "node:crypto"

type KeyInput = { key: Buffer; format: "der"; type: string }

export function createPublicKey(input: KeyInput | crypto.KeyObject): crypto.KeyObject {
  if (input instanceof crypto.KeyObject) return crypto.createPublicKey(input)
  return keyOf(input, () => crypto.createPublicKey(input as crypto.PublicKeyInput))
}

export function createPrivateKey(input: KeyInput): crypto.KeyObject {
  return keyOf(input, () => crypto.createPrivateKey(input as crypto.PrivateKeyInput))
}

export function verify(algorithm: null, bytes: Uint8Array, key: crypto.KeyObject, signature: Uint8Array): boolean {
  const ours = judged.get(key) ?? new Map<string, boolean>()
  judged.set(key, ours)
  const text = `${latin1(signature)}${latin1(bytes)}`
  const before = ours.get(text)
  if (before !== undefined) return before
  const verdict = crypto.verify(algorithm, bytes, key, signature)
  if (ours.size >= MOST_KNOWN) ours.clear()
  ours.set(text, verdict)
  return verdict
}

function keyOf({ key }: KeyInput, make: () => crypto.KeyObject): crypto.KeyObject {
  const text = latin1(key)
  const before = keys.get(text)
  if (before !== undefined) return before
  const made = make()
  if (keys.size >= MOST_KNOWN) keys.clear()
  keys.set(text, made)
  return made
}

const keys = new Map<string, crypto.KeyObject>()
const judged = new WeakMap<crypto.KeyObject, Map<string, boolean>>()
const MOST_KNOWN = 20_000

function latin1(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("latin1")
}
