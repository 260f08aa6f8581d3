import { readFileSync } from "node:fs"
import { systemClock } from "../protocol/base/clock.ts"
import { errorText } from "../protocol/base/error-text.ts"
import { createJsonLog } from "../protocol/base/json-log.ts"
import { systemRandom } from "../protocol/base/random.ts"
import { backUp } from "./backup/back-up.ts"
import { restoreBackup } from "./backup/restore.ts"
import { readConfig, type CoordinatorConfig } from "./config.ts"
import { startCoordinator } from "./coordinator.ts"
import { checkDatabase, DatabaseDamaged, doubtAbout, markDamaged } from "./store/integrity.ts"
import { OlderCopy } from "./store/meta.ts"

const log = createJsonLog("computalot-coordinator")
const version = (JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8")) as { version: string })
  .version
/** Another start on the same data would end the same way, so that whoever supervises it need not try (EX_CONFIG). */
const NOT_AGAIN = 78

try {
  const { config, command, warnings } = readConfig()
  for (const warning of warnings) console.error(warning)
  if (command.command === "back up") await runBackUp(config, command.file)
  else if (command.command === "restore") await runRestore(config, command.file)
  else await serve(config, command.takeOver)
} catch (error) {
  end(error, isForGood(error) ? NOT_AGAIN : 1)
}

async function serve(config: CoordinatorConfig, takeOver: boolean): Promise<void> {
  const doubt = doubtAbout(config.dataDir)
  if (doubt === "damaged") await checkDatabase(config.dataDir)
  const coordinator = await startCoordinator({
    config,
    clock: systemClock,
    random: systemRandom,
    log,
    version,
    takeOver,
    onFatal(error) {
      if (error instanceof DatabaseDamaged) markDamaged(config.dataDir)
      if (isForGood(error)) end(error, NOT_AGAIN)
      // The commit may or may not have happened: only a new start can know, from the file.
      log.error("the store failed: the program ends and recovers at its next start", { error: errorText(error) })
      process.exit(70)
    },
  })
  stopOn(["SIGTERM", "SIGINT"], async () => {
    await coordinator[Symbol.asyncDispose]()
  })
  say({
    event: "ready",
    http: coordinator.origin,
    mesh: coordinator.meshAddresses,
    peer_id: coordinator.peerId,
    version,
    data_dir: config.dataDir,
  })
  if (doubt === "unclean") checkDatabase(config.dataDir).catch(onCheckFailed)
}

function onCheckFailed(error: unknown): void {
  if (error instanceof DatabaseDamaged) end(error, NOT_AGAIN)
  log.error("the database could not be checked after an unclean stop", { error: errorText(error) })
}

async function runBackUp(config: CoordinatorConfig, file: string): Promise<void> {
  const startedMs = performance.now()
  const { bytes, epoch, createdAt } = await backUp(config.dataDir, file, version)
  say({ event: "backup", file, bytes, epoch, created_at: createdAt, ms: Math.round(performance.now() - startedMs) })
}

async function runRestore(config: CoordinatorConfig, file: string): Promise<void> {
  const { epoch, createdAt, missing } = await restoreBackup(file, config.dataDir)
  for (const { digest, kind, owner } of missing.first) log.warn("a blob is missing", { digest, kind, owner })
  say({
    event: "restored",
    data_dir: config.dataDir,
    file,
    epoch,
    created_at: createdAt,
    missing_blobs: missing.count,
  })
}

function isForGood(error: unknown): boolean {
  return error instanceof OlderCopy || error instanceof DatabaseDamaged
}

/** One line for whoever has to act. */
function end(error: unknown, exitCode: number): never {
  console.error(`computalot-coordinator: ${errorText(error)}`)
  process.exit(exitCode)
}

function say(line: Record<string, unknown>): void {
  console.log(JSON.stringify(line))
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
