import { lookup, Resolver } from "node:dns/promises"
import { readFile } from "node:fs/promises"
import { isIP } from "node:net"

export interface ResolvedAddress {
  address: string
  family: 4 | 6
}

/** All addresses of a name. Rejects when it has none, or the signal is aborted. */
export type Resolve = (name: string, signal: AbortSignal) => Promise<ResolvedAddress[]>

/**
 * Looks into the machine's hosts file, then asks its name servers without its thread pool, which files need too and which slow
 * names would fill; only what neither knows is looked up the machine's own way (search domains, say), one name at a time.
 */
export function createResolve(hostsFile = "/etc/hosts"): Resolve {
  let lookingUp: Promise<unknown> = Promise.resolve()
  return async (name, signal) => {
    if (/^(?:.*\.)?localhost\.?$/.test(name)) return LOOPBACK
    const known = await inHosts(hostsFile, name)
    signal.throwIfAborted()
    if (known.length > 0) return known
    const resolver = new Resolver({ timeout: TRY_MS, tries: 2 })
    const cancel = (): void => resolver.cancel()
    signal.addEventListener("abort", cancel, { once: true })
    try {
      const asked = await Promise.allSettled([resolver.resolve4(name), resolver.resolve6(name)])
      signal.throwIfAborted()
      const [four, six] = asked.map((answer) => (answer.status === "fulfilled" ? answer.value : []))
      const found = [...addresses(four ?? [], 4), ...addresses(six ?? [], 6)]
      if (found.length > 0) return found
    } finally {
      signal.removeEventListener("abort", cancel)
    }
    const answer = lookingUp.then(async () => {
      signal.throwIfAborted()
      return await lookup(name, { all: true })
    })
    lookingUp = answer.catch(() => undefined)
    return (await answer).map(({ address, family }) => ({ address, family: family === 6 ? 6 : 4 }))
  }
}

async function inHosts(file: string, name: string): Promise<ResolvedAddress[]> {
  const text = await readFile(file, "utf8").catch(() => "")
  const wanted = name.toLowerCase().replace(/\.$/, "")
  return text.split("\n").flatMap((line) => {
    const [address = "", ...names] = line.replace(/#.*/, "").trim().toLowerCase().split(/\s+/)
    const family = isIP(address)
    return family !== 0 && names.includes(wanted) ? [{ address, family: family === 6 ? 6 : 4 }] : []
  })
}

const TRY_MS = 2_000
/** RFC 6761: never asked of a name server. */
const LOOPBACK: ResolvedAddress[] = [
  { address: "127.0.0.1", family: 4 },
  { address: "::1", family: 6 },
]

const addresses = (texts: readonly string[], family: 4 | 6): ResolvedAddress[] =>
  texts.map((address) => ({ address, family }))
