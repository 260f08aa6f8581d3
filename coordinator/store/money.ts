import { assert } from "../../protocol/base/assert.ts"
import type { MicroUsd } from "../../protocol/domain/money.ts"

/** Micro-dollars as SQLite gave them. Above 2^53 the driver would have rounded: that is never taken for money. */
export function moneyFrom(value: number): MicroUsd {
  assert(Number.isSafeInteger(value), "stored money is a whole number below 2^53")
  return BigInt(value)
}
