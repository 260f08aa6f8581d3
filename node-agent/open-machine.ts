import { mkdirSync } from "node:fs"
import { join } from "node:path"
import type { Clock } from "../protocol/base/clock.ts"
import type { Log } from "../protocol/base/log.ts"
import { openBlobs, type Blobs } from "./cache/blobs.ts"
import type { createHasher, Hasher } from "./cache/hasher.ts"
import type { NodeConfig } from "./config.ts"
import type { HardwareProbe } from "./hardware/probe.ts"
import type { chooseDriver } from "./runtime/choose-driver.ts"
import type { DriverProbe, RuntimeDriver } from "./runtime/driver.ts"
import { openLayerStore, type LayerStore } from "./runtime/images/layer-store.ts"

/** What runs tasks on this machine, and where it keeps their content. */
export interface Machine {
  driver: RuntimeDriver
  probe: DriverProbe
  /** What tasks get of what the driver can give. */
  network: DriverProbe["network"]
  attemptsDir: string
  hasher: Hasher
  blobs: Blobs
  /** Null: plain processes run in no image. */
  layers: LayerStore | null
  /** In bytes: of blobs, and as much again of what is made of them. */
  halfCache: number
}

export interface MachineParts {
  config: NodeConfig
  dataDir: string
  hardware: HardwareProbe
  /** No task reaches these. */
  blockedAddresses: string[]
  clock: Clock
  log: Log
  outside: { chooseDriver: typeof chooseDriver; createHasher: typeof createHasher }
}

/** Throws where the operator asks for what cannot be enforced here. `opening` closes what it opens. */
export async function openMachine(opening: AsyncDisposableStack, parts: MachineParts): Promise<Machine> {
  const { config, dataDir, hardware, blockedAddresses, clock, log, outside } = parts
  const attemptsDir = join(dataDir, "attempts")
  mkdirSync(attemptsDir, { recursive: true, mode: 0o711 })
  const { driver, probe, problems } = await outside.chooseDriver(
    config.runtime,
    { dataDir, attemptsDir, blockedAddresses },
    config,
  )
  opening.use(driver)
  for (const problem of [...hardware.problems, ...problems]) log.warn("not everything works here", { problem })
  if (config.taskNetwork === "outbound" && probe.network === "none") {
    const why = driver.name === "process" ? "plain processes share the machine's network" : probe.problems.join("; ")
    throw new Error(`--task-network outbound cannot be enforced here: ${why}`)
  }
  const network = config.taskNetwork === "none" ? "none" : probe.network
  const hasher = opening.use(outside.createHasher(clock))
  const halfCache = Math.floor(config.cacheBytes / 2)
  const blobs = opening.use(
    await openBlobs({ directory: join(dataDir, "blobs"), quotaBytes: halfCache, clock, log, hasher }),
  )
  const layers =
    driver.name === "process"
      ? null
      : opening.use(await openLayerStore({ directory: join(dataDir, "layers"), quotaBytes: halfCache, clock, log }))
  return { driver, probe, network, attemptsDir, hasher, blobs, layers, halfCache }
}
