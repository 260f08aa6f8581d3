import { assert } from "../base/assert.ts"

/** Whole micro-dollars. Never a float; added and compared as bigint. */
export type MicroUsd = bigint

const MICRO_PER_USD = 1_000_000n

/** A dollar amount from JSON as micro-dollars, or null when it is not finite or has more than six decimals. */
export function parseUsd(amount: number): MicroUsd | null {
  if (!Number.isFinite(amount)) return null
  const match = /^(-?)(\d+)(?:\.(\d{1,6}))?$/.exec(plainDecimal(amount))
  if (!match) return null
  const [, sign, whole = "0", fraction = ""] = match
  const micro = BigInt(whole) * MICRO_PER_USD + BigInt(fraction.padEnd(6, "0"))
  return sign === "-" ? -micro : micro
}

/** Micro-dollars as the JSON number the API shows. Exact up to nine billion dollars. */
export function usd(amount: MicroUsd): number {
  return Number(amount) / Number(MICRO_PER_USD)
}

/** `a ÷ b`, up to the next whole number when it does not come out even. Both are at least 0, `b` above 0. */
export function divideRoundingUp(a: bigint, b: bigint): bigint {
  assert(a >= 0n && b > 0n, "rounding up divides what is not negative by what is above zero")
  return (a + b - 1n) / b
}

export const lesser = (a: MicroUsd, b: MicroUsd): MicroUsd => (a < b ? a : b)

/** 1e-7 has no plain decimal form through String(): write such numbers out, so that they are refused, not misread. */
function plainDecimal(amount: number): string {
  const text = String(amount)
  return text.includes("e") ? amount.toFixed(20) : text
}
