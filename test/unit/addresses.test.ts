import { expect, test } from "vitest"
import { addressKind } from "../../protocol/base/addresses.ts"
import { literalAddressProblem, mayReach, reachOf } from "../../coordinator/webhooks/callback-url.ts"

test.each([
  ["public", ["8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.0", "172.32.0.1", "198.20.0.1", "223.255.255.255"]],
  ["public", ["2606:4700::1111", "2a00:1450:4001:800::200e", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"]],
  ["loopback", ["127.0.0.1", "127.255.255.254", "::1", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1", "::ffff:7f00:1"]],
  [
    "private",
    ["0.0.0.0", "10.1.2.3", "100.64.0.1", "100.127.255.255", "169.254.169.254", "172.16.0.1", "172.31.255.255"],
  ],
  [
    "private",
    [
      "192.168.0.1",
      "192.0.2.1",
      "198.18.0.1",
      "198.19.255.255",
      "203.0.113.7",
      "224.0.0.1",
      "240.0.0.1",
      "255.255.255.255",
    ],
  ],
  [
    "private",
    ["::", "fc00::1", "fdff::1", "fe80::1", "fec0::1", "ff02::1", "2001:db8::1", "2001::1", "3fff::1", "100::1"],
  ],
  [
    "private",
    ["::ffff:10.0.0.1", "::ffff:0:0", "64:ff9b::10.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b:1::8.8.8.8", "2002:a00:1::1"],
  ],
  ["private", ["::10.0.0.1", "::8.8.8.8", "fe80::1%eth0", "example.com", "", "127.1", "1.2.3.4.5"]],
] as const)("GAP-61: %s: %j", (kind, addresses) => {
  for (const address of addresses) expect(addressKind(address), address).toBe(kind)
})

test("GAP-61: private addresses are reached where the deployment allows them, loopback also where it listens on loopback only", () => {
  const local = { allowPrivateUrls: false, httpHost: "127.0.0.1", meshHost: "::1" }
  expect(reachOf(local)).toEqual({ privateAddresses: false, loopback: true })
  expect(reachOf({ ...local, httpHost: "localhost" })).toMatchObject({ loopback: true })
  for (const open of [
    { ...local, httpHost: "0.0.0.0" },
    { ...local, meshHost: "10.0.0.7" },
    { ...local, httpHost: "compute.example.org" },
  ])
    expect(reachOf(open)).toEqual({ privateAddresses: false, loopback: false })
  const allowed = reachOf({ ...local, allowPrivateUrls: true, httpHost: "0.0.0.0" })
  for (const address of ["10.0.0.1", "127.0.0.1", "::1", "8.8.8.8"]) expect(mayReach(address, allowed)).toBe(true)
  expect(mayReach("10.0.0.1", reachOf(local))).toBe(false)
})

test("an address in a URL is known in every spelling; a name is none", () => {
  const reach = { privateAddresses: false, loopback: false }
  for (const host of ["2130706433", "0x7f.1", "0177.0.0.1", "127.1", "[::1]", "[::ffff:7f00:1]", "１２７.0.0.1"])
    expect(literalAddressProblem(`http://${host}/x`, reach), host).toContain("not a public address")
  for (const host of ["example.com", "localhost", "10.0.0.1.example.com", "8.8.8.8", "[2606:4700::1111]"])
    expect(literalAddressProblem(`http://${host}/x`, reach), host).toBe(null)
})
