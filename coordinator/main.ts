#!/usr/bin/env node
import "./small-heap.ts"
import { readFileSync } from "node:fs"
import { systemClock } from "../protocol/base/clock.ts"
import { errorText } from "../protocol/base/error-text.ts"
import { createJsonLog } from "../protocol/base/json-log.ts"
import { systemRandom } from "../protocol/base/random.ts"
import { readConfig } from "./config.ts"
import { startCoordinator } from "./coordinator.ts"

const log = createJsonLog("computalot-coordinator")
const version = (JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8")) as { version: string })
  .version

try {
  const { config, warnings } = readConfig()
  for (const warning of warnings) console.error(warning)
  const coordinator = await startCoordinator({
    config,
    clock: systemClock,
    random: systemRandom,
    log,
    version,
    onFatal(error) {
      // The commit may or may not have happened: only a new start can know, from the file.
      log.error("the store failed: the program ends and recovers at its next start", { error: errorText(error) })
      process.exit(70)
    },
  })
  stopOn(["SIGTERM", "SIGINT"], async () => {
    await coordinator[Symbol.asyncDispose]()
  })
  const ready = {
    event: "ready",
    http: coordinator.origin,
    mesh: coordinator.meshAddresses,
    peer_id: coordinator.peerId,
    version,
    data_dir: config.dataDir,
  }
  console.log(JSON.stringify(ready))
} catch (error) {
  console.error(`computalot-coordinator: ${errorText(error)}`)
  process.exit(1)
}

/** The first signal stops cleanly; a second one ends at once. */
function stopOn(signals: NodeJS.Signals[], stop: () => Promise<void>): void {
  let stopping = false
  for (const signal of signals) {
    process.on(signal, () => {
      if (stopping) process.exit(130)
      stopping = true
      log.info("stopping", { signal })
      stop().then(
        () => process.exit(0),
        (error: unknown) => {
          console.error(`computalot-coordinator: it did not stop cleanly: ${errorText(error)}`)
          process.exit(1)
        },
      )
    })
  }
}
