import { sleep, type Clock } from "../base/clock.ts"
import { errorText } from "../base/error-text.ts"
import type { Log } from "../base/log.ts"
import type { Random } from "../base/random.ts"
import type { PeerId } from "../domain/ids.ts"
import type { Mesh } from "./mesh.ts"

export interface RedialOptions {
  mesh: Mesh
  clock: Clock
  random: Random
  log: Log
  /** The coordinator, and where it may be reached; asked before each try, because addresses change. */
  coordinator: { peerId: PeerId; addresses: () => string[] }
  /** Addresses of other members, each ending in `/p2p/<peerId>`, as far as they are known now. */
  peerAddresses: () => string[]
  /** How many members the mesh has, as the coordinator last said. */
  members: () => number
  /** Ends the supervision for good. */
  signal: AbortSignal
}

/** Beside the coordinator a node keeps this many peers, so that one lost connection splits nothing off. */
const PEERS_KEPT = 2

/**
 * Keeps a connection to the coordinator and to at least two peers, for ever: whenever one is missing it dials, each time
 * after a random delay within `redialWindowMs`. Resolves when the signal is aborted; never rejects.
 */
export async function keepConnected(options: RedialOptions): Promise<void> {
  const { mesh, coordinator } = options
  await Promise.all([
    supervise(options, {
      satisfied: () => mesh.peers().includes(coordinator.peerId),
      addresses: coordinator.addresses,
    }),
    supervise(options, {
      satisfied: () => mesh.peers().filter((peer) => peer !== coordinator.peerId).length >= PEERS_KEPT,
      addresses: () => strangers(options),
    }),
  ])
}

async function supervise(
  { mesh, clock, random, log, members, signal }: RedialOptions,
  wanted: { satisfied: () => boolean; addresses: () => string[] },
): Promise<void> {
  // A node that starts comes alone; those that lost the same peer at the same moment come together and spread out.
  let delayMs = 0
  while (!signal.aborted) {
    if (wanted.satisfied()) {
      await peersChanged(mesh, clock, signal)
      continue
    }
    await rest(clock, delayMs, signal)
    delayMs = random.integer(Math.ceil(redialWindowMs(members())))
    const addresses = wanted.addresses()
    const address = addresses[random.integer(Math.max(1, addresses.length))]
    if (address === undefined || signal.aborted || wanted.satisfied()) continue
    try {
      await mesh.dial(address, signal)
    } catch (error) {
      log.debug("dial failed", { address, error: errorText(error) })
    }
  }
}

/** Addresses of members that are neither connected, nor we, nor the coordinator. */
function strangers({ mesh, coordinator, peerAddresses }: RedialOptions): string[] {
  const known = new Set<string>([...mesh.peers(), mesh.peerId, coordinator.peerId])
  return peerAddresses().filter((address) => !known.has(address.slice(address.lastIndexOf("/") + 1)))
}

/** Resolves at the next change of peers, and at the latest when it is time to look again, or the signal is aborted. */
async function peersChanged(mesh: Mesh, clock: Clock, signal: AbortSignal): Promise<void> {
  const changed = new AbortController()
  const stopWatching = mesh.watchPeers(() => changed.abort())
  await rest(clock, LOOK_AGAIN_MS, AbortSignal.any([signal, changed.signal]))
  stopWatching()
}

/** Sleeps; being woken early is no error here. */
async function rest(clock: Clock, delayMs: number, signal: AbortSignal): Promise<void> {
  await sleep(clock, delayMs, signal).catch(() => {})
}

/**
 * The random delay before a dial lies within this: after a coordinator's restart all members return, and at fifty a second
 * they find it able to serve them (architecture §5.3).
 */
export function redialWindowMs(members: number): number {
  return Math.min(LONGEST_WINDOW_MS, Math.max(SHORTEST_WINDOW_MS, (members / HANDSHAKES_A_SECOND) * 1_000))
}

const HANDSHAKES_A_SECOND = 50
const SHORTEST_WINDOW_MS = 1_000
const LONGEST_WINDOW_MS = 300_000
/** How long a satisfied supervisor rests when nothing wakes it. */
const LOOK_AGAIN_MS = 30_000
