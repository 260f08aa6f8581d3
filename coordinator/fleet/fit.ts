import type { Capacity, Requirements } from "../../protocol/domain/requirements.ts"
import type { Enforceable, Isolation, NodeRole } from "../../protocol/domain/statuses.ts"

/** What a node says of itself that decides which work it may get. */
export interface NodeFacts {
  roles: readonly NodeRole[]
  isolation: Isolation
  enforces: readonly Enforceable[]
}

/** Which nodes the deployment trusts with project work (interfaces.md, configuration). */
export interface PlacementPolicy {
  allowUnsandboxed: boolean
  allowUnenforced: boolean
}

/** May this node run project work at all? Isolation `none` and missing limits need the deployment's leave. */
export function mayRunProjects(node: NodeFacts, policy: PlacementPolicy): boolean {
  if (!node.roles.includes("worker")) return false
  if (node.isolation === "none" && !policy.allowUnsandboxed) return false
  return policy.allowUnenforced || MUST_ENFORCE.every((limit) => node.enforces.includes(limit))
}

/** What is free of `capacity` once `used` is taken. May be negative where short tasks were handed ahead. */
export function freeOf(capacity: Capacity, used: Used): Capacity {
  return {
    cpu: capacity.cpu - used.cpu,
    memoryMb: capacity.memoryMb - used.memoryMb,
    storageGb: capacity.storageGb - used.storageGb,
    gpus: capacity.gpus.filter(({ uuid }) => !used.gpus.has(uuid)),
  }
}

export interface Used {
  cpu: number
  memoryMb: number
  storageGb: number
  gpus: ReadonlySet<string>
}

/** The GPUs the task would get, none for cpu work; null when it does not fit. Requirements are minimums (SC-001). */
export function fit(free: Capacity, need: Requirements): string[] | null {
  const fits =
    need.cpu <= free.cpu + ROUNDING &&
    need.memoryMb <= free.memoryMb + ROUNDING &&
    need.storageGb <= free.storageGb + ROUNDING
  if (!fits) return null
  if (need.gpuCount === 0) return []
  // The smallest GPUs that do, so that large ones stay free for work that needs them.
  const usable = free.gpus
    .filter(({ memoryMb }) => need.gpuMemoryMb === undefined || memoryMb >= need.gpuMemoryMb)
    .sort((a, b) => a.memoryMb - b.memoryMb || (a.uuid < b.uuid ? -1 : 1))
  return usable.length < need.gpuCount ? null : usable.slice(0, need.gpuCount).map(({ uuid }) => uuid)
}

/** How many tasks of these requirements fit side by side. */
export function slots(free: Capacity, need: Requirements): number {
  const gpus =
    need.gpuCount === 0
      ? Number.POSITIVE_INFINITY
      : free.gpus.filter(({ memoryMb }) => need.gpuMemoryMb === undefined || memoryMb >= need.gpuMemoryMb).length /
        need.gpuCount
  const count = Math.min(
    (free.cpu + ROUNDING) / need.cpu,
    (free.memoryMb + ROUNDING) / need.memoryMb,
    (free.storageGb + ROUNDING) / need.storageGb,
    gpus,
  )
  return Math.max(0, Math.floor(count))
}

/** Work with the same key fits the same nodes. */
export function requirementsKey(need: Requirements): string {
  return [need.cpu, need.memoryMb, need.storageGb, need.gpuCount, need.gpuMemoryMb ?? "-", need.profile].join("/")
}

/** Limits a stranger's task must be held to, unless the deployment allows otherwise. */
const MUST_ENFORCE: readonly Enforceable[] = ["memory", "cpu", "pids"]
/** Sums of tenths of cores are not exact. */
const ROUNDING = 1e-6
