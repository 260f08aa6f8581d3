import Database from "better-sqlite3"
import { existsSync, mkdirSync } from "node:fs"
import type { Clock } from "../../protocol/base/clock.ts"
import { errorText } from "../../protocol/base/error-text.ts"
import type { Log } from "../../protocol/base/log.ts"
import type { Random } from "../../protocol/base/random.ts"
import { assertOutsideActs } from "./acts.ts"
import { createAsideReads } from "./aside-reads.ts"
import { lockDataDir } from "./data-dir-lock.ts"
import { databaseFile, restoringFolder } from "./database-file.ts"
import { GroupCommit } from "./group-commit.ts"
import { DatabaseDamaged } from "./integrity.ts"
import { noteJobChanges } from "./job-changes.ts"
import { knownMigrations, migrate, type Migration } from "./migrate.ts"
import { SnapshotReads } from "./snapshot-reads.ts"
import { Connection } from "./statements.ts"
import { isDamage } from "./storage-errors.ts"
import type { Store } from "./store.ts"

export interface StoreOptions {
  /** Made (mode 0700) when it is missing; one process at a time. */
  dataDir: string
  clock: Clock
  log: Log
  /**
   * The process must end. A COMMIT failed and may have committed: promises of that group never settle; or (`DatabaseDamaged`)
   * a statement found the file damaged.
   */
  onFatal: (error: Error) => void
  /** Tests and simulations: an act that calls the store throws. Costs some speed. */
  strict?: boolean
  /** Tests: one act in ten runs twice, its first run rolled back. */
  repeatWrites?: Random
  /** Simulations have no threads: long reads run as short ones do. */
  asideInline?: boolean
  /** Tests of the migrations themselves; the version's own otherwise. */
  migrations?: Migration[]
}

/**
 * Opens the coordinator's database and brings its schema up to date. Throws one clear line when the directory cannot
 * be used, is in use, or was written by a newer version. Disposing runs the writes that wait, then closes.
 */
export async function openStore(options: StoreOptions): Promise<Store> {
  const { dataDir, clock, log, strict = false } = options
  try {
    mkdirSync(dataDir, { recursive: true, mode: 0o700 })
  } catch (error) {
    throw new Error(`the data directory ${dataDir} cannot be made: ${errorText(error)}`, { cause: error })
  }
  using cleanup = new DisposableStack()
  cleanup.use(lockDataDir(dataDir))
  if (existsSync(restoringFolder(dataDir))) {
    throw new Error(`a restore into the data directory ${dataDir} did not end: run it again`)
  }
  const file = databaseFile(dataDir)
  const writer = cleanup.adopt(new Database(file, { timeout: LOCK_WAIT_MS }), (database) => database.close())
  const ran = readFirst(dataDir, () => {
    writer.pragma("journal_mode = WAL")
    writer.pragma("synchronous = FULL") // the library's own default for WAL may lose the last commits at a power cut
    writer.pragma("foreign_keys = ON")
    writer.pragma("temp_store = MEMORY") // what savepoints remember; else it goes to a temporary file
    return migrate(writer, options.migrations ?? knownMigrations(), clock.now())
  })
  if (ran.length > 0) log.info("data migrated", { migrations: ran })
  const reader = cleanup.adopt(new Database(file, { readonly: true, timeout: LOCK_WAIT_MS }), (database) =>
    database.close(),
  )
  // Tests of the migrations themselves bring other tables.
  const changedJobs = options.migrations === undefined ? noteJobChanges(writer) : new Set<number>()
  const jobListeners = new Set<(jobs: ReadonlySet<number>) => void>()
  let isDamaged = false
  const onDamage = (error: unknown): void => {
    if (!isDamaged) options.onFatal(new DatabaseDamaged(dataDir, errorText(error)))
    isDamaged = true
  }
  const writes = new GroupCommit(new Connection(writer, onDamage), {
    clock,
    log,
    strict,
    repeatWrites: options.repeatWrites ?? null,
    onCommitted() {
      if (changedJobs.size === 0) return
      for (const heard of jobListeners) heard(changedJobs)
      changedJobs.clear()
    },
    onFatal: options.onFatal,
  })
  const reads = new SnapshotReads(new Connection(reader, onDamage), clock, strict)
  const aside = options.asideInline === true ? null : createAsideReads(file, clock, onDamage)
  const opened = cleanup.move()
  return {
    async write(act) {
      if (strict) assertOutsideActs()
      return writes.write(act)
    },
    async read(look) {
      if (strict) assertOutsideActs()
      return reads.read(look)
    },
    async readAside(read, ...args) {
      if (strict) assertOutsideActs()
      return aside ? aside.read(read, args) : reads.read((view) => read.run(view, ...args))
    },
    onJobsChanged(heard) {
      jobListeners.add(heard)
      return { [Symbol.dispose]: () => void jobListeners.delete(heard) }
    },
    writeProblem: () => writes.problem(),
    async [Symbol.asyncDispose]() {
      if (opened.disposed) return
      await Promise.all([writes.close(), reads.close(), aside?.[Symbol.asyncDispose]()])
      opened.dispose()
    },
  }
}

/** The first that is read of a file may show already that it is no sound database. */
function readFirst<T>(dataDir: string, act: () => T): T {
  try {
    return act()
  } catch (error) {
    if (isDamage(error) || isDamage((error as Error).cause)) throw new DatabaseDamaged(dataDir, errorText(error))
    throw error
  }
}

/**
 * How long a statement waits for another program that holds the file (a backup, a shell). It blocks this thread, so it
 * is shorter than the heartbeats' patience.
 */
const LOCK_WAIT_MS = 1_000
