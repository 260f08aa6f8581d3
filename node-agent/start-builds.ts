import { join, resolve } from "node:path"
import type { Clock } from "../protocol/base/clock.ts"
import type { Log } from "../protocol/base/log.ts"
import type { Random } from "../protocol/base/random.ts"
import type { Capacity } from "../protocol/domain/requirements.ts"
import type { NodeConfig } from "./config.ts"
import { boundBuilds } from "./runtime/bound-builds.ts"
import { createImageBuilder } from "./runtime/images/build.ts"
import { openTaskGroups } from "./runtime/limits.ts"
import { openTaskNetworks, type TaskNetworks } from "./runtime/network.ts"
import { openBuildOrders, type BuildOrders, type BuildOrdersParts } from "./tasks/build-orders.ts"

export interface BuildsParts extends Omit<BuildOrdersParts, "builder" | "directory"> {
  config: NodeConfig
  dataDir: string
  capacity: Capacity
  /** No build reaches these. */
  blockedAddresses: string[]
  clock: Clock
  random: Random
  log: Log
}

/** A build's weight against tasks: it takes more while nothing else wants it. */
const BUILD_CPU = 1
/** Of buildah, runsc and what RUN starts, threads included. */
const BUILD_PIDS = 4096

/** The machine's own image builder; null: it builds nothing. `opening` closes what it opens. */
export async function startBuilds(opening: AsyncDisposableStack, parts: BuildsParts): Promise<BuildOrders | null> {
  const { config, dataDir, capacity, log } = parts
  const directory = join(dataDir, "builder")
  const groups = openTaskGroups(dataDir)
  if (!groups.enforces.includes("memory")) log.warn("builds are not limited: no control groups can be made here")
  const networks = await buildNetworks(opening, parts, directory)
  const builder = await createImageBuilder({
    directory,
    bounds: boundBuilds({
      groups,
      limits: {
        memoryBytes: Math.floor(capacity.memoryMb * 1024 ** 2),
        cpu: Math.min(BUILD_CPU, capacity.cpu),
        pids: BUILD_PIDS,
      },
      networks,
    }),
    basesDirectory: resolve(config.basesDirectory),
    pullBases: config.pullBases,
    packages: { pipIndexUrl: config.pipIndexUrl ?? undefined, npmRegistry: config.npmRegistry ?? undefined },
    log,
  })
  const found = await builder.probe()
  for (const problem of found.problems) log.warn("not every image can be built here", { problem })
  if (!found.available) {
    await builder[Symbol.asyncDispose]()
    return null
  }
  opening.use(builder)
  return await openBuildOrders({ ...parts, builder, directory: join(dataDir, "builds") })
}

/** Of builds alone, or null. Throws where the operator asks for what cannot be enforced here. */
async function buildNetworks(
  opening: AsyncDisposableStack,
  { config, blockedAddresses, log }: BuildsParts,
  directory: string,
): Promise<TaskNetworks | null> {
  if (config.buildNetwork === "none") return null
  const networks = await openTaskNetworks(directory, blockedAddresses)
  if (networks.problem !== null) {
    if (config.buildNetwork === "outbound") throw new Error(`--build-network outbound: ${networks.problem}`)
    log.warn("builds get no network", { problem: networks.problem })
    return null
  }
  await networks.sweep([])
  opening.defer(() => networks.close())
  return networks
}
