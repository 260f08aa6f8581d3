import { sleep, type Clock } from "../../protocol/base/clock.ts"
import type { PeerId } from "../../protocol/domain/ids.ts"
import type { Mesh } from "../../protocol/mesh/mesh.ts"
import type { ToCoordinator } from "../../protocol/wire/control.ts"

/** Between the two tries: an agent that is started again at once may be back by then. */
const BETWEEN_TRIES_MS = 2_000

/**
 * Tells the coordinator of members that are gone: one to which we had dialled, whose connection ended, and whose address then
 * refuses connections, twice (architecture §5.5). An address that does not answer at all, or that we never reached, proves
 * nothing.
 */
export function watchRefusals(parts: {
  mesh: Pick<Mesh, "watchPeers" | "dial" | "peers">
  clock: Clock
  coordinator: PeerId
  send: (message: ToCoordinator) => void
}): Disposable {
  const { mesh, clock } = parts
  const stopped = new AbortController()

  async function isGone(peer: PeerId, address: string): Promise<boolean> {
    for (let tries = 0; tries < 2; tries++) {
      if (tries > 0) await sleep(clock, BETWEEN_TRIES_MS, stopped.signal)
      if (mesh.peers().includes(peer) || !(await refuses(address))) return false
    }
    return true
  }

  async function refuses(address: string): Promise<boolean> {
    try {
      await mesh.dial(address, stopped.signal)
      return false
    } catch (error) {
      return isRefusal(error)
    }
  }

  const stopWatching = mesh.watchPeers(({ peer, connected, dialledAt }) => {
    if (connected || dialledAt === undefined || peer === parts.coordinator || stopped.signal.aborted) return
    isGone(peer, dialledAt).then(
      (gone) => gone && parts.send({ type: "complaint", peer_id: peer, kind: "refuses" }),
      () => {},
    )
  })
  return {
    [Symbol.dispose]() {
      stopWatching()
      stopped.abort(new Error("nobody watches any more"))
    },
  }
}

/** Anywhere in what a dial throws: each address that was tried has its own error. */
function isRefusal(error: unknown): boolean {
  if (!(error instanceof Error)) return false
  if ("code" in error && error.code === "ECONNREFUSED") return true
  if (error instanceof AggregateError) return error.errors.length > 0 && error.errors.every(isRefusal)
  return error.message.includes("ECONNREFUSED") || isRefusal(error.cause)
}
