import { request as httpRequest, type IncomingMessage } from "node:http"
import { request as httpsRequest } from "node:https"
import type { LookupFunction } from "node:net"
import type { Clock } from "../../protocol/base/clock.ts"
import { literalAddress, mayReach, type Reach } from "./callback-url.ts"
import type { Resolve, ResolvedAddress } from "./resolve.ts"

/** `failed` may work another time; `refused` is what this deployment never does. Reasons are for the job's owner. */
export type CallOutcome =
  | { kind: "delivered" }
  | { kind: "failed"; reason: string }
  | { kind: "refused"; reason: string }

export interface Call {
  url: string
  headers: Readonly<Record<string, string>>
  body: Uint8Array
}

export interface CallParts {
  clock: Clock
  resolve: Resolve
  reach: Reach
  timeoutMs: number
}

/**
 * One POST to a client's URL. The name is resolved once, every address of it is checked, and the connection goes to these
 * addresses and no others, so that a name that changes in between changes nothing. Redirects are answers like any other.
 * Only a 2xx whose answer came whole (or more than is read of one) is delivered. Rejects only when `signal` is aborted.
 */
export async function callReceiver(parts: CallParts, call: Call, signal: AbortSignal): Promise<CallOutcome> {
  const late = new AbortController()
  const timer = parts.clock.after(parts.timeoutMs, () => late.abort(new Error("too late")))
  const either = AbortSignal.any([signal, late.signal])
  try {
    const url = new URL(call.url)
    const addresses = await addressesOf(url, parts.resolve, either)
    const refused = addresses.find(({ address }) => !mayReach(address, parts.reach))
    if (refused) return { kind: "refused", reason: `${url.hostname} is at ${refused.address}, not a public address` }
    return await post(url, addresses, call, either)
  } catch (error) {
    signal.throwIfAborted()
    const seconds = parts.timeoutMs / 1_000
    return { kind: "failed", reason: late.signal.aborted ? `no whole answer within ${seconds} s` : briefly(error) }
  } finally {
    timer.cancel()
  }
}

async function addressesOf(url: URL, resolve: Resolve, signal: AbortSignal): Promise<ResolvedAddress[]> {
  const literal = literalAddress(url)
  if (literal !== null) return [{ address: literal, family: literal.includes(":") ? 6 : 4 }]
  const found = await abortable(resolve(url.hostname, signal), signal)
  if (found.length === 0) throw new Error(`${url.hostname} has no address`)
  return found
}

function post(
  url: URL,
  addresses: readonly ResolvedAddress[],
  { headers, body }: Call,
  signal: AbortSignal,
): Promise<CallOutcome> {
  const send = url.protocol === "https:" ? httpsRequest : httpRequest
  return new Promise((resolve, reject) => {
    const request = send(url, {
      method: "POST",
      // A connection of its own, so that none to another address is used again.
      agent: false,
      headers: { ...headers, "content-length": String(body.byteLength) },
      lookup: only(addresses),
      maxHeaderSize: LARGEST_HEADERS,
      signal,
    })
    let isAnswered = false
    request.on("response", (response) => {
      isAnswered = true
      answered(response)
        .then(resolve, reject)
        .finally(() => request.destroy())
    })
    request.on("error", reject)
    // Of an answer that was cut off its reader tells.
    request.on("close", () => isAnswered || reject(new Error("the connection was closed without an answer")))
    request.end(body)
  })
}

/** Reads the answer to its end, or as much of it as anyone needs. */
async function answered(response: IncomingMessage): Promise<CallOutcome> {
  const status = response.statusCode ?? 0
  if (status < 200 || status > 299) {
    response.destroy()
    const why = status >= 300 && status < 400 ? ": redirects are not followed" : ""
    return { kind: "failed", reason: `answered ${status}${why}` }
  }
  let read = 0
  for await (const chunk of response) {
    read += (chunk as Uint8Array).byteLength
    if (read > MOST_READ) break
  }
  return { kind: "delivered" }
}

const LARGEST_HEADERS = 16 * 1024
const MOST_READ = 64 * 1024

/** Gives the addresses that were checked, whatever is asked. */
function only(addresses: readonly ResolvedAddress[]): LookupFunction {
  return (_name, options, callback) => {
    const [first] = addresses
    if (options.all) callback(null, [...addresses])
    else callback(null, first?.address ?? "", first?.family ?? 4)
  }
}

/** Some resolvers cannot be stopped; nobody waits for them then. */
function abortable<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = (): void => reject(signal.reason as Error)
    if (signal.aborted) return abort()
    signal.addEventListener("abort", abort, { once: true })
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort))
  })
}

/** A code says enough; messages of the network name addresses. */
function briefly(error: unknown): string {
  const { code, message } = error as NodeJS.ErrnoException
  if (code === "ENOTFOUND" || code === "ENODATA") return "the name was not found"
  return code === undefined ? message : `the connection failed (${code})`
}
