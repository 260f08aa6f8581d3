import { randomBytes, randomInt } from "node:crypto"

/** Chance as an argument: programs pass `systemRandom`, simulations pass a seeded one. */
export interface Random {
  bytes(length: number): Uint8Array
  /** A whole number in 0 … `below` − 1. */
  integer(below: number): number
}

export const systemRandom: Random = {
  bytes: (length) => randomBytes(length),
  integer: (below) => randomInt(below),
}

/** `length` characters out of a–z and 0–9. */
export function randomText(random: Random, length: number): string {
  let text = ""
  for (let i = 0; i < length; i++) text += ALPHABET[random.integer(ALPHABET.length)]
  return text
}

/** A delay between `ms × (1 − spread)` and `ms × (1 + spread)`, so that many waiters do not act together. */
export function jittered(random: Random, ms: number, spread = 0.2): number {
  return ms * (1 - spread + (2 * spread * random.integer(1 << 20)) / (1 << 20))
}

const ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
