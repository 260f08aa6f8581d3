import type { NodeId } from "../../protocol/domain/ids.ts"

/**
 * Tells a key that two machines speak with from an agent that restarts (architecture §5.1): every start of an agent has a boot
 * id of its own, so one that comes back after another was heard belongs to a second machine.
 */
export interface Boots {
  /** A hello with this boot id came. True when two boot ids have alternated three times within a minute. */
  heard(node: NodeId, bootId: string, nowMs: number): boolean
  /** Of the boot ids heard since this start: is it the one that was heard of last? */
  isNewest(node: NodeId, bootId: string): boolean
}

export function createBoots(): Boots {
  const nodes = new Map<NodeId, { known: string[]; latest: string; returnsMs: number[] }>()
  return {
    heard(node, bootId, nowMs) {
      const its = nodes.get(node)
      if (!its) {
        nodes.set(node, { known: [bootId], latest: bootId, returnsMs: [] })
        return false
      }
      if (bootId === its.latest) return false
      its.latest = bootId
      its.returnsMs = its.returnsMs.filter((atMs) => nowMs - atMs <= ALTERNATION_MS)
      if (its.known.includes(bootId)) its.returnsMs.push(nowMs)
      else its.known = [...its.known, bootId].slice(-BOOTS_KNOWN)
      return its.returnsMs.length >= RETURNS
    },
    isNewest: (node, bootId) => (nodes.get(node)?.known.at(-1) ?? bootId) === bootId,
  }
}

const ALTERNATION_MS = 60_000
/** From the first to the second, back, and to the second again are three changes, two of them to a boot id known before. */
const RETURNS = 2
const BOOTS_KNOWN = 8
