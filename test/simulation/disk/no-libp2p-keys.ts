/** In place of `@libp2p/crypto/keys`: the simulated mesh never asks for an identity's key as libp2p wants it, which is dear to make. */
export async function generateKeyPairFromSeed(
  type: string,
  seed: Uint8Array,
): Promise<{ type: string; raw: Uint8Array }> {
  return { type, raw: seed }
}
