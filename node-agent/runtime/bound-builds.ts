import { readFileSync } from "node:fs"
import type { BuildBounds } from "./images/build-bounds.ts"
import type { GroupLimits, TaskGroups } from "./limits.ts"
import type { TaskNetworks } from "./network.ts"

export interface BoundBuildsParts {
  /** This agent's: its sweep at the next start removes what a killed agent's builds left. */
  groups: TaskGroups
  limits: GroupLimits
  /** Null: builds get no network. */
  networks: TaskNetworks | null
}

/** Makes the bounds of one build after another; `directory` is the build's own. */
export function boundBuilds(parts: BoundBuildsParts): (directory: string) => Promise<BuildBounds> {
  const { groups, limits, networks } = parts
  let builds = 0
  return async (directory) => {
    const name = `build-${++builds}`
    const { directories, oomFile } = groups.make(name)
    try {
      groups.limit(name, limits)
      const networkNamespace = await networks?.make(directory)
      const nameServers = networks?.nameServers ?? []
      return {
        confine: (command) => ["sh", "-c", ENTER, "sh", ...directories, "--", ...command],
        outbound: networkNamespace === undefined ? null : { networkNamespace, nameServers },
        memoryKilledAt: () => (killsIn(oomFile) > 0 ? limits.memoryBytes : null),
        async release() {
          await groups.remove(name)
          await networks?.remove(directory)
        },
      }
    } catch (error) {
      await groups.remove(name)
      await networks?.remove(directory)
      throw error
    }
  }
}

/** Goes into every group named before `--`, then becomes the command: all that it starts is born there. */
const ENTER = 'while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs" || exit 125; shift; done; shift; exec "$@"'

/** Both versions of control groups count under the same name. */
function killsIn(oomFile: string | undefined): number {
  if (oomFile === undefined) return 0
  try {
    return Number(/^oom_kill (\d+)$/m.exec(readFileSync(oomFile, "utf8"))?.[1] ?? 0)
  } catch {
    return 0
  }
}
