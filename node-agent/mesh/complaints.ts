import type { Clock } from "../../protocol/base/clock.ts"
import type { PeerId } from "../../protocol/domain/ids.ts"
import type { ToCoordinator } from "../../protocol/wire/control.ts"

/** Tells the coordinator of peers that gave wrong pieces: each at most once a minute, however many it gives. */
export function createComplaints(parts: { clock: Clock; send: (message: ToCoordinator) => void }) {
  const toldAtMs = new Map<PeerId, number>()
  return (peer: PeerId): void => {
    const nowMs = parts.clock.monotonicMs()
    for (const [told, atMs] of toldAtMs) if (nowMs - atMs >= COMPLAINT_INTERVAL_MS) toldAtMs.delete(told)
    if (toldAtMs.has(peer)) return
    toldAtMs.set(peer, nowMs)
    parts.send({ type: "complaint", peer_id: peer, kind: "content" })
  }
}

const COMPLAINT_INTERVAL_MS = 60_000
