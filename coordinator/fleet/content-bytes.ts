import type { NodeId } from "../../protocol/domain/ids.ts"
import type { Member } from "./members.ts"

/** How many bytes of content reached nodes since this start: for whoever watches, and nothing depends on it. */
export interface ContentBytes {
  readonly total: { origin: number; peer: number }
  /** The coordinator sent a node this much. */
  sent(bytes: number): void
  /** A node says how much it has fetched from peers since its agent started. */
  heard(member: Pick<Member, "id" | "facts">, bytesSinceBoot: number): void
}

export function createContentBytes(): ContentBytes {
  const total = { origin: 0, peer: 0 }
  const known = new Map<NodeId, { boot: string; bytes: number }>()
  return {
    total,
    sent: (bytes) => void (total.origin += bytes),
    heard({ id, facts }, bytes) {
      if (facts === null) return
      const before = known.get(id)
      // What an agent fetched before this start was counted, if at all, by the one before.
      if (before?.boot === facts.bootId) total.peer += Math.max(0, bytes - before.bytes)
      known.set(id, { boot: facts.bootId, bytes })
    },
  }
}
