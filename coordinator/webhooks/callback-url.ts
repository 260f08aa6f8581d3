import { isIP } from "node:net"
import { addressKind } from "../../protocol/base/addresses.ts"

/** Which addresses besides public ones the coordinator may be sent to by a client's URL (interfaces, ALLOW_PRIVATE_URLS). */
export interface Reach {
  privateAddresses: boolean
  loopback: boolean
}

export const PUBLIC_ONLY: Reach = { privateAddresses: false, loopback: false }

/** Loopback is fine for a coordinator that itself can be reached by loopback alone (GAP-61). */
export function reachOf(config: { allowPrivateUrls: boolean; httpHost: string; meshHost: string }): Reach {
  const isLocal = [config.httpHost, config.meshHost].every(
    (host) => host === "localhost" || addressKind(host) === "loopback",
  )
  return { privateAddresses: config.allowPrivateUrls, loopback: isLocal }
}

/** Longer ones are no addresses but data. */
const LONGEST_URL = 2_048

/** What is wrong with a `callback_url`, as the rest of a sentence; null where it can be called (J-013, GAP-61). */
export function callbackUrlProblem(text: string): string | null {
  const url = text.length <= LONGEST_URL && URL.canParse(text) ? new URL(text) : null
  if (url === null || !/^https?:$/.test(url.protocol))
    return `must be an http or https address of at most ${LONGEST_URL} characters`
  return null
}

/**
 * What is wrong with an address that the URL spells out, decimal, mapped and other spellings included; null for names, which
 * are looked up at every call.
 */
export function literalAddressProblem(text: string, reach: Reach): string | null {
  const address = literalAddress(new URL(text))
  if (address === null || mayReach(address, reach)) return null
  return `points at ${address}, which is not a public address: this deployment calls public addresses only`
}

/** The address a URL spells out, in its usual form; null for a name. */
export function literalAddress({ hostname }: URL): string | null {
  const bare = hostname.replace(/^\[(.*)\]$/, "$1")
  return isIP(bare) === 0 ? null : bare
}

export function mayReach(address: string, reach: Reach): boolean {
  const kind = addressKind(address)
  return kind === "public" || reach.privateAddresses || (kind === "loopback" && reach.loopback)
}
