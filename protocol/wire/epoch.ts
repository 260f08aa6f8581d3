import { publicKeyOfPeerId, signBytes, unbase64, verifyBytes, type SigningKey } from "./signing.ts"
import type { PeerId } from "../domain/ids.ts"

/** The coordinator's signature of its epoch: shown by nodes to an older copy of it (architecture §4, epoch and numbers). */
export function signEpoch(coordinator: SigningKey, epoch: number): string {
  return Buffer.from(signBytes(coordinator.seed, epochBytes(epoch))).toString("base64")
}

/** Did this coordinator really reach that epoch? */
export function verifyEpoch(coordinator: PeerId, epoch: number, proof: string): boolean {
  const key = publicKeyOfPeerId(coordinator)
  const signature = unbase64(proof)
  return key !== null && signature !== null && verifyBytes(key, epochBytes(epoch), signature)
}

const epochBytes = (epoch: number): Uint8Array => new TextEncoder().encode(`computalot-epoch:1:${epoch}`)
