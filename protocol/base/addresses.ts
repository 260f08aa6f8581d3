import { isIP } from "node:net"

/** `private`: every address that is not on the public internet and is not this machine's loopback. */
export type AddressKind = "public" | "loopback" | "private"

/**
 * Where an IP address lies, whatever its spelling: the IPv4 address inside a mapped, translated (64:ff9b) or 6to4 one decides
 * for it. What is no address, or has a zone, is private: nobody should be sent there.
 */
export function addressKind(address: string): AddressKind {
  switch (isIP(address)) {
    case 4:
      return kindOfIpv4(ipv4Number(address))
    case 6:
      return address.includes("%") ? "private" : kindOfIpv6(ipv6Words(address))
    default:
      return "private"
  }
}

/** Base address and length of the prefix (IANA special-purpose registry; multicast and the reserved top included). */
const NOT_PUBLIC: readonly (readonly [base: string, bits: number])[] = [
  ["0.0.0.0", 8],
  ["10.0.0.0", 8],
  ["100.64.0.0", 10],
  ["127.0.0.0", 8],
  ["169.254.0.0", 16],
  ["172.16.0.0", 12],
  ["192.0.0.0", 24],
  ["192.0.2.0", 24],
  ["192.88.99.0", 24],
  ["192.168.0.0", 16],
  ["198.18.0.0", 15],
  ["198.51.100.0", 24],
  ["203.0.113.0", 24],
  ["224.0.0.0", 3],
]

function kindOfIpv4(address: number): AddressKind {
  if (Math.floor(address / 2 ** 24) === 127) return "loopback"
  const isListed = NOT_PUBLIC.some(([base, bits]) => {
    const size = 2 ** (32 - bits)
    return Math.floor(address / size) === Math.floor(ipv4Number(base) / size)
  })
  return isListed ? "private" : "public"
}

function kindOfIpv6(words: readonly number[]): AddressKind {
  const [first = 0, second = 0] = words
  const isZero = (from: number, upto: number): boolean => words.slice(from, upto).every((word) => word === 0)
  const inner = (high: number): AddressKind => kindOfIpv4((words[high] ?? 0) * 2 ** 16 + (words[high + 1] ?? 0))
  if (isZero(0, 7) && words[7] === 1) return "loopback"
  if (isZero(0, 5) && words[5] === 0xffff) return inner(6)
  // A translator or relay would carry these to the IPv4 address; to its own loopback, where it names one.
  const carried = first === 0x64 && second === 0xff9b && isZero(2, 6) ? inner(6) : first === 0x2002 ? inner(1) : null
  if (carried !== null) return carried === "public" ? "public" : "private"
  const isGlobal = first >= 0x2000 && first < 0x4000
  const isProtocols = first === 0x2001 && second < 0x200
  const isExample = (first === 0x2001 && second === 0xdb8) || (first === 0x3fff && second < 0x1000)
  return isGlobal && !isProtocols && !isExample ? "public" : "private"
}

function ipv4Number(address: string): number {
  return address.split(".").reduce((number, part) => number * 256 + Number(part), 0)
}

/** The eight 16-bit words of a valid IPv6 address. */
function ipv6Words(address: string): number[] {
  const dotted = /[\d.]+$/.exec(address)?.[0] ?? ""
  const low = dotted.includes(".") ? ipv4Number(dotted) : null
  const text =
    low === null
      ? address
      : `${address.slice(0, -dotted.length)}${Math.floor(low / 2 ** 16).toString(16)}:${(low % 2 ** 16).toString(16)}`
  const [head = "", tail] = text.split("::")
  const words = (part: string): number[] => (part === "" ? [] : part.split(":").map((word) => parseInt(word, 16)))
  const left = words(head)
  const right = words(tail ?? "")
  return [...left, ...Array.from({ length: 8 - left.length - right.length }, () => 0), ...right]
}
