import type { ConnectionGater, MultiaddrConnection } from "@libp2p/interface"
import type { Clock } from "../base/clock.ts"

/**
 * Bounds what connections cost that have not been admitted yet, without ever touching an admitted one: limits by address
 * would, because members may share one. Two stages: strangers who have not even proved a key are cheap and many may wait;
 * those who have (a handshake costs some 10 ms of both) are few, known members first.
 *
 * When a stage is full the newcomer is refused, unless the one waiting longest has had its time: so neither silence nor a
 * rush of honest members returning together keeps others out.
 */
export interface Guests {
  gater: Pick<
    ConnectionGater,
    "denyInboundConnection" | "denyInboundEncryptedConnection" | "denyInboundUpgradedConnection"
  >
  /** An inbound connection is in its admission exchange; `evict` ends it. */
  entered(connection: object, peer: string, evict: () => void): void
  /** It was admitted, or is gone. */
  left(connection: object): void
}

export function createGuests(limits: {
  handshakesAtOnce: number
  clock: Clock
  isKnown: (peer: string) => boolean
}): Guests {
  const silent = createWaitingRoom(SILENT_CONNECTIONS, limits.clock)
  const guests = createWaitingRoom(limits.handshakesAtOnce, limits.clock)

  return {
    gater: {
      denyInboundConnection: (maConn) => {
        if (!silent.enter(maConn, { known: false, evict: () => maConn.abort(new Error("others want to come in")) }))
          return true
        leaveAtClose(silent, maConn)
        return false
      },
      denyInboundEncryptedConnection: (peer, maConn) => {
        silent.leave(maConn)
        const known = limits.isKnown(peer.toString())
        if (!guests.enter(maConn, { known, evict: () => maConn.abort(new Error("others want to come in")) }))
          return true
        leaveAtClose(guests, maConn)
        return false
      },
      denyInboundUpgradedConnection: (_peer, maConn) => {
        guests.leave(maConn)
        return false
      },
    },
    entered: (connection, peer, evict) => {
      guests.enter(connection, { known: limits.isKnown(peer), evict, force: true })
    },
    left: (connection) => guests.leave(connection),
  }
}

/** Connections that have not proved a key. Each is an open socket and a little memory. */
const SILENT_CONNECTIONS = 1_000
/** An honest handshake takes milliseconds; on a starved machine perhaps a second. */
const TIME_TO_ACT_MS = 2_000

interface Waiting {
  known: boolean
  evict: () => void
}

function createWaitingRoom(size: number, clock: Clock) {
  /** In the order of their coming. */
  const waiting = new Map<object, Waiting & { since: number }>()

  function makeRoom(known: boolean): boolean {
    const now = clock.monotonicMs()
    for (const [key, guest] of waiting) {
      const hadItsTime = now - guest.since >= TIME_TO_ACT_MS
      if (!hadItsTime && !(known && !guest.known)) continue
      waiting.delete(key)
      guest.evict()
      return true
    }
    return false
  }

  return {
    enter(key: object, guest: Waiting & { force?: boolean }): boolean {
      if (waiting.size >= size && guest.force !== true && !makeRoom(guest.known)) return false
      waiting.set(key, { known: guest.known, evict: guest.evict, since: clock.monotonicMs() })
      return true
    },
    leave: (key: object) => void waiting.delete(key),
  }
}

function leaveAtClose(room: { leave: (key: object) => void }, maConn: MultiaddrConnection): void {
  maConn.addEventListener("close", () => room.leave(maConn), { once: true })
}
