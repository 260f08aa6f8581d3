import type { IncomingMessage } from "node:http"
import { BlockList, isIP } from "node:net"

/** Where a request comes from. */
export interface RequestOrigin {
  /** Of the client: the peer's, or the one that trusted proxies name. Plain IPv4 or IPv6. */
  address: string
  /** From this machine itself, and from no proxy on it: the peer is loopback and nothing was forwarded (GAP-06). */
  isLocal: boolean
}

/**
 * Tells where requests come from. `X-Forwarded-For` counts only as far as it was written by trusted proxies, since anybody can
 * send it; read from the right, the first address that is no trusted proxy is the client.
 *
 * @param trustProxy addresses and CIDR ranges, checked by the configuration
 */
export function createRequestOrigins(trustProxy: readonly string[]): (request: IncomingMessage) => RequestOrigin {
  const trusted = blockListOf(trustProxy)
  const isTrusted = (address: string): boolean =>
    isIP(address) !== 0 && trusted.check(address, isIP(address) === 6 ? "ipv6" : "ipv4")
  return ({ socket, headers }) => {
    const peer = plainAddress(socket.remoteAddress ?? "")
    const wasForwarded = headers["x-forwarded-for"] !== undefined || headers.forwarded !== undefined
    let address = peer
    for (const hop of forwardedFor(headers).reverse()) {
      const next = plainAddress(hop)
      if (!isTrusted(address) || isIP(next) === 0) break
      address = next
    }
    return { address, isLocal: isLoopback(peer) && !wasForwarded }
  }
}

/** 127/8, also as IPv6, and ::1. */
export const isLoopback = (address: string): boolean => address.startsWith("127.") || address === "::1"

/** Whose limit an address counts towards: one site has all of an IPv6 /64, and can take a new one for every request. */
export function limitedAs(address: string): string {
  if (isIP(address) !== 6) return address
  const [head = "", tail] = address.split("::")
  const left = head === "" ? [] : head.split(":")
  const right = tail === undefined || tail === "" ? [] : tail.split(":")
  const zeros = tail === undefined ? [] : Array.from({ length: Math.max(0, 8 - left.length - right.length) }, () => "0")
  return [...left, ...zeros, ...right]
    .slice(0, 4)
    .map((group) => Number.parseInt(group, 16).toString(16))
    .join(":")
}

function forwardedFor(headers: IncomingMessage["headers"]): string[] {
  const given = headers["x-forwarded-for"]
  // Node joins repeated headers of this name with commas.
  return typeof given === "string" ? given.split(",").map((hop) => hop.trim()) : []
}

/** Without the port that some proxies add, and IPv4 as IPv4. */
function plainAddress(text: string): string {
  const address = /^\[([^\]]+)\](?::\d+)?$/.exec(text)?.[1] ?? /^([\d.]+):\d+$/.exec(text)?.[1] ?? text
  return address.toLowerCase().replace(/^::ffff:(?=\d+\.)/, "")
}

function blockListOf(proxies: readonly string[]): BlockList {
  const list = new BlockList()
  for (const proxy of proxies) {
    const [address = "", bits] = proxy.split("/")
    const family = isIP(address) === 6 ? "ipv6" : "ipv4"
    if (bits === undefined) list.addAddress(address, family)
    else list.addSubnet(address, Number(bits), family)
  }
  return list
}
