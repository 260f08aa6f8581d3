import { expect, test } from "vitest"
import { isKernelSince } from "../../node-agent/runtime/sandbox-root.ts"

test("a kernel's release is compared by its first two numbers, whatever its maker wrote behind them", () => {
  expect(isKernelSince("5.10.0-28-amd64", 5, 10)).toBe(true)
  expect(isKernelSince("6.1.0+", 5, 10)).toBe(true)
  expect(isKernelSince("5.9.16", 5, 10)).toBe(false)
  expect(isKernelSince("4.18.0-553.el8_10.x86_64", 5, 10)).toBe(false)
  expect(isKernelSince("unknown", 5, 10)).toBe(false)
})
