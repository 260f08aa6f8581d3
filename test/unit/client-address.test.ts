import type { IncomingMessage } from "node:http"
import { expect, test } from "vitest"
import { createRequestOrigins, limitedAs } from "../../coordinator/http/client-address.ts"

const request = (peer: string | undefined, headers: Record<string, string> = {}): IncomingMessage =>
  ({ socket: { remoteAddress: peer }, headers }) as unknown as IncomingMessage
const via = (forwarded: string): Record<string, string> => ({ "x-forwarded-for": forwarded })

test("GAP-06: local is a peer of this machine without a word of forwarding", () => {
  const originOf = createRequestOrigins(["10.0.0.1"])
  for (const peer of ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"]) {
    expect(originOf(request(peer)).isLocal).toBe(true)
    expect(originOf(request(peer, via("127.0.0.1"))).isLocal).toBe(false)
    expect(originOf(request(peer, { forwarded: "for=127.0.0.1" })).isLocal).toBe(false)
  }
  for (const peer of ["10.0.0.1", "::2", "128.0.0.1", undefined]) expect(originOf(request(peer)).isLocal).toBe(false)
  // Not even a trusted proxy makes a request local.
  expect(originOf(request("10.0.0.1", via("127.0.0.1"))).isLocal).toBe(false)
})

test("X-Forwarded-For counts from the right, as far as trusted proxies wrote it", () => {
  const originOf = createRequestOrigins(["10.0.0.0/8", "2001:db8::/32", "127.0.0.1"])
  const address = (peer: string, forwarded?: string): string =>
    originOf(request(peer, forwarded === undefined ? {} : via(forwarded))).address
  expect(address("203.0.113.7", "198.51.100.1")).toBe("203.0.113.7")
  expect(address("10.0.0.1", "198.51.100.1")).toBe("198.51.100.1")
  expect(address("10.0.0.1", "1.2.3.4, 198.51.100.1")).toBe("198.51.100.1")
  expect(address("10.0.0.1", "1.2.3.4, 198.51.100.1, 10.9.9.9, 2001:DB8::5")).toBe("198.51.100.1")
  expect(address("10.0.0.1", "198.51.100.1:4711")).toBe("198.51.100.1")
  expect(address("::ffff:127.0.0.1", "[2001:470::1]:443")).toBe("2001:470::1")
  expect(address("10.0.0.1", "unknown")).toBe("10.0.0.1")
  expect(address("10.0.0.1", "198.51.100.1, <script>")).toBe("10.0.0.1")
  expect(address("10.0.0.1")).toBe("10.0.0.1")
  expect(address("10.0.0.1", "10.0.0.2")).toBe("10.0.0.2")
})

test("an IPv6 /64 is one limit, however its addresses are written", () => {
  const same = ["2001:db8::1", "2001:db8:0:0:ffff::1", "2001:0db8:0:0:1:2:3:4", "2001:db8::"]
  expect(new Set(same.map(limitedAs))).toEqual(new Set(["2001:db8:0:0"]))
  expect(limitedAs("2001:db8:0:1::1")).toBe("2001:db8:0:1")
  expect(limitedAs("::1")).toBe("0:0:0:0")
  expect(limitedAs("198.51.100.1")).toBe("198.51.100.1")
})
