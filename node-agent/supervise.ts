import { statfs } from "node:fs/promises"
import { every, sleep, type Clock } from "../protocol/base/clock.ts"
import { errorText } from "../protocol/base/error-text.ts"
import type { Log } from "../protocol/base/log.ts"
import type { Random } from "../protocol/base/random.ts"
import type { PeerId } from "../protocol/domain/ids.ts"
import type { MeshNode } from "../protocol/mesh/mesh.ts"
import { keepConnected } from "../protocol/mesh/redial.ts"
import type { ToCoordinator } from "../protocol/wire/control.ts"
import type { NodeConfig } from "./config.ts"
import { EnrolmentRefused, type Membership } from "./mesh/enrol.ts"
import { watchRefusals } from "./mesh/refusals.ts"
import { watchTime } from "./mesh/time-jumps.ts"
import type { Outbox } from "./outbox/outbox.ts"

export interface SuperviseParts {
  config: NodeConfig
  dataDir: string
  mesh: MeshNode
  coordinator: { peerId: PeerId; addresses: () => string[] }
  outbox: Outbox
  clock: Clock
  random: Random
  log: Log
  connected: () => boolean
  /** Since when there is no contact: the clock's monotonic time. */
  lostSinceMs: () => number
  peerAddresses: () => string[]
  /** How many there are in the mesh. */
  members: () => number
  send: (message: ToCoordinator) => void
  enrol: (signal: AbortSignal) => Promise<Membership>
  /** The coordinator is found at other addresses. */
  moved: (member: Membership) => void
  cannotGoOn: (line: string) => void
  /** Local time jumped. */
  timeJumped: (reason: string) => void
  /** Is there room for new tasks? Told again and again. */
  roomOnDisk: (has: boolean) => void
  /** Ends the redialing and the search for the coordinator. */
  signal: AbortSignal
}

/** Disposed of, it looks no more. */
export interface Supervision extends Disposable {
  /** After `signal`. */
  readonly ended: Promise<unknown>
}

const LOOK_AT_DISK_MS = 5_000
/** With less free disk nothing new is claimed. */
const LEAST_FREE_BYTES = 256 * 1024 ** 2
/** Without contact for this long the coordinator may have moved: its addresses are asked for again. */
const ASK_ADDRESSES_MS = 10_000

/** Keeps the agent in contact, and looks whether the machine still lets it work. */
export function supervise(parts: SuperviseParts): Supervision {
  const { mesh, coordinator, clock, send } = parts
  const redialing = keepConnected(parts)
  const following = followCoordinator(parts)
  const refusals = watchRefusals({ mesh, clock, coordinator: coordinator.peerId, send })
  const timing = watchTime(clock, (reason) => parts.timeJumped(reason))
  const looking = lookAtDisk(parts)
  return {
    ended: Promise.all([redialing, following]),
    [Symbol.dispose]() {
      looking[Symbol.dispose]()
      timing[Symbol.dispose]()
      refusals[Symbol.dispose]()
    },
  }
}

/** A coordinator that moved is found through its API, by whoever still has the token. */
async function followCoordinator(parts: SuperviseParts): Promise<void> {
  const { clock, signal } = parts
  while (!signal.aborted) {
    await sleep(clock, ASK_ADDRESSES_MS, signal).catch(() => {})
    if (signal.aborted || parts.connected() || parts.config.token === null) continue
    if (clock.monotonicMs() - parts.lostSinceMs() < ASK_ADDRESSES_MS) continue
    try {
      const found = await parts.enrol(signal)
      if (found.coordinator.peer_id === parts.coordinator.peerId) parts.moved(found)
      else return parts.cannotGoOn("another coordinator answers at this address")
    } catch (error) {
      if (error instanceof EnrolmentRefused) return parts.cannotGoOn(error.message)
    }
  }
}

function lookAtDisk({ dataDir, outbox, clock, log, roomOnDisk }: SuperviseParts): Disposable {
  let had = true

  async function look(): Promise<void> {
    try {
      outbox.flush()
    } catch (error) {
      log.warn("answered results stay in the outbox for now", { error: errorText(error) })
    }
    const { bavail, bsize } = await statfs(dataDir)
    const has = bavail * bsize >= LEAST_FREE_BYTES
    if (has !== had) log.warn(has ? "there is disk again" : "the disk is full: nothing new is claimed")
    had = has
    roomOnDisk(has)
  }

  return every(clock, LOOK_AT_DISK_MS, () => void look())
}
