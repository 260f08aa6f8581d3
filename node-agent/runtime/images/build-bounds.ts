import type { Confine } from "./buildah.ts"

/** What one build may use of this machine: control groups of its own, and a network of its own or none. */
export interface BuildBounds {
  confine: Confine
  /** Where RUN may reach out, kept from private addresses; null: nowhere. */
  outbound: { networkNamespace: string; nameServers: readonly string[] } | null
  /** Was a process of the build killed because all of them together needed more memory than this? */
  memoryKilledAt(): number | null
  /** Kills what is left of the build and takes its groups and network away. */
  release(): Promise<void>
}

/** Where nothing is limited and nothing reached. */
export const UNBOUNDED: BuildBounds = {
  confine: (command) => [...command],
  outbound: null,
  memoryKilledAt: () => null,
  release: () => Promise.resolve(),
}
